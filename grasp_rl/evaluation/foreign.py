"""Another system's answers, made into rollouts: masks as PNG by sample id, COCO results, or JSON lines."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.image_io import ImageError
from grasp_rl.data.masks import inspect_mask
from grasp_rl.data.rasterize import ShapeError, decode_rle, ring_masks
from grasp_rl.evaluation.foreign_rows import Answers, Given, read_answers
from grasp_rl.geometry import mask_to_box
from grasp_rl.interfaces import CoordinateFrame, Dataset
from grasp_rl.prompts.parse import parse
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.segmenters.segment import segment
from grasp_rl.types import (
    Answer,
    BoolMask,
    Completion,
    FinishReason,
    MaskPrediction,
    ParseStatus,
    RewardBreakdown,
    Sample,
    SegmentedRollout,
    SpatialPrompt,
)  # fmt: skip

REMEDY = (
    "give one for every sample of the split (an empty mask or list where nothing was found, "
    '{"status": "unreadable"} where nothing was said), or lower evaluation.test_limit'
)


class Foreign:
    """Answers by sample id, each made into a rollout without a reward.

    Where an answer has boxes or a text but no mask, the pipeline's segmenter makes it, and :attr:`notes` say so.

    Args:
        path: a folder of PNG files, or a JSON or JSON-lines file.
        pipeline: segments what comes without masks, and reads texts by its prompt scheme.
        dataset: whose samples are answered.
        count: of them.

    Raises:
        ConfigError: it cannot be read, a sample has no answer, or boxes are not corners.
    """

    def __init__(self, path: Path, pipeline: RewardPipeline, dataset: Dataset, count: int | None = None) -> None:
        self.path, self.pipeline = path, pipeline
        self.answers: Answers | None = None if path.is_dir() else read_answers(path)
        self.tally: Counter[str] = Counter()
        """Answers by what befell them: ``segmented``, ``absent``."""
        ids = ids_of(dataset)
        self.unknown = 0
        """Answers to samples that the split does not have."""
        if self.answers is not None and ids:
            self.unknown = len(self.answers.rows.keys() - set(ids))
            missing = [sample_id for sample_id in ids[:count] if sample_id not in self.answers.rows]
            if missing and not self.answers.absent_is_empty:
                raise ConfigError(f"{path}: no answer to sample {missing[0]} and {len(missing) - 1} more; {REMEDY}")

    def notes(self, tally: Counter[str]) -> list[str]:
        """What a reader of the numbers must know, by the ``tally`` of all ranks."""
        name, notes = self.path.name, list(self.answers.notes if self.answers else ())
        if tally["segmented"]:
            made = type(self.pipeline.segmenter).__name__
            notes.append(f"{name}: {tally['segmented']} answers came without masks, which {made} made from their boxes")
        if tally["absent"]:
            notes.append(f"{name}: {tally['absent']} samples have no result, which is taken for nothing found")
        if self.unknown:
            notes.append(f"{name}: {self.unknown} answers are to samples that this split does not have")
        return notes

    def __call__(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, CoordinateFrame | None, SegmentedRollout]]:
        for sample in samples:
            given = self._given(sample)
            try:
                frame = _frame(sample, given)
                yield sample, frame, self._rollout(sample, given, frame)
            except (ShapeError, ImageError) as error:
                raise ConfigError(f"{given.place}: {sample.sample_id}: {error}") from error

    def _given(self, sample: Sample) -> Given:
        if self.answers is not None:
            given = self.answers.rows.get(sample.sample_id)
            if given is not None:
                return given
            if self.answers.absent_is_empty:
                self.tally["absent"] += 1
                return Given(place=str(self.path), drawn=())
            raise ConfigError(f"{self.path}: no answer to sample {sample.sample_id}; {REMEDY}")
        parts = Path(sample.sample_id)
        if parts.is_absolute() or ".." in parts.parts:
            raise ConfigError(f"{self.path}: the id {sample.sample_id!r} is no name of a file; give JSON lines instead")
        file = self.path / f"{sample.sample_id}.png"
        if not file.is_file():
            raise ConfigError(f"{self.path}: no answer to sample {file}; {REMEDY}")
        return Given(place=str(self.path), file=file, whole=True)

    def _rollout(self, sample: Sample, given: Given, frame: CoordinateFrame | None) -> SegmentedRollout:
        masks, status = self._masks(sample, given), ParseStatus.OK if given.read else ParseStatus.BAD_JSON
        if masks is not None and not any(mask.any() for mask in masks):
            masks = []  # nothing was found
        prompts: list[SpatialPrompt] = []
        if given.boxes is not None and (masks is None or masks):
            prompts = [SpatialPrompt(box=box) for box in given.boxes]
        elif masks is not None:
            prompts = [SpatialPrompt(box=mask_to_box(mask)) for mask in masks]
        elif given.text is not None and given.read:
            read = parse(given.text, self.pipeline.prompt, frame or _pixels(sample), self.pipeline.parsing)
            prompts, status = list(read.prompts), read.status
        answer = Answer(prompts=tuple(prompts), status=status)
        return SegmentedRollout(
            completion=Completion(token_ids=(), logprobs=(), text=given.text or "", finish_reason=FinishReason.STOP),
            answer=answer,
            masks=self._prediction(sample, answer, masks, whole=given.whole),
            reward=RewardBreakdown(reward=math.nan, terms={}),
        )

    def _prediction(
        self, sample: Sample, answer: Answer, masks: list[BoolMask] | None, *, whole: bool
    ) -> MaskPrediction:
        if masks is None and answer.prompts:
            self.tally["segmented"] += 1
            return next(iter(segment(self.pipeline.segmenter, sample.image, [answer], name=sample.sample_id)))
        kept = masks or []
        stacked = np.stack(kept) if kept else np.zeros((0, *sample.size), dtype=np.bool_)
        return MaskPrediction(masks=stacked, iou_predictions=np.ones(len(kept), dtype=np.float32), whole=whole)

    def _masks(self, sample: Sample, given: Given) -> list[BoolMask] | None:
        """[H, W] of each instance that the answer draws; None where it draws none."""
        if given.file is not None:
            return [_of_file(given.file, sample.size)]
        if given.drawn is None:
            return None
        return [decode_rle(m, sample.size) if isinstance(m, dict) else _filled(m, sample.size) for m in given.drawn]


def ids_of(dataset: Dataset, count: int | None = None) -> list[str]:
    """Ids of the first ``count`` samples, without an image being read; none where the records do not tell."""
    ids = [getattr(record, "sample_id", None) for record in getattr(dataset, "records", ())[:count]]
    return [] if None in ids else [str(sample_id) for sample_id in ids]


def _frame(sample: Sample, given: Given) -> CoordinateFrame | None:
    if given.frame is None:
        return None
    width, height = (max(1, round(side)) for side in given.frame)
    return CoordinateFrame(width=width, height=height, image_width=sample.size[1], image_height=sample.size[0])


def _pixels(sample: Sample) -> CoordinateFrame:
    height, width = sample.size
    return CoordinateFrame(width=width, height=height, image_width=width, image_height=height)


def _of_file(path: Path, size: tuple[int, int]) -> BoolMask:
    """The mask in a PNG, all that is not 0; one value everywhere may be meant, other doubts are errors.

    Raises:
        ImageError: it cannot be read, has another size, or its values speak against a mask.
    """
    mask = inspect_mask(path, size)
    if mask.doubt is not None and not (mask.target.all() and _one_value(path)):
        raise ImageError(mask.doubt)
    return mask.target


def _one_value(path: Path) -> bool:
    with Pillow.open(path) as image:
        extrema: Any = image.getextrema()
    bands = extrema if isinstance(extrema[0], tuple) else [extrema]
    return all(low == high for low, high in bands)


def _filled(rings: Sequence[Any], size: tuple[int, int]) -> BoolMask:
    """[H, W] of one instance's rings together; a ring without a pixel adds none."""
    mask = np.zeros(size, dtype=np.bool_)
    for ring in rings:
        with contextlib.suppress(ShapeError):
            mask |= next(ring_masks([ring], size, holes=False))
    return mask
