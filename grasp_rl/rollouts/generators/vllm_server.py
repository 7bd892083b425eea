"""A vLLM server decodes, reached over HTTP: the OpenAI chat protocol and vLLM's additions to it.

vLLM cannot share this environment (it pins its own torch), so it runs in one of its own, on GPUs of its own. Its
numbers are not the policy's to the last bit; the update corrects for that by truncated importance sampling (Yao et al.
2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"), with ``mismatch_cap``.
"""

from __future__ import annotations

import base64
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image as Pillow

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import RolloutConfig
from grasp_rl.policies.backbones.base import squash
from grasp_rl.policies.generation.state import ANSWER_ENDS
from grasp_rl.policies.types import EncodedPrompt
from grasp_rl.policies.vlm import VlmPolicy
from grasp_rl.rollouts.generators.http import Server, Unreachable, Unusable
from grasp_rl.types import Completion, FinishReason, Image, Sample
from grasp_rl.utils.keyed_rng import keyed_generator

log = logging.getLogger(__name__)

_NONE = -9999.0
"""What vLLM writes where it has no log-probability of a token."""
_ROUNDING = 1e-3
_UNLOAD_S = 10.0
"""Longest wait for an adapter to be taken off."""
_SERVE = (
    "is the server up, with --enable-lora, a --max-lora-rank of at least policy.lora_rank and "
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment, and does it see generator.adapter_folder? Its command "
    "line stands in conf/generator/vllm_server.yaml"
)


