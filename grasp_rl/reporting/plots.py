"""Figures and images of a report as data URIs.

Figures are SVG that follows the reader's light or dark page; no display is needed.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image as Pillow

from grasp_rl.data.image_io import ImageError, read_image
from grasp_rl.data.visualization import PANEL
from grasp_rl.geometry import FloatArray
from grasp_rl.types import Image

REWARD, VALIDATION = "#3b82c4", "#d9822b"
_COLOURS = 128
_MOST_PIXELS = 16_000_000
"""Of an overlay."""
_INK = "#010203"  # stands for the page's text colour until the figure is text
_STYLE = {
    "svg.hashsalt": "grasp_rl",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
}
_THEME = (
    "<style>svg{color:#222;font-family:system-ui,sans-serif}"
    "@media(prefers-color-scheme:dark){svg{color:#d8d8d8}}</style>"
)


def curve(
    points: Sequence[tuple[float, float]],
    *,
    ylabel: str,
    color: str,
    xlim: tuple[float, float],
    ylim: tuple[float, float],
    smooth: int = 1,
) -> str:
    """One panel of small multiples as an SVG data URI.

    Args:
        points: (optimizer step, value), in order.
        ylabel: what is drawn, with its unit.
        color: of the curve.
        xlim: range of steps, the same in all panels.
        ylim: range of values, the same in all panels that compare.
        smooth: width in steps of a centred moving average; above 1 the values themselves are drawn faintly behind it.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(3.4, 2.2))
        axes = figure.add_axes((0.18, 0.2, 0.79, 0.76), xlim=xlim, ylim=ylim)  # a layout engine draws every panel twice
        x, y = np.array(points, dtype=np.float64).reshape(-1, 2).T
        if smooth > 1:
            axes.plot(x, y, color=color, alpha=0.3, linewidth=0.8)
            axes.plot(x, moving_average(y, smooth), color=color, linewidth=1.8)
        else:
            axes.plot(x, y, color=color, linewidth=1.8, marker="o", markersize=3.5)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(ylabel)
        axes.grid(visible=True, color="#888888", alpha=0.25, linewidth=0.5)
        return _data_uri(figure)


@dataclass(frozen=True)
class Line:
    """One line of an overlay."""

    label: str
    steps: Sequence[float]
    spread: Sequence[tuple[float, float, float]]
    """At each step the lowest, the mean and the highest value over the seeds."""
    smooth: int = 1
    """Width in steps of a centred moving average."""


OVERLAID = 8
"""Lines of an overlay that have a colour; further ones are grey."""
_PALETTE = ("#3b82c4", "#d9822b", "#2f9e6e", "#b0489c", "#8a6d1d", "#c0392b", "#6c5fc7", "#4b8b95")


def overlay(lines: Sequence[Line], *, ylabel: str) -> str:
    """Several curves on one pair of axes, from step 0, with a band over the seeds, as an SVG data URI."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 3.0), layout="constrained")
        axes = figure.add_subplot()
        for place, line in enumerate(lines):
            color = _PALETTE[place] if place < OVERLAID else "#888888"
            low, mean, high = (moving_average(np.array(side), line.smooth) for side in zip(*line.spread, strict=True))
            if not np.array_equal(low, high):
                axes.fill_between(line.steps, low, high, color=color, alpha=0.15, linewidth=0)
            marker = "o" if len(line.steps) < 15 else None
            name = line.label if place < OVERLAID else f"{len(lines) - OVERLAID} more" if place == OVERLAID else None
            axes.plot(line.steps, mean, color=color, linewidth=1.6, marker=marker, markersize=3, label=name)
        axes.set_xlim(left=0)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(ylabel)
        axes.grid(visible=True, color="#888888", alpha=0.25, linewidth=0.5)
        if len(lines) > 1:
            figure.legend(loc="outside lower center", ncols=2, fontsize=7.5, frameon=False)
        return _data_uri(figure)


def path_of(points: Sequence[tuple[float, float, float]], *, xlabel: str, ylabel: str) -> str:
    """Points joined in their order, the first and the last with their step, as an SVG data URI.

    Args:
        points: (optimizer step, x, y).
        xlabel: what x is, with its unit.
        ylabel: what y is.
    """
    steps, x, y = np.array(points, dtype=np.float64).T
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(3.4, 2.4), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(x, y, color=VALIDATION, linewidth=1.2, marker="o", markersize=3.5)
        for place in (0, -1):
            axes.annotate(f"step {steps[place]:g}", (x[place], y[place]), (4, 4), textcoords="offset points")
        axes.margins(0.12)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.grid(visible=True, color="#888888", alpha=0.25, linewidth=0.5)
        return _data_uri(figure)


def histogram(values: Sequence[float], *, xlabel: str, color: str = REWARD, bins: int = 30) -> str:
    """A histogram of one or more ``values`` as an SVG data URI; whole numbers of a small range get a bar each."""
    array = np.array(values, dtype=np.float64)
    low, high = array.min(), array.max()
    whole = bool(np.all(array == np.round(array))) and high - low < bins
    edges: Any = np.arange(low - 0.5, high + 1) if whole else bins
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(3.4, 2.0), layout="constrained")
        axes = figure.add_subplot()
        axes.hist(array, bins=edges, color=color)
        axes.set_xlabel(xlabel)
        axes.set_ylabel("number")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=whole))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.grid(visible=True, axis="y", color="#888888", alpha=0.25, linewidth=0.5)
        return _data_uri(figure)


def image(path: Path, size: Any) -> str | None:
    """An overlay without its drawn caption as a small PNG.

    Args:
        path: of the overlay.
        size: (height, width) of the sample's image, which tells the overlay's from its caption; None keeps both.

    Returns:
        A data URI, or None where the file cannot be read.
    """
    try:
        pixels = read_image(path, _MOST_PIXELS)
    except (ImageError, OSError):
        return None
    if isinstance(size, list) and len(size) == 2:
        pixels = pixels[-max(1, round(size[0] * PANEL / max(size))) :]
    return png(pixels)


def png(pixels: Image) -> str:
    """``pixels`` [H, W, 3] uint8 RGB as a data URI, a PNG of few colours."""
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).quantize(_COLOURS).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def moving_average(values: FloatArray, width: int) -> FloatArray:
    """Centred mean over ``width`` values of [N]; fewer at the ends, so that nothing is made up."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    index = np.arange(len(values))
    low, high = np.maximum(index - width // 2, 0), np.minimum(index + (width - width // 2), len(values))
    return np.asarray((sums[high] - sums[low]) / (high - low))


def _data_uri(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    head, bracket, rest = text.partition(">")
    return "data:image/svg+xml;base64," + base64.b64encode((head + bracket + _THEME + rest).encode()).decode()
