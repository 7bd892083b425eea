"""One answer beside its truth, from a line of predictions.jsonl, for protocols that count on masks and boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from grasp_rl.evaluation.metrics import SampleScore
from grasp_rl.evaluation.predictions import decode_mask
from grasp_rl.types import BoolMask, Box, ParseStatus
from grasp_rl.utils.files import Record


@dataclass(frozen=True)
class Pair:
    """A record, decoded where it is asked for. Coordinates are original-image pixels."""

    record: Record

    @classmethod
    def of(cls, score: SampleScore) -> Pair:
        """The pair behind a score.

        Raises:
            ValueError: the score was not read from a record.
        """
        if score.record is None:
            raise ValueError(f"sample {score.sample_id}: a score without its record has no masks; use score_of(record)")
        return cls(score.record)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)"""
        height, width = self.record.get("size") or self.record["predicted"]["size"]
        return int(height), int(width)

    @property
    def read(self) -> bool:
        """Whether the answer could be read."""
        return self.record["status"] in (ParseStatus.OK, ParseStatus.REPAIRED)

    @property
    def silent(self) -> bool:
        """Whether the answer was read and names no instance."""
        return bool(self.record["empty"])

    @cached_property
    def ignored(self) -> BoolMask | None:
        """[H, W] True where a pixel does not count; None where all do."""
        encoded = self.record.get("ignored")
        return None if encoded is None else decode_mask(encoded)

    @cached_property
    def predicted(self) -> list[BoolMask]:
        """[H, W] of each predicted instance in the answer's order; the union alone where no more was kept."""
        return self._masks("masks", "predicted")

    @cached_property
    def target(self) -> list[BoolMask] | None:
        """[H, W] of each true instance in the dataset's order, or the union where it names none; None without masks."""
        return None if self.record.get("target") is None else self._masks("target_masks", "target")

    def _masks(self, instances: str, union: str) -> list[BoolMask]:
        encoded: Sequence[Any] | None = self.record.get(instances)
        if encoded is None:
            whole = decode_mask(self.record[union])
            return [whole] if whole.any() else []
        return [decode_mask(part) for part in encoded]

    @property
    def named(self) -> bool:
        """Whether dataset and answer name instances, so that they can be compared one by one."""
        return "target_masks" in self.record and not self.record.get("whole", False)

    @property
    def boxes(self) -> list[Box | None]:
        """Of each predicted instance, None where the answer gives none."""
        return [None if p["box"] is None else _box(p["box"]) for p in self.record.get("prompts", ())]

    @property
    def target_boxes(self) -> list[Box] | None:
        """Of the true instances, left to right; None where they are not known."""
        boxes = self.record.get("target_boxes")
        return None if boxes is None else [_box(box) for box in boxes if box is not None]

    @property
    def frame(self) -> tuple[float, float]:
        """(width, height) that the numbers in the answer's text are in."""
        width, height = self.record.get("frame") or self.size[::-1]
        return float(width), float(height)


def union_of(masks: Sequence[BoolMask], size: tuple[int, int]) -> BoolMask:
    """[H, W], all False for no masks."""
    result = np.zeros(size, dtype=np.bool_)
    for mask in masks:
        result |= mask
    return result


def _box(values: Sequence[float]) -> Box:
    x0, y0, x1, y1 = (float(value) for value in values)
    return x0, y0, x1, y1
