"""GeoSeg-Bench and GeoSeg-1M of UniGeoSeg (MiliLab): triplets of an image, a mask and a file of questions.

    {split}.json     [{img, mask, json}], paths in the root; the last one's file has question and reason, lists of text

A folder that one of the paths goes through says the task: ``ref`` for referring, ``intera`` for interactive (where the
coordinates of points or boxes stand in the question), else reasoning. Another benchmark of the same name (GeoSeg, with
810 questions) is not this one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.annotations import AnnotationError, Row
from grasp_rl.data.published import FolderDataset, inside, read_document, thoughts_of, value_of
from grasp_rl.utils.files import Record

TASKS = {"ref": "referring", "intera": "interactive"}


@dataclass(kw_only=True, eq=False, repr=False)
class GeoSegTriplets(FolderDataset):
    """What ``data=geoseg_bench_unigeoseg`` instantiates. A sample's id is the path of its questions without suffix."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.splits():
            raise ConfigError(
                f"{self.top}: no SPLIT.json in it; data.root is the folder that {self.name} was unpacked into"
            )

    def splits(self) -> Sequence[str]:
        """The files of triplets in the root, sorted."""
        return sorted(path.stem for path in self.top.glob("*.json"))

    def rows(self, split: str) -> Iterator[Row | AnnotationError]:
        path = self.file(f"{split}.json")

        def asked(_: int, place: str, entry: Record) -> Iterator[Row | AnnotationError]:
            image, mask, texts = (inside(self.top, entry.get(key)) for key in ("img", "mask", "json"))
            if not texts.is_file():
                raise AnnotationError(f"json={entry['json']!r}: no such file in {self.top}; download the set whole")
            document = read_document(texts)
            if not isinstance(document, dict):
                raise AnnotationError(f"{texts}: must be an object with question and reason; download it again")
            questions, reasons = value_of(document, "question", list), value_of(document, "reason", list)
            paths = [PurePosixPath(str(entry[key]).replace("\\", "/")) for key in ("json", "mask", "img")]
            folders = [part for path in paths for part in path.parts[:-1]]
            row = Row(
                location=place,
                sample_id=str(paths[0].with_suffix("")),
                image=image,
                query="",
                split=split,
                reasoning=None,
                kind="mask",
                target=mask,
                attributes={"task": next((TASKS[part] for part in folders if part in TASKS), "reasoning")},
                sources=(path, texts),
            )
            yield from self.ask(row, questions, thoughts_of(reasons, len(questions)))

        yield from self.each(path, asked)
