"""What an evaluation leaves behind: one record a sample, from which every number can be had again without a model.

An evaluation folder holds ``predictions.jsonl`` (one record a line, masks run-length encoded; equal runs write equal
bytes), ``metrics.json`` (the numbers, with the seconds that an image took) and ``overlays/`` (the first samples drawn).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.messages import of_system
from grasp_rl.data.image_io import write_image
from grasp_rl.data.rasterize import decode_rle
from grasp_rl.data.visualization import draw_overlay, with_caption
from grasp_rl.evaluation.metrics import SampleScore, matched_box_iou, score_of
from grasp_rl.geometry import outside
from grasp_rl.inference.rollout import KEY, InferredRollout
from grasp_rl.interfaces import CoordinateFrame, EvaluationProtocol
from grasp_rl.types import BoolMask, FinishReason, Image, Sample, SegmentedRollout, SpatialPrompt
from grasp_rl.utils.files import Record, Unreadable, parse_json, read_lines, to_json, write_json, write_text

PREDICTIONS, METRICS, OVERLAYS = "predictions.jsonl", "metrics.json", "overlays"


def record_of(
    sample: Sample,
    rollout: SegmentedRollout,
    *,
    boxes: bool,
    protocol: EvaluationProtocol,
    frame: CoordinateFrame | None = None,
) -> Record:
    """The line of predictions.jsonl about one sample.

    Args:
        sample: the question.
        rollout: the answer, its mask and its reward (not finite where there was none to be had).
        boxes: whether the prompt scheme asks for boxes.
        protocol: whose IoU of the sample is recorded.
        frame: of the coordinates in the answer's text; None for the image's pixels.
    """
    answer, completion, true = rollout.answer, rollout.completion, sample.target_mask
    ignored, counted = sample.ignore_mask, outside(rollout.answer.prompts, sample.ignore_mask)
    has_target = bool(sample.weak_labels) if true is None else bool(true.any())
    has_target = has_target or sample.choice is not None  # a choice is no question without a target
    predicted, reward = predicted_mask(sample, rollout), rollout.reward.reward
    record: Record = {
        "sample_id": sample.sample_id,
        "dataset": sample.dataset,
        "split": sample.split,
        "query": sample.query,
        "text": completion.text,
        "status": str(answer.status),
        "empty": answer.ok and not counted,
        "prompts": [stored_prompt(prompt) for prompt in answer.prompts],
        "size": list(sample.size),
        "predicted": encode_mask(predicted),
        "target": None if true is None else encode_mask(true),
        "target_boxes": None if sample.weak_labels is None else [label.box for label in sample.weak_labels],
        "ignored": None if ignored is None else encode_mask(ignored),
        "has_target": has_target,
        "instances": None if sample.weak_labels is None or sample.choice is not None else len(sample.weak_labels),
        **_overlap(predicted, true, ignored),
        "box_iou": matched_box_iou(counted, sample.weak_labels or ()) if has_target and boxes else None,
        "reward": reward if math.isfinite(reward) else None,
        "terms": dict(rollout.reward.terms),
        "tokens": len(completion.token_ids),
        "truncated": completion.finish_reason is FinishReason.LENGTH,
        "segmenter_error": rollout.masks.error if rollout.masks is not None else None,
    }
    if frame is not None:
        record["frame"] = [frame.width, frame.height]
        if (frame.image_width, frame.image_height) != sample.size[::-1]:
            record["window"] = [frame.left, frame.top, frame.image_width, frame.image_height]
    earlier, turn = [], answer.previous
    while turn is not None:
        earlier.append(
            {"text": turn.text, "status": str(turn.status), "prompts": [stored_prompt(p) for p in turn.prompts]}
        )
        turn = turn.previous
    if earlier:
        record["earlier_turns"] = earlier[::-1]
    if rollout.masks is not None and rollout.masks.whole:
        record["whole"] = True
    elif rollout.masks is not None and rollout.masks.error is None and len(answer.prompts) > 1:
        record["masks"] = [encode_mask(np.asarray(mask, dtype=np.bool_)) for mask in on_host(rollout.masks.masks)]
    if sample.instance_masks is not None and true is not None:
        record["target_masks"] = [encode_mask(mask) for mask in sample.instance_masks()]
    if isinstance(rollout, InferredRollout):
        record[KEY] = rollout.record
    if sample.attributes:
        record["attributes"] = dict(sample.attributes)
    return record | {"iou": protocol.iou(score_of(record))}


def stored_prompt(prompt: SpatialPrompt) -> Record:
    """One instance of an answer as a record keeps it; its class only where it has one."""
    record = asdict(prompt)
    if prompt.category is None:
        del record["category"]
    return record


def on_host(masks: Any) -> Any:
    """``masks`` as an array in host memory."""
    return masks if isinstance(masks, np.ndarray) else masks.cpu().numpy()


def predicted_mask(sample: Sample, rollout: SegmentedRollout) -> BoolMask:
    """All predicted instances together [H, W]; nothing where the segmenter failed."""
    if rollout.masks is None or rollout.masks.error is not None:
        return np.zeros(sample.size, dtype=np.bool_)
    return rollout.masks.union


def remeasured(record: Record) -> SampleScore:
    """The score of a record, intersection and union counted anew from its masks."""
    true, ignored = (decode_mask(m) if (m := record.get(key)) is not None else None for key in ("target", "ignored"))
    return score_of(record | _overlap(decode_mask(record["predicted"]), true, ignored))


def _overlap(predicted: BoolMask, true: BoolMask | None, ignored: BoolMask | None) -> Record:
    """Pixels in both masks and in either, but for those ignored."""
    if true is None:
        return {"intersection": None, "union": None}
    if ignored is not None:
        predicted, true = predicted & ~ignored, true & ~ignored
    return {
        "intersection": int(np.count_nonzero(predicted & true)),
        "union": int(np.count_nonzero(predicted | true)),
    }


def encode_mask(mask: BoolMask) -> Record:
    """COCO's run-length encoding of a mask [H, W], its counts as text."""
    encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(n) for n in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def decode_mask(encoded: Record) -> BoolMask:
    """The mask [H, W] of :func:`encode_mask`.

    Raises:
        ShapeError: its counts are no run lengths, or do not fill its size.
    """
    height, width = encoded["size"]
    return decode_rle(encoded, (height, width))


