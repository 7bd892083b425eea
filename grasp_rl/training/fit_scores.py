"""Mean IoU of a promptable segmenter by kind of prompt: the measure of fit-segmenter and of its experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.rasterize import parts
from grasp_rl.data.weak_labels import weak_labels_from_masks
from grasp_rl.interfaces import Dataset, Segmenter
from grasp_rl.types import BoolMask, Box, Image, SpatialPrompt

LOOSE, SHIFTED, SHRUNK = 0.2, 0.2, 0.1
"""Of the box's side: how far edges of a loose box are outside, how far a box is shifted both ways, how far edges of a
shrunk box are inside."""


def instances_of(split: Dataset, index: int) -> tuple[Image, list[BoolMask]]:
    """The image of sample ``index`` and masks [H, W] of its instances, none of them empty.

    All that is on the image where the dataset can say it; else the sample's instances; else the connected parts of its
    target. ``[]`` where nothing is foreground.

    Raises:
        ConfigError: the dataset has no masks.
    """
    several = getattr(split, "instances", None)
    if several is not None:
        image, masks = several(index)
    else:
        sample = split[index]
        if sample.target_mask is None:
            raise ConfigError(
                f"data: sample {sample.sample_id} of {sample.dataset} has no mask; fit-segmenter needs them"
            )
        image = sample.image
        masks = sample.instance_masks() if sample.instance_masks is not None else list(parts(sample.target_mask))
    return image, [mask for mask in masks if mask.any()]


def prompts_of(masks: Sequence[BoolMask], number: int) -> dict[str, list[SpatialPrompt]]:
    """The prompts of every kind, one for each of ``masks`` in order; ``number`` decides where shifted boxes go."""
    kinds: dict[str, list[SpatialPrompt]] = {}
    for place, mask in enumerate(masks):
        label = weak_labels_from_masks([mask])[0]
        assert label.box is not None
        x0, y0, x1, y1 = label.box
        w, h = x1 - x0, y1 - y0
        across, down = (1 if (number + place) >> bit & 1 else -1 for bit in (0, 1))
        boxes = {
            "tight": label.box,
            "loose": (x0 - LOOSE * w, y0 - LOOSE * h, x1 + LOOSE * w, y1 + LOOSE * h),
            "shrunk": (x0 + SHRUNK * w, y0 + SHRUNK * h, x1 - SHRUNK * w, y1 - SHRUNK * h),
            "shifted": (
                *(x0 + across * SHIFTED * w, y0 + down * SHIFTED * h),
                *(x1 + across * SHIFTED * w, y1 + down * SHIFTED * h),
            ),
        }
        for kind, box in boxes.items():
            kinds.setdefault(kind, []).append(SpatialPrompt(box=_inside(box, mask)))
        two, against = label.positive_points[:2], label.negative_points[:2]
        for kind, said, points, labels in (
            ("box_2points", label.box, two, (1,) * len(two)),
            ("box_2pos_2neg", label.box, two + against, (1,) * len(two) + (0,) * len(against)),
            ("points", None, two, (1,) * len(two)),
        ):
            kinds.setdefault(kind, []).append(SpatialPrompt(box=said, point_coords=points, point_labels=labels))
    return kinds


def score(segmenter: Segmenter, split: Dataset, limit: int | None) -> dict[str, float]:
    """Mean IoU over all instances of the first ``limit`` samples, by kind of prompt; one prompt an instance and kind.

    Raises:
        ConfigError: the dataset has no masks, or nothing on those is foreground.
    """
    ious: dict[str, list[float]] = {}
    count = min(len(split), limit or len(split))
    for index in range(count):
        image, masks = instances_of(split, index)
        if not masks:
            continue
        embedding = segmenter.encode(image)
        for kind, prompts in prompts_of(masks, index).items():
            predicted = host(segmenter.decode(embedding, prompts).masks)
            ious.setdefault(kind, []).extend(
                float((a & b).sum() / (a | b).sum()) for a, b in zip(predicted, masks, strict=True)
            )
    if not ious:
        raise ConfigError(
            f"data: none of the first {count} masks of {split.name}, {split.split}, has a foreground pixel"
        )
    return {kind: float(np.mean(values)) for kind, values in ious.items()}


def host(masks: Any) -> BoolMask:
    """[N, H, W] bool in host memory."""
    return np.asarray(masks if isinstance(masks, np.ndarray) else masks.cpu().numpy(), dtype=np.bool_)


def table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown: a row a split, a column a kind."""
    kinds = list(next(iter(scores.values())))
    lines = [f"| split | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(f'{row[kind]:.3f}' for kind in kinds)} |" for name, row in scores.items()]
    return "\n".join(lines)


def _inside(box: tuple[float, ...], mask: BoolMask) -> Box:
    height, width = mask.shape
    x0, y0, x1, y1 = box
    return max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
