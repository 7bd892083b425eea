"""Datasets that their authors publish as a folder: what the readers of all such layouts share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.annotations import MAX_ABS, AnnotationError, Row, decode_line, problem_of
from grasp_rl.data.base import RecordDataset
from grasp_rl.data.image_io import MAX_PIXELS
from grasp_rl.data.tables import read_parquet
from grasp_rl.types import Attribute
from grasp_rl.utils.files import Record, read_whole

T = TypeVar("T")
SHARES = (1.0, 1.0)
"""The frame of boxes that are given in shares of the image's sides."""
PERCENT = (100.0, 100.0)
"""That of boxes in percent."""
_LARGE = 1e15
"""No attribute is a number as large, infinite, or none."""


@dataclass(kw_only=True, eq=False, repr=False)
class FolderDataset(RecordDataset):
    """A dataset in a folder; a reader overrides :meth:`rows`, and :meth:`splits` where they are not these three.

    A reader with options of its own is a dataclass, too. Fields without a word here are those of
    :class:`~grasp_rl.data.base.RecordDataset`.

    Raises:
        ConfigError: there is no such folder, or an argument is out of range.
    """

    root: str
    """The folder."""
    name: str
    question: Literal["first", "all", "seeded"] = "first"
    seed: int = 0
    limit: int | None = None
    shots: int | None = None
    on_bad: Literal["raise", "skip"] = "raise"
    max_pixels: int = MAX_PIXELS
    bands: list[int] | None = None
    stretch: Literal["auto", "none"] | list[float] = "auto"
    mask_foreground: int | list[int] | list[list[int]] | None = None
    ignore_value: int | list[int] | list[list[int]] | None = None
    on_doubt: Literal["raise", "warn"] = "warn"
    allow_outside: bool = False

    def __post_init__(self) -> None:
        super().__init__(
            name=self.name,
            question=self.question,
            seed=self.seed,
            limit=self.limit,
            shots=self.shots,
            on_bad=self.on_bad,
            max_pixels=self.max_pixels,
            bands=self.bands,
            stretch=self.stretch,
            mask_foreground=self.mask_foreground,
            ignore_value=self.ignore_value,
            on_doubt=self.on_doubt,
        )
        self.inside = self.top
        self.subfolder(".")

    @property
    def top(self) -> Path:
        """The folder, as a path."""
        return Path(self.root)

    def splits(self) -> Sequence[str]:
        return ("train", "val", "test")

    def records(self, split: str) -> Iterator[Row | AnnotationError]:
        if split not in self.splits():
            raise ConfigError(f"data split {split!r}: {self.name} has {', '.join(self.splits())}; name one of them")
        return self.rows(split)

    def rows(self, split: str) -> Iterator[Row | AnnotationError]:
        """The records of ``split``, which is one of :meth:`splits`, as :meth:`records`."""
        raise NotImplementedError

    def each(
        self,
        path: Path,
        rows_of: Callable[[int, str, Record], Iterable[Row | AnnotationError]],
        columns: Sequence[str] = (),
    ) -> Iterator[Row | AnnotationError]:
        """The rows that ``rows_of`` makes of every entry of a file; where it raises, the error with the entry's place.

        A row that names no sources has ``path`` as its source.

        Args:
            path: see :func:`entries_of`.
            rows_of: of the entry's number from 0, its place for messages, and the entry itself.
            columns: see :func:`entries_of`.

        Raises:
            AnnotationError: the file as a whole cannot be read.
        """
        for number, (place, entry) in enumerate(entries_of(path, columns)):
            try:
                if isinstance(entry, AnnotationError):
                    raise entry
                for row in rows_of(number, place, entry):
                    yield replace(row, sources=(path,)) if isinstance(row, Row) and not row.sources else row
            except AnnotationError as error:
                yield AnnotationError(f"{place}: {error}")

    def subfolder(self, name: str) -> Path:
        """The folder called ``name`` in the root.

        Raises:
            ConfigError: there is none.
        """
        return self._found(name, (self.top / name).is_dir(), "folder")

    def file(self, name: str) -> Path:
        """The file called ``name`` in the root.

        Raises:
            ConfigError: there is none.
        """
        return self._found(name, (self.top / name).is_file(), "file")

    def _found(self, name: str, exists: bool, kind: str) -> Path:
        path = self.top / name
        if not exists:
            raise ConfigError(
                f"{path}: no such {kind}; data.root is the folder that {self.name} was unpacked into "
                "(docs/coverage.md shows what is in it)"
            )
        return path


