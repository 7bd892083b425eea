"""No mirror: metrics.jsonl in the run folder is the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class NullTracker:
    """What ``tracker=none`` instantiates."""

    def start(self, run_dir: Path, config: Mapping[str, Any], resume: bool) -> None:
        """Nothing to begin."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Nothing to copy."""

    def images(self, name: str, paths: Sequence[Path], step: int) -> None:
        """Nothing to show."""

    def artifact(self, kind: str, files: Sequence[Path], about: Mapping[str, Any]) -> None:
        """Nothing to keep."""

    def finish(self, exit_code: int) -> None:
        """Nothing to end."""
