"""A generator that says what a test wrote, and a reward that pays what it wrote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import Any

from grasp_rl.config.schema import RolloutConfig
from grasp_rl.types import Completion, FinishReason, RewardBreakdown, Sample


def said(*tokens: int, reason: FinishReason = FinishReason.STOP) -> Completion:
    """A completion of ``tokens``; token t claims to have been drawn with log-probability -t / 10."""
    return Completion(
        token_ids=tokens, logprobs=tuple(-token / 10 for token in tokens), text="", finish_reason=reason
    )  # fmt: skip


class Scripted:
    """Gives the first question the first group of completions, and so on, over and over."""

    mismatch_cap: float | None = None

    def __init__(self, *groups: Sequence[Completion]) -> None:
        self.groups = cycle(groups)

    def generate(
        self, policy: Any, samples: Sequence[Sample], prompts: Sequence[Any], *,
        group_size: int, config: RolloutConfig, seed: int, step: int,
    ) -> Iterator[tuple[int, list[Completion]]]:  # fmt: skip
        for place in range(len(samples)):
            yield place, list(next(self.groups))

    def weights_changed(self, policy: Any, step: int) -> None: ...

    def counters(self) -> dict[str, float]:
        return {}

    def close(self) -> None: ...


class OneByOne:
    """A reward that looks at one answer at a time, by being called with it, its labels and its masks."""

    def score_group(
        self, answers: Sequence[Any], labels: Any, predictions: Sequence[Any], step: int | None = None
    ) -> list[RewardBreakdown]:
        return [self(answer, labels, found) for answer, found in zip(answers, predictions, strict=True)]  # type: ignore[operator,misc]


class Paying(OneByOne):
    """Pays completion after completion what stands in ``rewards``, over and over."""

    needs = frozenset({"boxes"})

    def __init__(self, *rewards: float) -> None:
        self.rewards = cycle(rewards)

    def __call__(self, answer: Any, labels: Any, prediction: Any = None) -> RewardBreakdown:
        return RewardBreakdown(reward=next(self.rewards), terms={})
