"""TensorBoard event files in the run folder: ``tensorboard --logdir <run or sweep folder>``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grasp_rl.data.image_io import read_image
from grasp_rl.tracking.mirror import Mirror


class TensorboardTracker(Mirror):
    """What ``tracker=tensorboard`` instantiates. Files go to ``<run>/tensorboard``."""

    name = "tensorboard"

    def __init__(self) -> None:
        super().__init__()
        self._folder: Path | None = None
        self._writer: Any = None
        self._resumed = False

    def _open(self, run_dir: Path, config: Mapping[str, Any], resume: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: F401  # a missing package shows now, not at step 1

        self._folder, self._resumed = run_dir / "tensorboard", resume

    def _at(self, step: int) -> Any:
        """The writer, opened at the first step it is needed for: a resumed run hides what it writes again."""
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is None:
            purge = step if self._resumed else None
            self._writer = SummaryWriter(str(self._folder), purge_step=purge)
        return self._writer

    def _log(self, metrics: Mapping[str, float], step: int) -> None:
        writer = self._at(step)
        for name, value in metrics.items():
            if math.isfinite(value):
                writer.add_scalar(name, value, step)
        writer.flush()

    def _images(self, name: str, paths: Sequence[Path], step: int) -> None:
        writer = self._at(step)
        for path in paths:
            writer.add_image(f"{name}/{path.stem}", read_image(path), step, dataformats="HWC")
        writer.flush()

    def _close(self, exit_code: int) -> None:
        if self._writer is not None:
            self._writer.close()
