"""COCO: one JSON file with images, annotations and categories; every (image, category) becomes one question."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from grasp_rl.data.importers.base import (
    QUESTION,
    Item,
    Ring,
    Shape,
    Source,
    SourceError,
    inside,
    number,
    question_of,
    size_of,
    target_of,
)
from grasp_rl.data.rasterize import ShapeError, decode_rle
from grasp_rl.utils.files import Record, read_whole


def read(path: Path, *, images: Path | None = None, question: str = QUESTION) -> Source:
    """The questions of a COCO file.

    Args:
        path: the JSON file, or a folder with one such file in it or in its ``annotations``.
        images: the folder that ``file_name`` counts from; None looks beside the file and in ``images`` there.
        question: asks for ``{category}``.

    Raises:
        ConfigError: naming the file, what was found and the remedy.
    """
    path = _file(path)
    data = _document(path)
    categories = {_key(c, "id", path): str(c.get("name", c["id"])) for c in _list(data, "categories", path)}
    listed = {_key(entry, "id", path): entry for entry in _list(data, "images", path)}
    groups: dict[tuple[Any, Any], list[Record]] = {}
    for annotation in _list(data, "annotations", path):
        image_id, category_id = (_key(annotation, key, path) for key in ("image_id", "category_id"))
        for key, value, known in (("image_id", image_id, listed), ("category_id", category_id, categories)):
            if value not in known:
                raise SourceError(
                    f"{path}: annotation {annotation.get('id')!r} has {key}={value!r}, which is not listed"
                )
        groups.setdefault((image_id, category_id), []).append(annotation)
    source, sizes = Source(), dict[Any, tuple[int, int]]()
    for (image_id, category_id), group in groups.items():
        image, category = listed[image_id], categories[category_id]
        file = _image(path, images, image)
        if image_id not in sizes:
            sizes[image_id] = _size(path, file, image)
        size = sizes[image_id]
        place = f"{path}: image {image_id!r}, category {category!r}"
        shapes = [_shape(annotation, size, f"{path}: annotation {annotation.get('id')!r}") for annotation in group]
        target = target_of(shapes, size, place, source.left_out)
        if target is not None:
            name = PurePosixPath(image["file_name"].replace("\\", "/")).as_posix().removeprefix("images/")
            asked = question_of(question, category)
            item = Item(sample_id=f"{image_id}-{category_id}", image=file, name=name, query=asked, target=target)
            source.items.append(item)
    return source


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = sorted([*path.glob("*.json"), *path.glob("annotations/*.json")])
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise SourceError(f"{path}: must hold one .json file of annotations, found {names}; name the file")
    return files[0]


def _document(path: Path) -> Record:
    try:
        data = json.loads(read_whole(path).decode("utf-8-sig"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise SourceError(f"{path}: no JSON ({error}); name COCO's file of annotations") from error
    if not isinstance(data, dict):
        raise SourceError(
            f"{path}: holds a {type(data).__name__}, must be an object with images, annotations, categories"
        )
    return data


def _list(data: Record, key: str, path: Path) -> list[Record]:
    value = data.get(key)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise SourceError(f"{path}: {key} must be a list of objects; name COCO's file of annotations, not of results")
    return value


def _key(item: Record, key: str, path: Path) -> int | str:
    value = item.get(key)
    if not isinstance(value, int | str):
        raise SourceError(f"{path}: {key}={value!r} in {str(item)[:60]}; must be a number or text")
    return value


def _image(path: Path, images: Path | None, image: Record) -> Path:
    place = f"{path}: file_name"
    roots = (
        [images] if images else [path.parent, path.parent / "images", path.parent.parent, path.parent.parent / "images"]
    )
    files = [inside(root, image.get("file_name"), place) for root in roots]
    existing = next((file for file in files if file.is_file()), None)
    if existing is None:
        raise SourceError(f"{files[0]}: no such file; name the folder of the images, --images DIR")
    return existing


def _size(path: Path, file: Path, image: Record) -> tuple[int, int]:
    """(height, width) of the image, which must be what COCO says."""
    size, said = size_of(file), (image.get("height"), image.get("width"))
    if None not in said and said != size:
        why = "; its EXIF tag turns it, so save it upright and without the tag" if said == size[::-1] else ""
        raise SourceError(
            f"{path}: {image['file_name']!r} is said to be {said[1]} x {said[0]} (width x height), the file has "
            f"{size[1]} x {size[0]}{why or '; name the folder with the annotated images, --images DIR'}"
        )
    return size


def _shape(annotation: Record, size: tuple[int, int], place: str) -> Shape:
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        try:
            return Shape(mask=decode_rle(_rle(segmentation, place), size))
        except ShapeError as error:
            raise SourceError(f"{place}: {error}") from error
    if isinstance(segmentation, list) and segmentation:
        rings = tuple(_ring(part, place) for part in segmentation)
        return Shape(rings=tuple(ring for ring in rings if len(ring) > 2))  # a point or a line holds no pixel
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
        raise SourceError(
            f"{place}: has neither a segmentation nor a bbox [x, y, width, height]; give one, or remove it"
        )
    x, y, width, height = (number(value, f"{place}: bbox") for value in box)
    return Shape(box=(x, y, x + width, y + height))


def _ring(part: Any, place: str) -> Ring:
    if not isinstance(part, list) or len(part) % 2:
        raise SourceError(f"{place}: a ring must be [x, y, x, y, ...], found {str(part)[:40]}")
    values: Sequence[float] = [number(value, f"{place}: segmentation") for value in part]
    return [[x, y] for x, y in zip(values[::2], values[1::2], strict=True)]


def _rle(value: Record, place: str) -> Record:
    size, counts = value.get("size"), value.get("counts")
    whole = isinstance(counts, list) and all(isinstance(n, int) and 0 <= n < 1e12 for n in counts)
    if not (isinstance(size, list) and len(size) == 2 and (whole or isinstance(counts, str))):
        raise SourceError(f'{place}: run lengths must be {{"size": [height, width], "counts": ...}}; encode anew')
    return {"size": size, "counts": counts}
