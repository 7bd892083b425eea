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
class EncodedImage:
    """One image, ready for the model; prompts that show the same image share it."""

    inputs: Mapping[str, Tensor]
    """The image as the model family takes it, by keyword; see grasp_rl.policies.backbones.base."""
    key: str = ""
    """What stands for the image in a cache of features that outlives a step; empty without one."""
    features: list[ImageFeatures] = field(default_factory=list, compare=False)
    """The image's features, once a frozen vision encoder has looked; else empty."""


@dataclass(frozen=True, kw_only=True)
class EncodedPrompt:
    """One or more images and a question, ready for the model."""

    input_ids: Tensor
    """[P] token ids; an image's place holds one image token per merged patch."""
    images: tuple[EncodedImage, ...]
    """In the order of their places."""
    frame: CoordinateFrame
    """What the policy's coordinates mean for the image that the answer is about."""
    messages: Sequence[Mapping[str, Any]] = ()
    """The chat messages that ``input_ids`` were made of, the images' places included."""
    shared: int = 0
    """Leading tokens that are the first turn's prompt; 0 in the first turn."""
    shared_images: int = 0
    """Images among them."""
    said: tuple[tuple[int, int], ...] = ()
    """First token of each earlier answer and the one after its last: an image token in there was drawn, no image."""

    def image_tokens(self, token_id: int) -> Tensor:
        """[P] bool: where ``token_id`` stands for a part of an image."""
        result = self.input_ids == token_id
        for start, stop in self.said:
            result[start:stop] = False
        return result

    @property
    def inputs(self) -> Mapping[str, Tensor]:
        """The inputs of all images, one after the other."""
        if len(self.images) == 1:
            return self.images[0].inputs
        return {name: torch.cat([image.inputs[name] for image in self.images]) for name in self.images[0].inputs}


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

    @property
    def next_position(self) -> Tensor:
        """Position of the token that follows, on every axis."""
        return self.positions.max() + 1


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


def joined_features(images: Sequence[ImageFeatures]) -> ImageFeatures:
    """The features of several images, one behind the other."""
    if len(images) == 1:
        return images[0]
    return ImageFeatures(
        tokens=torch.cat([image.tokens for image in images]),
        deepstack=tuple(torch.cat(layer) for layer in zip(*(image.deepstack for image in images), strict=True)),
    )


def deepstack_of(prompts: Sequence[EmbeddedPrompt]) -> list[Tensor]:
    """DeepStack features of all rows, concatenated in row order, one tensor per layer."""
    return [torch.cat(layer) for layer in zip(*(p.deepstack for p in prompts), strict=True)]
