"""Text terms: length of the completion, novelty of its thought, the right choice."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, Protocol

import numpy as np

from grasp_rl.geometry import FloatArray
from grasp_rl.interfaces import Labels, WeakLabels
from grasp_rl.rewards.terms.base import AnswerTerm, GroupTerm
from grasp_rl.types import Answer, MaskPrediction


@dataclass(frozen=True, kw_only=True)
class Length(AnswerTerm):
    """longest + (1 - longest) (1 + cos(pi n / N)) / 2 for a completion of n tokens, at most N = ``max_tokens``.

    The cosine length reward of arXiv 2502.03373 for right answers: 1 for no token, falling to ``longest`` at N and
    staying there. Which answers are right is for the ``gate`` to say: what does not pass it earns 0. (VLM-R1's released
    term takes every answer for right.)
    """

    max_tokens: int = 1024
    longest: float = 0.5
    periodic: bool = False
    """Let the cosine go on behind N, so that the value rises again to 1 at 2 N (VLM-R1's released term)."""
    accuracy: ClassVar[bool] = False
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"max_tokens": (1, 1e6), "longest": (0, 1)}

    def __call__(self, answer: Answer, labels: WeakLabels | Labels, prediction: MaskPrediction | None) -> float:
        tokens = answer.tokens if self.periodic else min(answer.tokens, self.max_tokens)
        share = tokens / self.max_tokens
        return self.longest + (1 - self.longest) * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True, kw_only=True)
class Overlong(AnswerTerm):
    """1 for a completion of up to ``max_tokens`` - ``cache`` tokens, then in a straight line to 0 at ``max_tokens``.

    DAPO's soft overlong punishment (arXiv 2503.14476, equation 13) is this less 1, in [-1, 0]; within a group the two
    differ by a constant. ``max_tokens`` is that of ``rollout.max_new_tokens``.
    """

    max_tokens: int = 1024
    cache: int = 256
    accuracy: ClassVar[bool] = False
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"max_tokens": (1, 1e6), "cache": (1, 1e6)}

    def __call__(self, answer: Answer, labels: WeakLabels | Labels, prediction: MaskPrediction | None) -> float:
        return min(1.0, max(0.0, (self.max_tokens - answer.tokens) / self.cache))


@dataclass(frozen=True, kw_only=True)
class Repetition(AnswerTerm):
    """Share of the completion's runs of ``words`` words that are different; 1 for a shorter completion.

    VLM-R1 pays this less 1, in [-1, 0]; within a group the two differ by a constant.
    """

    words: int = 6
    accuracy: ClassVar[bool] = False
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"words": (1, 1000)}

    def __call__(self, answer: Answer, labels: WeakLabels | Labels, prediction: MaskPrediction | None) -> float:
        words = answer.text.lower().split()
        runs = [tuple(words[place : place + self.words]) for place in range(len(words) - self.words + 1)]
        return len(set(runs)) / len(runs) if runs else 1.0


@dataclass(frozen=True, kw_only=True)
class Choice(AnswerTerm):
    """1 iff the answer names the right one of the images that the question shows (Geo-R1, arXiv 2510.00072)."""

    accuracy: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"choice"})

    def __call__(self, answer: Answer, labels: WeakLabels | Labels, prediction: MaskPrediction | None) -> float:
        return float(answer.choice is not None and answer.choice == labels.choice)


class TextEncoder(Protocol):
    """Gives texts a vector each."""

    def __call__(self, texts: Sequence[str]) -> FloatArray:
        """[N, D] vectors of unit length, or zero for a text without words."""
        ...


@dataclass(frozen=True, kw_only=True)
class HashingEncoder:
    """Counts of words and word pairs, hashed into ``dimensions`` signed places (arXiv 0902.2206); needs no model."""

    dimensions: int = 4096

    def __call__(self, texts: Sequence[str]) -> FloatArray:
        """[N, dimensions] vectors of unit length, or zero for a text without words."""
        vectors = np.zeros((len(texts), self.dimensions))
        for vector, text in zip(vectors, texts, strict=True):
            words = re.findall(r"\w+", text.lower())
            for token in (*words, *map(" ".join, pairwise(words))):
                code = zlib.crc32(token.encode())
                vector[(code >> 1) % self.dimensions] += 1 if code & 1 else -1
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        np.divide(vectors, norms, out=vectors, where=norms > 0)
        return vectors


@dataclass(frozen=True, kw_only=True)
class Novelty(GroupTerm):
    """1 - alpha times the mean cosine similarity of the thought to the other valid thoughts (RS-HyRe-R1).

    Valid are thoughts of more than ``min_characters`` whose answer passes the ``gate``; of ``fewest`` valid thoughts or
    fewer none earns anything. The released code compares among the whole batch of rewards (``scope=batch``).

    arXiv 2604.17504, HyRe_score.py.
    """

    alpha: float = 0.5
    min_characters: int = 10
    fewest: int = 2
    encoder: Any = field(default_factory=HashingEncoder)
    """A :class:`TextEncoder`."""
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "alpha": (0, 1),
        "min_characters": (0, 1e6),
        "fewest": (1, 1e6),
    }

    def values(self, answers: Sequence[Answer], valid: Sequence[bool]) -> list[float]:
        """See the base."""
        thoughts = [(answer.thinking or "").strip() for answer in answers]
        places = [i for i, ok in enumerate(valid) if ok and len(thoughts[i]) > self.min_characters]
        result = [0.0] * len(answers)
        if len(places) <= self.fewest:
            return result
        vectors = np.asarray(self.encoder([thoughts[i] for i in places]), float)
        similarity = vectors @ vectors.T
        others = (similarity.sum(1) - similarity.diagonal()) / (len(places) - 1)
        for place, mean in zip(places, others.tolist(), strict=True):
            result[place] = min(1.0, max(0.0, 1.0 - self.alpha * mean))
        return result
