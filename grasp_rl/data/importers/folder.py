"""A folder with images/, masks/ and a CSV of questions: image, question and, where there are, mask, split, id."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from grasp_rl.data.importers.base import Item, Source, SourceError, inside

_ENDINGS = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")
_COLUMNS = {
    "image": ("image", "file_name", "filename", "file"),
    "query": ("question", "query", "text"),
    "mask": ("mask",),
    "split": ("split",),
    "id": ("id",),
    "reasoning": ("reasoning",),
}


def read(path: Path, *, images: Path | None = None, question: str = "") -> Source:
    """The questions of a CSV about the images beside it.

    A mask that the column ``mask`` leaves empty means that nothing answers. Without that column the mask has the name
    of its image.

    Args:
        path: the folder with images/, masks/ and one CSV, or that CSV.
        images: the folder of the images; None for images/.
        question: goes by the CSV; not used.

    Raises:
        ConfigError: naming the file, what was found and the remedy.
    """
    source = Source()
    for item in items(path if path.is_file() else table_of(path), images):
        if isinstance(item, SourceError):
            raise item
        source.items.append(item)
    return source


def items(table: Path, images: Path | None = None) -> Iterator[Item | SourceError]:
    """The rows of a CSV in turn, or what is wrong with one.

    Args:
        table: the CSV; its folder holds masks/.
        images: the folder of the images; None for images/ beside the CSV.

    Raises:
        SourceError: it is no CSV, or lacks a column.
    """
    root = table.parent
    images = images or root / "images"
    for line, row in _rows(table):
        place, name = f"{table}:{line}", row.get("image", "")
        try:
            image = inside(images, name.removeprefix("images/"), f"{place}: image")
            if not image.is_file():
                raise SourceError(f"{place}: image={name!r}: no such file in {images}; put it there")
            mask = _mask(root / "masks", image, row, place)
        except SourceError as error:
            yield error
            continue
        yield Item(
            sample_id=row.get("id") or f"{Path(name).stem}-{line}",
            image=image,
            name=image.relative_to(images).as_posix(),
            query=row.get("query", ""),
            target={"polygons": []} if mask is None else {"mask": mask},
            mask_name="" if mask is None else mask.relative_to(root / "masks").as_posix(),
            split=row.get("split") or None,
            reasoning=row.get("reasoning") or None,
            place=place,
        )


def table_of(folder: Path) -> Path:
    """The only CSV in a folder.

    Raises:
        SourceError: there is none, or several.
    """
    tables = sorted(folder.glob("*.csv")) if folder.is_dir() else []
    if len(tables) != 1:
        names = ", ".join(file.name for file in tables) or "none"
        raise SourceError(f"{folder}: must hold images/, masks/ and one CSV of questions, found {names}; name the CSV")
    return tables[0]


def _rows(table: Path) -> list[tuple[int, dict[str, str]]]:
    """(line, values by our names of the columns) of every row."""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{table}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    head = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count))
    result: list[tuple[int, dict[str, str]]] = []
    try:
        columns = [column.strip().lower() for column in next(reader, [])]
        indices = {
            ours: next((columns.index(n) for n in names if n in columns), None) for ours, names in _COLUMNS.items()
        }
        for needed in ("image", "query"):
            if indices[needed] is None:
                listing = ", ".join(columns) or "none"
                raise SourceError(f"{table}: needs the columns image and question, found {listing}")
        for row in reader:
            values = {ours: row[n].strip() for ours, n in indices.items() if n is not None and n < len(row)}
            if any(values.values()):
                result.append((reader.line_num, values))
    except csv.Error as error:
        raise SourceError(f"{table}:{reader.line_num}: no CSV ({error})") from error
    return result


def _mask(folder: Path, image: Path, row: dict[str, str], place: str) -> Path | None:
    """The mask of a row; None where nothing answers."""
    if "mask" in row:
        if not row["mask"]:
            return None
        mask = inside(folder, row["mask"].removeprefix("masks/"), f"{place}: mask")
        if not mask.is_file():
            raise SourceError(
                f"{place}: mask={row['mask']!r}: no such file in {folder}; put it there, or leave it empty"
            )
        return mask
    candidates = [folder / f"{image.stem}{ending}" for ending in _ENDINGS]
    existing = next((candidate for candidate in candidates if candidate.is_file()), None)
    if existing is None:
        raise SourceError(f"{place}: no mask {image.stem}.png in {folder}; put it there, or name it in a column mask")
    return existing
