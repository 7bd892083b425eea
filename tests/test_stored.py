"""Answers that are there already: another system's in every format, and a run's through another segmenter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
from PIL import Image as Pillow
from pycocotools import mask as coco

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import EvaluationConfig, ParsingConfig, PromptConfig
from grasp_rl.config.targets import load_config
from grasp_rl.data.readers.jsonl import JsonlSource
from grasp_rl.evaluation.evaluate import Evaluation, measure
from grasp_rl.evaluation.foreign import Foreign
from grasp_rl.evaluation.predictions import encode_mask
from grasp_rl.rewards.rubric import Rubric
from grasp_rl.rewards.terms.masks import MaskIou
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.segmenters.box_fill import BoxFillSegmenter

PIPELINE = RewardPipeline(
    segmenter=BoxFillSegmenter(), reward=Rubric({"mask_iou": MaskIou()}), prompt=PromptConfig(),
    parsing=ParsingConfig(), always_segment=True,
)  # fmt: skip
BOXES = {"a": [2, 2, 12, 8], "b/c": [0, 0, 6, 6], "none": None}


def filled(box: list[int] | None) -> np.ndarray[Any, np.dtype[np.bool_]]:
    mask = np.zeros((16, 20), dtype=np.bool_)
    if box is not None:
        mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three questions: two with a rectangle, one with nothing to find."""
    root = tmp_path / "data"
    root.mkdir()
    Pillow.fromarray(np.random.default_rng(0).integers(0, 255, (16, 20, 3), dtype=np.uint8)).save(root / "i.png")
    rows = []
    for sample_id, box in BOXES.items():
        encoded = {"size": [16, 20], "counts": encode_mask(filled(box))["counts"]}
        rows.append(
            {"id": sample_id, "image": "i.png", "query": f"where is {sample_id}?", "split": "test", "rle": encoded}
        )
    (root / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def scored(path: Path, data: Path) -> Evaluation:
    split = JsonlSource(root=str(data)).split("test")
    answers = Foreign(path, PIPELINE, split)
    return measure(answers, split, boxes=True, config=EvaluationConfig(bootstrap_samples=10), limit=None)


def wide(box: list[int] | None) -> list[int] | None:
    """A box twice as high, so that half of it is right."""
    return None if box is None else [box[0], box[1], box[2], 2 * box[3] - box[1]]


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def check(found: Evaluation, iou: float) -> None:
    """All three rows: two at ``iou``, the silence right."""
    assert [record["iou"] for record in found.records] == pytest.approx([iou, iou, 1.0])
    assert found.metrics["giou"] == pytest.approx((2 * iou + 1) / 3)
    assert found.metrics["no_target_accuracy"] == 1


def test_masks_as_png(tmp_path: Path, data: Path) -> None:
    folder = tmp_path / "masks"
    for sample_id, box in BOXES.items():
        (folder / sample_id).parent.mkdir(parents=True, exist_ok=True)
        Pillow.fromarray(filled(wide(box)).astype(np.uint8) * 255).save(folder / f"{sample_id}.png")
    check(scored(folder, data), 0.5)
    Pillow.fromarray(np.full((16, 20), 255, np.uint8)).save(folder / "a.png")  # all of it may be meant
    assert scored(folder, data).records[0]["iou"] == pytest.approx(60 / 320)
    (folder / "a.png").unlink()
    with pytest.raises(ConfigError, match=r"masks: no answer to sample .*a\.png"):
        scored(folder, data)
    Pillow.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "a.png")
    with pytest.raises(ConfigError, match=r"a\.png.*8"):
        scored(folder, data)


def test_json_lines_of_every_kind(tmp_path: Path, data: Path) -> None:
    rle = [{"id": name, "rle": encode_mask(filled(wide(box)))} for name, box in BOXES.items()]
    check(scored(lines(tmp_path / "rle.jsonl", rle), data), 0.5)
    boxes = [{"id": name, "boxes": [] if box is None else [wide(box)]} for name, box in BOXES.items()]
    found = scored(lines(tmp_path / "boxes.jsonl", boxes), data)
    check(found, 0.5)
    assert found.records[0]["box_iou"] == pytest.approx(0.5)
    Pillow.fromarray(filled(BOXES["a"]).astype(np.uint8)).save(tmp_path / "m.png")
    mixed = [
        {"id": "a", "mask": "m.png"},
        {"id": "b/c", "status": "unreadable"},
        {"id": "none", "rle": []},
    ]
    found = scored(lines(tmp_path / "mixed.jsonl", mixed), data)
    assert [record["iou"] for record in found.records] == [1, 0, 1]
    assert found.records[1]["status"] == "bad_json"