def draw(sample: Sample, rollout: SegmentedRollout) -> Image:
    """The image with true outline, boxes, points and predicted mask, under the question."""
    mask, prompts = predicted_mask(sample, rollout), rollout.answer.prompts
    return with_caption(draw_overlay(sample.image, truth=sample.target_mask, mask=mask, prompts=prompts), sample.query)


def overlay_name(index: int, sample_id: str) -> str:
    """File name of a sample's overlay: its place in the evaluation and what is harmless of its id."""
    return f"{index:03d}_{re.sub(r'[^A-Za-z0-9._-]+', '_', sample_id).strip('._')[:80]}.png"


def read_predictions(path: Path) -> list[Record]:
    """The records in a predictions.jsonl.

    Raises:
        ConfigError: it is not there, or a line of it is no record.
    """
    try:
        records = [parse_json(line) for line in read_lines(path)]
    except (OSError, Unreadable) as error:
        raise ConfigError(f"{path}: no readable predictions ({of_system(error)}); evaluate again") from error
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict) or not record.keys() >= _NEEDED:
            raise ConfigError(f"{path}: not a predictions.jsonl of grasp_rl; evaluate again")
        for key, fits in _KINDS.items():
            if key in record and not fits(record[key]):
                raise ConfigError(f"{path}: line {number}: {key}={str(record[key])[:60]!r} cannot be; evaluate again")
    return records


