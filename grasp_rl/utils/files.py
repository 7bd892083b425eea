"""Text, JSON and YAML files: written whole or not at all, read within bounds.

What is read may be a stranger's: only regular files of bounded size, of bounded depth, with numbers that a machine
number can hold.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from io import BufferedReader, StringIO
from pathlib import Path
from typing import Any

import yaml

Record = dict[str, Any]
"""One JSON object."""

MOST_BYTES = 64 * 2**20
"""Of a JSON file, and of a text that is read whole."""
MOST_LINE = 16 * 2**20
"""Of a line of a .jsonl, in bytes."""
MOST_YAML, MOST_NODES = 512 * 2**10, 100_000
"""Bytes of a YAML file, and its values with every alias counted as what it stands for."""
MOST_TEMPLATE = 64 * 2**10
"""Bytes of a question's template."""
MOST_DEPTH = 64
"""Of values in values."""
MOST_DIGITS = 19
"""Of a whole number: those of a time in nanoseconds."""
_DIGITS = re.compile(rf"\d{{{MOST_DIGITS + 1}}}")
_YAML_DIGITS = re.compile(rf"[-+]?(0[xob])?[\da-fA-F_:]{{{MOST_DIGITS + 1},}}")
"""What YAML reads as a whole number that is too long: with base, underscores or in sixties."""