def test_instances_keep_their_masks(tmp_path: Path, data: Path) -> None:
    halves = [encode_mask(filled([2, 2, 7, 8])), encode_mask(filled([7, 2, 12, 8]))]
    rows = [{"id": "a", "rle": halves}, {"id": "b/c", "rle": []}, {"id": "none", "rle": []}]
    record = scored(lines(tmp_path / "p.jsonl", rows), data).records[0]
    assert record["iou"] == 1
    assert record["masks"] == halves
    assert [prompt["box"] for prompt in record["prompts"]] == [(2, 2, 7, 8), (7, 2, 12, 8)]


def test_texts_are_read_by_the_prompt_scheme(tmp_path: Path, data: Path) -> None:
    said = '<think>x</think><answer>```json\n[{"bbox_2d": [2, 2, 12, 14], "positive_points": [[5, 5], [6, 6]]}]\n```</answer>'
    rows = [
        {"id": "a", "text": said},
        {"id": "b/c", "text": "no idea"},
        {"id": "none", "text": "<think>x</think><answer>[]</answer>"},
    ]
    split = JsonlSource(root=str(data)).split("test")
    answers = Foreign(lines(tmp_path / "p.jsonl", rows), PIPELINE, split)
    found = measure(answers, split, boxes=True, config=EvaluationConfig(bootstrap_samples=10), limit=None)
    assert found.records[0]["iou"] == pytest.approx(0.5)
    assert found.records[1]["status"] != "ok"
    assert answers.notes(answers.tally) == [
        "p.jsonl: 1 answers came without masks, which BoxFillSegmenter made from their boxes"
    ]


def test_coco_results(tmp_path: Path, data: Path) -> None:
    rows: list[dict[str, Any]] = []
    for name, box in BOXES.items():
        if box is not None:
            encoded = coco.encode(np.asfortranarray(filled(wide(box)), dtype=np.uint8))
            rows.append({"image_id": name, "category_id": 1, "score": 0.3,
                         "segmentation": {"size": [16, 20], "counts": encoded["counts"].decode()}})  # fmt: skip
    path = tmp_path / "results.json"
    path.write_text(json.dumps(rows))
    check(scored(path, data), 0.5)  # what has no result is nothing found
    rows.append({"image_id": "none", "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.1})
    path.write_text(json.dumps(rows))
    assert [r["iou"] for r in scored(path, data).records] == pytest.approx([0.5, 0.5, 0])
    polygon = {"image_id": "a", "segmentation": [[2, 2, 12, 2, 12, 8, 2, 8]]}
    empty = [{"image_id": "none", "segmentation": []}, {"image_id": "none", "bbox": [3, 3, 0, 0]}]
    path.write_text(json.dumps([polygon, {"image_id": "b/c", "bbox": [0, 0, 6, 6]}, *empty]))
    check(scored(path, data), 1.0)
    half = {"image_id": "a", "bbox": [2, 2, 5, 6],
            "segmentation": {"size": [16, 20], "counts": encode_mask(filled([2, 2, 7, 8]))["counts"]}}  # fmt: skip
    other = {"image_id": "a", "bbox": [7, 2, 5, 6], "segmentation": [[7, 2, 12, 2, 12, 8, 7, 8]]}
    path.write_text(json.dumps([half, other]))
    record = scored(path, data).records[0]
    assert record["iou"] == 1
    assert [prompt["box"] for prompt in record["prompts"]] == [(2, 2, 7, 8), (7, 2, 12, 8)]


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ([{"bbox": [0, 0, 1, 1]}], "result 0 has no image_id"),
        ([{"image_id": "a"}], "result 0 has neither a segmentation nor a bbox"),
        ([{"image_id": "a", "segmentation": [[0, 0, 1]]}], "a polygon must be"),
        ([{"image_id": "a", "segmentation": {"counts": "0"}}], "segmentation: rle"),
        ([{"image_id": "a", "bbox": [0, 0, "1", 1]}], "must be [x, y, width, height]"),
        (
            [{"image_id": "a", "bbox": [0, 0, 1, 1]}, {"image_id": "a", "segmentation": [[0, 0, 9, 0, 9, 9]]}],
            "some results",
        ),
    ],
)
def test_bad_coco_results_are_named(tmp_path: Path, data: Path, results: list[dict[str, Any]], said: str) -> None:
    (tmp_path / "r.json").write_text(json.dumps(results))
    with pytest.raises(ConfigError) as caught:
        scored(tmp_path / "r.json", data)
    assert said in str(caught.value)


