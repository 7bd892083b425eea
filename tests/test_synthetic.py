"""Drawn scenes: exact, deterministic, varied, and never mixed between domains."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.synthetic.dataset import SPLITS, SyntheticSource
from grasp_rl.data.synthetic.questions import OOD_PHRASES, OOD_RELATIONS, PREFERENCES, RELATIONS, TRAIN_PHRASES
from grasp_rl.data.synthetic.scenes import OOD_STYLE, TRAIN_STYLE, draw_scene
from grasp_rl.data.weak_labels import weak_labels_from_masks
from grasp_rl.geometry import mask_to_box
from grasp_rl.types import Sample


def many(source: SyntheticSource, split: str, count: int = 200) -> list[Sample]:
    data = source.split(split)
    return [data[i] for i in range(count)]


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_index_is_the_same_sample(split: str) -> None:
    first, again = SyntheticSource().split(split)[5], SyntheticSource().split(split)[5]
    assert first.sample_id == again.sample_id
    assert first.query == again.query
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.target_mask, again.target_mask)
    assert not np.array_equal(first.image, SyntheticSource(seed=1).split(split)[5].image)


def test_no_image_is_in_two_splits(source: SyntheticSource) -> None:
    images = Counter(s.image.tobytes() for split in SPLITS for s in many(source, split, 40))
    assert max(images.values()) == 1


def test_cues_belong_to_the_mask(source: SyntheticSource) -> None:
    """Boxes are tight around instances of the mask, positive points inside it, negative points outside it."""
    for sample in many(source, "train"):
        assert sample.target_mask is not None
        assert sample.weak_labels is not None
        assert bool(sample.weak_labels) == bool(sample.target_mask.any())
        boxes = np.zeros_like(sample.target_mask)
        for weak_label in sample.weak_labels:
            assert weak_label.box is not None
            x0, y0, x1, y1 = (int(v) for v in weak_label.box)
            inside = sample.target_mask[y0:y1, x0:x1]
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()
            boxes[y0:y1, x0:x1] = True
            assert all(sample.target_mask[int(y), int(x)] for x, y in weak_label.positive_points)
            assert len(weak_label.positive_points) == 4
        assert not (sample.target_mask & ~boxes).any()


def test_the_mix_of_questions(source: SyntheticSource) -> None:
    found = many(source, "train", 400)
    counts = Counter(min(len(s.weak_labels or ()), 2) for s in found)
    assert 0.08 < counts[0] / 400 < 0.22
    assert counts[1] / 400 > 0.3
    assert counts[2] / 400 > 0.2
    queries = {s.query for s in found}
    assert any("nearest" in q or "most" in q or "largest" in q for q in queries)
    assert {text for _, text, _ in PREFERENCES} & queries
    assert len(queries) > 60


def test_a_relational_question_has_distractors_and_one_answer(source: SyntheticSource) -> None:
    found = [s for s in many(source, "train", 300) if s.reasoning and s.reasoning.startswith("1 leftmost")]
    assert found
    for sample in found:
        assert len(sample.weak_labels or ()) == 1


def test_out_of_domain_words_and_looks_are_unseen(source: SyntheticSource) -> None:
    train_texts = {p for phrases in TRAIN_PHRASES.values() for p in phrases} | {t for _, t, _ in PREFERENCES}
    assert not {s.query for s in many(source, "test_ood", 100)} & (
        train_texts | {s.query for s in many(source, "train")}
    )
    assert not set(OOD_RELATIONS.values()) & set(RELATIONS.values())
    assert set(OOD_PHRASES) == set(TRAIN_PHRASES)
    assert not set(OOD_STYLE.grounds) & set(TRAIN_STYLE.grounds)
    assert not {OOD_STYLE.palette[k] == v for k, v in TRAIN_STYLE.palette.items()} & {True}


def test_objects_do_not_overlap() -> None:
    for seed in range(40):
        scene = draw_scene(np.random.default_rng(seed), TRAIN_STYLE)
        assert np.sum([o.mask for o in scene.objects], axis=0).max() <= 1
        assert all(o.mask.any() for o in scene.objects)


def test_several_questions_share_an_image(source: SyntheticSource) -> None:
    several = source.split("train").same_image(7, 3)
    assert len(several) == 3
    assert all(s.image is several[0].image for s in several)
    assert several[0].query == source.split("train")[7].query
    assert len({s.sample_id for s in several}) == 3


def test_cues_by_hand() -> None:
    left, right = np.zeros((40, 60), dtype=bool), np.zeros((40, 60), dtype=bool)
    left[10:20, 5:15], right[5:35, 30:50] = True, True
    first, second = weak_labels_from_masks([right, np.zeros_like(left), left])
    assert first.box == mask_to_box(left) == (5.0, 10.0, 15.0, 20.0)
    assert second.box == (30.0, 5.0, 50.0, 35.0)
    assert weak_labels_from_masks([]) == ()


def test_plot_and_errors(source: SyntheticSource) -> None:
    data = source.split("val")
    image = data.plot(data[0])
    assert image.dtype == np.uint8
    assert image.shape[1:] == (336, 3)
    with pytest.raises(IndexError, match="256 samples"):
        data[256]
    with pytest.raises(ConfigError, match="test_ood"):
        source.split("nowhere")
    with pytest.raises(ConfigError, match=r"data\.train_size=0"):
        SyntheticSource(train_size=0)
    with pytest.raises(ConfigError, match=r"data\.image_size=9"):
        SyntheticSource(image_size=9)
