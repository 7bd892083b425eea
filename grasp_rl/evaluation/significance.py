"""Percentile-bootstrap intervals over samples (Efron 1979), paired differences of runs, and tests of them.

Runs of several seeds are compared on the same samples: the hierarchical bootstrap draws seeds, then samples, so its
interval holds both sources of chance; the permutation test exchanges the two sides sample by sample.
"""

from __future__ import annotations

import zlib
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
    seeds: the interval can then be too narrow, and is to be read with their number.

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
    ones = [(side, np.ones_like(side)) for side in (before, after)]
    first, second = ratio_draws(ones, bootstrap_samples=bootstrap_samples, seed=seed)
    low, high = bounds(second - first)
    return Interval(float(after.mean() - before.mean()), low, high, before.shape[1])


def ratio_draws(
    sides: Sequence[tuple[FloatArray, FloatArray]], *, bootstrap_samples: int = 2000, seed: int = 0
) -> FloatArray:
    """[sides, bootstrap_samples] hierarchical-bootstrap draws of a metric that is a sum over samples by another.

    A draw takes the samples once for all sides, then each side's seeds on its own, and averages the ratio over the
    seeds drawn; of one seed, chance is that of the samples alone. The draws of a side do not depend on the others. Any
    linear contrast of the rows (a difference, a main effect, an interaction) so has the draws of a paired comparison.
    NaN where a draw has no sample that counts.

    Args:
        sides: numerator and denominator [seeds, samples] of each; the samples are the columns, the same on all sides. A
            mean over samples has 1 below each of them, and 0 below one that does not count.
        bootstrap_samples: draws.
        seed: of the drawing.

    Raises:
        ValueError: the sides differ in their samples, or one of them is empty.
    """
    shapes = {part.shape[1] for side in sides for part in side if part.ndim == 2 and part.size}
    if len(shapes) != 1 or any(above.shape != below.shape or above.ndim != 2 for above, below in sides):
        raise ValueError(f"ratio_draws: [seeds, samples] of the same samples, not {[a.shape for a, _ in sides]}")
    (count,) = shapes
    rng, result = np.random.default_rng(seed), np.empty((len(sides), bootstrap_samples))
    streams = [np.random.default_rng([seed, *(zlib.crc32(part.tobytes()) for part in side)]) for side in sides]
    at_once = max(1, CHUNK // count)
    for start in range(0, bootstrap_samples, at_once):
        size = min(at_once, bootstrap_samples - start)
        places = rng.integers(count, size=(size, count)) + np.arange(size)[:, None] * count
        times = np.bincount(places.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)
        for row, (above, below), stream in zip(result, sides, streams, strict=True):
            sums = times @ below.T
            ratios = np.divide(times @ above.T, sums, out=np.full(sums.shape, np.nan), where=sums > 0)
            drawn = stream.integers(len(above), size=(size, len(above)))
            row[start : start + size] = np.take_along_axis(ratios, drawn, axis=1).mean(1)
    return result


def bootstrap_p(draws: FloatArray) -> float:
    """Two-sided p of bootstrap ``draws`` of a quantity against 0: twice the smaller share on one side of it.

    Never 0: the share counts one draw more on either side.
    """
    known = draws[np.isfinite(draws)]
    side = min(int((known <= 0).sum()), int((known >= 0).sum()))
    return min(1.0, 2 * (side + 1) / (len(known) + 1))


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
    """The 2.5 and 97.5 percentiles of resampled ``values``; those that are not a number do not count."""
    low, high = np.nanpercentile(values, (2.5, 97.5))
    return float(low), float(high)
