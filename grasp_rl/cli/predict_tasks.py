"""Which questions about which images `grasp-rl predict` was asked, and what their files are called."""

from __future__ import annotations

import csv
import io
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grasp_rl.config.errors import ConfigError
from grasp_rl.utils.files import Unreadable, read_json, read_text_whole
from grasp_rl.utils.text import printable

ENDINGS = (".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Of the files that are taken from a folder; a file that is named is read whatever it is called."""

WRITTEN = (".json", "_mask.png", "_overlay.png")
"""Endings of the files that are written, behind a task's name."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One question about one image."""

    image: Path
    query: str
    name: str
    """Stem of the files that are written."""


def split_words(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Images and folders, and overrides: words such as ``key=value``, unless a file is called so."""
    overrides = [w for w in words if re.match(r"[+~]{0,2}[A-Za-z_][\w./@-]*=", w) and not Path(w).exists()]
    return [Path(word) for word in words if word not in overrides], overrides


def tasks_of(
    inputs: Sequence[Path], queries: Sequence[str], listed: Path | None, out: Path, weights: Path | None = None
) -> list[Task]:
    """Every question about every image, in order; the pairs of a CSV file as they stand there.

    Args:
        inputs: images, and folders of which all images are taken.
        queries: asked about each of them.
        listed: a text file with a question a line, or a CSV file with a column ``query`` and, perhaps, ``image``
            (relative to the file).
        out: where the results go. A file there that holds the answer to another question or image, or of other weights,
            is not replaced: the name gets a number.
        weights: the folder that the policy's weights are loaded from; None for those that its config names.

    Raises:
        ConfigError: there is no image, no question, or a file is not as it has to be.
    """
    images = [image for path in inputs for image in images_of(path, out)]
    queries, pairs = [*queries], list[tuple[Path, str]]()
    if listed is not None:
        more, pairs = questions_of(listed)
        queries += more
    asked = list(dict.fromkeys([(image, query) for image in images for query in queries] + pairs))
    if images and pairs and not queries:
        raise ConfigError(
            f"--queries {listed}: every row names its image, relative to that file: leave out {inputs[0]}, or the "
            "column image to ask every question about every image"
        )
    if images and not queries:
        raise ConfigError("--query: no question; say what to look for, such as --query 'where could a boat land'")
    if queries and not images:
        raise ConfigError("no image; name images or folders")
    return _named(asked, out, None if weights is None else str(weights))


def images_of(path: Path, out: Path) -> list[Path]:
    """The image in ``path``, or all in that folder and below it but for ``out``, in the order of their names."""
    if not path.is_dir():
        if not path.is_file():
            raise ConfigError(f"{path}: no such file or folder; name an image or a folder of images")
        return [path]
    paths = sorted(p for p in path.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
    if out.resolve() != path.resolve():
        paths = [p for p in paths if out.resolve() not in p.resolve().parents]
    if not paths:
        raise ConfigError(f"{path}: no image in this folder; endings that are taken: {' '.join(ENDINGS)}")
    return paths


def questions_of(path: Path) -> tuple[list[str], list[tuple[Path, str]]]:
    """The questions of a file, and those that go with an image of their own."""
    try:
        text = read_text_whole(path)
    except FileNotFoundError:
        raise ConfigError(f"--queries {path}: no such file") from None
    except Unreadable as error:
        raise ConfigError(f"--queries {path}: {error}; name a file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--queries {path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    if path.suffix.lower() != ".csv":
        lines = [line.strip() for line in text.split("\n")]
        queries = [line for line in lines if line and not line.startswith("#")]
        if not queries:
            raise ConfigError(f"--queries {path}: no question in it; write one a line")
        return queries, []
    rows = _rows(path, text)
    queries, pairs = list[str](), list[tuple[Path, str]]()
    for row in rows:
        query, image = (row["query"] or "").strip(), (row.get("image") or "").strip()
        if not query or None in row:
            raise ConfigError(f"--queries {path}:{rows.line_num}: no question, or more fields than columns")
        if not image:
            queries.append(query)
        elif (path.parent / image).is_file():
            pairs.append((path.parent / image, query))
        else:
            raise ConfigError(f"--queries {path}:{rows.line_num}: image={image!r}: no such file beside {path.name}")
    if not queries and not pairs:
        raise ConfigError(f"--queries {path}: no rows under its header")
    return queries, pairs


def _rows(path: Path, text: str) -> csv.DictReader[str]:
    """The rows of a CSV, whose other columns than query and image are left aside and said.

    Raises:
        ConfigError: it has no column ``query``.
    """
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
    columns = [(name or "").strip() for name in rows.fieldnames or []]
    rows.fieldnames = columns
    if columns.count("query") != 1 or columns.count("image") > 1:
        raise ConfigError(
            f"--queries {path}: the columns {', '.join(columns)}; one must be query, and one may be image"
        )
    others = [name for name in columns if name and name not in ("query", "image")]
    if others:
        said = f"--queries {path}: columns left aside: {', '.join(others)}"
        sys.stderr.write(printable(f"grasp-rl predict: {said}") + "\n")
    return rows


def _delimiter(text: str) -> str:
    """What stands between the columns of a CSV: the first of comma, semicolon and tabulator by which one is query."""
    header = text.partition("\n")[0]
    for delimiter in ",;\t":
        if "query" in [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]:
            return delimiter
    return ","


def _named(asked: Sequence[tuple[Path, str]], out: Path, weights: str | None) -> list[Task]:
    """A name for each that no other has, nor a file in ``out`` of another question or other weights."""
    per_image, seen, taken = Counter(image for image, _ in asked), Counter[Path](), set[str]()
    tasks = []
    for image, query in asked:
        seen[image] += 1
        stem = image.stem + (f"_{seen[image]}" if per_image[image] > 1 else "")
        name, number = stem, 2
        while name.lower() in taken or _is_taken(out, name, image, query, weights):
            name, number = f"{stem}-{number}", number + 1
        taken.add(name.lower())
        tasks.append(Task(image=image, query=query, name=name))
    return tasks


def _is_taken(out: Path, name: str, image: Path, query: str, weights: str | None) -> bool:
    """Whether files of this name hold something else than an earlier answer to this very question by these weights."""
    if not any((out / f"{name}{ending}").exists() for ending in WRITTEN):
        return False
    record = read_json(out / f"{name}.json") or {}
    policy = record.get("policy")
    by = policy.get("loaded_from") if isinstance(policy, dict) else None
    asked = (record.get("query"), os.path.abspath(str(record.get("image"))), by)
    return asked != (query, os.path.abspath(image), weights)
