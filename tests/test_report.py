"""The report on made-up run folders: whole, broken, hostile."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rubrics import rubric

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import ParsingConfig, PromptConfig
from grasp_rl.data.synthetic.dataset import SyntheticSource
from grasp_rl.evaluation import predictions
from grasp_rl.evaluation.metrics import score_of
from grasp_rl.evaluation.protocols.masks import OURS
from grasp_rl.interfaces import CoordinateFrame
from grasp_rl.prompts.render import format_answer
from grasp_rl.reporting import content, load, render, results
from grasp_rl.reporting.content import reward_warning
from grasp_rl.reporting.load import read_study
from grasp_rl.reporting.plots import moving_average
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.runs.run_dir import CONFIG, ENVIRONMENT, ERROR, LOG, STATUS
from grasp_rl.segmenters.grabcut import GrabCutSegmenter
from grasp_rl.tracking.metrics_log import MetricsLog
from grasp_rl.training.demonstrations import distort
from grasp_rl.types import Completion, FinishReason
from grasp_rl.utils.files import read_json, write_json

PROMPT = PromptConfig(template="compact")
TERMS = ("think_format", "answer_format", "box_iou", "box_l1", "points")


def build_evaluation(
    folder: Path, *, noise: float, unread: float, samples: int, overlays: int = 2, seed: int = 0
) -> None:
    """An evaluation folder of drawn scenes, answered by their own weak labels with ``noise``, a share of them unreadable."""
    rng = np.random.default_rng(seed)
    dataset = SyntheticSource().split("test")
    pipeline = RewardPipeline(
        segmenter=GrabCutSegmenter(),
        reward=rubric("grasp"),
        prompt=PROMPT,
        parsing=ParsingConfig(),
        always_segment=True,
    )
    records, images = [], {}
    for index in range(samples):
        sample = dataset[index]
        height, width = sample.size
        frame = CoordinateFrame(width=width, height=height, image_width=width, image_height=height)
        weak_labels = distort(sample.weak_labels or (), rng, sample.size, scale=0.0, shift=0.0, noise=noise)
        text = format_answer(weak_labels, sample.reasoning or "", frame, PROMPT)
        text = text[: len(text) // 2] if rng.random() < unread else text
        completion = Completion(token_ids=(1,) * 24, logprobs=(0.0,) * 24, text=text, finish_reason=FinishReason.STOP)
        rollout = pipeline.run(sample, frame, [completion])[0]
        if index < overlays:
            images[predictions.overlay_name(index, sample.sample_id)] = predictions.draw(sample, rollout)
        records.append(predictions.record_of(sample, rollout, boxes=True, protocol=OURS))
    metrics = OURS.summarise([score_of(record) for record in records], bootstrap_samples=200)
    predictions.write_folder(folder, records, metrics | {"seconds_per_image": 0.043}, images)


def build_run(
    folder: Path, overrides: Sequence[str], *, steps: int = 20, gain: float = 0.4, samples: int = 4, overlays: int = 2
) -> Path:
    """A run folder as the worker leaves it, from made-up numbers."""
    rng = np.random.default_rng(len(str(folder)))
    folder.mkdir(parents=True)
    reward = dict(word.split("=") for word in overrides).get("reward", "grasp")
    config = {"version": 1, "command": "train", "seed": 0, "reward": {"_target_": reward}, "evaluation": {"every": 5}}
    (folder / CONFIG).write_text(yaml.safe_dump(config))
    about = {
        "command": ["grasp-rl", "train", "-m", "reward=grasp,think2seg", "note=a b"],
        "overrides": list(overrides),
        "python": "3.11.7",
        "platform": "Linux-6.1-x86_64",
        "packages": {"torch": "2.9.0", "transformers": "5.10.0", "numpy": "2.4.0"},
        "git": {"package": {"commit": "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567", "branch": "main", "dirty": False}},
    }
    write_json(folder / ENVIRONMENT, about)
    times = {"started": "2026-01-01T10:00:00+00:00", "ended": "2026-01-01T10:07:30+00:00", "pid": 1}
    write_json(folder / STATUS, {"state": "done", "exit_code": 0} | times)
    log = MetricsLog(folder)
    for step in range(1, steps + 1):
        share = 1 - np.exp(-3 * step / steps)
        row = {"step": step, "reward": 2.2 + 1.3 * gain * share + rng.normal(0, 0.12), "reward_std": 0.4, "kl": 0.01}
        for name in TERMS:
            row |= {f"term/{name}/mean": 0.5 + 0.3 * share, f"term/{name}/group_std": 0.0 if "format" in name else 0.2}
        log.log(step, row)
        log.time(step, {"rollout_s": 1.9, "reward_s": 0.3, "update_s": 1.4, "step_s": 3.6 + rng.random()})
        if step % max(1, steps // 5) == 0:
            log.log(step, {"val/giou": 0.45 + 0.2 * gain * share, "val/reward": 2.5, "val/box_iou": 0.5})
    build_evaluation(folder / "eval_before", noise=0.22, unread=0.25, samples=samples, overlays=overlays)
    noise, unread = 0.22 * (1 - gain), 0.25 * (1 - gain)
    build_evaluation(folder / "eval_after", noise=noise, unread=unread, samples=samples, overlays=overlays, seed=1)
    return folder


def fail(folder: Path, overrides: Sequence[str], message: str | None) -> Path:
    """A run that ended before its first step."""
    folder.mkdir(parents=True)
    write_json(folder / ENVIRONMENT, {"overrides": list(overrides)})
    write_json(folder / STATUS, {"state": "failed", "exit_code": 1, "started": None, "ended": None})
    if message is not None:
        write_json(folder / ERROR, {"type": "ConfigError", "message": message})
    return folder


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("my_sweep")
    build_run(folder / "a", ["experiment=demo", "reward=grasp", "prompt=box", "seed=0"], gain=0.3)
    build_run(folder / "b", ["experiment=demo", "reward=think2seg", "prompt=box", "seed=0"], gain=0.8)
    fail(folder / "c", ["reward=grasp", "prompt=points", "seed=0"], "reward.mask_weight=-1: must be >= 0 <script>")
    render.write_report(folder, out=folder)
    return folder


class Page(HTMLParser):
    """The tags, attributes and words of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_grid_and_the_summary(sweep: Path) -> None:
    text = Page(sweep / "report.html").text
    assert "3 runs: 2 done, 1 failed." in text
    assert "reward=think2seg, prompt=box" in text
    for word in ("reward", "prompt", "think2seg", "no-target accuracy", "Pr@0.5", "box IoU", "gIoU, several"):
        assert word in text
    assert "seed=0" not in text
    assert "reward.mask_weight=-1: must be >= 0 <script>" in text  # shown, as text


