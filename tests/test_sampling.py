"""Keyed randomness: draws and data order are functions of their key alone."""

from __future__ import annotations

import numpy as np

from grasp_rl.utils.keyed_rng import keyed_generator, sample_order, token_uniforms


def test_a_draw_is_a_function_of_its_key() -> None:
    first = token_uniforms(0, 3, "a", 1, 10)
    assert np.array_equal(first, token_uniforms(0, 3, "a", 1, 10))
    assert np.array_equal(first[:4], token_uniforms(0, 3, "a", 1, 4))
    for other in ((1, 3, "a", 1), (0, 4, "a", 1), (0, 3, "b", 1), (0, 3, "a", 2)):
        assert not np.array_equal(first, token_uniforms(*other, 10))
    assert ((first >= 0) & (first < 1)).all()


def test_keys_do_not_run_together() -> None:
    assert keyed_generator("a", 12, 3).random() != keyed_generator("a", 1, 23).random()


def test_order_visits_every_sample_once_an_epoch() -> None:
    stream = sample_order(7, 10, 0, 30)
    for epoch in range(3):
        assert sorted(stream[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert stream[:10] != stream[10:20]


def test_order_needs_no_iterator_state() -> None:
    whole = sample_order(7, 10, 0, 40)
    assert [i for start in range(0, 40, 4) for i in sample_order(7, 10, start, 4)] == whole
    assert sample_order(8, 10, 0, 40) != whole
