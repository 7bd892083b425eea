"""A rubric: weighted reward terms over one shared matching of instances. A reward preset is a YAML of terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from grasp_rl.config.errors import ConfigError, one_of
from grasp_rl.interfaces import Labels, WeakLabels
from grasp_rl.rewards.baseline import RandomBox
from grasp_rl.rewards.matching import MATCHINGS, matched_pairs, repeats, union_of
from grasp_rl.rewards.terms.base import AnswerTerm, GroupTerm, InstanceTerm, PairsTerm, Term
from grasp_rl.types import Answer, MaskPrediction, RewardBreakdown, SpatialPrompt

NORMALISERS = ("larger", "reference", "predicted")
NO_TARGET = ("accuracy", "zero")


class Rubric:
    """The reward of an answer: the weighted sum of its terms, added in the order in which they are listed.

    Predicted and reference instances are matched; with the default one to one, so that the weighted sum of the instance
    terms is largest. An instance term is the sum over the matched pairs divided by a number of instances: by default
    the larger one, so that a missing instance and a superfluous one cost the same. An instance that repeats another is
    superfluous.

    Without a target, an empty answer that was read earns every accuracy term in full and any other answer none. With a
    target, an empty answer or one that was not read earns none. Format terms are paid independently of the target.

    Args:
        terms: by name; the names appear in metrics as ``term/<name>``. A null leaves a term of the preset out.
        matching: one of :data:`~grasp_rl.rewards.matching.MATCHINGS`.
        matching_weights: weights of instance terms in the matching, by name; the terms' own where empty.
        normalise: what an instance term is divided by: the larger number of instances, that of the reference, or that
            of the answer (with ``matching=union_box`` there is one of each).
        no_target: what an empty answer earns of the accuracy terms where there is no target: ``accuracy`` in full,
            ``zero`` nothing.
        repeated_count: whether an instance that repeats another is matched like any other (VisionReasoner).
        baseline: a :class:`~grasp_rl.rewards.baseline.RandomBox`, whose expected accuracy is subtracted from what the
            accuracy terms pay; null for none.

    Raises:
        ConfigError: there is no term, or an argument of one is out of range; the message names
            ``reward.terms.<name>.<argument>``.
    """

    def __init__(
        self,
        terms: dict[str, Any],
        matching: str = "hungarian",
        matching_weights: dict[str, float] | None = None,
        normalise: str = "larger",
        no_target: str = "accuracy",
        repeated_count: bool = False,
        baseline: Any = None,
    ) -> None:
        one_of("reward.matching", matching, MATCHINGS)
        one_of("reward.normalise", normalise, NORMALISERS)
        one_of("reward.no_target", no_target, NO_TARGET)
        self.matching, self.normalise, self.no_target = matching, normalise, no_target
        self.repeated_count = repeated_count
        self.terms = _checked(terms)
        instance_terms = [name for name, term in self.terms.items() if isinstance(term, InstanceTerm)]
        self.matching_weights = dict(matching_weights or {})
        if unknown := sorted(set(self.matching_weights) - set(instance_terms)):
            raise ConfigError(
                f"reward.matching_weights={unknown}: must name instance terms: {', '.join(instance_terms)}"
            )
        if baseline is not None and not isinstance(baseline, RandomBox):
            raise ConfigError(f"reward.baseline={baseline!r}: must be null or an option with the _target_ of RandomBox")
        self.baseline = baseline
        self.needs: frozenset[str] = frozenset().union(*(term.needs for term in self.terms.values()))
        """What the terms compare with. Without ``mask`` in it, the rubric is handed labels that cannot hold one."""

    @property
    def holds_model(self) -> bool:
        """Whether a term has a model of its own, which is not to be sent to another process."""
        return any(getattr(term, "verifier", None) is not None for term in self.terms.values())

    def __call__(
        self,
        answer: Answer,
        labels: WeakLabels | Labels,
        prediction: MaskPrediction | None = None,
        step: int | None = None,
    ) -> RewardBreakdown:
        """Score one answer by itself; see :meth:`score_group`."""
        return self.score_group([answer], labels, [prediction], step)[0]

    def score_group(
        self,
        answers: Sequence[Answer],
        labels: WeakLabels | Labels,
        predictions: Sequence[MaskPrediction | None],
        step: int | None = None,
    ) -> list[RewardBreakdown]:
        """Score the answers to one question. Terms that compare within the whole step's batch are left for later.

        Args:
            answers: what the policy said.
            labels: :class:`~grasp_rl.interfaces.WeakLabels`, or :class:`~grasp_rl.interfaces.Labels` where ``needs``
                has ``mask``.
            predictions: what the segmenter made of each answer; needed where ``needs`` has ``mask``.
            step: the optimizer step that the weights' schedules are at; None for their end.

        Raises:
            TypeError: ``labels`` hold a mask and no term needs one, or hold none and a term does.
            TypeError: a term gives something else than a number.
            ValueError: there are a target and an answer, but no prediction, or one of another size.
        """
        if isinstance(labels, Labels) != ("mask" in self.needs):
            expected = "Labels with a mask" if "mask" in self.needs else "WeakLabels, without a mask"
            raise TypeError(f"this rubric is scored with {expected}; it was handed {type(labels).__name__}")
        if _without_classes(answers, labels):
            answers = [replace(a, prompts=tuple(replace(p, category=None) for p in a.prompts)) for a in answers]
            labels = replace(labels, instances=tuple(replace(p, category=None) for p in labels.instances or ()))
        values = [self._values(*pair, labels) for pair in zip(answers, predictions, strict=True)]
        for name, term in self.group_terms("group").items():
            _fill(values, name, term.values(answers, [_passes(term, row) for row in values]))
        for row in values:
            _demand_numbers(row)
        chance = self._chance(labels, step)
        return [self._paid(row, chance, step) for row in values]

    def group_terms(self, scope: str) -> dict[str, GroupTerm]:
        """The terms that compare completions with one another within ``scope``, by name."""
        return {n: t for n, t in self.terms.items() if isinstance(t, GroupTerm) and t.scope == scope}

    def with_batch_terms(
        self, rewards: Sequence[RewardBreakdown], answers: Sequence[Answer], step: int | None
    ) -> list[RewardBreakdown]:
        """``rewards`` of a whole step's answers, with the terms added that compare within the batch."""
        values = [dict(reward.terms) for reward in rewards]
        paid = [dict(reward.paid) for reward in rewards]
        for name, term in self.group_terms("batch").items():
            _fill(values, name, term.values(answers, [_passes(term, row) for row in values]))
            _fill(paid, name, [term.weight_at(step) * row[name] for row in values])
        order = list(self.terms)
        return [
            RewardBreakdown(
                reward=reward.reward + sum(row[name] for name in self.group_terms("batch")),
                terms={name: raw[name] for name in order},
                paid=row,
            )
            for reward, raw, row in zip(rewards, values, paid, strict=True)
        ]

    def _chance(self, labels: WeakLabels | Labels, step: int | None) -> float | None:
        """What the baseline's random box earns of the accuracy terms at ``step``; None without one or a target."""
        if self.baseline is None or not labels.has_target:
            return None
        terms = {name: term for name, term in self.terms.items() if isinstance(term, InstanceTerm)}
        weights = {name: term.weight_at(step) for name, term in terms.items()}
        reference: Sequence[SpatialPrompt] = labels.instances or ()
        if self.matching == "union_box":
            reference = union_of(reference)
        return float(self.baseline.expected(terms, weights, reference, labels.image_size))

    def _paid(self, values: Mapping[str, float], chance: float | None, step: int | None) -> RewardBreakdown:
        """The reward for raw ``values``: each term's weight at ``step`` where its gate lets it pass."""
        weights = {name: term.weight_at(step) for name, term in self.terms.items() if name in values}
        paid = {
            name: weight * values[name] if _passes(self.terms[name], values) else 0.0
            for name, weight in weights.items()
        }
        if self.baseline is not None and chance is not None:
            names = [name for name in paid if _is_accuracy(self.terms[name])]
            accuracy, most = sum(paid[name] for name in names), sum(weights[name] for name in names)
            paid["random_box"] = self.baseline.change(accuracy, chance, most)
        return RewardBreakdown(reward=sum(paid.values()), terms=values, paid=paid)

    def _values(
        self, answer: Answer, prediction: MaskPrediction | None, labels: WeakLabels | Labels
    ) -> dict[str, float]:
        """The raw values of one answer's terms by name, in their order; terms of a group are not among them."""
        accuracy = self._accuracy(answer, labels, prediction)
        return {
            name: accuracy[name] if _is_accuracy(term) else term(answer, labels, prediction)  # type: ignore[operator]  # an AnswerTerm
            for name, term in self.terms.items()
            if not isinstance(term, GroupTerm)
        }

    def _accuracy(
        self, answer: Answer, labels: WeakLabels | Labels, prediction: MaskPrediction | None
    ) -> Mapping[str, float]:
        """The raw values of the accuracy terms by name."""
        terms = {name: term for name, term in self.terms.items() if _is_accuracy(term)}
        if not answer.ok or not answer.prompts or not labels.has_target:
            right = answer.ok and not answer.prompts and not labels.has_target and self.no_target == "accuracy"
            return dict.fromkeys(terms, float(right))
        values = self._instance_values(answer, labels)
        return values | {n: t(answer, labels, prediction) for n, t in terms.items() if isinstance(t, AnswerTerm)}

    def _instance_values(self, answer: Answer, labels: WeakLabels | Labels) -> dict[str, float]:
        """Each instance term summed over the matched pairs, over a number of instances; and the terms of all pairs."""
        terms = {name: term for name, term in self.terms.items() if isinstance(term, InstanceTerm)}
        of_pairs = {name: term for name, term in self.terms.items() if isinstance(term, PairsTerm)}
        predicted: Sequence[SpatialPrompt] = answer.prompts
        reference: Sequence[SpatialPrompt] = labels.instances or ()
        if not terms or not reference:
            return dict.fromkeys([*terms, *of_pairs], 0.0)
        if self.matching == "union_box":
            predicted, reference = union_of(predicted), union_of(reference)
        tables = {name: term.table(predicted, reference, labels.image_size) for name, term in terms.items()}
        if not self.repeated_count:
            repeated = np.array(repeats(predicted))
            for table in tables.values():
                table[repeated] = 0
        weights = self.matching_weights or {name: term.weight for name, term in terms.items()}
        pairs = matched_pairs(tables, weights, self.matching)
        counts = {"predicted": len(predicted), "reference": len(reference)}
        divisor = counts.get(self.normalise, max(counts.values()))
        values = {name: float(sum(table[pair] for pair in pairs)) / divisor for name, table in tables.items()}
        return values | {name: term.value(answer, labels, pairs) for name, term in of_pairs.items()}