def test_what_the_reader_must_know(tmp_path: Path, data: Path) -> None:
    results = [{"image_id": name, "bbox": [0, 0, 6, 6], "score": score} for name, score in (("a", 0.2), ("x", 0.9))]
    (tmp_path / "r.json").write_text(json.dumps(results))
    split = JsonlSource(root=str(data)).split("test")
    answers = Foreign(tmp_path / "r.json", PIPELINE, split)
    measure(answers, split, boxes=True, config=EvaluationConfig(bootstrap_samples=10), limit=None)
    scores, made, absent, unknown = answers.notes(answers.tally)
    assert "scores are not used" in scores
    assert "1 answers came without masks" in made
    assert "2 samples have no result" in absent
    assert "1 answers are to samples that this split does not have" in unknown


def test_what_is_said_and_what_is_drawn(tmp_path: Path, data: Path) -> None:
    """An empty text is no silence, nulls say nothing, an empty instance keeps its place, a PNG names no instances."""
    nothing = encode_mask(filled(None))
    rows: list[dict[str, Any]] = [
        {"id": "a", "rle": [nothing, encode_mask(filled(BOXES["a"]))], "text": None},
        {"id": "b/c", "text": ""},
        {"id": "none", "text": "", "status": None},
    ]
    found = scored(lines(tmp_path / "p.jsonl", rows), data)
    assert [record["iou"] for record in found.records] == [1, 0, 0]
    assert [record["status"] for record in found.records] == ["ok", "no_answer", "no_answer"]
    assert found.records[0]["masks"][0] == nothing
    assert "whole" not in found.records[0]
    png = tmp_path / "masks"
    for name, box in BOXES.items():
        (png / name).parent.mkdir(parents=True, exist_ok=True)
        Pillow.fromarray(filled(box).astype(np.uint8)).save(png / f"{name}.png")
    assert all(record["whole"] for record in scored(png, data).records)
    Pillow.fromarray(np.where(filled(BOXES["a"]), 245, 10).astype(np.uint8)).save(png / "a.png")
    with pytest.raises(ConfigError, match=r"a\.png"):
        scored(png, data)


def test_numbers_in_a_frame_of_their_own(tmp_path: Path, data: Path) -> None:
    said = '<think>x</think><answer>```json\n[{"bbox_2d": [100, 125, 600, 500], "positive_points": [[200, 200], [300, 300]]}]\n```</answer>'
    rows = [{"id": "a", "text": said, "frame": [1000, 1000]}, {"id": "b/c", "rle": []}, {"id": "none", "rle": []}]
    record = scored(lines(tmp_path / "p.jsonl", rows), data).records[0]
    assert record["frame"] == [1000, 1000]
    assert record["iou"] == 1


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"id": "a"}], "p.jsonl:1: has none of rle"),
        ([{"rle": []}], "p.jsonl:1: must be a JSON object with the sample's id"),
        ([{"id": "a", "status": "odd"}], "status='odd': must be one of ok, unreadable"),
        ([{"id": "a", "boxes": [[1, 2, 3]]}], "boxes: must be a list of"),
        ([{"id": "a", "rle": []}, {"id": "a", "rle": []}], "p.jsonl:2: id='a': stands twice"),
        ([{"id": "a", "boxes": [[8, 8, 4, 4]]}], "1 of 1 boxes have x1 <= x0"),
        ([{"id": "a", "mask": "../m.png"}], "mask='../m.png': must be the path of a PNG below this folder"),
        ([{"id": "a", "rle": None, "text": None}], "has none of rle"),
        ([{"id": "a", "status": "unreadable", "rle": []}], "status=unreadable: goes without"),
        ([{"id": "a", "status": ["ok"]}], "status=['ok']: must be one of"),
        ([{"id": "a", "rle": [None]}], "rle="),
        ([{"id": "a", "rle": {"size": [16, 20]}}], "rle="),
        ([{"id": "a", "boxes": [], "rle": {"size": [16, 20], "counts": "0"}}], "boxes: 0 of them and 1 masks"),
        ([{"id": "a", "text": "x", "frame": [0, 5]}], "frame=[0, 5]: must be"),
        ([{"id": "a", "rle": []}], "no answer to sample b/c and 1 more"),
        ([{"id": "a", "boxes": [[1, 1, 2, 2]], "rle": [encode_mask(filled(None))] * 2}], "1 of them and 2 masks"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, data: Path, rows: list[dict[str, Any]], said: str) -> None:
    path = lines(tmp_path / "p.jsonl", rows)
    with pytest.raises(ConfigError) as caught:
        scored(path, data)
    assert said in str(caught.value)


