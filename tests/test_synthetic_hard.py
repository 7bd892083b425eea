"""Hard drawn scenes: exact masks, questions with one right answer, and an easy level that stays as it was."""

from __future__ import annotations

import hashlib

import cv2
import numpy as np
import pytest

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.synthetic.dataset import SPLITS, SyntheticSource
from grasp_rl.data.synthetic.scenes_hard import OOD_HARD, TRAIN_HARD, draw_hard_scene
from grasp_rl.data.synthetic.themes import PART_OF

# Of scenes 0, 1, 7, 31 and 100 with three questions each, as drawn before there were levels: (side, seed, split) to the
# start of the SHA-256 of the images, and of masks, sample ids, questions, thoughts and weak labels.
EASY = {
    (112, 0, "train"): ("1ecb68a09f6fb734", "6aa5547d1aeeeec1"),
    (112, 0, "val"): ("84ec8d2d27343aac", "02f4a675cf6c16fe"),
    (112, 0, "test"): ("25d031928a5fae24", "b7f19a37a5ada0ab"),
    (112, 0, "test_ood"): ("d1e851804bbe443a", "a3a92ba2853a3e9d"),
    (96, 3, "train"): ("98cd78f6e4a6c7d4", "e8a6bd464bd57cd7"),
    (96, 3, "val"): ("e66117e89f60f3d5", "2d3fcd7cde27e42d"),
    (96, 3, "test"): ("a8f740b2617aefc7", "dd73c598093c5a55"),
    (96, 3, "test_ood"): ("71d2ba8867ac6255", "ad9d930217556ea1"),
}
OPENCV = "5.0.0"
"""The version that drew the images: another one may round a blurred border differently."""


@pytest.mark.parametrize(("size", "seed", "split"), EASY)
def test_the_easy_level_is_as_it_was(size: int, seed: int, split: str) -> None:
    images, rest = hashlib.sha256(), hashlib.sha256()
    data = SyntheticSource(image_size=size, seed=seed, level="easy").split(split)
    for index in (0, 1, 7, 31, 100):
        for sample in data.same_image(index, 3):
            assert sample.target_mask is not None
            images.update(sample.image.tobytes())
            rest.update(sample.target_mask.tobytes())
            rest.update(f"{sample.sample_id}|{sample.query}|{sample.reasoning}|{sample.weak_labels!r}".encode())
    expected = EASY[size, seed, split]
    assert rest.hexdigest()[:16] == expected[1]
    if cv2.__version__.startswith(OPENCV):
        assert images.hexdigest()[:16] == expected[0]


@pytest.mark.parametrize("style", [TRAIN_HARD, OOD_HARD])
@pytest.mark.parametrize("size", [96, 128, 224])
def test_visible_masks_are_disjoint_but_for_parts(style: object, size: int) -> None:
    for seed in range(25):
        scene = draw_hard_scene(np.random.default_rng(seed), style, size)  # type: ignore[arg-type]
        assert scene.image.shape == (size, size, 3)
        wholes = [item for item in scene.objects if item.category not in PART_OF]
        assert np.sum([item.mask for item in wholes], axis=0).max() <= 1
        for item in scene.objects:
            assert item.area >= 4 * (size / 112) ** 2
            if item.category in PART_OF:
                whole = [o.mask for o in wholes if o.category == PART_OF[item.category]]
                assert not (item.mask & ~np.any(whole, axis=0)).any()


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_index_is_the_same_hard_sample(split: str) -> None:
    first, again = (SyntheticSource(level="hard").split(split)[5] for _ in range(2))
    assert first.query == again.query
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.target_mask, again.target_mask)


def test_no_such_level() -> None:
    with pytest.raises(ConfigError, match=r"data\.level='medium'.*easy"):
        SyntheticSource(level="medium")
