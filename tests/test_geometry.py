"""Boxes, points and masks against values computed by hand and against brute force."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from grasp_rl.geometry import (
    box_iou,
    exterior_points,
    interior_points,
    mask_iou,
    mask_to_box,
    match,
    nms,
    pairwise_box_iou,
)
from grasp_rl.types import BoolMask, Box


def rectangle(height: int, width: int, box: tuple[int, int, int, int]) -> BoolMask:
    mask = np.zeros((height, width), bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 4, 2), (0, 0, 4, 2), 1.0),
        ((0, 0, 4, 2), (2, 0, 6, 2), 4 / 12),  # 2x2 shared, 8 + 8 - 4 in all
        ((0, 0, 4, 4), (1, 1, 3, 3), 4 / 16),  # inside
        ((0, 0, 2, 2), (2, 0, 4, 2), 0.0),  # a common edge has no area
        ((0, 0, 2, 2), (5, 5, 6, 6), 0.0),
        ((1, 1, 1, 3), (1, 1, 1, 3), 0.0),  # both empty
    ],
)
def test_box_iou(a: Box, b: Box, expected: float) -> None:
    assert box_iou(a, b) == pytest.approx(expected)
    assert box_iou(b, a) == pytest.approx(expected)
    assert pairwise_box_iou([a], [b])[0, 0] == pytest.approx(expected)


def test_pairwise_box_iou_is_box_iou_of_every_pair() -> None:
    draw = np.random.default_rng(0)
    corners = np.sort(draw.uniform(0, 20, (9, 2, 2)), axis=1).reshape(9, 4)
    boxes: list[Box] = [(r[0], r[1], r[2], r[3]) for r in corners.tolist()]
    table = pairwise_box_iou(boxes[:4], boxes[4:])
    assert table.shape == (4, 5)
    for i, a in enumerate(boxes[:4]):
        for j, b in enumerate(boxes[4:]):
            assert table[i, j] == pytest.approx(box_iou(a, b))
    assert pairwise_box_iou([], boxes).shape == (0, 9)
    assert pairwise_box_iou(boxes, []).shape == (9, 0)


def test_mask_iou() -> None:
    a, b = rectangle(6, 8, (0, 0, 4, 2)), rectangle(6, 8, (2, 0, 6, 2))
    empty = np.zeros((6, 8), bool)
    assert mask_iou(a, b) == pytest.approx(4 / 12)
    assert mask_iou(a, a) == 1.0
    assert mask_iou(a, empty) == 0.0
    assert mask_iou(empty, empty) == 1.0
    with pytest.raises(ValueError, match="shapes differ"):
        mask_iou(a, empty[:3])


def test_match_takes_the_best_sum_not_the_best_pair() -> None:
    assert match(np.array([[0.9, 0.8], [0.8, 0.1]])) == [(0, 1), (1, 0)]  # 1.6 beats 0.9 + 0.1
    assert match(np.zeros((0, 3))) == []
    assert match(np.array([[0.1, 0.7, 0.2]])) == [(0, 1)]


def test_match_equals_brute_force() -> None:
    draw = np.random.default_rng(1)
    for _ in range(10_000):
        rows, columns = sorted(draw.integers(1, 7, 2).tolist())
        scores = draw.integers(0, 9, (rows, columns)) / 8 if draw.random() < 0.5 else draw.random((rows, columns))
        orders = ORDERS[rows, columns]  # [P, rows] distinct columns for each row
        best = scores[np.arange(rows), orders].sum(axis=1).max()
        pairs = match(scores)
        assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == rows
        assert sum(scores[i, j] for i, j in pairs) == pytest.approx(best)
        assert sum(scores.T[j, i] for j, i in match(scores.T)) == pytest.approx(best)


ORDERS = {(r, c): np.array(list(permutations(range(c), r))) for c in range(1, 7) for r in range(1, c + 1)}


def test_mask_to_box_has_outer_edges() -> None:
    assert mask_to_box(rectangle(10, 12, (3, 4, 6, 9))) == (3.0, 4.0, 6.0, 9.0)
    assert mask_to_box(rectangle(10, 12, (11, 9, 12, 10))) == (11.0, 9.0, 12.0, 10.0)
    assert mask_to_box(np.zeros((4, 4), bool)) is None


def test_interior_points_are_the_deepest_pixels() -> None:
    assert interior_points(rectangle(9, 9, (2, 2, 7, 7)), 1) == ((4.5, 4.5),)
    two = rectangle(12, 30, (1, 1, 10, 10)) | rectangle(12, 30, (20, 3, 25, 8))  # a large square and a small one
    assert interior_points(two, 1) == ((5.5, 5.5),)
    assert (22.5, 5.5) in interior_points(two, 8)
    assert interior_points(np.ones((5, 5), bool), 1) == ((2.5, 2.5),)  # the image's edge counts as an edge


def test_the_next_interior_point_is_close_to_the_first() -> None:
    """A bar 10 pixels high is 5 deep along its middle; each point takes a disc of 0.7 * 5 = 3.5 pixels out of it."""
    bar = rectangle(12, 42, (1, 1, 41, 11))
    assert interior_points(bar, 3) == ((5.5, 5.5), (9.5, 5.5), (13.5, 5.5))


def test_interior_points_of_small_and_empty_masks() -> None:
    dot = rectangle(5, 5, (3, 1, 4, 2))
    assert interior_points(dot, 3) == ((3.5, 1.5),) * 3
    assert interior_points(np.zeros((5, 5), bool), 2) == ()
    assert interior_points(dot, 0) == ()


def test_points_lie_on_their_side_of_random_masks() -> None:
    draw = np.random.default_rng(2)
    for _ in range(50):
        mask = draw.random((20, 24)) < draw.uniform(0.05, 0.9)
        box = mask_to_box(mask)
        assert box is not None
        inside, outside = interior_points(mask, 4), exterior_points(mask, box, 4)
        assert len(inside) == len(outside) == 4
        assert all(mask[int(y), int(x)] for x, y in inside)
        assert not any(mask[int(y), int(x)] for x, y in outside)


def test_exterior_points_stay_near_the_box() -> None:
    mask = rectangle(100, 100, (40, 40, 60, 60))
    for x, y in exterior_points(mask, (40, 40, 60, 60), 4):
        assert 33 <= x <= 68
        assert 33 <= y <= 68
    assert exterior_points(np.ones((8, 8), bool), (0, 0, 8, 8), 2) == ()


def test_exterior_points_keep_off_what_fills_its_box() -> None:
    """Background up to 20 / 4 + 2 = 7 pixels around the box counts, so that the points are well away from the edge."""
    points = exterior_points(rectangle(100, 100, (40, 40, 60, 60)), (40, 40, 60, 60), 4)
    assert len(points) == 4
    assert all(max(40 - x, x - 60, 40 - y, y - 60) >= 2.5 for x, y in points)


def test_nms_keeps_a_box_at_the_threshold() -> None:
    assert nms([(0, 0, 10, 10), (0, 0, 5, 10)], 0.5) == [0, 1]  # IoU 50 / 100
    assert nms([(0, 0, 10, 10), (0, 0, 5, 10)], 0.49) == [0]


def test_nms_keeps_the_larger_box() -> None:
    boxes: list[Box] = [(0, 0, 9, 10), (0, 0, 10, 10), (20, 0, 30, 10), (0, 5, 10, 15)]
    assert nms(boxes, 0.5) == [1, 2, 3]  # IoU 0.9 with the larger one goes, 1/3 stays
    assert nms(boxes, 0.3) == [1, 2]
    assert nms(boxes, 1.0) == [0, 1, 2, 3]
    assert nms([boxes[0]] * 3, 0.5) == [0]
    assert nms([], 0.5) == []
