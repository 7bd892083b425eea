"""Terms of scene graphs: what is said to hold between the instances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from grasp_rl.interfaces import Labels, WeakLabels
from grasp_rl.rewards.terms.base import PairsTerm, plain_name
from grasp_rl.types import Answer


@dataclass(frozen=True, kw_only=True)
class SameRelations(PairsTerm):
    """Share of the true relations whose two instances are matched and between which the answer says the same predicate.

    R1-SGG (open_r1/grpo.py of gpt4vision/R1-SGG@013d5f1) compares predicates by word vectors; here the same words count
    1 and others 0 (case, commas and spaces do not count). 0 without true relations.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"boxes"})

    def value(self, answer: Answer, labels: WeakLabels | Labels, pairs: Sequence[tuple[int, int]]) -> float:
        """See the base."""
        partner = {reference: predicted for predicted, reference in pairs}
        said = {(subject, other): plain_name(predicate) for subject, predicate, other in answer.relations}
        right = [
            subject in partner
            and other in partner
            and said.get((partner[subject], partner[other])) == plain_name(predicate)
            for subject, predicate, other in labels.relations
        ]
        return sum(right) / len(right) if right else 0.0
