"""Published figures (experiments/published.yaml) beside one's own: only of the same protocol, dataset and split."""

from __future__ import annotations

from collections.abc import Sequence

from grasp_rl.reporting.cells import Benchmark
from grasp_rl.utils.files import Record


def beside(test: Benchmark, metrics: Sequence[str]) -> list[Record]:
    """Published figures on the same dataset and split; none are known yet."""
    return []
