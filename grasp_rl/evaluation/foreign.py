"""Another system's answers: masks as PNG by sample id, COCO results, or JSON lines. docs/evaluation.md has the formats.

They come from a stranger: paths stay in their folder, sizes must be the images' own, and what is missing is an error.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.masks import inspect_mask
from grasp_rl.data.rasterize import ShapeError, decode_rle, ring_masks
from grasp_rl.geometry import mask_to_box
from grasp_rl.interfaces import CoordinateFrame, Dataset
from grasp_rl.prompts.parse import parse
from grasp_rl.rollouts.reward_pipeline import RewardPipeline, segment
from grasp_rl.types import (
    Answer,
    BoolMask,
    Box,
    Completion,
    FinishReason,
    MaskPrediction,
    ParseStatus,
    RewardBreakdown,
    Sample,
    SegmentedRollout,
    SpatialPrompt,
)  # fmt: skip
from grasp_rl.utils.files import Record

KEYS = ("rle", "mask", "boxes", "text", "status")
STATUSES = {"ok": ParseStatus.OK, "unreadable": ParseStatus.BAD_JSON}
INVERTED = 0.05
"""Share of the boxes with x1 <= x0 or y1 <= y0 from which on they cannot be corners."""


class Foreign:
    """Answers by sample id, each made into a rollout without a reward.

    Where an answer has boxes or a text but no mask, the pipeline's segmenter makes it, and :attr:`notes` say so.

    Args:
        path: a folder of PNG files, or a JSON or JSON-lines file.
        pipeline: segments what comes without masks, and reads texts by its prompt scheme.
        dataset: whose samples are answered.

    Raises:
        ConfigError: it cannot be read, or its boxes are not corners.
    """

    def __init__(self, path: Path, pipeline: RewardPipeline, dataset: Dataset) -> None:
        self.path, self.pipeline = path, pipeline
        self.rows: dict[str, Record] | None = None if path.is_dir() else read_rows(path)
        self.segmented = 0
        if self.rows is not None:
            demand_corners(path, self.rows)

    @property
    def notes(self) -> list[str]:
        """What a reader of the numbers must know."""
        if not self.segmented:
            return []
        name = type(self.pipeline.segmenter).__name__
        return [f"{self.path.name}: {self.segmented} answers came without masks, which {name} made from their boxes"]

    def __call__(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, CoordinateFrame | None, SegmentedRollout]]:
        for sample in samples:
            row = self._row(sample)
            try:
                yield sample, None, self._rollout(sample, row)
            except ShapeError as error:
                raise ConfigError(f"{self.path}: {sample.sample_id}: {error}") from error

    def _row(self, sample: Sample) -> Record:
        if self.rows is None:
            file = self.path / f"{sample.sample_id}.png"
            inside = ".." not in Path(sample.sample_id).parts and not Path(sample.sample_id).is_absolute()
            if inside and file.is_file():
                return {"mask": file}
            found = file if inside else sample.sample_id
        elif sample.sample_id in self.rows:
            return self.rows[sample.sample_id]
        else:
            found = sample.sample_id
        raise ConfigError(
            f"{self.path}: no answer to sample {found}; give one for every sample of the split (an empty mask or list "
            'where nothing was found, {"status": "unreadable"} where nothing was said), or lower evaluation.test_limit'
        )

    def _rollout(self, sample: Sample, row: Record) -> SegmentedRollout:
        text = str(row.get("text") or "")
        status = STATUSES[row.get("status", "ok")]
        masks = self._masks(sample, row)
        if row.get("boxes") is not None:
            prompts = [SpatialPrompt(box=_box(box)) for box in row["boxes"]]
        elif masks is not None:
            masks = [mask for mask in masks if mask.any()]
            prompts = [SpatialPrompt(box=mask_to_box(mask)) for mask in masks]
        else:
            prompts = []
            if text:
                frame = CoordinateFrame(
                    width=sample.size[1], height=sample.size[0],
                    image_width=sample.size[1], image_height=sample.size[0],
                )  # fmt: skip
                read = parse(text, self.pipeline.prompt, frame, self.pipeline.parsing)
                prompts, status = list(read.prompts), read.status
        answer = Answer(
            prompts=tuple(prompts) if status in (ParseStatus.OK, ParseStatus.REPAIRED) else (), status=status
        )
        return SegmentedRollout(
            completion=Completion(token_ids=(), logprobs=(), text=text, finish_reason=FinishReason.STOP),
            answer=answer,
            masks=self._prediction(sample, answer, masks),
            reward=RewardBreakdown(reward=math.nan, terms={}),
        )

    def _prediction(self, sample: Sample, answer: Answer, masks: list[BoolMask] | None) -> MaskPrediction:
        if masks is None and answer.prompts:
            self.segmented += 1
            return next(iter(segment(self.pipeline.segmenter, sample.image, [answer], name=sample.sample_id)))
        kept = masks or []
        stacked = np.stack(kept) if kept else np.zeros((0, *sample.size), dtype=np.bool_)
        return MaskPrediction(masks=stacked, iou_predictions=np.ones(len(kept), dtype=np.float32))

    def _masks(self, sample: Sample, row: Record) -> list[BoolMask] | None:
        """[H, W] of each instance that the row draws; None where it draws none."""
        height, width = sample.size
        if row.get("mask") is not None:
            path = row["mask"] if isinstance(row["mask"], Path) else _inside(self.path.parent, row["mask"])
            return [inspect_mask(path, (height, width)).target]
        if row.get("rle") is not None:
            encoded = row["rle"] if isinstance(row["rle"], list) else [row["rle"]]
            return [decode_rle(rle, (height, width)) for rle in encoded]
        if row.get("polygons") is not None:
            return [_filled(rings, (height, width)) for rings in row["polygons"]]
        return None


def read_rows(path: Path) -> dict[str, Record]:
    """Answers by sample id, of COCO results (a JSON list) or JSON lines.

    Raises:
        ConfigError: the file cannot be read, a row has no usable keys, or an id stands twice in JSON lines.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if text.lstrip()[:1] == "[":
            return _coco(path, json.loads(text))
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path}: no answers there ({error}); must be a folder of PNG files, COCO results, or JSON lines"
        ) from error
    result: dict[str, Record] = {}
    for number, row in enumerate(rows, 1):
        problem = _problem(row)
        sample_id = str(row["id"]) if problem is None else ""
        if problem is None and sample_id in result:
            problem = f"id={sample_id!r}: stands twice"
        if problem is not None:
            raise ConfigError(f"{path}:{number}: {problem}; correct the row")
        result[sample_id] = row
    return result