def _checked(terms: Mapping[str, Any]) -> dict[str, Term]:
    """The terms that are used, their arguments checked."""
    given = {name: term for name, term in terms.items() if term is not None}
    if not given:
        raise ConfigError(f"reward.terms={terms!r}: must name one term or more")
    for name, term in given.items():
        if not isinstance(term, AnswerTerm | InstanceTerm | PairsTerm | GroupTerm):
            raise ConfigError(f"reward.terms.{name}={term!r}: must be an option with the _target_ of a reward term")
        term.check(f"reward.terms.{name}")
    used = {name: term for name, term in given.items() if term.used}
    for name, term in used.items():
        simple = [other for other, gate in used.items() if other != name and not gate.gate]
        if unknown := sorted(set(term.gate) - set(simple)):
            raise ConfigError(
                f"reward.terms.{name}.gate={unknown}: must name terms that are paid or reported and have no gate of "
                f"their own: {', '.join(simple)}"
            )
    return used


def _without_classes(answers: Sequence[Answer], labels: WeakLabels | Labels) -> bool:
    """Whether the reference instances name classes and the answers do not, or the other way round.

    Then classes cannot be compared: the prompt scheme does not ask for them, or the dataset does not have them.
    """
    with_classes = any(item.category is not None for answer in answers for item in answer.prompts)
    return with_classes != any(item.category is not None for item in labels.instances or ())


def _is_accuracy(term: Term) -> bool:
    """Whether the rule for questions without a target and for empty answers decides about ``term``."""
    return isinstance(term, InstanceTerm | PairsTerm) or (isinstance(term, AnswerTerm) and term.by_rule)


def _passes(term: Term, values: Mapping[str, float]) -> bool:
    """Whether the raw ``values`` of an answer pass the gate of ``term``."""
    return all(values[name] >= least for name, least in term.gate.items())


def _demand_numbers(values: Mapping[str, object]) -> None:
    for name, value in values.items():
        if not isinstance(value, int | float | np.number | np.bool_):
            raise TypeError(f"reward.terms.{name}: gave {value!r}; a term gives one number for an answer")


def _fill(rows: Sequence[dict[str, float]], name: str, column: Sequence[float]) -> None:
    for row, value in zip(rows, column, strict=True):
        row[name] = value