class VllmServer:
    """Completions of a LoRA policy from ``vllm serve``; conf/generator/vllm_server.yaml has its command line.

    Args:
        url: the server's root.
        adapter_folder: where the adapter is written after every optimizer step, as this process sees it.
        adapter_folder_there: the same folder as the server sees it; None if it is the same path.
        timeout_s: of one request.
        retries: attempts after the first.
        concurrency: requests in flight.
        mismatch_cap: upper bound of the importance weights.
        api_key_env: name of the environment variable that holds the server's key; None if it wants none.

    Raises:
        ConfigError: a number is out of range, or the variable holds no key.
    """

    def __init__(
        self,
        url: str,
        adapter_folder: str,
        adapter_folder_there: str | None = None,
        timeout_s: float = 600.0,
        retries: int = 3,
        concurrency: int = 16,
        mismatch_cap: float = 2.0,
        api_key_env: str | None = None,
    ) -> None:
        for key, value in (("timeout_s", timeout_s), ("concurrency", concurrency), ("mismatch_cap", mismatch_cap)):
            if value <= 0:
                raise ConfigError(f"generator.{key}={value!r}: must be > 0")
        if not re.fullmatch(r"https?://[^/\s@?#]+(/[^\s@?#]*)?", url):
            raise ConfigError(
                "generator.url: must be http://HOST:PORT or https://HOST, without user, password or query"
            )
        if retries < 0:
            raise ConfigError(f"generator.retries={retries!r}: must be >= 0")
        if api_key_env is not None:
            _check_key(api_key_env)
        self.server = Server(url=url.rstrip("/"), timeout_s=timeout_s, retries=retries, api_key_env=api_key_env)
        self.concurrency, self.run = concurrency, secrets.token_hex(4)
        self.mismatch_cap: float | None = mismatch_cap
        self.takes_turns = False
        self.folder = Path(adapter_folder)
        self.folder_there = adapter_folder_there or str(self.folder.resolve())
        self.adapter: str | None = None
        """Name of the adapter that the server has now."""
        self.due: int | None = None
        """The optimizer step whose adapter it has not yet, if the policy has changed since."""

    def generate(
        self,
        policy: VlmPolicy,
        samples: Sequence[Sample],
        prompts: Sequence[EncodedPrompt],
        *,
        group_size: int,
        config: RolloutConfig,
        seed: int,
        step: int,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """G completions of each sample, see :class:`grasp_rl.interfaces.Generator`.

        The server draws with its own generator from a keyed seed: the same server gives the same draw again. A token
        that ends a completion is one of its tokens, as it was drawn: vLLM gives it back with its log-probability.

        Raises:
            ConfigError: the server refuses a request, tokenizes the prompt otherwise, or the policy has no adapter.
            RuntimeError: not one group arrived.
        """
        if not policy.train_vision_encoder:
            policy.encode_images(prompts)  # the update wants the features, and here the weights are whole
        if self.adapter is None or self.due is not None:
            self._send(policy, step if self.due is None else self.due)
        deadline = None if config.time_limit_s is None else time.monotonic() + config.time_limit_s
        arrived, last = 0, "the time limit came first"
        pool = ThreadPoolExecutor(self.concurrency, "vllm")
        try:
            asked = {
                pool.submit(self._group, policy, sample, prompt, group_size, config, (seed, step), deadline): index
                for index, (sample, prompt) in enumerate(zip(samples, prompts, strict=True))
            }
            for future in as_completed(asked):
                try:
                    group = future.result()
                except Unreachable as error:
                    last = str(error)
                    self.server.counts["groups_missing"] += 1
                    log.warning("a group is missing: %s", error)
                else:
                    arrived += 1
                    yield asked[future], group
        finally:  # who is interrupted does not wait for what is under way
            pool.shutdown(wait=False, cancel_futures=True)
        if not arrived and len(samples):
            raise RuntimeError(
                f"generator.url={self.server.url}: not one group arrived ({last}); is the server up, and are "
                "generator.timeout_s and rollout.time_limit_s long enough?"
            )

    def _group(
        self,
        policy: VlmPolicy,
        sample: Sample,
        prompt: EncodedPrompt,
        group_size: int,
        config: RolloutConfig,
        key: tuple[int, int],
        deadline: float | None,
    ) -> list[Completion]:
        """G completions; where an answer holds fewer, the missing ones are asked for again.

        vLLM draws completion i of a request from its seed + i, so every request has a seed of its own, far from others.
        """
        result: list[Completion] = []
        body = self._body(policy, prompt, sample.image, config)
        for attempt in range(self.server.retries + 1):
            if deadline is not None and time.monotonic() >= deadline:
                raise Unreachable("the time limit came first")
            missing = group_size - len(result)
            seed = int(keyed_generator("vllm", *key, sample.sample_id, attempt).integers(2**31))
            result += self.server.ask(
                "/v1/chat/completions",
                body | {"n": missing, "seed": seed},
                lambda answer: self._read(policy, prompt, answer, config.max_new_tokens)[:missing],  # noqa: B023
                deadline=deadline,
            )
            if len(result) == group_size:
                return result
            self.server.counts["short_answers"] += 1
        raise Unreachable(f"{self.server.url}: {len(result)} of {group_size} completions")

    def _body(self, policy: VlmPolicy, prompt: EncodedPrompt, image: Image, config: RolloutConfig) -> dict[str, Any]:
        written, png = cv2.imencode(".png", cv2.cvtColor(shown(policy, image, prompt), cv2.COLOR_RGB2BGR))
        assert written
        url = f"data:image/png;base64,{base64.b64encode(png.tobytes()).decode()}"
        shown_image = {"type": "image_url", "image_url": {"url": url}}
        messages = [
            {**m, "content": [shown_image if part["type"] == "image" else part for part in m["content"]]}
            for m in prompt.messages
        ]
        size = policy.backbone.size
        bounds = {"min_pixels": size.min_pixels, "max_pixels": size.max_pixels}
        body = {
            "model": self.adapter,
            "messages": messages,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "top_k": config.top_k or -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,  # these would be the checkpoint's own where the server takes its defaults
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "max_tokens": config.max_new_tokens,
            "stop_token_ids": policy.ends,
            "logprobs": True,
            "return_token_ids": True,
            "mm_processor_kwargs": {key: value for key, value in bounds.items() if value is not None},
        }
        return body | ({"stop": [ANSWER_ENDS], "include_stop_str_in_output": True} if config.stop_at_answer else {})

    def _read(self, policy: VlmPolicy, prompt: EncodedPrompt, answer: Any, most: int) -> list[Completion]:
        """The completions in an answer, of at most ``most`` tokens each.

        Raises:
            Unusable: something is missing, is no number or is none that was asked for.
            ConfigError: the server made other tokens of the prompt.
        """
        try:
            there = list(answer["prompt_token_ids"])
            result = [self._completion(policy, choice, most) for choice in answer["choices"]]
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
            raise Unusable(f"an answer not as expected, {error!r}: {str(answer)[:200]}") from error
        self._compare(prompt.input_ids.tolist(), there)
        return result

    def _compare(self, here: list[int], there: list[int]) -> None:
        if here == there:
            return
        pairs = zip(here, there, strict=False)
        place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(here), len(there)))
        raise ConfigError(
            f"generator.url={self.server.url}: the server makes {len(there)} tokens of a prompt that has {len(here)} "
            f"here, other ones from token {place} on; it must serve the model of policy.path, with its chat template, "
            "and take policy.image.max_pixels and min_pixels"
        )

    @staticmethod
    def _completion(policy: VlmPolicy, choice: Mapping[str, Any], most: int) -> Completion:
        ids = tuple(choice["token_ids"])
        scores = tuple(float(token["logprob"]) for token in choice["logprobs"]["content"])
        if not ids or len(ids) != len(scores):
            raise Unusable(f"{len(ids)} tokens with {len(scores)} log-probabilities")
        if len(ids) > most:
            raise Unusable(f"{len(ids)} tokens where {most} were asked for")
        known = len(policy.tokenizer)
        if wrong_ids := [token for token in ids if type(token) is not int or not 0 <= token < known]:
            raise Unusable(f"{wrong_ids[0]!r} is the id of none of the tokenizer's {known} tokens")
        if wrong := [score for score in scores if not _NONE < score <= _ROUNDING]:
            raise Unusable(f"a log-probability of {wrong[0]}; does the server have --logprobs-mode processed_logprobs?")
        reason = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}.get(choice["finish_reason"])
        if reason is None:
            raise Unusable(f"finish_reason {choice['finish_reason']!r}")
        text = policy.tokenizer.decode(list(ids), skip_special_tokens=True)
        return Completion(token_ids=ids, logprobs=scores, text=text, finish_reason=reason)

    def weights_changed(self, policy: VlmPolicy, step: int) -> None:
        """The next :meth:`generate` sends the adapter first: there its tensors are whole under ZeRO-3, too.

        Raises:
            ConfigError: the policy has no adapter.
        """
        self._demand_adapter(policy)
        self.due = step

    def _demand_adapter(self, policy: VlmPolicy) -> None:
        if not hasattr(policy.model, "disable_adapter"):
            raise ConfigError("policy.lora_rank=0: a vLLM server is sent LoRA adapters; set policy.lora_rank")

    def _send(self, policy: VlmPolicy, step: int) -> None:
        """Write the adapter and have the server take it instead of the one before.

        The old one goes first: a server with one slot gives that to the new one, and can then answer that it has
        nothing to remove.

        Raises:
            ConfigError: the policy has no adapter, or the server does not take it or is not there from the start.
            RuntimeError: the server does not answer any more.
        """
        self._demand_adapter(policy)
        if not all(parameter.numel() for name, parameter in policy.model.named_parameters() if "lora_" in name):
            raise ConfigError(
                "engine.gather=layer: an adapter in parts, one on each process, cannot be sent; set engine.gather=whole"
            )
        if policy.train_vision_encoder and not self.server.counts["adapter_loads"]:
            log.warning(
                "policy.train_vision_encoder=true: a server without --enable-tower-connector-lora ignores its adapters"
            )
        name = f"grasp_rl_{self.run}_step_{step}"
        partial, final = self.folder / f".{name}", self.folder / name
        self._unload()
        for folder in (partial, final):
            shutil.rmtree(folder, ignore_errors=True)
        policy.model.save_pretrained(partial)
        partial.rename(final)
        body = {"lora_name": name, "lora_path": f"{self.folder_there}/{name}"}
        try:
            self.server.ask("/v1/load_lora_adapter", body, lambda answer: answer)
        except ConfigError as error:
            if "already been loaded" not in str(error):  # by an attempt whose answer was lost
                raise ConfigError(f"{error}; {_SERVE}") from error
        except Unreachable as error:
            kind = RuntimeError if self.server.counts["adapter_loads"] else ConfigError
            raise kind(f"generator.url: could not load an adapter: {error}; {_SERVE}") from error
        self.server.counts["adapter_loads"] += 1
        self.adapter, self.due = name, None

    def _unload(self) -> None:
        """Take the adapter off. One that stays is said and left alone: the server drops it for newer ones by itself."""
        if self.adapter is None:
            return
        name, self.adapter = self.adapter, None
        try:
            until = time.monotonic() + _UNLOAD_S
            self.server.ask("/v1/unload_lora_adapter", {"lora_name": name}, lambda answer: answer, deadline=until)
        except (Unreachable, ConfigError) as error:
            if "cannot be found" not in str(error):
                log.warning("an adapter stays on the server: %s", error)
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def counters(self) -> dict[str, float]:
        """Requests, and what went wrong with them, so far."""
        names = ("requests", "retries", "timeouts", "http_errors", "bad_answers", "short_answers", "groups_missing")
        return {f"vllm/{name}": float(self.server.counts[name]) for name in (*names, "adapter_loads")}

    def close(self) -> None:
        """Take the adapter off the server; one that does not answer any more is left alone."""
        self._unload()


def shown(policy: VlmPolicy, image: Image, prompt: EncodedPrompt) -> Image:
    """``image`` [H, W, 3] uint8 as the policy saw it in ``prompt``: another engine's processor finds nothing to resize.

    Where the family's processor resizes, that is done here, by the same method, so that both see the same pixels and
    no large image travels. Families that cut an image into tiles get it whole and cut it there as they do here.
    """
    image, processor = policy.backbone.prepare(image), policy.backbone.image_processor
    if getattr(processor, "do_center_crop", False):  # LLaVA-1.5, which is shown the whole image here
        return squash(image, policy.backbone.config.vision_config.image_size)
    if "image_grid_thw" not in prompt.inputs:
        return image
    rows, columns = (int(patches) * processor.patch_size for patches in prompt.inputs["image_grid_thw"][0, 1:])
    return np.asarray(Pillow.fromarray(image).resize((columns, rows), processor.resample), dtype=np.uint8)


def _check_key(variable: str) -> None:
    """Demand a key that fits into a header; a library's own complaint would quote it."""
    key = os.environ.get(variable, "")
    if not (key and key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(
            f"generator.api_key_env={variable!r}: the environment variable must hold the server's key, and nothing "
            "else (no space or end of line)"
        )