def _problem(row: Any) -> str | None:
    """What is wrong with a row of JSON lines, or None."""
    if not isinstance(row, Mapping) or not isinstance(row.get("id"), str | int):
        return "must be a JSON object with the sample's id"
    if not any(key in row for key in KEYS):
        return f"has none of {', '.join(KEYS)}"
    if row.get("status", "ok") not in STATUSES:
        return f"status={row['status']!r}: must be one of {', '.join(STATUSES)}"
    boxes, drawn = row.get("boxes"), row.get("rle")
    if boxes is not None and not (isinstance(boxes, list) and all(_is_box(box) for box in boxes)):
        return "boxes: must be a list of [x0, y0, x1, y1] in pixels of the image"
    if boxes is not None and isinstance(drawn, list) and len(drawn) != len(boxes):
        return f"boxes: {len(boxes)} of them and {len(drawn)} masks; give one a mask"
    return None


def _is_box(box: Any) -> bool:
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box)
    return numbers and all(math.isfinite(v) and abs(v) < 1e6 for v in box)


def _coco(path: Path, rows: Any) -> dict[str, Record]:
    """COCO results: {image_id, bbox [x, y, width, height] or segmentation}, any number an image."""
    result: dict[str, Record] = {}
    for number, row in enumerate(rows):
        if not (isinstance(row, Mapping) and isinstance(row.get("image_id"), str | int)):
            raise ConfigError(
                f"{path}: result {number} has no image_id; COCO results are wanted, image_id the sample's id"
            )
        merged = result.setdefault(str(row["image_id"]), {})
        drawn, box = row.get("segmentation"), row.get("bbox")
        if isinstance(drawn, Mapping):
            merged.setdefault("rle", []).append(drawn)
        elif isinstance(drawn, list) and drawn:
            rings = [np.reshape(ring, (-1, 2)).tolist() for ring in drawn]
            merged.setdefault("polygons", []).append(rings)
        elif _is_box(box):
            x, y, w, h = (float(v) for v in box or ())
            merged.setdefault("boxes", []).append([x, y, x + w, y + h])
        else:
            raise ConfigError(f"{path}: result {number} has neither a segmentation nor a bbox of four numbers")
    return result


def demand_corners(path: Path, rows: Mapping[str, Record]) -> None:
    """Refuse boxes that cannot all be [x0, y0, x1, y1].

    Raises:
        ConfigError: too many of them have no extent that way.
    """
    boxes = [box for row in rows.values() for box in row.get("boxes") or ()]
    inverted = sum(box[2] <= box[0] or box[3] <= box[1] for box in boxes)
    if boxes and inverted > INVERTED * len(boxes):
        raise ConfigError(
            f"{path}: {inverted} of {len(boxes)} boxes have x1 <= x0 or y1 <= y0; corners [x0, y0, x1, y1] in pixels "
            "are wanted, not [x, y, width, height]"
        )


def _filled(rings: Sequence[Any], size: tuple[int, int]) -> BoolMask:
    """[H, W] of one instance's rings together; a ring without a pixel adds none."""
    mask = np.zeros(size, dtype=np.bool_)
    for ring in rings:
        with contextlib.suppress(ShapeError):
            mask |= next(ring_masks([ring], size, holes=False))
    return mask


def _inside(folder: Path, name: Any) -> Path:
    path = Path(str(name))
    if path.is_absolute() or ".." in path.parts:
        raise ConfigError(f"{folder}: mask={str(name)!r}: must be a path below this folder")
    return folder / path


def _box(values: Sequence[float]) -> Box:
    x0, y0, x1, y1 = (float(value) for value in values)
    return x0, y0, x1, y1
