"""The policy itself decodes, in the training process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from grasp_rl.config.schema import RolloutConfig
from grasp_rl.interfaces import Policy
from grasp_rl.policies.types import Sampling
from grasp_rl.types import Completion, Sample
from grasp_rl.utils.keyed_rng import token_uniforms
from grasp_rl.utils.out_of_memory import halved, is_out_of_memory


class InProcess:
    """One prefill per prompt, then up to ``rollout.batch_rows`` completions decoded together.

    Where memory runs out, half as many are decoded together, in this step and in those after it. Every draw is keyed
    by what it is for, so the completions are the same.
    """

    mismatch_cap: float | None = None
    """The weights that draw are those that are trained: nothing to correct."""

    def __init__(self) -> None:
        self.rows: int | None = None
        """Completions decoded together since memory ran out."""
        self.out_of_memory = 0
        """How often it did."""

    @torch.no_grad()
    def generate(
        self,
        policy: Policy,
        samples: Sequence[Sample],
        prompts: Sequence[Any],
        *,
        group_size: int,
        config: RolloutConfig,
        seed: int,
        step: int,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """G completions of each sample, see :class:`grasp_rl.interfaces.Generator`.

        Raises:
            RuntimeError: memory does not suffice for one completion at a time.
        """
        deadline = None if config.time_limit_s is None else time.monotonic() + config.time_limit_s
        left = list(range(len(prompts)))
        while left and (deadline is None or time.monotonic() < deadline):
            rows = min(self.rows or config.batch_rows, config.batch_rows)
            chunk = left[: max(1, rows // group_size)]
            try:
                for index, group in self._some(
                    policy, samples, prompts, chunk, rows, deadline, group_size, config, seed, step
                ):
                    left.remove(index)
                    yield index, group
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._shrink(min(rows, len(chunk) * group_size), error)

    def _some(
        self,
        policy: Policy,
        samples: Sequence[Sample],
        prompts: Sequence[Any],
        chunk: Sequence[int],
        rows: int,
        deadline: float | None,
        group_size: int,
        config: RolloutConfig,
        seed: int,
        step: int,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """The groups of ``chunk``; a single one in several goes where not even its siblings fit together."""
        embedded = policy.embed([prompts[index] for index in chunk])
        names = [samples[index].sample_id for index in chunk]
        length, at_once = config.max_new_tokens, min(group_size, rows)
        parts: dict[int, list[Completion]] = {place: [] for place in range(len(chunk))}
        for first in range(0, group_size, at_once):
            siblings = range(first, min(first + at_once, group_size))
            uniforms = [[token_uniforms(seed, step, name, g, length) for g in siblings] for name in names]
            for place, completions in policy.stream(
                embedded,
                torch.from_numpy(np.array(uniforms)),
                group_size=len(siblings),
                max_new_tokens=length,
                sampling=Sampling(temperature=config.temperature, top_k=config.top_k, top_p=config.top_p),
                stop_at_answer=config.stop_at_answer,
                deadline=deadline,
            ):
                parts[place] += completions
                if len(parts[place]) == group_size:
                    yield chunk[place], parts[place]

    def _shrink(self, rows: int, error: Exception) -> None:
        remedy = "lower policy.image.max_pixels or rollout.max_new_tokens"
        self.rows = halved(error, rows, unit="completions", key="rollout.batch_rows", remedy=remedy)
        self.out_of_memory += 1

    def weights_changed(self, policy: Policy, step: int) -> None:
        """Nothing to do: the weights are the trained ones."""

    def counters(self) -> dict[str, float]:
        return {"rollout_out_of_memory": float(self.out_of_memory)}

    def close(self) -> None:
        """Nothing to do."""
