"""Intervals and tests on data whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from grasp_rl.evaluation.significance import (
    bounds,
    hierarchical_difference,
    holm,
    paired_difference,
    permutation_p,
    resampled_sums,
)

DRAWS, SAMPLES = 2000, 60


def test_type_one_error_of_the_permutation_test() -> None:
    """Two systems of the same quality, skewed scores: a share of 4 to 6 % is called different at 5 %."""
    rng = np.random.default_rng(0)
    both = rng.beta(0.6, 0.4, size=(DRAWS, 2, SAMPLES))
    called = [permutation_p(pair[1] - pair[0], permutations=399, seed=n) <= 0.05 for n, pair in enumerate(both)]
    assert 0.04 <= np.mean(called) <= 0.06


def test_coverage_of_the_interval() -> None:
    """The true mean lies within 93 to 97 % of the intervals."""
    rng = np.random.default_rng(1)
    mean = 0.6 / (0.6 + 0.4)
    held = []
    for n in range(DRAWS):
        scores = rng.beta(0.6, 0.4, size=(SAMPLES, 1))
        low, high = bounds(resampled_sums(scores, 400, n)[:, 0] / SAMPLES)
        held.append(low <= mean <= high)
    assert 0.93 <= np.mean(held) <= 0.97


def test_a_real_difference_is_found_and_its_size() -> None:
    rng = np.random.default_rng(2)
    hard = rng.uniform(0, 1, 400)  # what makes a sample hard for both
    before, after = hard + rng.normal(0, 0.05, 400), hard + 0.02 + rng.normal(0, 0.05, 400)
    found = paired_difference(dict(enumerate(before)), dict(enumerate(after)))  # type: ignore[arg-type]
    assert found.low < 0.02 < found.high
    assert found.low > 0
    assert permutation_p(after - before) < 0.01
    assert permutation_p(np.zeros(5)) == 1


def test_seeds_widen_the_interval() -> None:
    """Systems whose seeds differ by as much as the systems do: only the interval over seeds holds 0."""
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 0.02, (2, 4, 300))
    shift = np.array([[0.0, 0.1, -0.1, 0.05], [0.12, -0.05, 0.1, 0.0]])[:, :, None]
    before, after = 0.5 + shift + noise
    wide = hierarchical_difference(before, after, bootstrap_samples=500)
    narrow = paired_difference(dict(enumerate(before.mean(0))), dict(enumerate(after.mean(0))))  # type: ignore[arg-type]
    assert wide.mean == pytest.approx(narrow.mean)
    assert narrow.low > 0
    assert wide.low < 0 < wide.high
    with pytest.raises(ValueError, match="same samples"):
        hierarchical_difference(before, after[:, :5])


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(("seeds", "low", "high"), [(1, 0.3, 0.6), (3, 0.84, 0.94), (10, 0.92, 0.98)])
def test_coverage_where_seeds_differ_more_than_samples(seeds: int, low: float, high: float) -> None:
    """Two systems of the same quality whose seeds differ by a standard deviation of 0.03: how often 0 lies within.

    One seed says nothing about others, three make the interval a little too narrow, ten do not.
    """
    rng, held = np.random.default_rng(seeds), []
    for n in range(250):
        hard = rng.beta(0.6, 0.4, 200)
        shape = (2, seeds, 200)
        before, after = hard + rng.normal(0, 0.03, (2, seeds, 1)) + rng.normal(0, 0.15, shape)
        found = hierarchical_difference(before, after, bootstrap_samples=400, seed=n)
        held.append(found.low <= 0 <= found.high)
    assert low <= np.mean(held) <= high
