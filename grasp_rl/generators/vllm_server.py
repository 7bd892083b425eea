"""A vLLM server decodes, reached over HTTP: the OpenAI chat protocol and vLLM's additions to it.

vLLM cannot share this environment (it pins its own torch), so it runs in one of its own, on GPUs of its own. Its
numbers are not the policy's to the last bit; the update corrects for that by truncated importance sampling (Yao et al.
2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"), with ``mismatch_cap``.
"""

from __future__ import annotations

import base64
import logging
import math
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import cv2

from grasp_rl.config import ConfigError, RolloutConfig
from grasp_rl.generators.wire import Server, Unreachable, Unusable
from grasp_rl.policies.drafts import ANSWER_ENDS
from grasp_rl.sampling import keyed_generator
from grasp_rl.types import Completion, FinishReason, Image, Sample

log = logging.getLogger(__name__)


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
        ConfigError: a number is out of range.
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
        if retries < 0:
            raise ConfigError(f"generator.retries={retries!r}: must be >= 0")
        self.server = Server(url=url.rstrip("/"), timeout_s=timeout_s, retries=retries, api_key_env=api_key_env)
        self.concurrency, self.run = concurrency, secrets.token_hex(4)
        self.mismatch_cap: float | None = mismatch_cap
        self.folder = Path(adapter_folder)
        self.folder_there = adapter_folder_there or str(self.folder.resolve())
        self.adapter: str | None = None
        """Name of the adapter that the server has now."""

    def generate(
        self,
        policy: Any,
        samples: Sequence[Sample],
        prompts: Sequence[Any],
        *,
        group_size: int,
        config: RolloutConfig,
        seed: int,
        step: int,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """G completions of each sample, see :class:`grasp_rl.protocols.Generator`.

        The server draws with its own generator from a keyed seed: the same server gives the same draw again.

        Raises:
            ConfigError: the server refuses a request, tokenizes the prompt otherwise, or the policy has no adapter.
            RuntimeError: not one group arrived.
        """
        if self.adapter is None:
            self.weights_changed(policy, step)
        deadline = None if config.time_limit_s is None else time.monotonic() + config.time_limit_s
        arrived, last = 0, "the time limit came first"
        with ThreadPoolExecutor(self.concurrency, "vllm") as pool:
            asked = {
                pool.submit(
                    self._group,
                    policy,
                    prompt,
                    policy.backbone.prepare(sample.image),
                    group_size,
                    config,
                    int(keyed_generator("vllm", seed, step, sample.sample_id).integers(2**31)),
                    deadline,
                ): index
                for index, (sample, prompt) in enumerate(zip(samples, prompts, strict=True))
            }
            for future in as_completed(asked):
                try:
                    group = future.result()
                except Unreachable as error:
                    last = str(error)
                    self.server.counts["groups_missing"] += 1
                    log.warning("a group is missing: %s", error)
                except ConfigError:
                    pool.shutdown(cancel_futures=True)
                    raise
                else:
                    arrived += 1
                    yield asked[future], group
        if not arrived and len(samples):
            raise RuntimeError(
                f"generator.url={self.server.url}: not one group arrived ({last}); is the server up, and are "
                "generator.timeout_s and rollout.time_limit_s long enough?"
            )

    def _group(
        self,
        policy: Any,
        prompt: Any,
        image: Image,
        group_size: int,
        config: RolloutConfig,
        seed: int,
        deadline: float | None,
    ) -> list[Completion]:
        """G completions; where an answer holds fewer, the missing ones are asked for again."""
        found: list[Completion] = []
        body = self._body(policy, prompt, image, config)
        for attempt in range(self.server.retries + 1):
            missing = group_size - len(found)
            wanted = {"n": missing, "seed": (seed + attempt) % 2**31}
            found += self.server.ask(
                "/v1/chat/completions",
                body | wanted,
                lambda answer: self._read(policy, prompt, answer)[:missing],  # noqa: B023
                deadline=deadline,
            )
            if len(found) == group_size:
                return found
            self.server.counts["short_answers"] += 1
        raise Unreachable(f"{self.server.url}: {len(found)} of {group_size} completions")

    def _body(self, policy: Any, prompt: Any, image: Image, config: RolloutConfig) -> dict[str, Any]:
        written, png = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        assert written
        url = f"data:image/png;base64,{base64.b64encode(png.tobytes()).decode()}"
        picture = {"type": "image_url", "image_url": {"url": url}}
        messages = [
            {**m, "content": [picture if part["type"] == "image" else part for part in m["content"]]}
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
            "max_tokens": config.max_new_tokens,
            "logprobs": True,
            "return_token_ids": True,
            "mm_processor_kwargs": {key: value for key, value in bounds.items() if value is not None},
        }
        return body | ({"stop": [ANSWER_ENDS], "include_stop_str_in_output": True} if config.stop_at_answer else {})

    def _read(self, policy: Any, prompt: Any, answer: Any) -> list[Completion]:
        """The completions in an answer.

        Raises:
            Unusable: something is missing or is no number.
            ConfigError: the server made other tokens of the prompt.
        """
        try:
            there = answer["prompt_token_ids"]
            self._compare(prompt.input_ids.tolist(), there)
            return [self._completion(policy, choice) for choice in answer["choices"]]
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise Unusable(f"an answer without {error}: {str(answer)[:200]}") from error

    def _compare(self, here: list[int], there: list[int]) -> None:
        if here == list(there):
            return
        pairs = zip(here, there, strict=False)
        place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(here), len(there)))
        raise ConfigError(
            f"generator.url={self.server.url}: the server makes {len(there)} tokens of a prompt that has {len(here)} "
            f"here, other ones from token {place} on; it must serve the model of policy.path, with its chat template, "
            "and take policy.image.max_pixels and min_pixels"
        )

    @staticmethod
    def _completion(policy: Any, choice: Mapping[str, Any]) -> Completion:
        ids = tuple(int(token) for token in choice["token_ids"])
        scores = tuple(float(token["logprob"]) for token in choice["logprobs"]["content"])
        if not ids or len(ids) != len(scores) or not all(math.isfinite(score) for score in scores):
            raise Unusable(f"{len(ids)} tokens with {len(scores)} log-probabilities, or some that are no numbers")
        reason = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}.get(choice["finish_reason"])
        if reason is None:
            raise Unusable(f"finish_reason {choice['finish_reason']!r}")
        text = policy.tokenizer.decode(list(ids), skip_special_tokens=True)
        return Completion(token_ids=ids, logprobs=scores, text=text, finish_reason=reason)

    def weights_changed(self, policy: Any, step: int) -> None:
        """Write the adapter and have the server take it instead of the one before.

        Raises:
            ConfigError: the policy has no adapter, or the server does not take adapters.
            RuntimeError: the server does not answer.
        """
        if not hasattr(policy.model, "disable_adapter"):
            raise ConfigError("policy.lora_rank=0: a vLLM server is sent LoRA adapters; set policy.lora_rank")
        name = f"grasp_rl_{self.run}_step_{step}"
        partial, final = self.folder / f".{name}", self.folder / name
        for folder in (partial, final):
            shutil.rmtree(folder, ignore_errors=True)
        policy.model.save_pretrained(partial)
        partial.rename(final)
        previous, self.adapter = self.adapter, name
        self._order("load", {"lora_name": name, "lora_path": f"{self.folder_there}/{name}"})
        if previous is not None and previous != name:
            self._order("unload", {"lora_name": previous})
            shutil.rmtree(self.folder / previous, ignore_errors=True)

    def _order(self, verb: str, body: dict[str, Any]) -> None:
        try:
            self.server.ask(f"/v1/{verb}_lora_adapter", body, lambda answer: answer)
        except Unreachable as error:
            raise RuntimeError(
                f"generator.url: could not {verb} an adapter: {error}; is the server up, with --enable-lora and "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment?"
            ) from error
        self.server.counts["adapter_loads"] += verb == "load"

    def counters(self) -> dict[str, float]:
        """Requests, and what went wrong with them, so far."""
        names = ("requests", "retries", "timeouts", "http_errors", "bad_answers", "short_answers", "groups_missing")
        return {f"vllm/{name}": float(self.server.counts[name]) for name in (*names, "adapter_loads")}

    def close(self) -> None:
        """Take the adapter off the server; one that does not answer any more is left alone."""
        if self.adapter is not None:
            try:
                self._order("unload", {"lora_name": self.adapter})
            except (RuntimeError, ConfigError) as error:
                log.warning("%s", error)
            self.adapter = None
