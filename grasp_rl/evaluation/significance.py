"""Percentile-bootstrap intervals over samples (Efron 1979), and paired differences of two runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from grasp_rl.geometry import FloatArray

CHUNK = 2_000_000  # numbers resampled at once


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float
    samples: int
    """How many are behind it."""


def paired_difference(
    before: Mapping[str, float], after: Mapping[str, float], *, bootstrap_samples: int = 2000, seed: int = 0
) -> Interval:
    """Mean of after - before over the samples that both have, with a bootstrap interval over those samples.

    Pairing takes out what makes a sample hard for both, so the interval is much narrower than that of either mean.

    Args:
        before: a value by sample id.
        after: the same quantity of another run on the same samples.
        bootstrap_samples: resamples behind the interval.
        seed: of the resampling.

    Raises:
        ValueError: they have no sample in common.
    """
    common = sorted(before.keys() & after.keys())
    if not common:
        raise ValueError("paired_difference: the two runs have no sample in common")
    differences = np.array([[after[key] - before[key]] for key in common])
    low, high = bounds(resampled_sums(differences, bootstrap_samples, seed)[:, 0] / len(common))
    return Interval(float(differences.mean()), low, high, len(common))


def resampled_sums(table: FloatArray, count: int, seed: int) -> FloatArray:
    """Column sums [count, K] of ``count`` resamples, with replacement, of the rows of ``table`` [N, K]."""
    rng, rows = np.random.default_rng(seed), len(table)
    at_once = max(1, CHUNK // table.size)
    sizes = [min(at_once, count - start) for start in range(0, count, at_once)]
    return np.concatenate([table[rng.integers(rows, size=(size, rows))].sum(axis=1) for size in sizes])


def bounds(values: FloatArray) -> tuple[float, float]:
    """The 2.5 and 97.5 percentiles of resampled ``values``."""
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)
