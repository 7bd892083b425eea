"""Large annotations files: the same rows from a table on disk, built once, never of another state of the file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from grasp_rl.bench import data as bench
from grasp_rl.config.errors import ConfigError
from grasp_rl.data import annotation_table
from grasp_rl.data.annotations import AnnotationError
from grasp_rl.data.readers import jsonl
from grasp_rl.data.readers.jsonl import JsonlSource


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own, and a table for every file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(annotation_table, "FROM_BYTES", 0)
    monkeypatch.setattr(annotation_table, "BATCH", 3)
    return tmp_path / "cache/grasp_rl/annotations"


def rows() -> list[dict[str, Any]]:
    targets: list[dict[str, Any]] = [
        {"boxes": [[1, 1, 4, 4]]}, {"boxes": []}, {"polygons": [[[0, 0], [4, 0], [4, 4]]], "holes": True},
        {"mask": "m.png"}, {"rle": {"size": [8, 8], "counts": [10, 4, 50]}}, {"boxes": [[0, 0, 2, 2], [3, 3, 5, 5]]},
        {"boxes": [[2, 2, 3, 3]], "reasoning": "because"},
    ]  # fmt: skip
    splits = ["test", "train", "train", "val", "train", "train", "train"]
    return [
        {"id": f"r{n}", "image": "i.png", "query": f"wo liegt Straße {n}?", "split": split} | target
        for n, (split, target) in enumerate(zip(splits, targets, strict=True))
    ]


def written(root: Path, records: list[dict[str, Any]]) -> Path:
    root.mkdir(exist_ok=True)
    Pillow.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / "i.png")
    Pillow.fromarray(np.eye(8, dtype=np.uint8)).save(root / "m.png")
    (root / "annotations.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return root


def test_the_same_rows_either_way(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = written(tmp_path / "data", rows())
    sources = [JsonlSource(root=str(root)) for _ in range(2)]  # one builds, one opens
    assert len(list(cache.glob("*.arrow"))) == 1
    monkeypatch.setattr(annotation_table, "FROM_BYTES", 2**40)
    plain = JsonlSource(root=str(root))
    for source in sources:
        assert list(source.rows) == list(plain.rows) == ["test", "train", "val"]
        for name, expected in plain.rows.items():
            found = source.rows[name]
            assert isinstance(found, annotation_table.Rows)
            assert list(found) == list(expected)
            assert [found[n] for n in range(len(found))] == list(expected)
            assert list(found[1:3]) == list(expected[1:3])
            assert list(found.queries()) == [row.query for row in expected]
        split, other = source.split("train"), plain.split("train")
        assert len(split) == len(other) == 5
        for ours, theirs in zip(split, other, strict=True):
            assert ours.sample_id == theirs.sample_id
            assert ours.weak_labels == theirs.weak_labels
    asked: list[str] = []
    sources[1].split("train").check_questions(lambda query, _: asked.append(query))  # type: ignore[func-returns-value]
    assert asked == [row.query for row in plain.rows["train"]]


def test_a_table_is_built_once_and_anew_when_the_file_changes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = written(tmp_path / "data", rows())
    JsonlSource(root=str(root))
    monkeypatch.setattr(jsonl, "read_lines", lambda path: (pytest.fail("read again") for _ in range(1)))
    assert len(JsonlSource(root=str(root)).rows["train"]) == 5
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(annotation_table, "FROM_BYTES", 0)
    written(root, rows()[:4])
    assert len(JsonlSource(root=str(root)).rows["train"]) == 2
    assert len(list(cache.iterdir())) == 1  # the earlier state's table is gone
    about = (root / "annotations.jsonl").stat()
    text = (root / "annotations.jsonl").read_text().replace('"train"', '"trial"')  # as long, another time of change
    (root / "annotations.jsonl").write_text(text)
    os.utime(root / "annotations.jsonl", ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    assert list(JsonlSource(root=str(root)).rows) == ["test", "trial", "val"]


def test_bad_lines_are_bad_every_time(tmp_path: Path) -> None:
    bad = rows()
    bad[2]["query"] = ""
    root = written(tmp_path / "data", bad)
    for _ in range(2):
        with pytest.raises(AnnotationError, match=r"annotations\.jsonl:3: query"):
            JsonlSource(root=str(root))
        assert len(JsonlSource(root=str(root), on_bad="skip").rows["train"]) == 4
    bad[5]["id"] = "r1"
    written(root, bad)
    with pytest.raises(ConfigError, match=r"also the id of line 2|query"):
        JsonlSource(root=str(root))


def test_a_cache_that_cannot_be_written_costs_time_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    root = written(tmp_path / "data", rows())
    assert len(JsonlSource(root=str(root)).rows["train"]) == 5
    assert "no table can be kept" in caplog.text


def test_the_benchmark_says_what_it_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--rows", "300", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["file_rows"] == 300
    assert found["next"]["rows"] == 297
    assert found["next"]["images_per_s"] > 0
