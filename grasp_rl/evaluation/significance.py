"""Percentile-bootstrap intervals over samples (Efron 1979), paired differences of runs, and tests of them.

Runs of several seeds are compared on the same samples: the hierarchical bootstrap draws seeds, then samples, so its
interval holds both sources of chance; the permutation test exchanges the two sides sample by sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def hierarchical_difference(
    before: FloatArray, after: FloatArray, *, bootstrap_samples: int = 2000, seed: int = 0
) -> Interval:
    """Mean of after - before over seeds and samples, the interval over draws of both.

    The two sides' seeds are drawn independently, the samples once for both. Two or three seeds say little about other
    seeds: the interval is then too narrow, and is to be read with their number.

    Args:
        before: [seeds, samples] of one system; the samples are the columns, in the same order on both sides.
        after: [seeds, samples] of the other, of as many seeds or others.
        bootstrap_samples: resamples behind the interval.
        seed: of the resampling.

    Raises:
        ValueError: the numbers of samples differ, or there is nothing to compare.
    """
    if before.ndim != 2 or after.ndim != 2 or before.shape[1] != after.shape[1] or not before.size or not after.size:
        raise ValueError(
            f"hierarchical_difference: [seeds, samples] of the same samples, not {before.shape}, {after.shape}"
        )
    rng, count = np.random.default_rng(seed), before.shape[1]
    drawn = np.empty(bootstrap_samples)
    for index in range(bootstrap_samples):
        columns = rng.integers(count, size=count)
        first = before[rng.integers(len(before), size=len(before))].mean(0)
        second = after[rng.integers(len(after), size=len(after))].mean(0)
        drawn[index] = (second - first)[columns].mean()
    low, high = bounds(drawn)
    return Interval(float(after.mean() - before.mean()), low, high, count)


def permutation_p(differences: FloatArray, *, permutations: int = 2000, seed: int = 0) -> float:
    """Two-sided p of a paired permutation test of mean 0: the signs of ``differences`` [N] are drawn anew.

    Never 0: the observed signs are one of the permutations (Phipson and Smyth 2010).
    """
    rng, observed = np.random.default_rng(seed), abs(differences.sum())
    extreme, at_once, left = 1, max(1, CHUNK // max(1, len(differences))), permutations
    while left > 0:
        size = min(at_once, left)
        signs = rng.integers(0, 2, size=(size, len(differences))) * 2.0 - 1.0
        extreme += int((np.abs(signs @ differences) >= observed - 1e-12).sum())
        left -= size
    return extreme / (permutations + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p of each of several tests of one table (Holm 1979), in their order."""
    order, adjusted, largest = np.argsort(p_values, kind="stable"), [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order.tolist()):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


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