class Unreadable(ValueError):  # a state of a file, said to a person
    """A file is not what is read here; the message says why, without its path and without words of its own."""


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` atomically. NaN and infinity become null, numbers of numpy plain ones."""
    write_text(path, json.dumps(to_json(value), indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, whole or not at all; half a character is written as its escape."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """The text of a regular file.

    Args:
        path: the file.
        most: bytes at most.

    Raises:
        Unreadable: it is no regular file, larger than ``most``, or not UTF-8.
        OSError: it is not there, or cannot be read.
    """
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise Unreadable(f"larger than {most} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unreadable("not UTF-8") from error


def read_whole(path: Path) -> bytes:
    """The bytes of a regular file of whatever size that memory holds, such as a dataset's annotations.

    Raises:
        Unreadable: it is no regular file.
        OSError: it is not there, or cannot be read.
    """
    with open_regular(path) as file:
        return file.read()


def read_text_whole(path: Path) -> str:
    """The text of a regular UTF-8 file of whatever size, without its byte order mark; every line ends in a line feed.

    Raises:
        Unreadable: it is no regular file.
        OSError: it is not there, or cannot be read.
        UnicodeDecodeError: it is not UTF-8.
    """
    return StringIO(read_whole(path).decode("utf-8-sig"), newline=None).read()


def open_regular(path: Path) -> BufferedReader:
    """``path`` opened for reading; a FIFO or device is refused before it can block.

    Raises:
        Unreadable: it is no regular file.
        OSError: it is not there, or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Unreadable("not a regular file")
    return os.fdopen(descriptor, "rb")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def last_lines(path: Path, most: int) -> list[str]:
    """The last lines of a text file, as far as its last ``most`` bytes hold them; none where it is no regular file."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - most))
            return file.read(most).decode("utf-8", errors="replace").rstrip().splitlines()
    except (FileNotFoundError, NotADirectoryError, Unreadable):
        return []


def parse_json(text: str | bytes) -> Any:
    """The JSON value in ``text``.

    Raises:
        Unreadable: it is no JSON, deeper than :data:`MOST_DEPTH`, or has a whole number of more than
            :data:`MOST_DIGITS` digits.
    """
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(text, parse_int=_whole if _DIGITS.search(text) else None)
    except Unreadable:
        raise
    except RecursionError as error:
        raise Unreadable(f"values nested deeper than {MOST_DEPTH}") from error
    except UnicodeDecodeError as error:
        raise Unreadable("not UTF-8") from error
    except ValueError as error:
        raise Unreadable("not JSON") from error
    if text.count("[") + text.count("{") > MOST_DEPTH and _depth(value) > MOST_DEPTH:
        raise Unreadable(f"values nested deeper than {MOST_DEPTH}")
    return value


def _whole(digits: str) -> int:
    if len(digits.lstrip("-")) > MOST_DIGITS:
        raise Unreadable(f"a whole number of more than {MOST_DIGITS} digits")
    return int(digits)


def _depth(value: Any) -> int:
    """Of values in values; counted without recursion."""
    level, depth = [value], 0
    while level:
        inside = [v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)]
        level, depth = [item for items in inside for item in items], depth + 1
    return depth - 1


def read_json(path: Path) -> Record | None:
    """The JSON object in ``path``, or None where there is none that :func:`parse_json` takes."""
    try:
        value = parse_json(read_text(path))
    except (FileNotFoundError, NotADirectoryError, Unreadable):
        return None
    return value if isinstance(value, dict) else None


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of ``path``, one after the other.

    Raises:
        Unreadable: it is no regular file, or a line is longer than :data:`MOST_LINE`.
        OSError: it is not there, or cannot be read.
    """
    with open_regular(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(MOST_LINE + 1), b""), 1):
            if len(line) > MOST_LINE:
                raise Unreadable(f"line {number}: longer than {MOST_LINE} bytes")
            yield line


def read_yaml_text(path: Path) -> str:
    """The text of a YAML file whose values are of bounded number and depth, every alias counted as what it stands for.

    Raises:
        Unreadable: they are not, or an alias stands for something that holds it.
        OSError: it is not there, or cannot be read.
        yaml.YAMLError: it is no YAML.
    """
    text = read_text(path, MOST_YAML)
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and values before it
    sizes: dict[str, int] = {}
    count = 0
    for event in yaml.parse(text, Loader=_LOADER):
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.AliasEvent):
            if anchor not in sizes:
                raise Unreadable("an alias to itself, or to nothing")
            count += sizes[anchor]
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((anchor, count))
            sizes.pop(str(anchor), None)
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            started, before = open_nodes.pop()
            if started is not None:
                sizes[started] = count - before
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if event.implicit[0] and _YAML_DIGITS.fullmatch(event.value):
                raise Unreadable(f"a whole number of more than {MOST_DIGITS} digits")
            if anchor is not None:
                sizes[anchor] = 1
        if count > MOST_NODES:
            raise Unreadable(f"more than {MOST_NODES} values, aliases counted as what they stand for")
        if len(open_nodes) > MOST_DEPTH:
            raise Unreadable(f"values nested deeper than {MOST_DEPTH}")
    return text


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> Any:
    """The value in a YAML file; raises as :func:`read_yaml_text`, and Unreadable for a value that YAML cannot build."""
    text = read_yaml_text(path)
    try:
        return yaml.load(text, Loader=_LOADER)  # one of the two safe loaders
    except (ValueError, OverflowError) as error:  # a date or number that is none
        raise Unreadable("a value that cannot be read") from error


def foreign_weights(folder: Path) -> str | None:
    """What an index of weights in ``folder`` names outside of it, in words; None where it names files beside it."""
    for index in sorted(folder.glob("*.index.json")):
        names = (read_json(index) or {}).get("weight_map")
        if not isinstance(names, dict):
            return f"{index.name} is no index of weights"
        for name in names.values():
            if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
                return f"{index.name} names {str(name)[:200]!r}, which is no file beside it"
    return None


def foreign_entry(folder: Path) -> Path | None:
    """The first thing in ``folder``, at any depth, that is not its own: a link that leads out of it, a device, a FIFO.

    Links that stay within the folder are its own.
    """
    root = os.path.realpath(folder)
    for place, folders, files in os.walk(root):
        for name in sorted([*folders, *files]):
            path = os.path.join(place, name)
            try:
                mode = os.lstat(path).st_mode
            except FileNotFoundError:  # of a run that is going on
                continue
            if stat.S_ISLNK(mode):
                if not os.path.realpath(path).startswith(root + os.sep):
                    return Path(path)
            elif not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                return Path(path)
    return None


def to_json(value: Any) -> Any:
    """``value`` in JSON's own types."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, str | None | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Sequence | set | frozenset):
        return [to_json(item) for item in value]
    if hasattr(value, "tolist"):
        return to_json(value.tolist())
    return str(value)