def test_numbers_are_those_of_the_evaluations(sweep: Path) -> None:
    with (sweep / "results.csv").open(newline="") as file:
        table = {row["run"]: row for row in csv.DictReader(file)}
    metrics = read_json(sweep / "a" / "eval_after" / "metrics.json")
    assert metrics is not None
    assert float(table["a"]["after/giou"]) == metrics["giou"]
    gains = {
        record["sample_id"]: record["iou"]
        for record in predictions.read_predictions(sweep / "a" / "eval_after" / "predictions.jsonl")
    }
    for record in predictions.read_predictions(sweep / "a" / "eval_before" / "predictions.jsonl"):
        gains[record["sample_id"]] -= record["iou"]
    assert float(table["a"]["giou_gain"]) == pytest.approx(np.mean(list(gains.values())))
    assert float(table["a"]["giou_gain_low"]) <= float(table["a"]["giou_gain"]) <= float(table["a"]["giou_gain_high"])
    assert table["a"]["seconds"] == "450.0"
    assert table["c"]["state"] == "failed"
    assert table["c"]["error"].startswith("reward.mask_weight")
    assert f"{metrics['giou']:.3f}" in Page(sweep / "report.html").text


def test_a_number_opens_the_samples_behind_it(sweep: Path) -> None:
    page = Page(sweep / "report.html")
    ids = [str(attrs["id"]) for _, attrs in page.tags if str(attrs.get("id", "")).startswith("samples-")]
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    cells = 1 + len(results.COLUMNS)
    assert ids == ["samples-0", "samples-1"]
    assert links == [f"#{name}" for name in ids for _ in range(cells)]  # none of the run that failed


