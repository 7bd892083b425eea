"""A rubric: weighted reward terms over one shared matching of instances. A reward preset is a YAML of terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from grasp_rl.config.errors import ConfigError
from grasp_rl.interfaces import Labels, WeakLabels
from grasp_rl.rewards.matching import matched_pairs, repeats
from grasp_rl.rewards.terms.base import AnswerTerm, InstanceTerm, Term
from grasp_rl.types import Answer, MaskPrediction, RewardBreakdown


class Rubric:
    """The reward of an answer: the weighted sum of its terms, added in the order in which they are listed.

    Predicted and reference instances are matched one to one so that the weighted sum of the instance terms is largest.
    An instance term is the sum over the matched pairs divided by the larger number of instances, so that a missing
    instance and a superfluous one cost the same; an instance that repeats another is superfluous.

    Without a target, an empty answer that was read earns every accuracy term in full and any other answer none. With a
    target, an empty answer or one that was not read earns none. Format terms are paid independently of the target.

    Args:
        terms: by name; the names appear in metrics as ``term/<name>``. A null leaves a term of the preset out.
        repeated_count: whether an instance that repeats another is matched like any other (VisionReasoner).

    Raises:
        ConfigError: there is no term, or an argument of one is out of range; the message names
            ``reward.terms.<name>.<argument>``.
    """

    def __init__(self, terms: dict[str, Any], repeated_count: bool = False) -> None:
        self.repeated_count = repeated_count
        self.terms: dict[str, Term] = {name: term for name, term in terms.items() if term is not None}
        if not self.terms:
            raise ConfigError(f"reward.terms={terms!r}: must name one term or more")
        for name, term in self.terms.items():
            if not isinstance(term, AnswerTerm | InstanceTerm):
                raise ConfigError(f"reward.terms.{name}={term!r}: must be an option with the _target_ of a reward term")
            term.check(f"reward.terms.{name}")
        self.needs: frozenset[str] = frozenset().union(*(term.needs for term in self.terms.values()))
        """What the terms compare with. Without ``mask`` in it, the rubric is handed labels that cannot hold one."""

    def __call__(
        self, answer: Answer, labels: WeakLabels | Labels, prediction: MaskPrediction | None = None
    ) -> RewardBreakdown:
        """Score one answer.

        Args:
            answer: what the policy said.
            labels: :class:`~grasp_rl.interfaces.WeakLabels`, or :class:`~grasp_rl.interfaces.Labels` where ``needs``
                has ``mask``.
            prediction: what the segmenter made of the answer; needed where ``needs`` has ``mask``.

        Raises:
            TypeError: ``labels`` hold a mask and no term needs one, or hold none and a term does.
            ValueError: there are a target and an answer, but no prediction, or one of another size.
        """
        if isinstance(labels, Labels) != ("mask" in self.needs):
            wanted = "Labels with a mask" if "mask" in self.needs else "WeakLabels, without a mask"
            raise TypeError(f"this rubric is scored with {wanted}; it was handed {type(labels).__name__}")
        accuracy = self._accuracy(answer, labels, prediction)
        values = {
            name: term(answer, labels, prediction)
            if isinstance(term, AnswerTerm) and not term.accuracy
            else accuracy[name]
            for name, term in self.terms.items()
        }
        return RewardBreakdown(reward=sum(self.terms[name].weight * v for name, v in values.items()), terms=values)

    def _accuracy(
        self, answer: Answer, labels: WeakLabels | Labels, prediction: MaskPrediction | None
    ) -> Mapping[str, float]:
        """The raw values of the accuracy terms by name."""
        terms = {n: t for n, t in self.terms.items() if isinstance(t, InstanceTerm) or getattr(t, "accuracy", False)}
        if not answer.ok or not answer.prompts or not labels.has_target:
            right = answer.ok and not answer.prompts and not labels.has_target
            return dict.fromkeys(terms, float(right))
        values = self._instance_values(answer, labels)
        return values | {n: t(answer, labels, prediction) for n, t in terms.items() if isinstance(t, AnswerTerm)}

    def _instance_values(self, answer: Answer, labels: WeakLabels | Labels) -> dict[str, float]:
        """Each instance term summed over the matched pairs, over the larger number of instances."""
        terms = {name: term for name, term in self.terms.items() if isinstance(term, InstanceTerm)}
        reference, side = labels.instances or (), float(max(labels.image_size))
        if not terms or not reference:
            return dict.fromkeys(terms, 0.0)
        tables = {name: term.table(answer.prompts, reference, side) for name, term in terms.items()}
        if not self.repeated_count:
            repeated = np.array(repeats(answer.prompts))
            for table in tables.values():
                table[repeated] = 0
        pairs = matched_pairs(tables, {name: term.weight for name, term in terms.items()})
        larger = max(len(answer.prompts), len(reference))
        return {name: float(sum(table[pair] for pair in pairs)) / larger for name, table in tables.items()}
