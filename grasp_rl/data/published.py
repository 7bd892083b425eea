"""Datasets that their authors publish as a folder: what the readers of all such layouts share."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.annotations import AnnotationError, Row, problem_of
from grasp_rl.data.base import RecordDataset
from grasp_rl.data.image_io import MAX_PIXELS


class FolderDataset(RecordDataset):
    """A dataset in a folder; a reader overrides :meth:`rows`, and :meth:`splits` where they are not these three.

    Args:
        root: the folder.
        name: see :class:`~grasp_rl.data.base.RecordDataset`; as for the others.
        question: which of several questions about one target is asked.
        seed: of the draw of a question.
        limit: records of a split that are used.
        on_bad: what to do about a record that cannot be used.
        max_pixels: largest image that is decoded.
        on_doubt: what to do about a mask whose values speak against how it is read.

    Raises:
        ConfigError: there is no such folder, or an argument is out of range.
    """

    def __init__(
        self,
        root: str,
        name: str,
        question: Literal["first", "all", "seeded"] = "first",
        seed: int = 0,
        limit: int | None = None,
        on_bad: Literal["raise", "skip"] = "raise",
        max_pixels: int = MAX_PIXELS,
        on_doubt: Literal["raise", "warn"] = "warn",
    ) -> None:
        super().__init__(
            name=name,
            question=question,
            seed=seed,
            limit=limit,
            on_bad=on_bad,
            max_pixels=max_pixels,
            on_doubt=on_doubt,
        )
        self.root = Path(root)
        self.folder(".")

    def splits(self) -> Sequence[str]:
        return ("train", "val", "test")

    def records(self, split: str) -> Iterator[Row | AnnotationError]:
        if split not in self.splits():
            raise ConfigError(f"data split {split!r}: {self.name} has {', '.join(self.splits())}; name one of them")
        return self.rows(split)

    def rows(self, split: str) -> Iterator[Row | AnnotationError]:
        """The records of ``split``, which is one of :meth:`splits`, as :meth:`records`."""
        raise NotImplementedError

    def folder(self, name: str) -> Path:
        """The folder called ``name`` in the root.

        Raises:
            ConfigError: there is none.
        """
        return self._found(name, (self.root / name).is_dir(), "folder")

    def file(self, name: str) -> Path:
        """The file called ``name`` in the root.

        Raises:
            ConfigError: there is none.
        """
        return self._found(name, (self.root / name).is_file(), "file")

    def _found(self, name: str, found: bool, kind: str) -> Path:
        path = self.root / name
        if not found:
            raise ConfigError(
                f"{path}: no such {kind}; data.root is the folder that {self.name} was unpacked into "
                "(docs/coverage.md shows what is in it)"
            )
        return path


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


def read_document(path: Path) -> Any:
    """The JSON value in a file.

    Raises:
        AnnotationError: it holds no JSON.
    """
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path}: not JSON ({error}); it may be cut short, download it again") from error
