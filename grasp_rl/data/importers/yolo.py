"""YOLO: a text file for every image with boxes or outlines as shares of it; every (image, class) is one question."""

from __future__ import annotations

from pathlib import Path

import yaml

from grasp_rl.data.importers.base import QUESTION, Item, Shape, Source, SourceError, question_of, size_of, target_of
from grasp_rl.utils.files import Unreadable, read_yaml

_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".jp2")
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SLACK = 0.01
"""How far a share may lie outside 0..1: by rounding, or by a hand that slipped."""


def read(path: Path, *, images: Path | None = None, question: str = QUESTION) -> Source:
    """The questions of a YOLO dataset.

    Images lie in folders called ``images`` and their labels in ``labels`` beside them, or in one folder together. A
    folder called train, val, valid or test on the way gives the split. Names of classes stand in ``data.yaml`` or
    ``classes.txt``; paths in data.yaml are not followed.

    Args:
        path: the dataset's folder, or its data.yaml.
        images: the folder of the images; None for ``path``.
        question: asks for ``{category}``.

    Raises:
        ConfigError: naming the file, what was found and the remedy.
    """
    path = path.parent if path.is_file() else path
    names, root, source, labelled = _names(path), images or path, Source(), 0
    for image in sorted(file for file in root.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file()):
        label_file = _label_file(image, root)
        if label_file is None:
            continue
        labelled += 1
        size, groups = size_of(image), dict[int, list[Shape]]()
        for number, line in enumerate(_lines(label_file), 1):
            if line.strip():
                place = f"{label_file}:{number}"
                index, shape = _shape(line.split(), size, place)
                if index not in names:
                    raise SourceError(f"{place}: class {index} has no name; give it one in data.yaml or classes.txt")
                groups.setdefault(index, []).append(shape)
        name = image.relative_to(root)
        split = next((_SPLITS[part] for part in name.parts[:-1] if part in _SPLITS), None)
        for index, shapes in groups.items():
            target = target_of(shapes, size, f"{label_file}: class {names[index]!r}", source.left_out)
            if target is not None:
                asked, sample_id = question_of(question, names[index]), f"{name.with_suffix('').as_posix()}-{index}"
                to = name.as_posix()
                item = Item(sample_id=sample_id, image=image, name=to, query=asked, target=target, split=split)
                source.items.append(item)
    if not labelled:
        raise SourceError(f"{root}: holds no image with a label file; images go into images/, labels into labels/")
    return source


def _names(path: Path) -> dict[int, str]:
    """Names of the classes by number."""
    for file in (path / name for name in ("data.yaml", "data.yml", "dataset.yaml")):
        if file.is_file():
            try:
                data = read_yaml(file)
            except (yaml.YAMLError, Unreadable) as error:
                raise SourceError(f"{file}: no YAML ({' '.join(str(error).split())})") from error
            names = data.get("names") if isinstance(data, dict) else None
            if isinstance(names, list):
                return {index: str(name) for index, name in enumerate(names)}
            if isinstance(names, dict) and all(isinstance(index, int) for index in names):
                return {index: str(name) for index, name in names.items()}
            raise SourceError(f"{file}: names must be a list of classes, or their names by number")
    for file in (path / "classes.txt", path / "labels" / "classes.txt"):
        if file.is_file():
            return dict(enumerate(line.strip() for line in _lines(file)))
    raise SourceError(f"{path}: has neither data.yaml nor classes.txt; write one with the names of the classes")


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise SourceError(f"{file}: not UTF-8 at byte {error.start}; save it as UTF-8") from error


def _label_file(image: Path, root: Path) -> Path | None:
    """The label file of an image: in ``labels`` for ``images`` in its path, or beside it."""
    parts = list(image.relative_to(root.parent).parts)
    places = [n for n, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    candidates = ((root.parent / Path(*parts)).with_suffix(".txt"), image.with_suffix(".txt"))
    return next((file for file in candidates if file.is_file()), None)


def _shape(fields: list[str], size: tuple[int, int], place: str) -> tuple[int, Shape]:
    """(class, shape) of a line: a box ``c x y w h`` around its centre, or an outline ``c x y x y x y ...``."""
    height, width = size
    try:
        index, values = int(fields[0]), [float(word) for word in fields[1:]]
    except ValueError as error:
        raise SourceError(f"{place}: found {' '.join(fields)[:60]!r}; must be a class and numbers") from error
    if not all(-_SLACK <= value <= 1 + _SLACK for value in values):
        raise SourceError(f"{place}: a number outside 0..1; YOLO's are shares of the image, so divide by its size")
    if len(values) in (4, 5):  # the fifth is a confidence
        x, y, w, h = values[:4]
        return index, Shape(box=((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height))
    if len(values) < 6 or len(values) % 2:
        raise SourceError(f"{place}: {len(values)} numbers; must be x, y, width, height or three or more points")
    return index, Shape(rings=([[x * width, y * height] for x, y in zip(values[::2], values[1::2], strict=True)],))
