"""What a dataset holds, in numbers: images, targets, instances, questions and attributes of each split. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from grasp_rl.data.base import RecordDataset
from grasp_rl.types import Attribute, Sample
from grasp_rl.utils.files import Record

SMALL = 0.01
"""Share of the image under which a target counts as small."""
SHOWN = 20
"""Values of an attribute that are listed, the most frequent ones."""
MEASURES = {
    "width": "image width (pixels)",
    "height": "image height (pixels)",
    "mask_share": "mask, share of the image",
    "instances": "instances",
    "words": "question (words)",
    "characters": "question (characters)",
}
"""What is measured of a sample, in words."""


@dataclass(kw_only=True)
class SplitStats:
    """Of one split, filled sample by sample."""

    name: str
    records: int = 0
    """All that the split has, of which some may have been read."""
    samples: int = 0
    images: int = 0
    """Distinct ones."""
    no_target: int = 0
    """Samples that nothing in the image answers."""
    without_mask: int = 0
    """Samples that have boxes alone."""
    values: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in MEASURES})
    """By the names of :data:`MEASURES`: size of each distinct image; share of the mask and instances of each sample
    with a target (share: and with a mask); length of each question."""
    attributes: dict[str, list[Attribute]] = field(default_factory=dict)
    """Values of each attribute, one for each sample that has it."""

    @property
    def small(self) -> float | None:
        """Share of the targets with a mask that cover less than :data:`SMALL` of their image; None without any."""
        shares = self.values["mask_share"]
        return float(np.mean(np.array(shares) < SMALL)) if shares else None

    def add(self, sample: Sample, new_image: bool) -> None:
        """Count ``sample``; ``new_image`` where its image has not been counted."""
        self.samples += 1
        if new_image:
            self.images += 1
            self.values["height"].append(sample.size[0])
            self.values["width"].append(sample.size[1])
        mask, labels = sample.target_mask, sample.weak_labels or ()
        self.without_mask += mask is None
        empty = not (labels if mask is None else mask.any())
        self.no_target += empty
        if not empty:
            self.values["instances"].append(len(labels))
            self.values["mask_share"] += [] if mask is None else [float(mask.mean())]
        self.values["words"].append(len(sample.query.split()))
        self.values["characters"].append(len(sample.query))
        for name, value in sample.attributes.items():
            self.attributes.setdefault(name, []).append(value)

    def as_record(self) -> Record:
        """The numbers as one JSON object; of each measure count, min, median, mean and max."""
        return {
            "records": self.records,
            "samples": self.samples,
            "images": self.images,
            "no_target": self.no_target,
            "without_mask": self.without_mask,
            "small_targets": self.small,
            **{name: summary(values) for name, values in self.values.items()},
            "attributes": {name: attribute_summary(values) for name, values in self.attributes.items()},
        }


def collect(dataset: RecordDataset, splits: Sequence[str], limit: int | None = None) -> list[SplitStats]:
    """Numbers of ``splits``, every usable sample of them made once.

    Args:
        dataset: of any reader; what it does about records that cannot be used holds here, too.
        splits: their names.
        limit: records of each split that are read, evenly spaced; None for all.

    Raises:
        ConfigError: a split or a record cannot be read.
    """
    collected = []
    for name in splits:
        split, seen = dataset.split(name), set[Hashable]()
        stats = SplitStats(name=name, records=len(split))
        for image, sample in split.usable_samples(limit):
            stats.add(sample, image not in seen)
            seen.add(image)
        collected.append(stats)
    return collected


def summary(values: Sequence[float]) -> Record | None:
    """Count, min, median, mean and max of ``values``; None of none."""
    if not values:
        return None
    array = np.array(values, dtype=np.float64)
    numbers = {"min": array.min(), "median": np.median(array), "mean": array.mean(), "max": array.max()}
    return {"count": len(values), **{name: float(number) for name, number in numbers.items()}}


def attribute_summary(values: Iterable[Attribute]) -> Record:
    """How often each value occurs, the :data:`SHOWN` most frequent ones; of fractions :func:`summary`."""
    values = list(values)
    if any(isinstance(value, float) for value in values):
        return summary([float(value) for value in values if not isinstance(value, str)]) or {}
    counts = Counter(str(value) for value in values)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {"count": len(values), "distinct": len(counts), "values": dict(ordered[:SHOWN])}
