"""What inference options leave in a record; apart from them, so that records are read without torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from grasp_rl.types import Rollout, SegmentedRollout
from grasp_rl.utils.files import Record

KEY = "inference"
"""Of predictions.jsonl: what :class:`InferredRollout` tells."""


@dataclass(frozen=True, kw_only=True)
class InferredRollout(SegmentedRollout):
    """A rollout that inference options had a part in."""

    record: Record
    """Name and settings of the options, the fit, what the segmenter saw, the vote and every answer's text."""
    segmented: tuple[int, int, str | None] | None
    """See :class:`~grasp_rl.inference.voting.Vote`."""

    def without_masks(self) -> Rollout:
        result = super().without_masks()
        if self.segmented is None:
            return result
        tried, failed, error = self.segmented
        return replace(result, segmented_prompts=tried, failed_prompts=failed, segmenter_error=error)
