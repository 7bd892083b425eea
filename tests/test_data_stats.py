"""`grasp-rl data stats`: the numbers of a drawn set are those it was drawn with; its page obeys nothing of it."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from grasp_rl.cli import data as data_cli
from grasp_rl.data.stats import attribute_summary
from grasp_rl.rehearsal import layouts

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}"


class _Tags(HTMLParser):
    """The elements and attributes of a page, as a browser reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.names, self.attributes = set[str](), list[tuple[str, str]]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three questions about two pictures, one without target, one with boxes alone."""
    for name, size in (("a.png", (40, 20)), ("b.png", (100, 50))):
        Pillow.effect_noise(size, 90).convert("RGB").save(tmp_path / name)
    rows = [
        {"id": EVIL, "image": "a.png", "query": f"where {EVIL}", "polygons": [[[0, 0], [20, 0], [20, 20], [0, 20]]]},
        {"id": "2", "image": "a.png", "query": "one two three", "polygons": []},
        {"id": "3", "image": "b.png", "query": "x", "boxes": [[0, 0, 9, 9], [20, 20, 30, 30]]},
        {"id": "4", "image": "b.png", "query": "y", "polygons": [[[0, 0], [4, 0], [4, 4], [0, 4]]]},
    ]
    lines = [json.dumps(row | {"split": "val" if row["id"] == "4" else "train"}) for row in rows]
    (tmp_path / "annotations.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_numbers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert data_cli.main(["stats", str(folder), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    train, val = answer["splits"]["train"], answer["splits"]["val"]
    assert (train["samples"], train["images"], train["no_target"], train["without_mask"]) == (3, 2, 1, 1)
    assert train["width"] == {"count": 2, "min": 40, "median": 70, "mean": 70, "max": 100}
    assert train["height"]["max"] == 50
    assert train["mask_share"] == {"count": 1, "min": 0.5, "median": 0.5, "mean": 0.5, "max": 0.5}
    assert train["instances"] == {"count": 2, "min": 1, "median": 1.5, "mean": 1.5, "max": 2}
    assert (train["words"]["min"], train["characters"]["min"]) == (1, 1)
    assert (train["small_targets"], val["small_targets"]) == (0, 1)
    assert data_cli.main(["stats", str(folder), "--split", "train", "--limit", "2"]) == 0
    text = capsys.readouterr().out
    assert "jsonl train: 2 samples of 1 images, of 3 records" in text
    assert "no target                1 (50%)" in text
    assert "val" not in text


def test_attributes_and_published_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layouts.refer(tmp_path, folder="rrsisd")
    assert data_cli.main(["stats", "data=rrsis_d", f"data.root={tmp_path}", "--split", "train"]) == 0
    assert "category: harbor (2), ship (2)" in capsys.readouterr().out
    assert attribute_summary([0.5, 1.5]) == {"count": 2, "min": 0.5, "median": 1.0, "mean": 1.0, "max": 1.5}
    many = attribute_summary([f"c{n % 30}" for n in range(61)])
    assert (many["distinct"], len(many["values"]), next(iter(many["values"].items()))) == (30, 20, ("c0", 3))


def test_a_record_that_is_skipped_is_counted_once_less(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "b.png").write_bytes(b"damage")
    words = ["stats", "data=jsonl", f"data.root={folder}", "--json", "--split", "train"]
    assert data_cli.main(words) == 2
    assert "b.png" in capsys.readouterr().err
    assert data_cli.main([*words, "data.on_bad=skip"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"]["train"]["samples"] == 2


def test_the_page_stands_alone_and_escapes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = folder / "out/stats.html"
    assert data_cli.main(["stats", str(folder), "--out", str(page), "--count", "2"]) == 0
    text = page.read_text()
    policy = """content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">"""
    assert f'<meta http-equiv="Content-Security-Policy" {policy}' in text
    tags = _Tags()
    tags.feed(text)
    assert not tags.names & {"script", "iframe", "object", "link", "base", "form"}
    assert not any(name.startswith("on") or name == "href" for name, _ in tags.attributes)
    sources = {value.partition(",")[0] for name, value in tags.attributes if name == "src"}
    assert sources == {"data:image/svg+xml;base64", "data:image/png;base64"}
    assert text.count("&lt;script&gt;alert(1)") == 3  # alt text, question and id of its sample
    assert "{{ 7 * 7 }}" in text
    assert "url(" not in text
    assert text.count("data:image/png") == 3
    assert data_cli.main(["stats", str(folder), "--out", str(folder)]) == 2
    assert "is a folder; name a file" in capsys.readouterr().err


def test_samples_show_the_outline(folder: Path) -> None:
    from grasp_rl.cli.data_page import _sample
    from grasp_rl.cli.data_source import dataset_of

    sample = dataset_of([str(folder)]).split("train")[0]
    drawn = _sample(sample)
    assert drawn["nothing"] is False
    pixels = np.asarray(Pillow.open(io.BytesIO(base64.b64decode(drawn["image"].partition(",")[2]))).convert("RGB"))
    assert max(pixels.shape) == 256
    green = (pixels[..., 1].astype(int) - pixels[..., 0] > 100).any()
    assert green


def test_without_torch(folder: Path) -> None:
    words = ["data", "stats", ".", "--out", "page.html"]
    command = [sys.executable, "-X", "importtime", "-m", "grasp_rl.cli.main", *words]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in ended.stderr.splitlines() if "|" in line}
    assert "matplotlib" in imported
    assert not imported & {"torch", "transformers", "hydra"}