def test_of_many_runs_each_configuration_shows_fewer_samples(tmp_path: Path) -> None:
    build_evaluation(tmp_path / "scored", noise=0.1, unread=0.0, samples=6, overlays=6)
    for place in range(26):
        folder = fail(tmp_path / f"s/{place:02}", [f"a={place // 2}", f"seed={place % 2}"], None)
        write_json(folder / STATUS, {"state": "done", "exit_code": 0, "started": None, "ended": None})
        shutil.copytree(tmp_path / "scored", folder / "eval_after")
    page = content.context(read_study(tmp_path / "s"), "many")
    assert [gallery["label"] for gallery in page["galleries"]] == [f"a={place}, seed=0" for place in range(13)]
    assert {len(gallery["samples"]) for gallery in page["galleries"]} == {5}
    rows = page["groups"][0]["rows"]
    assert [row["samples"] for row in rows] == [f"samples-{place}" for place in range(13)]


def test_predictions_that_cannot_be_read_are_a_note(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(sweep / "a", tmp_path / "s/a")
    (tmp_path / "s/a/eval_after/predictions.jsonl").unlink()
    (run,) = read_study(tmp_path / "s")
    assert run.after is not None
    assert run.after.records == ()
    assert any("predictions.jsonl: no readable predictions" in note for note in run.notes)

    def denied(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(load, "sha256_of", denied)
    (run,) = read_study(sweep / "b")
    assert run.after is not None
    assert len(run.after.records) == 4


def test_the_page_needs_nothing_else(sweep: Path) -> None:
    tags = Page(sweep / "report.html").tags
    assert not [tag for tag, _ in tags if tag in ("script", "link", "iframe", "object", "embed", "form")]
    for tag, attributes in tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert str(attributes.get("href", "#samples-")).startswith("#samples-")
        if tag == "img":
            assert re.match(r"data:image/(png|svg\+xml);base64,", attributes["src"] or "")
            assert attributes["alt"]
    images = [attributes["src"] or "" for tag, attributes in tags if tag == "img"]
    assert (
        len(images) == 6 + 8 + 1
    )  # reward, gIoU, and one against the other, and two pairs of images, for each of two runs; all gIoUs on one pair of axes


def test_a_reward_that_rises_while_the_iou_falls_is_warned_of() -> None:
    rising = [(0.0, 2.0, 0.5), (50.0, 2.5, 0.6), (100.0, 2.9, 0.55)]
    assert "From step 50 to 100 the reward rose from 2.500 to 2.900 while the gIoU fell" in reward_warning(rising)
    assert reward_warning([(0.0, 2.0, 0.5), (50.0, 2.5, 0.6), (100.0, 2.4, 0.55)]) == ""  # the reward fell, too
    assert reward_warning([(0.0, 2.0, 0.5), (50.0, 2.5, 0.6), (100.0, 2.9, 0.595)]) == ""  # within 0.01
    assert reward_warning(rising[:2]) == ""


def test_terms_time_and_origin(sweep: Path) -> None:
    text = Page(sweep / "report.html").text
    assert text.count("teaches nothing here") == 4  # two format terms in two runs
    assert "7m30s" in text
    assert "1.90" in text
    assert "grasp-rl train -m reward=grasp,think2seg 'note=a b'" in text
    assert "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567" in text
    assert "torch 2.9.0" in text
    assert "not recorded" in text  # the failed run left no commit


def test_markdown(sweep: Path) -> None:
    text = (sweep / "report.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({line.count(" | ") for line in rows[:5]}) == 1
    assert "&lt;script>" in text
    assert "| think2seg | box | done |" in text


HOSTILE = "</pre></details><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}"


def test_model_text_is_shown_and_never_obeyed(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", ["reward=grasp"], samples=2, steps=2)
    path = run / "eval_after" / "predictions.jsonl"
    records = predictions.read_predictions(path)
    for record in records:
        record |= {"text": HOSTILE, "query": HOSTILE}
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    render.write_report(run, out=tmp_path / "out")
    shown = Page(tmp_path / "out" / "report.html")
    assert HOSTILE in "".join(shown.words)
    assert not [tag for tag, _ in shown.tags if tag == "script"]
    assert not [attributes for _, attributes in shown.tags if "onerror" in attributes]


@pytest.mark.parametrize(
    "gone",
    [
        "config.yaml", "environment.json", "status.json", "metrics.jsonl", "timings.jsonl", "eval_before", "eval_after",
        "eval_after/metrics.json", "eval_after/predictions.jsonl", "eval_after/overlays",
    ],
)  # fmt: skip
@pytest.mark.parametrize("how", ["missing", "garbage"])
def test_a_missing_or_broken_piece_is_a_note(tmp_path: Path, sweep: Path, gone: str, how: str) -> None:
    import shutil

    run = tmp_path / "study" / "a"
    shutil.copytree(sweep / "a", run)
    target = run / gone
    for path in sorted(target.rglob("*")) if target.is_dir() else [target]:
        if path.is_file() and how == "garbage":
            path.write_bytes(b"\xff{]\n\0garbage: [")
    if how == "missing":
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    found = render.write_report(tmp_path / "study", out=tmp_path / "out")
    text = Page(tmp_path / "out" / "report.html").text
    assert found["summary"].startswith("1 run")
    if gone in ("config.yaml", "eval_after/metrics.json", "eval_after/predictions.jsonl"):
        assert "Notes" in text
    if gone not in ("eval_after", "eval_after/metrics.json"):
        assert "reaches a gIoU of" in found["summary"]


def test_an_evaluation_alone(tmp_path: Path) -> None:
    write_json(tmp_path / "run" / STATUS, {"state": "done", "started": None, "ended": None})
    build_evaluation(tmp_path / "run" / "eval", noise=0.1, unread=0.0, samples=2)
    found = render.write_report(tmp_path / "run", out=tmp_path / "run")
    assert found["summary"].startswith("1 run: 1 done. It reaches a gIoU of")
    assert found["summary"].endswith("on 2 test samples. Scored by the protocol ours.")


def test_failed_without_a_word(tmp_path: Path) -> None:
    fail(tmp_path / "a", ["x=1"], None)
    folder = fail(tmp_path / "b", ["x=2"], None)
    (folder / LOG).write_text("Traceback\n  File\nRuntimeError: out of memory\n")
    found = render.write_report(tmp_path, out=tmp_path)
    assert found["summary"] == "2 runs: 2 failed. None of them has been scored."
    text = Page(tmp_path / "report.html").text
    assert "it left no word in its log" in text
    assert "RuntimeError: out of memory" in text


def test_the_verb(tmp_path: Path, sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert render.main([str(sweep), "--out", str(tmp_path / "o")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "o" / "report.html")
    assert render.main([str(sweep), "--out", str(tmp_path / "o"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["state"] for run in found["runs"]] == ["done", "done", "failed"]
    assert render.main([str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert render.main([str(tmp_path / "empty")]) == 2
    assert "neither a run nor a folder of runs" in capsys.readouterr().err


def test_equal_folders_give_equal_pages(sweep: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        render.write_report(sweep, out=tmp_path / name)
    assert (tmp_path / "one" / "report.html").read_bytes() == (tmp_path / "two" / "report.html").read_bytes()


def test_labels_say_what_differs(sweep: Path, tmp_path: Path) -> None:
    assert [run.label for run in read_study(sweep)] == [
        "reward=grasp, prompt=box", "reward=think2seg, prompt=box", "reward=grasp, prompt=points",
    ]  # fmt: skip
    assert read_study(sweep / "a")[0].label == "a"
    with pytest.raises(ConfigError):
        read_study(tmp_path)


def test_moving_average_by_hand() -> None:
    values: Any = np.array([1.0, 2.0, 6.0, 7.0])
    np.testing.assert_allclose(moving_average(values, 3), [1.5, 3.0, 5.0, 6.5])
    np.testing.assert_allclose(moving_average(values, 1), values)


def test_a_sweep_of_one_has_no_best_among_many() -> None:
    assert content.decimals(None) == "-"
    assert content.decimals(-0.0421, signed=True) == "-0.042"
    assert content.decimals(0.5) == "0.500"


def test_many_runs_keep_the_page_small(tmp_path: Path) -> None:
    for number in range(14):
        fail(tmp_path / f"{number:02d}", [f"seed={number}"], "no luck")
    render.write_report(tmp_path, out=tmp_path)
    assert "images are shown of 1 run, the others'" in Page(tmp_path / "report.html").text
