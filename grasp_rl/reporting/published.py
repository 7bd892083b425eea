"""Published figures (experiments/published.yaml) beside one's own: only of the same protocol, dataset and split."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from pathlib import Path

import yaml

import grasp_rl
from grasp_rl.config.errors import ConfigError
from grasp_rl.reporting.cells import Benchmark
from grasp_rl.utils.files import Record

CONFIDENCE = {"P": "read in a primary source", "S": "second-hand", "NC": "not confirmed"}
"""Marks of a figure, and what they say."""
_TEXTS = ("system", "dataset", "split", "metric", "source")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number that somebody printed."""

    system: str
    backbone: str
    dataset: str
    """The name of a reader, as in conf/data."""
    split: str
    metric: str
    """As in metrics.json: giou, ciou, acc@0.5, ..."""
    protocol: str | None
    """An option of conf/evaluation/protocol; None where none is known to apply."""
    value: float
    """In percent, as printed."""
    source: str
    confidence: str
    """A key of :data:`CONFIDENCE`."""
    note: str = ""
    """What sets it apart from other figures of its system."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """The file's content."""

    figures: tuple[Figure, ...]
    samples: Mapping[tuple[str, str], int]
    """How many samples a split has, by dataset and split, as far as it is known."""


def read(path: Path) -> Published:
    """The figures in a file.

    Raises:
        ConfigError: it cannot be read, or an entry lacks a field, has another one or a value that is none.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({' '.join(str(error).split())}); restore it from the repository"
        ) from error
    if not isinstance(document, dict) or not isinstance(document.get("figures"), list):
        raise ConfigError(f"{path}: must be a mapping with a list `figures`")
    sizes = document.get("samples") or {}
    samples = {(name, split): int(count) for name, splits in sizes.items() for split, count in splits.items()}
    protocols = _protocols()
    figures = tuple(_figure(entry, f"{path}: figure {n}", protocols) for n, entry in enumerate(document["figures"], 1))
    return Published(figures=figures, samples=samples)


def beside(benchmark: Benchmark, metrics: Sequence[str], ours: Mapping[str, tuple[str, float]]) -> list[Record]:
    """Figures on the benchmark's dataset and split as rows of a table, those that may be compared first.

    A row has ``same`` where dataset, split, protocol and number of samples are the benchmark's, and then the own figure
    in percent; otherwise ``why`` says what is different.

    Args:
        benchmark: what was scored here.
        metrics: that are of interest.
        ours: (label, value from 0 to 1) by metric.
    """
    known = _shipped()
    rows = []
    for figure in known.figures:
        if (figure.dataset, figure.split) != (benchmark.dataset, benchmark.split) or figure.metric not in metrics:
            continue
        why = _difference(figure, benchmark, known.samples.get((figure.dataset, figure.split)))
        label, value = ours.get(figure.metric, ("", None))
        rows.append(
            {"system": figure.system, "backbone": figure.backbone, "note": figure.note,
             "dataset": figure.dataset, "split": figure.split, "metric": figure.metric, "value": f"{figure.value:.2f}",
             "ours": f"{100 * value:.2f}" if value is not None and not why else "", "of": label,
             "protocol": figure.protocol or "not known", "same": not why, "why": why, "source": figure.source,
             "confidence": figure.confidence}
        )  # fmt: skip
    return sorted(rows, key=lambda row: (not row["same"], row["metric"]))


def _difference(figure: Figure, benchmark: Benchmark, size: int | None) -> str:
    """Why a figure may not be set beside the benchmark's; empty where it may."""
    if figure.protocol != benchmark.protocol:
        return "another protocol" if figure.protocol else "so not to be compared"
    if size is not None and size != benchmark.samples:
        return f"{benchmark.samples} of {size} samples here"
    return ""


def _figure(entry: object, where: str, protocols: Sequence[str]) -> Figure:
    names = [part.name for part in fields(Figure)]
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: {entry!r} is no mapping; must have {', '.join(names)}")
    required = [name for name in names if name not in ("note", "backbone", "protocol")]
    if lacking := [name for name in required if entry.get(name) is None]:
        raise ConfigError(f"{where}: lacks {lacking[0]}; must have {', '.join(required)}")
    if unknown := [name for name in entry if name not in names]:
        raise ConfigError(f"{where}: {unknown[0]} is no field; must be one of {', '.join(names)}")
    protocol, value = entry.get("protocol"), entry["value"]
    if protocol is not None and protocol not in protocols:
        near = difflib.get_close_matches(str(protocol), protocols, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(f"{where}: protocol={protocol!r}{hint} is no option of evaluation.protocol; null: not known")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise ConfigError(f"{where}: value={value!r}; must be a number of percent, from 0 to 100")
    if entry["confidence"] not in CONFIDENCE:
        raise ConfigError(f"{where}: confidence={entry['confidence']!r}; must be one of {', '.join(CONFIDENCE)}")
    texts = {name: str(entry[name]) for name in _TEXTS}
    rest = {name: str(entry.get(name) or "") for name in ("backbone", "note")}
    return Figure(**texts, **rest, protocol=protocol, value=float(value), confidence=entry["confidence"])


def path() -> Path:
    """The shipped file: in the package, or in the source tree beside it."""
    package = Path(grasp_rl.__file__).parent
    inside = package / "experiments/published.yaml"
    return inside if inside.is_file() else package.parent / "experiments/published.yaml"


@cache
def _shipped() -> Published:
    return read(path())


def _protocols() -> list[str]:
    folder = Path(str(files("grasp_rl.conf") / "evaluation/protocol"))
    return sorted(file.stem for file in folder.glob("*.yaml") if file.stem != "all")
