"""`grasp-rl data` with Hydra's words: every reader is checked, shown and counted as a folder of one's own is."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from grasp_rl.cli import data as data_cli
from grasp_rl.rehearsal import layouts

AERIAL = Path(__file__).parent / "data/aerial"


@pytest.fixture
def rrsis_d(tmp_path: Path) -> Path:
    layouts.refer(tmp_path, folder="rrsisd")
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = data_cli.main(words)
    told = capsys.readouterr()
    return code, told.out, told.err


def test_a_published_set_is_validated(rrsis_d: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("validate", "data=rrsis_d", f"data.root={rrsis_d}", "--json")
    code, out, _ = run(capsys, *words)
    answer = json.loads(out)
    assert code == 0
    assert (answer["rows"], answer["bad"], answer["ok"]) == (8, 0, True)
    assert {name: split["rows"] for name, split in answer["splits"].items()} == {"train": 4, "val": 2, "test": 2}
    assert answer["kinds"] == {"polygons": 4, "rle": 4}
    assert run(capsys, *words, "data.question=all")[1].count('"rows": 16,') == 1


def test_what_is_wrong_with_a_published_set_is_listed(rrsis_d: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = rrsis_d / "images/rrsisd/JPEGImages"
    (images / "00002.png").unlink()
    (images / "00005.png").write_bytes((images / "00001.png").read_bytes())
    refs = rrsis_d / "rrsisd/refs(unc).p"
    records = pickle.loads(refs.read_bytes())
    records[2]["ann_id"] = 99
    refs.write_bytes(pickle.dumps([*records, records[0]]))
    code, out, _ = run(capsys, "validate", f"data.root={rrsis_d}", "data=rrsis_d")
    lines = out.splitlines()
    assert code == 1
    assert lines[0].startswith(f"{refs}: reference 1 (ref_id 2): image: ")
    assert lines[1].startswith(f"{refs}: reference 2 (ref_id 3): 99 is not in annotations")
    assert "the id '1' is also that of" in lines[2]
    assert lines[3].startswith(f"{refs}: reference 4 (ref_id 5): warning: ")
    assert "the same picture as" in lines[3]
    assert "(" + f"{refs}: reference 0" in lines[3]
    assert lines[-1].startswith("9 rows, 3 bad, 1 warnings")


def test_a_split_that_cannot_be_read_is_one_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layouts.earthreason(tmp_path)
    (tmp_path / "test/QAs").rename(tmp_path / "test/other")
    code, out, _ = run(capsys, "validate", "data=earthreason", f"data.root={tmp_path}")
    assert code == 1
    assert out.splitlines()[0].startswith(f"{tmp_path}/test: one folder is wanted, found none of QAs")
    assert out.splitlines()[-1].startswith("6 rows, 0 bad")


def test_jsonl_in_both_forms_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    root = run(capsys, "validate", str(AERIAL))
    assert run(capsys, "validate", "data=jsonl", f"data.root={AERIAL}") == root
    words = ("data=jsonl", f"data.root={AERIAL}", "data.annotations=other_forms.jsonl")
    assert run(capsys, "validate", *words) == run(capsys, "validate", str(AERIAL / "other_forms.jsonl"))
    assert "cut it into tiles" in run(capsys, "validate", *words, "data.max_pixels=100")[1]
    assert "cut it into tiles" in run(capsys, "validate", *words, "--max-pixels", "100")[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("data=rrsisd",), "did you mean rrsis_d?"),
        (("data=rrsis_d",), "data.root: has no default; give data.root=VALUE"),
        (("data=rrsis_d", "data.rot=x"), "data.rot"),
        (("data=rrsis_d", "data.root=nowhere"), "no such folder"),
        (("data=rrsis_d", "policy=tiny"), "policy=tiny: must be data.KEY=VALUE"),
        (("data=rrsis_d", "data=jsonl"), "name one option"),
        (("data=synthetic",), "no annotations to check"),
    ],
)
def test_words_that_fit_nothing(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "validate", *words)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert said in err


def test_a_published_set_is_shown(rrsis_d: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "look"
    words = ("data=rrsis_d", f"data.root={rrsis_d}", "--split", "val", "--out", str(out))
    assert run(capsys, "show", *words)[0] == 0
    assert sorted(path.name for path in out.iterdir()) == ["000_5.png", "001_6.png"]


def test_a_reader_of_ones_own_samples_is_validated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A reader that overrides decode has its samples made; small drawn scenes of two worlds serve here."""
    from grasp_rl.data.annotations import AnnotationError
    from grasp_rl.data.synthetic.dataset import SyntheticSource
    from grasp_rl.data.validate import validate_dataset
    from grasp_rl.types import Image, Sample

    class Damaged(SyntheticSource):
        def decode(self, record: int, split: str, image: Image | None = None) -> Sample:
            if (split, record) == ("val", 1):
                raise AnnotationError("damaged; draw it anew")
            return super().decode(record if split != "test" else 0, "val" if split == "test" else split)

    report = validate_dataset(Damaged(train_size=2, val_size=2, test_size=2), tmp_path)
    assert (report.rows, report.bad, report.shared) == (8, 1, 1)
    assert [f.problem for f in report.findings if f.level == "error"] == ["damaged; draw it anew"]
    assert report.kinds == {"sample": 7}
    assert np.isclose(report.splits.total(), 7)