_NEEDED = {"sample_id", "predicted", "target", "status"}
_MOST_PIXELS, _MOST_TOKENS = 2**30, 2**20


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _are_numbers(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(map(_is_number, value))


def _is_size(value: Any) -> bool:
    whole = isinstance(value, list) and len(value) == 2 and all(map(_is_count, value))
    return whole and 0 < value[0] * value[1] <= _MOST_PIXELS


def _is_mask(value: Any) -> bool:
    return isinstance(value, dict) and _is_size(value.get("size")) and _is_text(value.get("counts"))


def _is_prompt(value: Any) -> bool:
    if not isinstance(value, dict) or not {"box", "point_coords", "point_labels"} <= value.keys():
        return False
    box, points, labels = value["box"], value["point_coords"], value["point_labels"]
    lists = isinstance(points, list) and isinstance(labels, list) and len(points) == len(labels)
    return lists and _or_none(_of(4))(box) and all(map(_of(2), points)) and all(type(label) is int for label in labels)


def _of(count: int) -> Callable[[Any], bool]:
    return lambda value: _are_numbers(value, count)


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _is_turn(value: Any) -> bool:
    texts = isinstance(value, dict) and _is_text(value.get("text")) and _is_text(value.get("status"))
    return texts and _list_of(_is_prompt)(value.get("prompts"))


def _is_told(value: Any) -> bool:
    """What inference options did: mappings and lists of what a completion is."""
    if not isinstance(value, dict):
        return False
    answers = value.get("answers") or []
    settings = value.get("settings") or {}
    return isinstance(settings, dict) and isinstance(answers, list) and all(map(_is_answer, answers))


def _is_answer(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _is_text(value.get("text"))
        and _is_tokens(value.get("tokens"))
        and isinstance(value.get("truncated"), bool)
    )


def _is_tokens(value: Any) -> bool:
    return _is_count(value) and value <= _MOST_TOKENS


_KINDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("sample_id", "dataset", "split", "query", "text", "status"), _is_text),
    **dict.fromkeys(("empty", "has_target", "truncated", "whole"), lambda value: isinstance(value, bool)),
    **dict.fromkeys(("iou", "box_iou", "reward"), _or_none(_is_number)),
    **dict.fromkeys(("intersection", "union"), _or_none(lambda value: _is_number(value) and value >= 0)),
    "instances": _or_none(_is_count),
    **dict.fromkeys(("predicted", "target", "ignored"), _or_none(_is_mask)),
    **dict.fromkeys(("masks", "target_masks"), _list_of(_is_mask)),
    "prompts": _list_of(_is_prompt),
    "earlier_turns": _list_of(_is_turn),
    "size": _is_size,
    "tokens": _is_tokens,
    "frame": lambda value: _are_numbers(value, 2) and all(side > 0 for side in value),
    "window": _of(4),
    "target_boxes": _or_none(_list_of(_or_none(_of(4)))),
    "terms": lambda value: isinstance(value, dict) and all(_or_none(_is_number)(term) for term in value.values()),
    "attributes": lambda value: isinstance(value, dict),
    "segmenter_error": _or_none(_is_text),
    KEY: _is_told,
}
"""What the values of a record have to be, where they are there."""


def write_folder(
    folder: Path, records: Sequence[Record], metrics: Mapping[str, float], images: Mapping[str, Image]
) -> None:
    """Write an evaluation folder; metrics.json comes last, so that its presence means all of it is there."""
    (folder / METRICS).unlink(missing_ok=True)
    (folder / OVERLAYS).mkdir(parents=True, exist_ok=True)
    for stale in (folder / OVERLAYS).glob("*.png"):
        stale.unlink()
    for name, image in images.items():
        write_image(folder / OVERLAYS / name, image)
    lines = [json.dumps(to_json(record), allow_nan=False) + "\n" for record in records]
    write_text(folder / PREDICTIONS, "".join(lines))
    write_json(folder / METRICS, metrics)