def test_no_answers_at_all(tmp_path: Path, data: Path) -> None:
    with pytest.raises(ConfigError, match="no answers there"):
        scored(tmp_path / "absent.jsonl", data)
    (tmp_path / "p.jsonl").write_text("{")
    with pytest.raises(ConfigError, match="no answers there"):
        scored(tmp_path / "p.jsonl", data)


def test_score_and_rescore_are_runs_like_others(tmp_path: Path, data: Path) -> None:
    """A rescored run's predictions are those of the run to the byte; another segmenter's are not; a report reads both."""
    words = ["policy.weights=warm_start", "evaluation.test_limit=6", "evaluation.overlays=1", "segmenter=box_fill"]
    done = forked.grasp_rl("evaluate", f"run_dir={tmp_path / 'one'}", *words)
    assert done.returncode == 0, done.stderr
    done = forked.grasp_rl("rescore", str(tmp_path / "one"), f"run_dir={tmp_path / 'again'}", "evaluation.protocol=all")
    assert done.returncode == 0, done.stderr
    one, again = (tmp_path / name / "eval/predictions.jsonl" for name in ("one", "again"))
    assert one.read_bytes() == again.read_bytes()
    assert "segearth_r1" in done.stdout
    numbers = json.loads((tmp_path / "again/eval/metrics.json").read_text())
    assert numbers["think2seg/scored"] == 6
    done = forked.grasp_rl(
        "rescore", str(tmp_path / "one"), f"run_dir={tmp_path / 'ranks'}", "engine=zero1", "engine.nproc=2"
    )
    assert done.returncode == 0, done.stderr
    assert one.read_bytes() == (tmp_path / "ranks/eval/predictions.jsonl").read_bytes()
    rows = [{"id": name, "boxes": [] if box is None else [box]} for name, box in BOXES.items()]
    path = lines(tmp_path / "p.jsonl", rows)
    done = forked.grasp_rl("score", str(path), f"run_dir={tmp_path / 'two'}", "data=jsonl", f"data.root={data}",
                   "segmenter=box_fill", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["metrics"]["giou"] == 1
    done = forked.grasp_rl("report", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    missing = forked.grasp_rl(
        "rescore", str(tmp_path / "two"), f"run_dir={tmp_path / 'three'}", "evaluation.test_split=val"
    )
    assert missing.returncode == 2
    assert "val" in missing.stderr


def test_a_rescored_run_keeps_its_turns_and_what_was_not_named(tmp_path: Path) -> None:
    words = ["evaluation.test_limit=4", "evaluation.overlays=0", "segmenter=box_fill", "prompt=box", "reward=think2seg"]
    words += ["rollout=two_turns", "rollout.turns.second.feedback=crop"]
    done = forked.grasp_rl("evaluate", f"run_dir={tmp_path / 'one'}", *words)
    assert done.returncode == 0, done.stderr
    done = forked.grasp_rl("rescore", str(tmp_path / "one"), f"run_dir={tmp_path / 'two'}", "parsing.max_chars=9999")
    assert done.returncode == 0, done.stderr
    one, two = (tmp_path / name / "eval/predictions.jsonl" for name in ("one", "two"))
    assert '"earlier_turns"' in one.read_text()
    assert one.read_bytes() == two.read_bytes()
    parsing = load_config(tmp_path / "two/config.yaml").parsing
    assert (parsing.reader, parsing.max_chars) == (
        "think2seg",
        9999,
    )  # the reward brought the reader, the line the number
