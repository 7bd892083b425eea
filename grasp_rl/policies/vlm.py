"""A vision-language policy on stock transformers: encode, generate G completions, score a packed shared-prefix row.

The image goes through the vision encoder once per phase; its features and the prompt's embeddings are shared by the G
completions. No modelling code is copied: the language model of the stock class is called with embeddings, positions,
DeepStack features and a 4-D mask of our own. What differs between families stands in grasp_rl/policies/backbones.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.utils.logging import disable_progress_bar

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import PromptConfig
from grasp_rl.interfaces import CoordinateFrame
from grasp_rl.policies.activation_checkpointing import recompute
from grasp_rl.policies.attention import PREFIX, register
from grasp_rl.policies.backbones.base import FRAMES, Backbone, ImageFeatures, ImageInputs
from grasp_rl.policies.compat import cache_keyword
from grasp_rl.policies.feature_cache import FeatureCache
from grasp_rl.policies.generation.decode import stream
from grasp_rl.policies.hub import check_keys
from grasp_rl.policies.logprobs import TokenScorer
from grasp_rl.policies.lora import cast_once
from grasp_rl.policies.packed_forward import logprobs
from grasp_rl.policies.transfer import to_device, together
from grasp_rl.policies.types import (
    WHOLE,
    EmbeddedPrompt,
    EncodedImage,
    EncodedPrompt,
    Sampling,
    Scores,
    joined_features,
)
from grasp_rl.prompts.render import build_messages
from grasp_rl.types import Box, Completion, Image, Point
from grasp_rl.utils.files import read_json

disable_progress_bar()  # a run's log is a file

_SAID = "\ue001"
"""A character for private use that stands for an answer in a chat template."""


class VlmPolicy(nn.Module):
    """A vision-language model on stock transformers, and what it needs to speak.

    Args:
        model: the stock model, or a PEFT model around it.
        tokenizer: its tokenizer, with a chat template and the model's image token.
        backbone: what its family does its own way.
        coordinates: ``absolute`` pixels of the resized image or ``thousand`` (0..1000); None takes what the family
            was trained to speak.
        train_vision_encoder: whether gradients reach the vision encoder.
        checkpoint_activations: ``none`` | ``selective`` | ``full``, see grasp_rl.policies.activation_checkpointing.
        packed_attention: ``two_calls`` for packed rows (see grasp_rl.policies.attention), or ``mask``, one stock call
            under a 4-D mask: the reference, and what attention maps need.
        decoding: ``growing`` | ``static``, see grasp_rl.policies.generation.static; ``auto`` is static on a GPU.
        fused_head: score completions with Liger's kernel on a GPU; see grasp_rl.policies.logprobs.
        feature_cache_gib: host memory for what a frozen vision encoder made of images in earlier steps, in GiB; 0 keeps
            nothing beyond a step.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        backbone: Backbone,
        *,
        coordinates: str | None = None,
        train_vision_encoder: bool = True,
        checkpoint_activations: str = "none",
        packed_attention: str = "two_calls",
        decoding: str = "auto",
        fused_head: bool = False,
        feature_cache_gib: float = 0.0,
    ) -> None:
        super().__init__()
        if packed_attention not in ("two_calls", "mask"):
            raise ConfigError(f"policy.packed_attention={packed_attention!r}: must be one of two_calls, mask")
        if decoding not in ("auto", "growing", "static"):
            raise ConfigError(f"policy.decoding={decoding!r}: must be one of auto, growing, static")
        if coordinates is not None and coordinates not in FRAMES:
            raise ConfigError(f"policy.coordinates={coordinates!r}: must be one of {', '.join(FRAMES)} or null")
        self.model, self.tokenizer, self.backbone = model, tokenizer, backbone
        self.coordinates = coordinates or backbone.coordinates
        self.image_token_id = int(self.stock.config.image_token_id)
        for parameter in self.vision_encoder_parameters():
            parameter.requires_grad_(train_vision_encoder and parameter.requires_grad)
        self.train_vision_encoder = any(p.requires_grad for p in self.vision_encoder_parameters())
        generation = getattr(self.stock.generation_config, "eos_token_id", None)
        kwargs = generation if isinstance(generation, list) else [generation]
        self.ends = sorted({int(i) for i in (*kwargs, tokenizer.eos_token_id) if i is not None})
        """Token ids that end a completion."""
        self.packed_attention = packed_attention
        language = self.core.language_model.config
        if packed_attention == "two_calls" and not language._attn_implementation.startswith(PREFIX):
            language._attn_implementation = register(language._attn_implementation)
        if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
            # loaded in parts, transformers takes every renaming it knows for one that it has to undo in saving
            vars(self.stock).pop("_weight_conversions", None)
        recompute(self.stock, checkpoint_activations)
        self.scorer = TokenScorer(self.stock.lm_head)
        self.decoding, self.fused_head = decoding, fused_head
        if feature_cache_gib < 0:
            raise ConfigError(f"policy.feature_cache_gib={feature_cache_gib!r}: must be >= 0")
        self.features = FeatureCache(feature_cache_gib)

    def vision_encoder_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters between the pixels and the language model's input, adapters on them included."""
        parts = tuple(f"{name}." for name in self.backbone.vision_encoder)
        for name, parameter in self.core.named_parameters():
            if f"{name}.".startswith(parts):
                yield parameter

    @property
    def base_name(self) -> str:
        """Hub id of the base model, or the name of its folder, without the path to it on this machine."""
        name = str(getattr(self.stock.config, "_name_or_path", "") or type(self.stock).__name__)
        return Path(name).name if Path(name).is_absolute() or Path(name).is_dir() else name

    @property
    def stock(self) -> Any:
        """The ...ForConditionalGeneration, unwrapped from PEFT."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def core(self) -> Any:
        """The stock model's body: ``visual`` and ``language_model``."""
        return self.stock.model

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def context(self) -> int:
        """How many tokens the language model can hold."""
        return int(self.core.language_model.config.max_position_embeddings)

    def prompt_text(self, query: str, prompt: PromptConfig) -> str:
        """The chat text that asks ``query`` about an image of 1000 x 1000, one token in the image's place."""
        frame = CoordinateFrame(width=1000, height=1000, image_width=1000, image_height=1000)
        return self._chat_text(build_messages(query, frame, prompt))

    def encode(
        self,
        image: Image,
        query: str,
        prompt: PromptConfig,
        more_images: Sequence[Image] = (),
        candidates: Sequence[Point] = (),
    ) -> EncodedPrompt:
        """Tokens and patches for ``image`` [H, W, 3] uint8 RGB and ``query`` under a prompt scheme.

        Args:
            image: that the answer's coordinates are about.
            query: the question.
            prompt: the scheme.
            more_images: further images that the question shows behind the first.
            candidates: points in original-image pixels that the question lists.

        Raises:
            ConfigError: the question holds the image's token, the prompt is longer than the model's context, or the
                image is too long and thin.
        """
        return self.encode_questions(image, [(query, prompt)], more_images, candidates)[0]

    def encode_questions(
        self,
        image: Image,
        questions: Sequence[tuple[str, PromptConfig]],
        more_images: Sequence[Image] = (),
        candidates: Sequence[Point] = (),
    ) -> list[EncodedPrompt]:
        """Several questions about the same images, which are resized and cut into patches once."""
        processed = [self.backbone.preprocess(each, self.core, self._image_token) for each in (image, *more_images)]
        frames = [self._frame(image, processed[0].canvas, prompt) for _, prompt in questions]
        seen = tuple(
            EncodedImage(inputs=ready.inputs, key=self.features.key(each))
            for ready, each in zip(processed, (image, *more_images), strict=True)
        )
        asked = [
            build_messages(query, frame, prompt, images=len(seen), candidates=candidates)
            for (query, prompt), frame in zip(questions, frames, strict=True)
        ]
        tokens = [ready.tokens for ready in processed]
        return [
            EncodedPrompt(
                input_ids=torch.tensor(self._ids(query, self._chat_text(messages), tokens)),
                images=seen,
                frame=frame,
                messages=messages,
            )
            for (query, _), messages, frame in zip(questions, asked, frames, strict=True)
        ]

    def encode_next_turn(
        self,
        before: EncodedPrompt,
        said: Completion,
        image: Image,
        query: str,
        prompt: PromptConfig,
        feedback: str = "",
    ) -> EncodedPrompt:
        """The prompt of the turn after ``said``: all that was asked and said, then ``image`` and the next question.

        Its first tokens are those of the first turn's prompt, which siblings share.

        Args:
            before: the prompt that ``said`` answers.
            said: the completion; its own tokens stand in the new prompt, less the one that ended it.
            image: [H, W, 3] uint8 RGB, which the next answer's coordinates are about.
            query: the question that the scheme's template quotes.
            prompt: the next turn's scheme.
            feedback: what the image is, for the template; see grasp_rl.rollouts.turns.

        Raises:
            ConfigError: the chat template does not put one turn behind the other, or the conversation is longer than
                the model's context.
        """
        processed = self.backbone.preprocess(image, self.core, self._image_token)
        frame = self._frame(image, processed.canvas, prompt)
        turn = [m for m in build_messages(query, frame, prompt, feedback=feedback) if m["role"] == "user"]
        answer = {"role": "assistant", "content": [{"type": "text", "text": _SAID}]}
        beginning, mark, rest = self._chat_text([*before.messages, answer, *turn]).partition(_SAID)
        if not mark or beginning != self._chat_text(before.messages):
            raise ConfigError(
                "rollout.turns: the chat template of this policy changes earlier turns, so a second one cannot follow"
            )
        own = list(said.token_ids[:-1] if said.token_ids and said.token_ids[-1] in self.ends else said.token_ids)
        ids = [*before.input_ids.tolist(), *own, *self._ids(query, rest, [processed.tokens], whole=False)]
        self._check_length(query, ids)
        shown = {"role": "assistant", "content": [{"type": "text", "text": said.text}]}
        return EncodedPrompt(
            input_ids=torch.tensor(ids),
            images=(*before.images, EncodedImage(inputs=processed.inputs, key=self.features.key(image))),
            frame=frame,
            messages=[*before.messages, shown, *turn],
            shared=before.shared or len(before.input_ids),
            shared_images=before.shared_images or len(before.images),
            said=(*before.said, (len(before.input_ids), len(before.input_ids) + len(own))),
        )

    @property
    def _image_token(self) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(self.image_token_id))

    def _frame(self, image: Image, canvas: tuple[float, float], prompt: PromptConfig) -> CoordinateFrame:
        """What coordinates about ``image`` mean under ``prompt``."""
        absolute = self.coordinates == "absolute" and prompt.coordinates == "policy"
        width, height = canvas if absolute else (1000, 1000)
        return CoordinateFrame(width=width, height=height, image_width=image.shape[1], image_height=image.shape[0])

    def _ids(self, query: str, text: str, images: Sequence[str], *, whole: bool = True) -> list[int]:
        """Ids of chat ``text``, the images' places widened to their tokens; ``whole`` where it begins the prompt."""
        pieces = text.split(self._image_token)
        if len(pieces) != len(images) + 1:
            raise ConfigError(
                f"the question {query!r} holds {self._image_token!r}, which stands for the image; reword it"
            )
        text = pieces[0] + "".join(image + piece for image, piece in zip(images, pieces[1:], strict=True))
        begins = self.tokenizer.bos_token is not None and text.startswith(self.tokenizer.bos_token)
        ids = list(self.tokenizer(text, add_special_tokens=whole and not begins)["input_ids"])
        if whole:
            self._check_length(query, ids)
        return ids

    def _check_length(self, query: str, ids: Sequence[int]) -> None:
        if len(ids) >= self.context:
            raise ConfigError(
                f"the question {query[:80]!r} and its image take {len(ids)} tokens, the model's context has "
                f"{self.context}; lower policy.image.max_pixels or shorten the question"
            )

    def _chat_text(self, messages: Sequence[Mapping[str, Any]]) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def image_end(self, prompt: EncodedPrompt) -> int:
        """Number of leading tokens of ``prompt`` up to and including the image: what its questions share."""
        return int(prompt.image_tokens(self.image_token_id).nonzero()[-1]) + 1

    def tokens_of(self, text: str) -> tuple[int, ...]:
        """Token ids of a completion, end of sequence included."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return (*ids, self.tokenizer.eos_token_id)

    def coordinates_in(self, said: Sequence[int]) -> list[tuple[int, int]]:
        """(position, instance) of every token of an answer that is part of a coordinate; instances count from 0."""
        result, instance = [], -1
        for position, token in enumerate(said):
            piece = self.tokenizer.decode([token])
            instance += piece.count("{")
            if instance >= 0 and piece.strip().isdigit():
                result.append((position, instance))
        return result

    def covered(self, box: Box, prompt: EncodedPrompt) -> NDArray[np.bool_]:
        """[T] bool: the image tokens that ``box`` (original-image pixels) covers by a third, or covers most."""
        rows, columns = self.backbone.grid(prompt.inputs)
        x0, x1 = (v * columns / prompt.frame.image_width for v in (box[0], box[2]))
        y0, y1 = (v * rows / prompt.frame.image_height for v in (box[1], box[3]))
        across = np.clip(np.minimum(x1, np.arange(columns) + 1) - np.maximum(x0, np.arange(columns)), 0, 1)
        down = np.clip(np.minimum(y1, np.arange(rows) + 1) - np.maximum(y0, np.arange(rows)), 0, 1)
        share = np.outer(down, across).reshape(-1)
        return np.asarray(share >= min(0.35, share.max()), dtype=np.bool_)

    def embed(self, prompts: Sequence[EncodedPrompt]) -> list[EmbeddedPrompt]:
        """The prompts' embeddings and positions, after one pass of the vision encoder over images that need it."""
        return self._embed([(prompt, 0, 0) for prompt in prompts])

    def embed_with_continuations(
        self, prompts: Sequence[EncodedPrompt], continuations: Sequence[Sequence[EncodedPrompt | None]]
    ) -> tuple[list[EmbeddedPrompt], list[list[EmbeddedPrompt | None]]]:
        """The prompts, and of each continuation [B][G] what follows the prompt that it shares; one look at each image.

        A continuation's positions are those that it has as a whole.
        """
        later = [item for group in continuations for item in group if item is not None]
        parts = [(prompt, 0, 0) for prompt in prompts] + [(item, item.shared, item.shared_images) for item in later]
        embedded = self._embed(parts)
        rest = iter(embedded[len(prompts) :])
        branches = [[None if item is None else next(rest) for item in group] for group in continuations]
        return embedded[: len(prompts)], branches

    def _embed(self, parts: Sequence[tuple[EncodedPrompt, int, int]]) -> list[EmbeddedPrompt]:
        """Each prompt from a token and an image on, by their numbers."""
        images = self._features([prompt.images[first:] for prompt, _, first in parts])
        ids = torch.cat([prompt.input_ids[start:] for prompt, start, _ in parts])
        visual = torch.cat([prompt.image_tokens(self.image_token_id)[start:] for prompt, start, _ in parts])
        on = together({"ids": ids, "places": visual.nonzero()[:, 0]}, self.device)
        lookup = self.core.get_input_embeddings()(on["ids"])  # one call, see TokenScorer
        tokens = torch.cat([image.tokens for image in images]).to(lookup.dtype)
        if len(tokens) != len(on["places"]):
            raise RuntimeError(
                f"{len(tokens)} image features for {len(on['places'])} image tokens: the processor and the "
                "model of this checkpoint do not belong together"
            )
        lengths = [len(prompt.input_ids) - start for prompt, start, _ in parts]
        embeddings = torch.split(lookup.index_copy(0, on["places"], tokens), lengths)
        return [
            EmbeddedPrompt(
                embeddings=embedding, deepstack=image.deepstack, visual=there, positions=self._positions(prompt, start)
            )
            for (prompt, start, _), image, embedding, there in zip(
                parts, images, embeddings, torch.split(visual, lengths), strict=True
            )
        ]

    def _positions(self, prompt: EncodedPrompt, start: int) -> Tensor:
        """[A, P - start] positions of the tokens of ``prompt`` from ``start`` on."""
        visual = prompt.image_tokens(self.image_token_id)
        return self.backbone.positions(self.core, prompt.input_ids, visual, prompt.inputs)[:, start:]

    def encode_images(self, prompts: Sequence[EncodedPrompt]) -> list[ImageFeatures]:
        """Features of every prompt's images. A frozen vision encoder runs once an image, for policy and reference."""
        return self._features([prompt.images for prompt in prompts])

    def _features(self, shown: Sequence[Sequence[EncodedImage]]) -> list[ImageFeatures]:
        """Features of each tuple of images, one behind the other; an image that several show is looked at once."""
        images = list({id(image): image for group in shown for image in group}.values())
        if self.train_vision_encoder:
            result = self.backbone.features(self.core, [self._on_device(image.inputs) for image in images])
        else:
            result = self._frozen_features(images)
        by_image = {id(image): features for image, features in zip(images, result, strict=True)}
        return [joined_features([by_image[id(image)] for image in group]) for group in shown]

    def _frozen_features(self, images: Sequence[EncodedImage]) -> list[ImageFeatures]:
        for image in images:
            if not image.features and (known := self.features.get(image.key, self.device)) is not None:
                image.features.append(known)
        new = [image for image in images if not image.features]
        if new:
            with torch.no_grad():
                result = self.backbone.features(self.core, [self._on_device(image.inputs) for image in new])
            for image, features in zip(new, result, strict=True):
                image.features.append(features)
                self.features.put(image.key, features)
        return [image.features[0] for image in images]

    def _on_device(self, inputs: ImageInputs) -> ImageInputs:
        """Pixels on the policy's device; grids and sizes stay on the CPU, where they are read."""
        return {name: to_device(x, self.device) if x.is_floating_point() else x for name, x in inputs.items()}

    def forward(
        self,
        prompts: Sequence[EncodedPrompt],
        completions: Sequence[Sequence[Sequence[int]]],
        *,
        continuations: Sequence[Sequence[EncodedPrompt | None]] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor | None, ...]:
        """What an engine trains: :meth:`embed`, then :meth:`logprobs` with ``kwargs``.

        Args:
            prompts: B prompts.
            completions: B x G token-id sequences. Where a completion has a continuation, the sequence begins with the
                continuation's tokens behind the prompt.
            continuations: B x G later turns' prompts, which begin with the prompt; None for a first turn.
            **kwargs: see :meth:`logprobs`.

        Returns:
            the fields of :class:`~grasp_rl.policies.types.Scores` in their order, since engines hook tensors in tuples.
        """
        if continuations is None:
            scores = self.logprobs(self.embed(prompts), completions, **kwargs)
        else:
            embedded, branches = self.embed_with_continuations(prompts, continuations)
            scores = self.logprobs(embedded, completions, branches=branches, **kwargs)
        return scores.logp, scores.entropy, scores.valid, scores.image_attention

    def logprobs(
        self,
        prompts: Sequence[EmbeddedPrompt],
        completions: Sequence[Sequence[Sequence[int]]],
        *,
        sampling: Sampling = WHOLE,
        branches: Sequence[Sequence[EmbeddedPrompt | None]] | None = None,
        unscored: Sequence[Sequence[int]] | None = None,
        entropy: bool = True,
        attention_layers: Sequence[int] = (),
    ) -> Scores:
        """Score G completions of each prompt in one packed row; see grasp_rl.policies.packed_forward."""
        return logprobs(
            self,
            prompts,
            completions,
            sampling=sampling,
            branches=branches,
            unscored=unscored,
            entropy=entropy,
            attention_layers=attention_layers,
        )

    def language_model(
        self,
        hidden: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        deepstack: Sequence[Tensor] = (),
        visual: Tensor | None = None,
        *,
        cache: Any = None,
        **kwargs: Any,
    ) -> Any:
        """The stock language model's output for ready-made embeddings [B, L, D].

        Args:
            hidden: embeddings.
            positions: [A, B, L] positions, A = 1 or the 3 axes of M-RoPE.
            mask: [B, L] of valid tokens, or [B, 1, L, L] bool of what each query may see; None for no padding.
            deepstack: features of all rows' images, one tensor per layer.
            visual: [B, L] bool, True at image tokens; needed with ``deepstack``.
            cache: the key-value cache, or None to keep nothing.
            **kwargs: go to the stock model.
        """
        adds = self.core.language_model.config._attn_implementation.endswith("eager")  # instead of choosing by it
        if adds and mask is not None and mask.dtype == torch.bool:
            mask = torch.where(mask, 0.0, torch.finfo(hidden.dtype).min)
        if deepstack:
            kwargs |= {"visual_pos_masks": visual, "deepstack_visual_embeds": list(deepstack)}
        if cache is not None:
            kwargs[cache_keyword(self.core.language_model)] = cache
        return self.core.language_model(
            inputs_embeds=hidden,
            position_ids=positions if len(positions) > 1 else positions[0],
            attention_mask=mask,
            use_cache=cache is not None,
            **kwargs,
        )

    def generate(
        self, prompts: Sequence[EmbeddedPrompt], uniforms: Tensor | None, **kwargs: Any
    ) -> list[list[Completion]]:
        """What :meth:`stream` gives, in the prompts' order, when all of it is there."""
        result = dict(self.stream(prompts, uniforms, **kwargs))
        return [result[index] for index in range(len(prompts))]

    def stream(
        self, prompts: Sequence[EmbeddedPrompt], uniforms: Tensor | None, **kwargs: Any
    ) -> Iterator[tuple[int, list[Completion]]]:
        """G completions of each prompt after one prefill each; see grasp_rl.policies.generation.decode."""
        with cast_once(self.model, prompts[0].embeddings.dtype):
            yield from stream(self, prompts, uniforms, **kwargs)

    def make_reference(self) -> VlmPolicy | None:
        """A frozen copy for the KL term, or None where disabling the LoRA adapter gives the reference at no cost.

        Where the vision encoder is trained, the copy's vision encoder is another one and looks for itself, each time.
        """
        if hasattr(self.model, "disable_adapter"):
            return None
        return copy.deepcopy(self).requires_grad_(False).eval()

    @contextlib.contextmanager
    def adapter_disabled(self) -> Iterator[None]:
        """The base model without its LoRA adapter: the reference policy of a LoRA run."""
        with self.model.disable_adapter():
            yield

    def merge(self) -> None:
        """Fold the LoRA adapter into the weights and forget it; nothing to do without one."""
        if hasattr(self.model, "merge_and_unload"):
            self.model = self.model.merge_and_unload()

    def save(self, folder: Path) -> None:
        """Write what transformers (or PEFT, for an adapter) reads: weights in safetensors, tokenizer, processor."""
        for adapter in getattr(self.model, "peft_config", {}).values():
            adapter.base_model_name_or_path = self.base_name
        adapter_alone = {"save_embedding_layers": False} if hasattr(self.model, "peft_config") else {}
        self.model.save_pretrained(folder, **adapter_alone)
        self.tokenizer.save_pretrained(folder)
        self.backbone.image_processor.save_pretrained(folder)

    def load_weights(self, folder: Path) -> None:
        """Take the weights that :meth:`save` wrote into this policy of the same shape.

        Raises:
            ConfigError: the folder holds an adapter and this policy has none, or the other way round, or the weights
                do not fit.
        """
        self.features.clear()
        adapter = folder / "adapter_model.safetensors"
        if adapter.is_file() != hasattr(self.model, "disable_adapter"):
            kind = "a LoRA adapter" if adapter.is_file() else "full weights"
            raise ConfigError(f"policy.lora_rank: {folder} holds {kind}, which this policy cannot take")
        try:
            if adapter.is_file():
                self._load_adapter(adapter)
                return
            loaded, report = type(self.stock).from_pretrained(
                folder, config=self.stock.config, dtype=self.stock.dtype, use_safetensors=True, output_loading_info=True
            )
        except (RuntimeError, SafetensorError, OSError) as error:
            raise ConfigError(f"policy weights in {folder} do not fit this policy: {error}") from error
        check_keys(f"policy weights in {folder}", report)
        self.stock.load_state_dict(loaded.state_dict())

    def _load_adapter(self, file: Path) -> None:
        """Take an adapter that fits this policy's own: same rank, scale and layers."""
        said = read_json(file.with_name("adapter_config.json")) or {}
        own = self.model.peft_config["default"]
        for key, stored, here in (("rank", said.get("r"), own.r), ("alpha", said.get("lora_alpha"), own.lora_alpha)):
            if stored is not None and stored != here:
                raise ConfigError(f"policy.lora_{key}={here}: the adapter in {file.parent} has {stored}")
        tensors = load_file(file)
        check_keys(
            f"the adapter in {file.parent}",
            adapter_difference(get_peft_model_state_dict(self.model, save_embedding_layers=False), tensors),
        )
        set_peft_model_state_dict(self.model, tensors)


def adapter_difference(own: Mapping[str, Tensor], loaded: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Keys that an adapter lacks, has too many, or has in another shape."""
    common = own.keys() & loaded.keys()
    return {
        "missing_keys": sorted(own.keys() - loaded.keys()),
        "unexpected_keys": sorted(loaded.keys() - own.keys()),
        "mismatched_keys": sorted(key for key in common if own[key].shape != loaded[key].shape),
    }
