"""Files that a dataset, an index of weights or a cache names: inside their folder, and only their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from strangers import picture

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.annotations import AnnotationError
from grasp_rl.data.readers.jsonl import JsonlSource
from grasp_rl.policies.hub import Source, load_model
from grasp_rl.segmenters.embedding_cache import DiskCache
from grasp_rl.utils.files import foreign_weights

ROW = {"id": "a", "query": "where?", "split": "train", "image": "a.png"}


def _dataset(root: Path, **changed: str) -> Path:
    root.mkdir()
    row = ROW | {"polygons": [[[10, 10], [30, 10], [30, 30]]]} | changed
    if "mask" in changed:
        del row["polygons"]
    (root / "annotations.jsonl").write_text(json.dumps(row) + "\n")
    picture(root / "a.png")
    return root


@pytest.mark.parametrize("way", ["parent", "link", "link to a folder", "mask", "mask by a link"])
def test_a_dataset_reads_inside_its_folder(tmp_path: Path, way: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    picture(outside / "b.png")
    named = {"parent": "../outside/b.png", "link": "b.png", "link to a folder": "folder/b.png"}.get(way, "a.png")
    mask = {"mask": {"mask": "../outside/b.png"}, "mask by a link": {"mask": "b.png"}}.get(way, {})
    root = _dataset(tmp_path / "data", image=named, **mask)
    if "folder" in way:
        (root / "folder").symlink_to(outside)
    elif "link" in way:
        (root / "b.png").symlink_to(outside / "b.png")
    with pytest.raises(AnnotationError, match=r"leads out of .*data\.allow_outside=true"):
        JsonlSource(str(root)).split("train")[0]
    assert JsonlSource(str(root), allow_outside=True).split("train")[0].image.shape


def test_a_link_to_the_dataset_and_one_inside_are_its_own(tmp_path: Path) -> None:
    root = _dataset(tmp_path / "data", image="b.png")
    (root / "b.png").symlink_to("a.png")
    (tmp_path / "link").symlink_to(root)
    assert JsonlSource(str(tmp_path / "link")).split("train")[0].image.shape


@pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "a/b.safetensors", "a\\b", "..", "", 5])
def test_an_index_of_weights_names_files_beside_it(tmp_path: Path, name: object) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "model-1.safetensors"}}))
    assert foreign_weights(tmp_path) is None
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(ConfigError, match="which is no file beside it"):
        load_model(Source(path=str(tmp_path)), dtype="float32", attention="sdpa")


def test_a_cache_deletes_only_what_it_wrote(tmp_path: Path) -> None:
    mine, twin = tmp_path / "weights.safetensors", tmp_path / f"{'0' * 40}.safetensors"
    for path in (mine, twin):
        save_file({"w": torch.zeros(1000)}, path)
    cache = DiskCache(cap=5000, folder=tmp_path)
    assert cache.used == 0
    keys = [f"{number:040x}" for number in range(1, 6)]
    for key in keys:
        cache.put(key, (torch.zeros(300),))
    assert mine.is_file()
    assert twin.is_file()
    kept = [key for key in keys if cache.get(key) is not None]
    assert keys[-1] in kept
    assert len(kept) < len(keys)