def entries_of(path: Path, columns: Sequence[str] = ()) -> Iterator[tuple[str, Record | AnnotationError]]:
    """Place, for messages, and value of every entry of a file: objects, or in place of one what is wrong with it.

    Args:
        path: a list of objects in JSON; one object a line where the name ends in ``.jsonl``; a table of ``.parquet``.
        columns: of a table, those that are wanted.

    Raises:
        AnnotationError: the file as a whole cannot be read.
    """
    if path.suffix == ".parquet":
        yield from ((f"{path}: row {number}", row) for number, row in enumerate(read_parquet(path, columns)))
    elif path.suffix == ".jsonl":
        with path.open("rb") as file:
            for number, data in enumerate(file, 1):
                if data.strip():
                    value, problems = decode_line(data)
                    yield f"{path}:{number}", AnnotationError("; ".join(problems)) if problems else _object(value)
    else:
        document = read_document(path)
        if not isinstance(document, list):
            raise AnnotationError(f"{path}: must be a list of objects; see that this is the right file")
        yield from ((f"{path}: entry {number}", _object(value)) for number, value in enumerate(document))


def _object(value: Any) -> Record | AnnotationError:
    return value if isinstance(value, dict) else AnnotationError("must be an object, {...}; correct the annotation")


_SORTS = {str: "text", int: "a whole number", list: "a list", dict: "an object"}


def value_of(entry: Record, key: str, sort: type[T]) -> T:
    """What an entry has as ``key``: text, a whole number, a list or an object.

    Raises:
        AnnotationError: it has none, or of another sort.
    """
    value = entry.get(key)
    if not isinstance(value, sort) or (isinstance(value, bool) and sort is int):
        raise AnnotationError(f"{key}: must be {_SORTS[sort]}; correct the annotation")
    return value


def name_of(entry: Record, key: str = "id") -> str:
    """What an entry is called: text or a whole number.

    Raises:
        AnnotationError: it has no such name.
    """
    value = entry.get(key)
    name = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    problem = problem_of("id", name)
    if problem is not None:
        raise AnnotationError(f"{key}: must be text or a whole number; correct the annotation")
    return str(name)


def checked(kind: str, value: Any) -> Any:
    """``value`` as the target ``kind`` of a row.

    Raises:
        AnnotationError: it is not as :func:`~grasp_rl.data.annotations.problem_of` demands.
    """
    problem = problem_of(kind, value)
    if problem is not None:
        raise AnnotationError(f"{problem}; correct the annotation")
    return value


def boxes_of(value: Any, order: Literal["xyxy", "xywh"] = "xyxy") -> list[list[float]]:
    """Boxes [x0, y0, x1, y1] of a list of four numbers each.

    Raises:
        AnnotationError: it is no such list, or a box is empty.
    """
    if order == "xywh" and isinstance(value, list):
        value = [_corners(box) for box in value]
    boxes: list[list[float]] = checked("boxes", value)
    return boxes


def _corners(box: Any) -> Any:
    """[x0, y0, x1, y1] of [x, y, width, height]; anything else as it is."""
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(isinstance(v, int | float) and abs(v) <= MAX_ABS for v in box)
    ):
        return box
    return [box[0], box[1], box[0] + box[2], box[1] + box[3]]


