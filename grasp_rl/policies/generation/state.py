"""Completions on their way: the draw of a token, the reasons to end, the groups that are complete."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grasp_rl.policies.types import LanguageModel
from grasp_rl.types import Completion, FinishReason

ANSWER_ENDS = "</answer>"


def draw(logp: Tensor, uniform: Tensor) -> Tensor:
    """[N] tokens by inverse CDF, from log-probabilities [N, V] and uniforms [N] float64 in [0, 1).

    The token is the first whose cumulative probability, in float64 and by token id, exceeds the uniform.
    """
    cdf = logp.double().exp().cumsum(-1)
    result = torch.searchsorted(cdf, uniform[:, None] * cdf[:, -1:], right=True)[:, 0]
    return result.clamp(max=cdf.shape[-1] - 1)


class Draft:
    """A completion on its way."""

    def __init__(self, policy: LanguageModel, stop_at_answer: bool) -> None:
        self.policy, self.stop_at_answer = policy, stop_at_answer
        self.tokens: list[int] = []
        self.scores: list[float] = []
        self.reason: FinishReason | None = None

    def add(self, token: int, score: float, last: FinishReason | None) -> bool:
        """Whether the completion ends with ``token``; ``last`` is the reason if it has to."""
        if not math.isfinite(score):
            self.reason = FinishReason.NOT_FINITE
            return True
        self.tokens.append(token)
        self.scores.append(score)
        ended = token in self.policy.ends or (self.stop_at_answer and self._closes_answer())
        self.reason = FinishReason.STOP if ended else last
        return self.reason is not None

    def _closes_answer(self) -> bool:
        decode = self.policy.tokenizer.decode
        return ">" in decode(self.tokens[-1:]) and ANSWER_ENDS in decode(self.tokens[-len(ANSWER_ENDS) :])

    def completion(self) -> Completion:
        assert self.reason is not None
        return Completion(
            token_ids=tuple(self.tokens),
            logprobs=tuple(self.scores),
            text=self.policy.tokenizer.decode(self.tokens, skip_special_tokens=True),
            finish_reason=self.reason,
        )


class Finished:
    """Counts the rows that have ended and gives each group with its last one."""

    def __init__(self, drafts: Sequence[Draft], group_size: int) -> None:
        self.drafts, self.group_size = drafts, group_size
        self.unfinished = [group_size] * (len(drafts) // group_size)

    def __call__(self, row: int) -> Iterator[tuple[int, list[Completion]]]:
        group = row // self.group_size
        self.unfinished[group] -= 1
        if not self.unfinished[group]:
            siblings = self.drafts[group * self.group_size : (group + 1) * self.group_size]
            yield group, [draft.completion() for draft in siblings]


@dataclass(kw_only=True)
class DecodeState:
    """What decoding carries from token to token; rows are dropped when their completion ends."""

    cache: Any
    length: int
    """Tokens so far, left padding included."""
    mask: Tensor | None
    """[rows, 1, 1, all tokens there can be] bool, False on left padding; None where there is none."""
    position: Tensor
    """[rows] position of the next token, on every axis."""
    axes: int
    """Axes of a position: 1, or the 3 of M-RoPE."""
    logits: Tensor
    """[rows, V]"""

    def select(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.mask, self.position = None if self.mask is None else self.mask[rows], self.position[rows]
