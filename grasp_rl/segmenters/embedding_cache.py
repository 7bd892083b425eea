"""Image embeddings of images seen before: in host memory, or on disk for the next run too.

A key is the hash of the image's bytes and shape, of the weights and of the dtype; what comes back is bit for bit what
went in. Over the size cap the least recently used entries go, and no file that a cache did not
write.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
from collections import OrderedDict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from grasp_rl.config.errors import ConfigError
from grasp_rl.types import Image

log = logging.getLogger(__name__)

Features = tuple[Tensor, ...]


class NoCache:
    """Keeps nothing."""

    persistent = False
    """Whether entries outlive the process, so that keys must name the weights."""

    def key_of(self, image: Image, weights: str, dtype: str) -> str:
        """The name of an entry: hash of ``image`` [H, W, 3] uint8, of the weights' fingerprint and of the dtype."""
        return ""

    def get(self, key: str) -> Features | None:
        """The entry, in host memory, or None."""
        return None

    def put(self, key: str, features: Features) -> None:
        """Keep an entry."""


class RamCache(NoCache):
    """Least recently used entries in host memory.

    Args:
        cap: bytes kept at most.
    """

    def __init__(self, cap: int) -> None:
        self.cap, self.used = cap, 0
        self._entries: OrderedDict[str, Features] = OrderedDict()

    def key_of(self, image: Image, weights: str, dtype: str) -> str:
        digest = hashlib.blake2b(image.tobytes(), digest_size=20)
        digest.update(f"{image.shape}|{weights}|{dtype}".encode())
        return digest.hexdigest()

    def get(self, key: str) -> Features | None:
        result = self._entries.get(key)
        if result is not None:
            self._entries.move_to_end(key)
        return result

    def put(self, key: str, features: Features) -> None:
        entry = tuple(f.cpu().clone() for f in features)
        self._entries[key] = entry
        self.used += _bytes(entry)
        while self.used > self.cap and self._entries:
            _, oldest = self._entries.popitem(last=False)
            self.used -= _bytes(oldest)


class DiskCache(RamCache):
    """One safetensors file an entry, written whole or not at all; several processes may share the folder.

    Args:
        cap: bytes kept at most.
        folder: where the files are.

    Raises:
        ConfigError: the folder cannot be made.
    """

    persistent = True

    def __init__(self, cap: int, folder: Path) -> None:
        super().__init__(cap)
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"segmenter.cache_dir={str(folder)!r}: cannot be made ({error})") from error
        self.used = sum(path.stat().st_size for path in self._entries_on_disk())

    def get(self, key: str) -> Features | None:
        path = self._path(key)
        try:
            result = load_file(path)
            os.utime(path)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            log.warning("embedding cache: %s is damaged (%s); encoding again", path, error)
            return None
        return tuple(result[str(i)] for i in range(len(result)))

    def put(self, key: str, features: Features) -> None:
        path = self._path(key)
        content = save({str(i): f.cpu().contiguous() for i, f in enumerate(features)}, metadata=_MARK)
        try:
            descriptor, partial = tempfile.mkstemp(dir=self.folder, prefix=".", suffix=".part")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                os.replace(partial, path)
            finally:
                Path(partial).unlink(missing_ok=True)
        except OSError as error:
            log.warning("embedding cache: %s could not be written (%s); going on without it", path, error)
            return
        self.used += len(content)
        if self.used > self.cap:
            self._shrink()

    def _shrink(self) -> None:
        """Remove the files read longest ago until nine tenths of the cap are left."""
        files = []
        for path in self._entries_on_disk():
            try:
                files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
            except FileNotFoundError:  # another process removed it
                continue
        self.used = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if self.used <= 0.9 * self.cap:
                break
            path.unlink(missing_ok=True)
            self.used -= size

    def _entries_on_disk(self) -> list[Path]:
        """The files of the folder that a cache wrote: by their name and the mark in their header, and no others."""
        entries = (path for path in self.folder.glob("*.safetensors") if re.fullmatch(r"[0-9a-f]{40}", path.stem))
        return [path for path in entries if _is_marked(path)]

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


_MARK = {"grasp_rl": "embedding cache"}


def _is_marked(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    try:
        with safe_open(path, "pt") as file:
            return bool(file.metadata() == _MARK)
    except (SafetensorError, OSError):
        return False


def cache_of(kind: str, megabytes: int, folder: str) -> NoCache:
    """The cache that ``segmenter.cache`` names.

    Raises:
        ConfigError: there is no such kind, or the folder cannot be made.
    """
    if kind == "none":
        return NoCache()
    if kind == "ram":
        return RamCache(megabytes * 2**20)
    if kind == "disk":
        return DiskCache(megabytes * 2**20, Path(folder))
    raise ConfigError(f"segmenter.cache={kind!r}: must be one of none, ram, disk")


def _bytes(features: Features) -> int:
    return sum(f.numel() * f.element_size() for f in features)