def attributes_of(entry: Record, keys: Mapping[str, str]) -> dict[str, Attribute]:
    """Attributes by our name, of what ``entry`` has under the names that ``keys`` gives for it; yes and no as 1 and 0.

    What is neither text nor a number of common size is left out.
    """
    values = {ours: entry.get(theirs) for ours, theirs in keys.items()}
    plain = {ours: int(value) if isinstance(value, bool) else value for ours, value in values.items()}
    return {
        ours: value
        for ours, value in plain.items()
        if isinstance(value, str) or (isinstance(value, int | float) and abs(value) < _LARGE)
    }


def thoughts_of(texts: list[Any], count: int) -> list[Record]:
    """Field ``reasoning`` of the row of each of ``count`` questions: its own text if there are as many, else the first.

    Raises:
        AnnotationError: a text cannot be a thought.
    """
    if not texts:
        return [{}] * count
    problem = next((complaint for text in texts if (complaint := problem_of("reasoning", text))), None)
    if problem is not None:
        raise AnnotationError(f"{problem}; correct the annotation")
    return [{"reasoning": texts[index] if len(texts) == count else texts[0]} for index in range(count)]


def question_in(entry: Record, key: str) -> Any:
    """The question of an entry, without the placeholder of an image that some training files begin it with."""
    question = entry.get(key)
    return question.lstrip().removeprefix("<image>").lstrip() if isinstance(question, str) else question


@dataclass(frozen=True, kw_only=True)
class CocoTables:
    """A COCO file."""

    path: Path
    lists: Mapping[str, Mapping[int, Record]]
    """Images, annotations and categories by id."""

    @classmethod
    def read(cls, path: Path) -> CocoTables:
        """The tables in a file.

        Raises:
            AnnotationError: it is no JSON, or lacks a table.
        """
        document, lists = read_document(path), {}
        for key in ("images", "annotations", "categories"):
            records = objects_in(path, key, document.get(key) if isinstance(document, dict) else None)
            lists[key] = {number: record for record in records if isinstance(number := record.get("id"), int)}
        return cls(path=path, lists=lists)

    def find(self, key: str, number: int) -> Record:
        """The entry ``number`` of a list.

        Raises:
            AnnotationError: there is none.
        """
        if number not in self.lists[key]:
            raise AnnotationError(f"{number} is not in {key} of {self.path}; download both files anew")
        return self.lists[key][number]


def objects_in(path: Path, key: str, found: Any) -> list[Record]:
    """``found`` in a file as ``key``, a list of objects.

    Raises:
        AnnotationError: it is none.
    """
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise AnnotationError(f"{path}: {key} must be a list of objects; see that this is the right file")
    return found


def ring_of(flat: Any) -> list[Any]:
    """The ring [[x, y], ...] of COCO's flat polygon [x0, y0, x1, y1, ...]; [] of what is no list."""
    return [flat[start : start + 2] for start in range(0, len(flat), 2)] if isinstance(flat, list) else []


def inside(folder: Path, name: Any) -> Path:
    """The file called ``name`` in ``folder``.

    Raises:
        AnnotationError: it is no relative path, or one that leads out of the folder.
    """
    problem = problem_of("image", name)
    if problem is None and ".." in name.replace("\\", "/").split("/"):
        problem = f"image={name!r}: leads out of its folder"
    if problem is not None:
        raise AnnotationError(f"{folder}: {problem}; correct the annotation")
    return folder / str(name)


def lines_of(path: Path) -> Sequence[str]:
    """The lines of a text file.

    Raises:
        AnnotationError: it is not UTF-8.
    """
    try:
        return read_whole(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from error


def read_document(path: Path) -> Any:
    """The JSON value in a file.

    Raises:
        AnnotationError: it holds no JSON.
    """
    try:
        return json.loads(read_whole(path).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path}: not JSON ({error}); it may be cut short, download it again") from error
