"""Every segmenter keeps the protocol; each is checked for what it promises beyond it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from grasp_rl.config.errors import ConfigError
from grasp_rl.geometry import mask_iou
from grasp_rl.interfaces import Segmenter
from grasp_rl.segmenters.box_fill import BoxFillSegmenter
from grasp_rl.segmenters.grabcut import GrabCutSegmenter
from grasp_rl.segmenters.sam2 import Sam2Segmenter
from grasp_rl.types import Sample, SpatialPrompt


@pytest.fixture(params=["grabcut", "box_fill", "sam2"])
def segmenter(request: pytest.FixtureRequest, tiny_sam2: Path) -> Segmenter:
    made: dict[str, Segmenter] = {"grabcut": GrabCutSegmenter(), "box_fill": BoxFillSegmenter()}
    return made[request.param] if request.param in made else Sam2Segmenter(str(tiny_sam2), device="cpu")


PROMPTS = (
    SpatialPrompt(box=(10, 12, 60, 50)),
    SpatialPrompt(point_coords=((30.5, 30.5), (40.5, 31.5)), point_labels=(1, 1)),
    SpatialPrompt(box=(20, 20, 70, 90), point_coords=((40.5, 50.5), (25.5, 85.5)), point_labels=(1, 0)),
    SpatialPrompt(box=(0, 0, 1, 1)),
    SpatialPrompt(box=(0, 0, 112, 90)),
)


def test_protocol(segmenter: Segmenter) -> None:
    image = np.random.default_rng(0).integers(0, 255, (90, 112, 3), dtype=np.uint8)
    embedding = segmenter.encode(image)
    result = segmenter.decode(embedding, PROMPTS)
    masks = np.asarray(result.masks)
    assert masks.shape == (5, 90, 112)
    assert masks.dtype == np.bool_
    assert result.iou_predictions.shape == (5,)
    assert ((result.iou_predictions >= 0) & (result.iou_predictions <= 1)).all()
    assert np.array_equal(result.union, masks.any(0))
    nothing = segmenter.decode(embedding, ())
    assert nothing.masks.shape == (0, 90, 112)
    assert not nothing.union.any()


def test_order_batch_and_thread_do_not_matter(segmenter: Segmenter) -> None:
    image = np.random.default_rng(1).integers(60, 190, (90, 112, 3), dtype=np.uint8)
    embedding = segmenter.encode(image)
    together = np.asarray(segmenter.decode(embedding, PROMPTS).masks)
    backwards = np.asarray(segmenter.decode(embedding, PROMPTS[::-1]).masks)[::-1]
    assert np.array_equal(together, backwards)
    assert np.array_equal(together, segmenter.decode(segmenter.encode(image), PROMPTS).masks)
    with ThreadPoolExecutor(3) as pool:
        for masks in pool.map(lambda _: segmenter.decode(embedding, PROMPTS).masks, range(6)):
            assert np.array_equal(together, masks)


def test_grabcut_with_the_true_cues_finds_the_objects(samples: list[Sample]) -> None:
    segmenter = GrabCutSegmenter()
    found = []
    for sample in samples:
        assert sample.target_mask is not None
        assert sample.weak_labels is not None
        if sample.weak_labels:
            found.append(
                mask_iou(segmenter.decode(segmenter.encode(sample.image), sample.weak_labels).union, sample.target_mask)
            )
    assert len(found) >= 5
    assert np.mean(found) > 0.8


def test_grabcut_obeys_its_points() -> None:
    """Two halves of one box: a positive point picks its half, a negative point loses the other."""
    image = np.full((80, 80, 3), 40, dtype=np.uint8)
    image[20:60, 20:40], image[20:60, 40:60] = (200, 60, 60), (60, 60, 200)
    segmenter = GrabCutSegmenter(floor=0.05)
    prompt = SpatialPrompt(box=(15, 15, 65, 65), point_coords=((30, 40), (50, 40)), point_labels=(1, 0))
    mask = segmenter.decode(segmenter.encode(image), [prompt]).union
    assert mask[40, 30]
    assert not mask[40, 50]


def test_grabcut_cuts_alike_whatever_the_instance_is_called(samples: list[Sample]) -> None:
    segmenter, sample = GrabCutSegmenter(), samples[0]
    for prompt in sample.weak_labels:
        named = [replace(prompt, category=name) for name in (None, "field", "pond", "roof")]
        masks = np.asarray(segmenter.decode(segmenter.encode(sample.image), named).masks)
        assert (masks == masks[0]).all()


def test_grabcut_fills_where_the_cut_fails() -> None:
    flat = np.full((50, 50, 3), 128, dtype=np.uint8)
    segmenter = GrabCutSegmenter()
    mask = segmenter.decode(segmenter.encode(flat), [SpatialPrompt(box=(10, 10, 30, 30))]).union
    assert mask[10:30, 10:30].mean() > 0.9
    assert mask.sum() == mask[10:30, 10:30].sum()


def test_box_fill_by_hand() -> None:
    masks = BoxFillSegmenter().decode((10, 12), [SpatialPrompt(box=(2, 3, 5, 7))]).masks
    assert masks.sum() == 12
    assert masks[0, 3:7, 2:5].all()


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: GrabCutSegmenter(iterations=0), "segmenter.iterations=0"),
        (lambda: GrabCutSegmenter(ring=0.7), "segmenter.ring=0.7"),
        (lambda: BoxFillSegmenter(radius=0), "segmenter.radius=0"),
    ],
)
def test_bad_arguments_name_their_key(make: object, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        make()  # type: ignore[operator]
