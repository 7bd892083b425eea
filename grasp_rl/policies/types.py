"""What a policy passes between its own stages: encoded, embedded, scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from grasp_rl.interfaces import CoordinateFrame
from grasp_rl.policies.backbones.base import ImageFeatures


@dataclass(frozen=True, kw_only=True)
class EncodedPrompt:
    """One image and question, ready for the model."""

    input_ids: Tensor
    """[P] token ids; the image's place holds one image token per merged patch."""
    inputs: Mapping[str, Tensor]
    """The image as the model family takes it, by keyword; see grasp_rl.policies.backbones.base."""
    frame: CoordinateFrame
    """What the policy's coordinates mean for this image."""
    messages: Sequence[Mapping[str, Any]] = ()
    """The chat messages that ``input_ids`` were made of, the image's place included."""
    image_key: str = ""
    """What stands for the image in a cache of features that outlives a step; empty without one."""
    image_features: list[ImageFeatures] = field(default_factory=list, compare=False)
    """The image's features, once a frozen vision encoder has looked; else empty."""


@dataclass(frozen=True, kw_only=True)
class EmbeddedPrompt:
    """A prompt after the vision encoder: shared by rollout, update and reference where the vision encoder is frozen."""

    embeddings: Tensor
    """[P, D]"""
    deepstack: tuple[Tensor, ...]
    """Per DeepStack layer [image tokens, D]; () for models without."""
    visual: Tensor
    """[P] bool, True at image tokens; on the CPU, where rows are laid out."""
    positions: Tensor
    """[A, P] positions: one axis, or the three of M-RoPE; on the CPU."""


class LanguageModel(Protocol):
    """What generation and the packed forward need of a policy: the stock model, called with ready-made embeddings."""

    tokenizer: Any
    ends: list[int]
    """Token ids that end a completion."""
    scorer: Any
    """Output layer that scores given tokens; see grasp_rl.policies.logprobs."""
    decoding: str
    packed_attention: str
    fused_head: bool
    training: bool

    @property
    def device(self) -> torch.device: ...

    @property
    def stock(self) -> Any:
        """The ...ForConditionalGeneration."""
        ...

    @property
    def core(self) -> Any:
        """Its body: vision encoder and ``language_model``."""
        ...

    def language_model(self, hidden: Tensor, positions: Tensor, mask: Tensor | None, *args: Any, **kwargs: Any) -> Any:
        """The stock language model's output for embeddings [B, L, D]."""
        ...

    def train(self, mode: bool = True) -> Any: ...

    def eval(self) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The distribution that completions are drawn from, and so the one that they are scored under."""

    temperature: float = 1.0
    """Divides the logits."""
    top_k: int = 0
    """Only the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Only the likeliest tokens that together reach this probability (nucleus sampling, arXiv 1904.09751)."""

    @property
    def whole(self) -> bool:
        """Whether no token is cut off."""
        return self.top_k == 0 and self.top_p == 1.0

    def log_softmax(self, logits: Tensor, keep: Tensor | None = None) -> Tensor:
        """[N, V] float32 log-probabilities for ``logits`` [N, V]; -inf for tokens that are cut off.

        Args:
            logits: of any floating type.
            keep: [N] tokens that are never cut off: those that were drawn, so that rounding cannot lose them.
        """
        scaled = logits.float() / self.temperature if self.temperature != 1.0 else logits.float()
        if self.whole:
            return torch.log_softmax(scaled, dim=-1)
        with torch.no_grad():
            ordered, order = scaled.sort(dim=-1, descending=True)
            kept = torch.ones_like(ordered, dtype=torch.bool)
            if self.top_k:
                kept[:, self.top_k :] = False
            if self.top_p < 1.0:  # of what top_k left, as transformers and vLLM do
                shares = ordered.masked_fill(~kept, -torch.inf).softmax(-1)
                kept &= shares.cumsum(-1) - shares < self.top_p
            seen = torch.zeros_like(kept).scatter(-1, order, kept)
            if keep is not None:
                seen = seen.scatter(-1, keep[:, None], True)
        return torch.log_softmax(scaled.masked_fill(~seen, -torch.inf), dim=-1)


WHOLE = Sampling()
"""The model's own distribution."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a forward over B packed rows of G completions says about their tokens."""

    logp: Tensor
    """[B, G, C] log-probabilities; 0 where no token is scored."""
    entropy: Tensor
    """[B, G, C] entropies, detached; 0 where no token is scored or none was wanted."""
    valid: Tensor
    """[B, G, C] bool, True where a token is scored."""
    image_attention: Tensor | None = None
    """[B, G, C, T] share of attention that each token's prediction pays to each image token, if wanted."""


def deepstack_of(prompts: Sequence[EmbeddedPrompt]) -> list[Tensor]:
    """DeepStack features of all rows, concatenated in row order, one tensor per layer."""
    return [torch.cat(layer) for layer in zip(*(p.deepstack for p in prompts), strict=True)]
