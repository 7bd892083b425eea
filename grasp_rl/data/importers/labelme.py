"""LabelMe: a JSON file for every image; every (image, label) becomes one question."""

from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from grasp_rl.data.importers.base import (
    QUESTION,
    Item,
    Ring,
    Shape,
    Source,
    SourceError,
    number,
    question_of,
    size_of,
    target_of,
)
from grasp_rl.types import BoolMask
from grasp_rl.utils.files import Record, read_whole

CORNERS = 64
"""Of the ring that stands for a circle."""


def read(path: Path, *, images: Path | None = None, question: str = QUESTION) -> Source:
    """The questions of a folder of LabelMe files, or of one such file.

    Polygons, rectangles, circles and masks are read; points and lines cover nothing and are left out.

    Args:
        path: the folder, searched with its subfolders, or the file.
        images: where to look for images that are not beside their file; None for nowhere else.
        question: asks for ``{category}``.

    Raises:
        ConfigError: naming the file, what was found and the remedy.
    """
    root = path if path.is_dir() else path.parent
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    source = Source()
    for file in files:
        data = _document(file)
        image = _image(file, root, images, data)
        size, groups = size_of(image), dict[str, list[Shape]]()
        _demand_size(file, data, size)
        for index, item in enumerate(data["shapes"]):
            shape = _shape(item, size, f"{file}: shape {index}")
            if shape is None:
                kind = item.get("shape_type")
                source.left_out.append(f"{file}: shape {index}: a {kind} covers nothing that could be segmented")
            else:
                groups.setdefault(str(item.get("label", "")).strip() or "object", []).append(shape)
        name = file.relative_to(root).with_suffix("").as_posix()
        for label, shapes in groups.items():
            target = target_of(shapes, size, f"{file}: label {label!r}", source.left_out)
            if target is not None:
                asked, to = question_of(question, label), name + image.suffix
                source.items.append(Item(sample_id=f"{name}-{label}", image=image, name=to, query=asked, target=target))
    if not files:
        raise SourceError(f"{path}: holds no .json file; name the folder of LabelMe's files")
    return source


def _document(file: Path) -> Record:
    try:
        data = json.loads(read_whole(file).decode("utf-8-sig"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise SourceError(f"{file}: no JSON ({error}); remove it, or name another folder") from error
    shapes = data.get("shapes") if isinstance(data, dict) else None
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise SourceError(
            f"{file}: has no list of shapes, so it is no file of LabelMe; remove it, or name another folder"
        )
    return dict(data)


def _image(file: Path, root: Path, images: Path | None, data: Record) -> Path:
    """The image of a file: where ``imagePath`` says within ``root``, else by its name beside the file or in images."""
    said = data.get("imagePath")
    if not isinstance(said, str) or not said or "\0" in said:
        raise SourceError(f"{file}: imagePath={said!r}, must name an image")
    said = said.replace("\\", "/")
    resolved = (file.parent / said).resolve()
    candidates = [resolved] if resolved.is_relative_to(root.resolve()) else []
    candidates += [folder / Path(said).name for folder in (file.parent, root / "images", images) if folder]
    existing = next((candidate for candidate in candidates if candidate.is_file()), None)
    if existing is None:
        raise SourceError(f"{file}: no image {said!r} within {root}; put it beside the file, or name --images DIR")
    return existing


def _demand_size(file: Path, data: Record, size: tuple[int, int]) -> None:
    said = (data.get("imageHeight"), data.get("imageWidth"))
    if None not in said and said != size:
        raise SourceError(
            f"{file}: is about an image of {said[1]} x {said[0]} (width x height), the file has {size[1]} x {size[0]}; "
            "take the image that was annotated"
        )


def _shape(item: Record, size: tuple[int, int], place: str) -> Shape | None:
    """The shape of an entry; None for points and lines."""
    kind, points = item.get("shape_type", "polygon"), _points(item.get("points"), place)
    if kind in ("polygon", None) and len(points) > 2:
        return Shape(rings=(points,))
    if kind == "rectangle" and len(points) in (2, 4):
        xs, ys = zip(*points, strict=True)
        return Shape(box=(min(xs), min(ys), max(xs), max(ys)))
    if kind == "circle" and len(points) == 2:
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        turns = [2 * math.pi * n / CORNERS for n in range(CORNERS)]
        return Shape(rings=([[x + radius * math.cos(t), y + radius * math.sin(t)] for t in turns],))
    if kind == "mask" and len(points) == 2 and isinstance(item.get("mask"), str):
        return Shape(mask=_mask(item["mask"], points, size, place))
    if kind in ("point", "points", "line", "linestrip"):
        return None
    raise SourceError(
        f"{place}: a {kind} of {len(points)} points; must be a polygon of three or more, a rectangle or circle of "
        "two, or a mask with its image"
    )


def _mask(text: str, corners: Ring, size: tuple[int, int], place: str) -> BoolMask:
    """The mask [H, W] of a PNG in base64 whose top-left pixel is at the first corner, cut to an image of ``size``."""
    try:
        with Pillow.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=("PNG",)) as image:
            fits = image.width <= size[1] + 1 and image.height <= size[0] + 1  # looked at before it is decoded
            part = np.asarray(image.convert("L")) > 0 if fits else None
    except (OSError, ValueError, SyntaxError) as error:
        raise SourceError(f"{place}: mask is no PNG in base64 ({error}); draw it anew") from error
    left, top = (round(v) for v in corners[0])
    if part is None or not (0 <= left < size[1] and 0 <= top < size[0]):
        raise SourceError(f"{place}: a mask beyond its image of {size[1]} x {size[0]} (width x height); draw it anew")
    mask = np.zeros(size, dtype=np.bool_)
    part = part[: size[0] - top, : size[1] - left]
    mask[top : top + part.shape[0], left : left + part.shape[1]] = part
    return mask


def _points(value: Any, place: str) -> Ring:
    if not isinstance(value, list) or not all(isinstance(point, list) and len(point) == 2 for point in value):
        raise SourceError(f"{place}: points must be [[x, y], ...], found {str(value)[:40]}")
    return [[number(v, f"{place}: points") for v in point] for point in value]
