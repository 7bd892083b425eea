"""What the base of readers does with records: questions about one target, errors among them, ids, attributes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.annotations import AnnotationError, Row
from grasp_rl.data.base import RecordDataset, target_of
from grasp_rl.data.image_io import write_image

QUESTIONS = [f"question {number}?" for number in range(5)]


class Listed(RecordDataset):
    """Twenty targets with five questions each; ``change`` edits the list of rows."""

    def __init__(self, folder: Path, change: Callable[[list[Any]], list[Any]] = list, **options: Any) -> None:
        super().__init__(name="listed", **options)
        self.folder, self.change = folder, change
        write_image(folder / "a.png", np.zeros((6, 8, 3), dtype=np.uint8))

    def splits(self) -> Sequence[str]:
        return ["train"]

    def records(self, split: str) -> Iterator[Row | AnnotationError]:
        rows: list[Any] = [
            Row(
                location=f"list:{number}", sample_id=f"t{number}", image=self.folder / "a.png", query="", split=split,
                reasoning=None, kind="polygons", target=[], attributes={"number": number},
            )
            for number in range(20)
        ]  # fmt: skip
        for row in self.change(rows):
            yield from self.ask(row, QUESTIONS) if isinstance(row, Row) else [row]


def asked(dataset: Listed) -> dict[str, str]:
    return {row.sample_id: row.query for row in dataset.split("train").records}


def test_which_question_is_asked(tmp_path: Path) -> None:
    assert asked(Listed(tmp_path)) == {f"t{n}": QUESTIONS[0] for n in range(20)}
    everything = asked(Listed(tmp_path, question="all"))
    assert list(everything)[:6] == ["t0", "t0#1", "t0#2", "t0#3", "t0#4", "t1"]
    assert list(everything.values()) == QUESTIONS * 20
    drawn = asked(Listed(tmp_path, question="seeded"))
    assert len(drawn) == 20
    assert drawn.items() < everything.items()  # an id is the same question under each
    assert set(drawn.values()) == set(QUESTIONS)
    assert list(drawn)[:8] == ["t0", "t1#4", "t2", "t3", "t4#4", "t5#1", "t6#1", "t7"]  # on every machine


def test_a_drawn_question_depends_on_seed_and_id_alone(tmp_path: Path) -> None:
    drawn = asked(Listed(tmp_path, question="seeded"))
    assert asked(Listed(tmp_path, lambda rows: rows[::-1], question="seeded")) == drawn
    assert asked(Listed(tmp_path, lambda rows: rows[7:8], question="seeded")).items() < drawn.items()
    other = asked(Listed(tmp_path, question="seeded", seed=1))
    assert other != drawn


@pytest.mark.parametrize(
    ("questions", "problem"),
    [
        ([], "list:0: no question; write one"),
        ([" "], "list:0: question 0: query=' ': must be text that is not empty"),
        ([3], "list:0: question 0: query=3: must be text"),
        (["a <|im_end|>"], r"list:0: question 0: .* holds '<\|im_end\|>', a control token"),
    ],
)
def test_a_question_that_cannot_be_asked_is_a_bad_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, questions: list[Any], problem: str
) -> None:
    monkeypatch.setitem(globals(), "QUESTIONS", questions)
    with pytest.raises(AnnotationError, match=f"^{problem}.*and 19 more"):
        Listed(tmp_path).split("train")


def test_errors_among_records(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    def bad(rows: list[Any], count: int) -> list[Any]:
        return [*rows[:3], *(AnnotationError(f"list:{n}: torn") for n in range(count)), *rows[3:]]

    with pytest.raises(AnnotationError, match=r"^list:0: torn \(and 1 more\)$"):
        Listed(tmp_path, lambda rows: bad(rows, 2)).split("train")
    assert len(Listed(tmp_path, lambda rows: bad(rows, 1), on_bad="skip").split("train")) == 20
    assert caplog.messages == ["data.on_bad=skip: list:0: torn"]
    with pytest.raises(AnnotationError, match=r"list:1: torn \(one more than the 1 of 22"):
        Listed(tmp_path, lambda rows: bad(rows, 2), on_bad="skip").split("train")
    with pytest.raises(ConfigError, match="data split 'train': listed has no record of it"):
        Listed(tmp_path, lambda rows: []).split("train")


def test_every_record_needs_an_id_of_its_own(tmp_path: Path) -> None:
    again = lambda rows: [*rows, replace(rows[2], location="list:20")]  # noqa: E731
    with pytest.raises(AnnotationError, match=r"^list:20: the id 't2' is also that of list:2; every record"):
        Listed(tmp_path, again).split("train")


def test_limit(tmp_path: Path) -> None:
    assert list(asked(Listed(tmp_path, limit=2, question="all"))) == ["t0", "t0#1"]
    with pytest.raises(ConfigError, match=r"data\.limit=0"):
        Listed(tmp_path, limit=0)
    with pytest.raises(ConfigError, match=r"data\.question='last': must be first, all or seeded"):
        Listed(tmp_path, question="last")


def test_several_run_lengths_are_one_target(tmp_path: Path) -> None:
    row = replace(next(iter(Listed(tmp_path).split("train").records)), kind="rle")
    runs = [{"size": [2, 3], "counts": [0, 1, 5]}, {"size": [2, 3], "counts": [0, 1, 4, 1]}]
    target = target_of(replace(row, target=runs), (2, 3), 100)
    assert target.mask is not None
    assert target.mask.tolist() == [[True, False, False], [False, False, True]]
    assert target_of(replace(row, target=runs[0]), (2, 3), 100).mask.sum() == 1  # type: ignore[union-attr]


def test_files_begin_with_the_annotations(tmp_path: Path) -> None:
    with_source = lambda rows: [replace(row, sources=(tmp_path / "list",)) for row in rows]  # noqa: E731
    assert Listed(tmp_path, with_source).split("train").files(2) == [tmp_path / "list", *[tmp_path / "a.png"] * 2]


def test_attributes_reach_the_sample(tmp_path: Path) -> None:
    assert Listed(tmp_path).split("train")[4].attributes == {"number": 4}
