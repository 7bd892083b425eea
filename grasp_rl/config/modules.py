"""Modules of the working directory: importable by name alone, and only those that the command line named.

The working directory is not on the module path: whoever stands in a folder of somebody else runs nothing that lies
there, whatever a library looks for (``hydra_plugins``, ``org``, ``msvcrt``).
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Iterable, Sequence
from types import ModuleType


class _Admitted(importlib.abc.MetaPathFinder):
    """Finds the packages and modules that were named, in the working directory of that moment; asked last of all."""

    def __init__(self) -> None:
        self.folders: dict[str, str] = {}
        """Folder by top-level name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if path is not None or fullname not in self.folders:
            return None
        return importlib.machinery.PathFinder.find_spec(fullname, [self.folders[fullname]], target)

    def invalidate_caches(self) -> None:
        importlib.machinery.PathFinder.invalidate_caches()


_finder = _Admitted()


def admit(names: Iterable[str], folder: str | None = None) -> None:
    """Let the top-level packages of the dotted ``names`` be found in ``folder``, the working directory by default."""
    if _finder not in sys.meta_path:
        sys.meta_path.append(_finder)
    for name in names:
        _finder.folders[name.split(".", maxsplit=1)[0]] = folder or os.getcwd()
    importlib.invalidate_caches()


def admitted() -> dict[str, str]:
    """Folder by top-level name, for a process that is to find the same."""
    return dict(_finder.folders)


def lies_here(name: str) -> bool:
    """Whether the working directory holds a module or package called ``name``, admitted or not."""
    return importlib.machinery.PathFinder.find_spec(name.split(".", maxsplit=1)[0], [os.getcwd()]) is not None
