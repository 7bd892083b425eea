"""EarthReason (Li et al., SegEarth-R1, arXiv 2504.09644): images, masks and files of questions, paired by their stem.

A split has three folders: ``images/<stem>.jpg`` (.jpeg, .png), ``labels/<stem>.png`` and ``QAs/<stem>.json`` (or .txt,
JSON inside) with ``questions`` and ``answer``, two lists of text; without an answer nothing in the image is asked for.
The split is found in the root or in ``rs_reason_seg/RSReasonSeg``, and each folder of it in the split or, as after
unpacking an archive, in a folder of the split's name within it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.annotations import AnnotationError, Row, problem_of
from grasp_rl.data.published import FolderDataset, read_document

SUFFIXES = {"images": (".jpg", ".jpeg", ".png"), "labels": (".png",), "QAs": (".json", ".txt")}
"""Suffixes of the files in each folder; others are not looked at."""


class EarthReason(FolderDataset):
    """What ``data=earthreason`` instantiates. A sample's id is the stem of its files; arguments as of the base."""

    def rows(self, split: str) -> Iterator[Row | AnnotationError]:
        places = {kind: self._place(split, kind) for kind in SUFFIXES}
        paths = {kind: self._files(places[kind], kind) for kind in SUFFIXES}
        for stem in sorted(set().union(*paths.values())):
            missing = [str(places[kind]) for kind in SUFFIXES if stem not in paths[kind]]
            if missing:
                there = ", ".join(str(files[stem]) for files in paths.values() if stem in files)
                yield AnnotationError(
                    f"{there}: no file of this stem in {', '.join(missing)}; add it, or remove what there is of it"
                )
                continue
            try:
                row, questions = self._row(stem, split, *(paths[kind][stem] for kind in SUFFIXES))
            except AnnotationError as error:
                yield error
                continue
            yield from self.ask(row, questions)

    def _row(self, stem: str, split: str, image: Path, label: Path, asked: Path) -> tuple[Row, list[str]]:
        """The row of a stem and the questions about it.

        Raises:
            AnnotationError: the file of questions is not as it should be.
        """
        document = read_document(asked)
        texts = {key: document.get(key) if isinstance(document, dict) else None for key in ("questions", "answer")}
        for key, value in texts.items():
            if not isinstance(value, list):
                raise AnnotationError(f"{asked}: {key}: must be a list of text; correct the file")
        questions, answers = texts["questions"] or [], texts["answer"] or []
        problem = problem_of("reasoning", answers[0]) if answers else None
        if problem is not None:
            raise AnnotationError(f"{asked}: answer 0: {problem}")
        row = Row(
            location=str(asked),
            sample_id=stem,
            image=image,
            query="",
            split=split,
            reasoning=answers[0] if answers else None,
            kind="mask",
            target=label,
            attributes={"no_target": int(not answers)},
            sources=(asked,),
        )
        return row, questions

    def _place(self, split: str, kind: str) -> Path:
        """The folder of ``kind`` (of :data:`SUFFIXES`) of a split.

        Raises:
            ConfigError: there is none, or several.
        """
        tops = (self.top / split, self.top / "rs_reason_seg/RSReasonSeg" / split)
        folders = [folder for top in tops for folder in (top / kind, top / split / kind) if folder.is_dir()]
        if len(folders) != 1:
            what = f"several of {kind} ({', '.join(map(str, folders))})" if folders else f"none of {kind}"
            raise ConfigError(
                f"{tops[0]}: one folder is wanted, found {what}; data.root is the folder that holds {split}"
            )
        return folders[0]

    def _files(self, folder: Path, kind: str) -> dict[str, Path]:
        """The files of a folder by their stem.

        Raises:
            AnnotationError: two have one stem.
        """
        files: dict[str, Path] = {}
        for path in sorted(folder.iterdir()):
            if path.name.startswith(".") or path.suffix.lower() not in SUFFIXES[kind]:
                continue
            if path.stem in files:
                raise AnnotationError(f"{path}: {files[path.stem].name} has the same stem; take one of them out")
            files[path.stem] = path
        return files
