"""The page of `grasp-rl data stats --out`: histograms and a contact sheet in one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.base import RecordDataset
from grasp_rl.data.stats import MEASURES, SMALL, SplitStats
from grasp_rl.data.visualization import draw_overlay
from grasp_rl.reporting import plots, render
from grasp_rl.types import Sample
from grasp_rl.utils.files import Record, write_text
from grasp_rl.utils.text import printable

COLUMNS = ("samples", "images", "no target", "small", *MEASURES.values())
_SIDE = 256
"""Longer side of a drawn sample in pixels."""


def write_page(path: Path, dataset: RecordDataset, found: Sequence[SplitStats], count: int) -> None:
    """Write the page on ``dataset`` to ``path``, whole or not at all.

    Args:
        path: of the HTML file.
        dataset: to draw samples of.
        found: the numbers of its splits.
        count: samples of each split that are drawn.

    Raises:
        ConfigError: ``path`` is a folder, or a sample cannot be read.
        OSError: it cannot be written.
    """
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; name a file, such as {path / 'stats.html'}")
    total, records = (sum(getattr(stats, name) for stats in found) for name in ("samples", "records"))
    some = f", read of {records} records" if records > total else ""
    content = {
        "title": printable(dataset.name),
        "summary": f"{total} samples{some} in {len(found)} split{'s' * (len(found) != 1)}.",
        "columns": COLUMNS,
        "small": f"{SMALL:.0%}",
        "splits": [_split(dataset, stats, count) for stats in found],
    }
    write_text(path, render.render(content, "dataset.html.jinja"))


def _split(dataset: RecordDataset, stats: SplitStats, count: int) -> Record:
    record = stats.as_record()
    cells = [str(stats.samples), str(stats.images), str(stats.no_target)]
    cells += ["" if stats.small is None else f"{stats.small:.0%}"]
    for measure in MEASURES:
        value = record[measure]
        cells.append(" / ".join(f"{value[key]:.3g}" for key in ("min", "median", "max")) if value else "")
    drawn = [(label, stats.values[name]) for name, label in MEASURES.items() if stats.values[name]]
    return {
        "name": printable(stats.name),
        "cells": cells,
        "plots": [{"label": label, "image": plots.histogram(values, xlabel=label)} for label, values in drawn],
        "tables": [
            {"name": printable(name), "rows": [(printable(text), number) for text, number in value["values"].items()]}
            for name, value in record["attributes"].items()
            if "values" in value
        ],
        "samples": [_sample(sample) for sample in _spread(dataset, stats, count)],
    }


def _spread(dataset: RecordDataset, stats: SplitStats, count: int) -> list[Sample]:
    """Up to ``count`` samples, evenly spaced over the split's records."""
    split = dataset.split(stats.name)
    indices = np.linspace(0, stats.records - 1, min(count, stats.records)).round().astype(int)
    return [split[int(index)] for index in indices]


def _sample(sample: Sample) -> Record:
    labels = sample.weak_labels or ()
    drawn = labels if sample.target_mask is None else ()  # a box would cover a rectangle's outline
    overlay = draw_overlay(sample.image, truth=sample.target_mask, prompts=drawn, side=_SIDE)
    return {
        "image": plots.png(overlay),
        "query": printable(sample.query),
        "sample_id": printable(sample.sample_id),
        "nothing": not (labels if sample.target_mask is None else sample.target_mask.any()),
    }
