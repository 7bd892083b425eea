"""What the tests of received files share: a refusal in one line, and files that somebody could send."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

SIZE = (48, 64)


def refusal(ended: subprocess.CompletedProcess[str]) -> str:
    """The one line of a command that refused, with exit code 2."""
    lines = [line for line in ended.stderr.splitlines() if "RuntimeWarning" not in line]  # of a module run in a fork
    assert (ended.returncode, len(lines)) == (2, 1), ended.stderr
    return lines[0]


def picture(path: Path) -> Path:
    """A small grey PNG."""
    Pillow.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(path)
    return path


def mask(path: Path) -> Path:
    """A mask of the same size with a target in the middle."""
    values = np.zeros(SIZE, np.uint8)
    values[10:30, 20:40] = 255
    Pillow.fromarray(values).save(path)
    return path
