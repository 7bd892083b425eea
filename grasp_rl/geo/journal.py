"""What was answered so far, on disk: a line a window, so that an interrupted scan goes on where it stopped.

The first line says what is asked; a journal of something else is refused. A line that breaks off is cut off, and its
window is asked again.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Self

from grasp_rl.config.errors import ConfigError
from grasp_rl.utils.files import Record, to_json

_BEGIN = b'{"asked": '


class Journal:
    """An open journal; :meth:`close` or the end of a ``with`` block leaves its answers on disk.

    Args:
        path: of the file.
        asked: what is asked, by name; a journal that is there has to agree with all of it.
        noted: more for the first line, such as a date; what stands there counts.

    Raises:
        ConfigError: the file is of something else with answers in it, or no journal, or another process writes it.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, asked: Mapping[str, object], noted: Mapping[str, object]) -> None:
        self.path, request = path, dict(to_json(asked))
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = path.open("a+b")  # what is written goes to the end
        self._places: dict[str, int] = {}
        self._groups: dict[str, list[str]] = {}
        try:
            earlier = self._take_up(request)
        except ConfigError:
            self._file.close()
            raise
        self.resumed = earlier is not None
        """Whether there were answers to go on with."""
        if earlier is None:
            self._file.truncate(0)
            self._append({"asked": request, "noted": to_json(noted)})
        self.noted: Record = to_json(noted) if earlier is None else earlier
        """What stands in the first line beside what is asked."""

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: str) -> Record:
        """What was written under ``key``."""
        self._file.seek(self._places[key])
        value: Record = json.loads(self._file.readline())["value"]
        return value

    def write(self, key: str, value: Record) -> None:
        """Keep ``value``; it outlives this process from here on.

        Raises:
            OSError: the disk is full, or the like.
        """
        self._note(key, self._append({"key": key, "value": to_json(value)}))

    def items(self, group: str) -> Iterator[tuple[str, Record]]:
        """What was written under keys that are ``group`` up to their last "/" and with it, in the order of the file."""
        for key in list(self._groups.get(group, ())):
            yield key, self[key]

    def close(self) -> None:
        """Close the file; one without answers is deleted."""
        self._file.close()
        if not self._places:
            self.path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Close and delete the file: what it holds is written elsewhere."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _note(self, key: str, place: int) -> None:
        if key not in self._places:
            self._groups.setdefault(key[: key.rfind("/") + 1], []).append(key)
        self._places[key] = place

    def _append(self, record: Record) -> int:
        self._file.seek(0, os.SEEK_END)
        place = self._file.tell()
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        return place

    def _take_up(self, asked: Record) -> Record | None:
        """The first line's notes, after a look at every line; None where nothing is answered yet."""
        try:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{self.path}: another process is writing it; wait for its end, or name another --out"
            ) from None
        self._file.seek(0)
        line = self._file.readline()
        try:
            first = json.loads(line)
            before, noted = dict(first["asked"]), dict(first["noted"])
        except (ValueError, KeyError, TypeError, RecursionError):
            if _BEGIN.startswith(line[: len(_BEGIN)]) and not line.endswith(b"\n"):
                return None  # empty, or broken off in the first line
            raise ConfigError(f"{self.path}: no journal of a scan; remove or rename it") from None
        while True:
            place = self._file.tell()
            line = self._file.readline()
            try:
                key = json.loads(line)["key"] if line.endswith(b"\n") else None
            except (ValueError, KeyError, TypeError, RecursionError):
                key = None
            if key is None:
                break
            self._note(key, place)
        differ = [name for name in sorted({*before, *asked}) if before.get(name) != asked.get(name)]
        if not self._places:
            return None
        if differ:
            name = differ[0]
            difference = f"{name} was {_short(before.get(name))}, is {_short(asked.get(name))}"
            more = f" (and {len(differ) - 1} more differ)" if len(differ) > 1 else ""
            raise ConfigError(
                f"{self.path}: belongs to another scan: {difference}{more}; ask as before, or remove the file "
                "to begin anew"
            )
        self._file.truncate(place)
        return noted


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
