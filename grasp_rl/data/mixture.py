"""Several datasets as one: what ``data=mixture`` instantiates.

The records of a split are a fixed list, a function of the config alone: :mod:`grasp_rl.data.sampler` permutes it for
every epoch as it does the records of one dataset, so every rank and a resumed run draw the same samples.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from grasp_rl.config.errors import ConfigError, require
from grasp_rl.data.base import OnBad, RecordDataset
from grasp_rl.data.few_shot import few_shot
from grasp_rl.types import Image, Sample
from grasp_rl.utils.keyed_rng import keyed_generator

log = logging.getLogger(__name__)

MAX_EPOCH = 2_000_000
"""Most samples of an epoch."""


class Mixture(RecordDataset):
    """Datasets of any readers; a sample's id is that of its set with the set's name and a slash before it.

    Every sample has the attribute ``set``, the name of its set. In ``train`` every set has its share of an epoch:
    ``weights`` of 2 and 1 draw two samples of the first set for one of the second, and every record occurs in an epoch
    at least once; a repeated one has an id of its own (``~2``), so its rollouts are drawn anew. The other splits are
    those of the sets, each record once. Sets alternate in proportion, so the first N records are of all of them.

    Args:
        sets: the datasets by name. One that has no split of a name is left out of it.
        weights: of every set, > 0; empty: every record of ``train`` once an epoch.
        caps: most records of ``train`` of a set, drawn by ``seed``; a set that is not named has no cap, one of 0 is
            scored alone.
        shots: samples a category of ``train`` of a set (:mod:`grasp_rl.data.few_shot`), before its cap.
        name: of the mixture, in predictions and reports.
        seed: of the draws of records.
        limit: see :class:`~grasp_rl.data.base.RecordDataset`.
        on_bad: about a record whose image or mask cannot be used; about lines, what each set says.

    Raises:
        ConfigError: there is no set, a name is of none, or a number is out of range.
    """

    def __init__(
        self,
        sets: Mapping[str, Any],
        weights: Mapping[str, float] | None = None,
        caps: Mapping[str, int] | None = None,
        shots: Mapping[str, int] | None = None,
        name: str = "mixture",
        seed: int = 0,
        limit: int | None = None,
        on_bad: OnBad = "raise",
    ) -> None:
        super().__init__(name=name, on_bad=on_bad, seed=seed, limit=limit)
        self.sets = _sets(sets)
        self.weights, self.caps, self.shot_counts = dict(weights or {}), dict(caps or {}), dict(shots or {})
        numbers: dict[str, Mapping[str, float]] = {
            "weights": self.weights,
            "caps": self.caps,
            "shots": self.shot_counts,
        }
        for key, values in numbers.items():
            for chosen, value in values.items():
                where = f"data.{key}.{chosen}"
                require(chosen in self.sets, where, value, f"of a set, one of {', '.join(self.sets)}")
                kinds = int | float if key == "weights" else int
                valid = isinstance(value, kinds) and not isinstance(value, bool) and 0 <= value < float("inf")
                asked = {"weights": "> 0", "caps": "a whole number >= 0", "shots": "a whole number >= 1"}[key]
                require(valid and (value > 0 or key == "caps"), where, value, asked)
        absent = [chosen for chosen in self.sets if self.weights and chosen not in self.weights]
        if absent:
            raise ConfigError(f"data.weights.{absent[0]}: missing; give every set a weight, or none")

    def splits(self) -> Sequence[str]:
        """The splits of the sets, each once."""
        return list(dict.fromkeys(split for source in self.sets.values() for split in source.splits()))

    def records(self, split: str) -> list[Part]:
        having = {key: source for key, source in self.sets.items() if _has(source, split)}
        if not having:
            raise ConfigError(
                f"data split {split!r}: no set of {self.name} has it; there are {', '.join(self.splits())}"
            )
        if len(having) < len(self.sets):
            log.warning("data split %s: without %s, which has none", split, ", ".join(self.sets.keys() - having.keys()))
        by_set = {key: list(source.split(split).records) for key, source in having.items()}
        if split != "train":
            return _alternating({key: [Part(key, record) for record in records] for key, records in by_set.items()})
        by_set = {key: kept for key, records in by_set.items() if (kept := self._narrowed(key, records))}
        if not by_set:
            raise ConfigError("data.caps: no set of train has a record left; give one a cap of 1 or more, or none")
        counts = {key: len(records) for key, records in by_set.items()}
        if self.weights:
            scale = max(count / self.weights[key] for key, count in counts.items())
            counts = {key: round(self.weights[key] * scale) for key in counts}
        if sum(counts.values()) > MAX_EPOCH:
            raise ConfigError(
                f"data.weights: an epoch would have {sum(counts.values())} samples, {MAX_EPOCH} at most; cap the set "
                "with many records and a small weight (data.caps)"
            )
        return _alternating({key: self._repeated(key, by_set[key], count) for key, count in counts.items()})

    def decode(self, record: Part, split: str, image: Image | None = None) -> Sample:
        sample = self.sets[record.key].decode(record.record, split, image)
        copy = f"~{record.copy}" if record.copy > 1 else ""
        return replace(
            sample,
            sample_id=f"{record.key}/{sample.sample_id}{copy}",
            attributes={**sample.attributes, "set": record.key},
        )

    def files(self, records: Sequence[Part]) -> list[Path]:
        result: list[Path] = []
        for key, source in self.sets.items():
            own = [part.record for part in records if part.key == key]
            result += source.files(own) if own else []
        return result

    @property
    def conversions(self) -> Mapping[str, int]:
        """The sum over the sets; see :class:`~grasp_rl.data.base.RecordDataset`."""
        total: Counter[str] = Counter()
        for source in self.sets.values():
            total.update(source.conversions)
        return total

    def image_of(self, record: Part) -> Hashable:
        """Equal for records of one set about one image, copies apart."""
        return record.key, self.sets[record.key].image_of(record.record), record.copy

    def place_of(self, record: Part) -> str:
        return f"{record.key}: {self.sets[record.key].place_of(record.record)}"

    def origin(self, record: Part) -> tuple[RecordDataset, Any]:
        return self.sets[record.key].origin(record.record)

    def _narrowed(self, key: str, records: list[Any]) -> list[Any]:
        """The records of a set in ``train``: shots, then the cap."""
        if key in self.shot_counts:
            records = few_shot(records, self.shot_counts[key], self.seed, key)
        cap = self.caps.get(key, len(records))
        return [records[index] for index in sorted(self._drawn(key, "cap", len(records), cap))]

    def _repeated(self, key: str, records: list[Any], count: int) -> list[Part]:
        """``count`` parts of a set, all of ``records`` equally often but for a drawn rest."""
        times, rest = divmod(count, len(records))
        drawn = set(self._drawn(key, "repeat", len(records), rest))
        return [
            Part(key, record, copy)
            for copy in range(1, times + 2)
            for index, record in enumerate(records)
            if copy <= times or index in drawn
        ]

    def _drawn(self, key: str, purpose: str, size: int, count: int) -> list[int]:
        """``count`` of ``size`` indices at most; those of a smaller count are the first of those of a larger one."""
        order = keyed_generator("mixture", self.seed, key, purpose).permutation(size)[:count]
        return [int(index) for index in order]


@dataclass(frozen=True)
class Part:
    """A record of a set."""

    key: str
    """Name of the set."""
    record: Any
    copy: int = 1
    """How often it has occurred in an epoch, this time included."""

    @property
    def query(self) -> str | None:
        """The question, where it is known before the sample is made."""
        return getattr(self.record, "query", None)


def _sets(sets: Mapping[str, Any]) -> dict[str, RecordDataset]:
    """``sets``, checked.

    Raises:
        ConfigError: there is none, a name has odd characters, or a value is no dataset that can be mixed.
    """
    if not sets:
        raise ConfigError("data.sets: empty; name datasets, such as +data@data.sets.drawn=synthetic")
    for key, source in sets.items():
        require(re.fullmatch(r"\w+", key) is not None, "data.sets", key, "letters, digits and _")
        if not isinstance(source, RecordDataset) or isinstance(source, Mixture):
            raise ConfigError(f"data.sets.{key}: must be a RecordDataset that is no mixture")
    return dict(sets)


def _has(source: RecordDataset, split: str) -> bool:
    return split in source.splits() or (split == "val" and source.val_from is not None)


def _alternating(parts: Mapping[str, Sequence[Part]]) -> list[Part]:
    """All parts, those of each set in order and evenly spaced."""
    placed = [
        ((index + 0.5) / len(members), number, part)
        for number, members in enumerate(parts.values())
        for index, part in enumerate(members)
    ]
    return [part for _, _, part in sorted(placed, key=lambda item: item[:2])]
