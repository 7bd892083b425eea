"""Rows of a large annotations file as an Arrow table on disk: checked once, then mapped into memory by every process.

Reading a million lines takes most of a minute and a gigabyte; opening the table takes neither. It lies in the user's
cache folder under the name of the file's path, size and time of change, so that a changed file is read anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from grasp_rl.data.annotations import AnnotationError, Line, Row, row_of

log = logging.getLogger(__name__)

FROM_BYTES = 16 * 2**20
"""Size of an annotations file from which on a table is made of it."""
VERSION = 1
BATCH = 8192
"""Rows that are read and written together."""
_ERRORS = b"errors"


def cache_folder() -> Path:
    """Where tables are kept: ``grasp_rl`` in XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "grasp_rl" / "annotations"


class Rows(Sequence[Row]):
    """Rows of a table, made when they are asked for."""

    def __init__(self, table: Any, places: Any, path: Path) -> None:
        self.table, self.places, self.path = table, places, path

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> Row | Rows:
        if isinstance(index, slice):
            return Rows(self.table, self.places[index], self.path)
        record = self.table.slice(int(self.places[index]), 1).to_pylist()[0]
        return _row(record, self.path)

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, len(self.places), BATCH):
            part = self.table.take(self.places[start : start + BATCH])
            yield from (_row(record, self.path) for record in part.to_pylist())

    def queries(self) -> Iterator[str]:
        """The questions alone, without a row made of each."""
        column = self.table.column("query")
        for start in range(0, len(self.places), BATCH):
            yield from column.take(self.places[start : start + BATCH]).to_pylist()


def _row(record: dict[str, Any], path: Path) -> Row:
    number, kind = record.pop("number"), record.pop("kind")
    return row_of(record | {kind: json.loads(record.pop("target"))}, number, path)


def read(path: Path, lines: Iterable[Line]) -> tuple[dict[str, Sequence[Row]], list[AnnotationError]]:
    """The rows of each split, splits in the order in which they first occur, and what is wrong with the others.

    Args:
        path: the annotations file.
        lines: of it; read only where there is no table yet.

    Raises:
        OSError: the table cannot be written or read.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    file = _name(path)
    if not file.is_file():
        log.info("%s: checked once and kept as a table for later runs", path)
        _write(file, path, lines)
    with pa.memory_map(str(file)) as source:
        table = pa.ipc.open_file(source).read_all()
    errors = [AnnotationError(text) for text in json.loads(table.schema.metadata[_ERRORS])]
    splits = table.column("split")
    places = {name: np.flatnonzero(pc.equal(splits, name).to_numpy()) for name in pc.unique(splits).to_pylist()}
    return {name: Rows(table, indices, path) for name, indices in places.items()}, errors


def _name(path: Path) -> Path:
    about, full = path.stat(), os.path.abspath(path)
    where = hashlib.sha256(full.encode()).hexdigest()[:16]
    state = hashlib.sha256(f"{VERSION} {about.st_size} {about.st_mtime_ns}".encode()).hexdigest()[:16]
    return cache_folder() / f"{where}-{state}.arrow"


def _write(file: Path, path: Path, lines: Iterable[Line]) -> None:
    """Write the table in one piece, and drop those of the file's earlier states."""
    import pyarrow as pa

    names = {
        "number": pa.int64(), "id": pa.large_string(), "image": pa.large_string(), "query": pa.large_string(),
        "split": pa.string(), "reasoning": pa.large_string(), "kind": pa.string(), "target": pa.large_string(),
        "holes": pa.bool_(),
    }  # fmt: skip
    schema = pa.schema(list(names.items()))
    file.parent.mkdir(parents=True, exist_ok=True)
    half = file.with_suffix(f".{os.getpid()}.part")
    errors: list[str] = []
    batches: list[Any] = []
    rows: list[dict[str, Any]] = []

    def flush() -> None:
        batches.append(pa.RecordBatch.from_pylist(rows, schema=schema))
        rows.clear()

    for line in lines:
        if line.row is None or line.record is None:
            errors.append(f"{path}:{line.number}: {'; '.join(line.problems)}")
            continue
        record, kind = line.record, line.row.kind
        rows.append(
            {name: record.get(name) for name in names}
            | {"number": line.number, "kind": kind, "target": json.dumps(record[kind])}
        )
        if len(rows) == BATCH:
            flush()
    flush()
    schema = schema.with_metadata({_ERRORS: json.dumps(errors).encode()})
    try:
        with pa.OSFile(str(half), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        os.replace(half, file)
    finally:
        half.unlink(missing_ok=True)
    for other in file.parent.glob(f"{file.name.partition('-')[0]}-*.arrow"):
        if other != file:
            other.unlink(missing_ok=True)
