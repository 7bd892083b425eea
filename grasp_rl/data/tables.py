"""Tables of pyarrow: Arrow files, mapped into memory, and Parquet. pyarrow is imported when the first one is opened.

What a file claims is checked before a value of it is used: the end of an Arrow stream, every offset of its columns, and
the size that a Parquet file says unpacks to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grasp_rl.data.annotations import AnnotationError

if TYPE_CHECKING:
    import pyarrow

MAX_UNPACKED = 4 << 30
"""Bytes that a Parquet file may unpack to."""
_BATCH = 256
"""Rows of a Parquet file that are held as plain values at once."""
_END = b"\xff\xff\xff\xff\0\0\0\0"
"""The last bytes of an Arrow stream that was closed: a message of length 0. Without it a cut between messages is not
seen."""
_FILE = b"ARROW1"
"""What an Arrow file begins and ends with, where it is none of the stream's form."""


def open_arrow(path: Path, columns: Sequence[str]) -> pyarrow.Table:
    """The named columns of an Arrow file in either form, stream or file; not read yet, but mapped into memory.

    Raises:
        AnnotationError: it is cut short or damaged, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.ipc

    with path.open("rb") as file:
        head = file.read(len(_FILE))
        file.seek(0, 2)
        file.seek(max(0, file.tell() - len(_END)))
        whole = head == _FILE or file.read() == _END
    try:
        if not whole:
            raise pa.ArrowInvalid("its end is missing")
        source = pa.memory_map(str(path))
        reader = pa.ipc.open_file(source) if head == _FILE else pa.ipc.open_stream(source)
        _demand(path, reader.schema.names, columns)
        table = reader.read_all().select(list(columns))
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise _damaged(path, "Arrow file", error) from error
    return table


def read_parquet(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file in turn, each with the named columns as plain values; a part of the file at a time.

    Raises:
        AnnotationError: it is cut short or damaged, lacks a column, or unpacks to more than :data:`MAX_UNPACKED`.
    """
    import pyarrow as pa
    import pyarrow.parquet

    try:
        with pa.parquet.ParquetFile(path) as file:
            _demand(path, file.schema_arrow.names, columns)
            # not column by column: pyarrow 26.0.1 aborts the process where a damaged file counts levels wrongly there
            size = sum(file.metadata.row_group(n).total_byte_size for n in range(file.metadata.num_row_groups))
            if size > MAX_UNPACKED:
                raise AnnotationError(
                    f"{path}: unpacks to {size / 2**30:.1f} GiB, more than {MAX_UNPACKED >> 30}; split the file"
                )
            for batch in file.iter_batches(_BATCH, columns=list(columns)):
                batch.validate(full=True)
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise _damaged(path, "Parquet file", error) from error


def stored_bytes(table: pyarrow.Table, column: str, row: int) -> bytes:
    """The file that a cell holds: bytes, or an object with ``bytes``, as the ``datasets`` library stores an image.

    Raises:
        AnnotationError: it holds something else, such as a mere path.
    """
    value = _plain(table, column, row)
    value = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(value, bytes):
        raise AnnotationError(
            f"{column}: must hold the bytes of an image file, found {type(value).__name__}; save the set with "
            "its images"
        )
    return value


def texts_in(path: Path, table: pyarrow.Table, column: str) -> list[Any]:
    """What the cells of a column of text in the file ``path`` hold; None for an empty one.

    Raises:
        AnnotationError: it is no column of text.
    """
    import pyarrow as pa

    kind = table.schema.field(column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise AnnotationError(f"{path}: {column} must be a column of text; see that this is the right file")
    values: list[Any] = table.column(column).to_pylist()
    return values


def _plain(table: pyarrow.Table, column: str, row: int) -> Any:
    """The value of a cell.

    Raises:
        AnnotationError: it has names that are no text.
    """
    try:
        return table.column(column)[row].as_py()
    except ValueError as error:
        raise AnnotationError(f"{column}: a damaged cell ({error}); download the file again") from error


def _demand(path: Path, present: Sequence[str], columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in present]
    if missing:
        raise AnnotationError(
            f"{path}: no column {', '.join(missing)}, found {', '.join(present)[:200]}; see that this is the right file"
        )


def _damaged(path: Path, kind: str, error: Exception) -> AnnotationError:
    if isinstance(error, AnnotationError):
        return error
    said = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return AnnotationError(f"{path}: a damaged {kind} ({said}); it may be cut short, download it again")
