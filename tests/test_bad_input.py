"""Bad input and bad luck: odd images go through, what cannot go through is one clear line, and nothing is lost."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from rubrics import rubric
from torch import Tensor

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import (
    AlgorithmConfig,
    CheckpointConfig,
    EvaluationConfig,
    OptimizerConfig,
    ParsingConfig,
    PromptConfig,
    RolloutConfig,
    RunConfig,
)
from grasp_rl.data.readers.jsonl import JsonlSource
from grasp_rl.data.synthetic.dataset import SyntheticSource
from grasp_rl.evaluation.evaluate import evaluate
from grasp_rl.evaluation.protocols.masks import OURS
from grasp_rl.interfaces import Components, CoordinateFrame, Dataset, DataSource
from grasp_rl.policies.tiny.policy import SIDE, TinyPolicy
from grasp_rl.policies.types import EmbeddedPrompt
from grasp_rl.prompts.render import format_answer
from grasp_rl.rollouts.generators.in_process import InProcess
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.runs import checkpoints
from grasp_rl.runs.run_dir import METRICS, STATUS
from grasp_rl.segmenters.grabcut import GrabCutSegmenter
from grasp_rl.tracking.null import NullTracker
from grasp_rl.training.train import make_trainer
from grasp_rl.training.trainer import Trainer
from grasp_rl.types import Completion, FinishReason, Sample, SpatialPrompt
from grasp_rl.utils.files import Record, read_json

AERIAL = Path(__file__).parent / "data/aerial"
PROMPT = PromptConfig(template="compact")
BOX = [[10, 5], [15, 5], [15, 15], [10, 15]]


class Speaker(TinyPolicy):
    """Random weights that cannot speak yet, and a mouth that can: well-formed answers drawn by the given uniforms."""

    def __init__(self) -> None:
        super().__init__(weights="random")

    @torch.no_grad()
    def stream(
        self,
        prompts: Sequence[EmbeddedPrompt],
        uniforms: Tensor | None,
        *,
        group_size: int,
        max_new_tokens: int,
        **more: object,
    ) -> Iterator[tuple[int, list[Completion]]]:
        if uniforms is None:
            uniforms = torch.full((len(prompts), group_size, max_new_tokens), 0.5, dtype=torch.float64)
        yield from enumerate([self._say(draws[:4].tolist()) for draws in group] for group in uniforms)

    def _say(self, draws: list[float]) -> Completion:
        side = SIDE
        x, y, w, h = (draw * side / 2 for draw in draws)
        box = SpatialPrompt(
            box=(x, y, x + w + 2, y + h + 2),
            point_coords=((x + w / 2, y + h / 2), (x + w / 3, y + h / 3)),
            point_labels=(1, 1),
        )
        frame = CoordinateFrame(width=side, height=side, image_width=side, image_height=side)
        text = format_answer([box], "1 roof", frame, PROMPT)
        ids = self.tokens_of(text)
        return Completion(token_ids=ids, logprobs=(-1.0,) * len(ids), text=text, finish_reason=FinishReason.STOP)


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    return Speaker()


def dataset_of(folder: Path, image: Pillow.Image) -> Path:
    """One row about one image, for every split."""
    image.save(folder / "a.png")
    rows = [
        {"id": split, "image": "a.png", "query": "the roof", "polygons": [BOX], "split": split}
        for split in ("train", "val", "test")
    ]
    (folder / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


ODD: dict[str, Callable[[], Pillow.Image]] = {
    "16 bits": lambda: Pillow.fromarray(np.arange(800, dtype=np.uint16).reshape(20, 40) * 80),
    "RGBA": lambda: Pillow.new("RGBA", (40, 20), (200, 90, 40, 128)),
    "palette": lambda: Pillow.new("RGB", (40, 20), (9, 9, 9)).quantize(4),
    "one bit": lambda: Pillow.new("1", (40, 20), 1),
    "30 000 wide": lambda: Pillow.new("RGB", (30_000, 20), (90, 120, 80)),
    "30 000 high": lambda: Pillow.new("RGB", (20, 30_000), (90, 120, 80)),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_images_go_all_the_way(kind: str, tmp_path: Path, speaker: Speaker) -> None:
    """Read, asked about, segmented, rewarded and drawn."""
    source = JsonlSource(str(dataset_of(tmp_path, ODD[kind]())))
    pipeline = RewardPipeline(
        segmenter=GrabCutSegmenter(), reward=rubric("grasp"), prompt=PROMPT, parsing=ParsingConfig()
    )
    config = EvaluationConfig(batch_size=1, bootstrap_samples=5, overlays=1)
    scored = evaluate(speaker, pipeline, source.split("test"), config=config, limit=None, folder=tmp_path / "out")
    assert scored.metrics["parsed"] == 1
    assert scored.records[0]["size"] == list(source.split("test")[0].size)
    assert len(list((tmp_path / "out/overlays").glob("*.png"))) == 1


@pytest.fixture
def door(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command line in ``tmp_path``."""
    return forked.door(tmp_path)


Door = Callable[..., subprocess.CompletedProcess[str]]


def _no_rows(folder: Path) -> None:
    (folder / "annotations.jsonl").write_text("")


def _no_words(folder: Path) -> None:
    path = folder / "annotations.jsonl"
    path.write_text(path.read_text().replace("Where could an animal drink?", ""))


def _no_val(folder: Path) -> None:
    path = folder / "annotations.jsonl"
    path.write_text(path.read_text().replace('"split": "val"', '"split": "train"'))


def _torn_image(folder: Path) -> None:
    path = folder / "images/islands.jpg"
    path.write_bytes(path.read_bytes()[:5000])


UNUSABLE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no rows": (_no_rows, "d/annotations.jsonl: no rows; write one JSON object a line"),
    "no words": (_no_words, "d/annotations.jsonl:2: query='': must be text"),
    "no val": (
        _no_val,
        "data split 'val': d/annotations.jsonl has train (6 rows), test (3 rows); add rows with it, or",
    ),
    "torn image": (_torn_image, "d/annotations.jsonl:8: image: d/images/islands.jpg: damaged or truncated"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_unusable_data_is_one_line_before_the_first_step(door: Door, tmp_path: Path, kind: str) -> None:
    spoil, said = UNUSABLE[kind]
    shutil.copytree(AERIAL, tmp_path / "d")
    spoil(tmp_path / "d")
    words = ["policy.weights=random", "evaluation.max_new_tokens=2", "run_dir=r"]
    ended = door("train", "data=jsonl", "data.root=d", *words)
    assert ended.returncode == 2
    line, log = ended.stderr.splitlines()
    assert said in line
    assert log == "log: r/log.txt"
    assert (read_json(tmp_path / "r/status.json") or {})["state"] == "failed"
    assert "Traceback" not in (tmp_path / "r/log.txt").read_text()
    assert not (tmp_path / "r" / METRICS).exists() or _rows(tmp_path / "r" / METRICS) == []


def test_a_dataset_that_is_not_there_is_refused(door: Door, tmp_path: Path) -> None:
    ended = door("train", "data=jsonl")
    assert ended.returncode == 2
    assert "data.root" in ended.stderr
    assert "has no default; give data.root=VALUE" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_config_of_another_version_is_refused(door: Door, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r/config.yaml").write_text("version: 0\nverb: train\n")
    ended = door("train", "resume=r")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "grasp-rl train: r/config.yaml: version=0: must be 2; compose the run anew\n"
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["config.yaml"]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to make a file longer: what a full disk is to those who write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save(run_dir: Path, step: int, speaker: Speaker, moments: torch.Tensor) -> None:
    with checkpoints.building(run_dir, step) as part:
        torch.save(moments, part / checkpoints.ENGINE / "optimizer.pt")
        speaker.save(part / checkpoints.POLICY)
        checkpoints.commit(run_dir, step, {"best": None})


@pytest.mark.parametrize(("size", "full_at"), [(100, "config"), (2_000_000, "weights"), (7_000_000, "optimizer")])
def test_a_full_disk_costs_no_checkpoint(tmp_path: Path, speaker: Speaker, size: int, full_at: str) -> None:
    moments = torch.ones(2_500_000)
    save(tmp_path, 1, speaker, moments)
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with files_of_at_most(size), pytest.raises(OSError, match=r"step_000002: could not be written .*older checkpoints"):
        save(tmp_path, 2, speaker, moments)
    assert checkpoints.steps(tmp_path) == [1], full_at
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == kept
    assert checkpoints.newest_sound(tmp_path) == 1
    speaker.load_weights(checkpoints.find_policy(tmp_path))
    save(tmp_path, 2, speaker, moments)
    assert checkpoints.steps(tmp_path) == [1, 2]


STEPS = 24
RUN = [
    "train",
    "policy.weights=random",
    "debug=fast",
    "algorithm=grpo",  # a KL term and weight decay move even weights that earn nothing
    "optimizer.lr=1e-3",
    "optimizer.weight_decay=1.0",
    f"algorithm.steps={STEPS}",
    "rollout.max_new_tokens=16",
    "evaluation.max_new_tokens=4",
    "evaluation.every=0",
    "checkpoint.every=4",
]


@pytest.mark.long
def test_ctrl_c_and_going_on_is_the_same_run(door: Door, tmp_path: Path) -> None:
    assert door(*RUN, "run_dir=whole").returncode == 0
    whole = (tmp_path / "whole" / METRICS).read_bytes()
    entropies = [json.loads(line)["entropy"] for line in whole.splitlines()]
    assert len(set(entropies)) == STEPS

    begun = tmp_path / "r"
    variables = os.environ | {"OMP_NUM_THREADS": "1", "TERM": "dumb"}
    script = Path(sys.executable).parent / "grasp-rl"
    process = subprocess.Popen(
        [script, *RUN, "run_dir=r"], cwd=tmp_path, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + 240
    while not (begun / METRICS).exists() or (begun / METRICS).read_bytes().count(b"\n") < 6:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert (read_json(begun / STATUS) or {})["state"] == "interrupted"
    rows = _rows(begun / METRICS)
    assert 6 <= len(rows) < STEPS
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))

    before = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
    second = door(*RUN, "run_dir=r")
    assert second.returncode == 2
    assert "run_dir='r': holds a run (interrupted); go on with resume=r" in second.stderr
    assert {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()} == before

    ended = door("train", "resume=r")
    assert ended.returncode == 0, ended.stderr
    assert (begun / METRICS).read_bytes() == whole
    weights = f"checkpoints/step_{STEPS:06d}/policy/model.safetensors"
    assert (begun / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


def _rows(path: Path) -> list[Record]:
    """All lines of a metrics.jsonl, each of which has to be valid JSON."""
    return [json.loads(line) for line in path.read_text().splitlines()]


class Spoilt:
    """Drawn scenes whose train split has garbage for masks, made after the weak labels were."""

    def __init__(self) -> None:
        self.inner = SyntheticSource(train_size=8, test_size=4)

    def split(self, name: str) -> Dataset:
        dataset = self.inner.split(name)
        return SpoiltSplit(dataset) if name == "train" else dataset


class SpoiltSplit:
    """Every sample as it was, but for its mask."""

    def __init__(self, inner: Dataset) -> None:
        self.inner, self.name, self.split = inner, inner.name, inner.split

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Sample:
        sample = self.inner[index]
        garbage = np.random.default_rng(index).random(sample.size) < 0.5
        return replace(sample, target_mask=garbage)


def trainer(folder: Path, data: DataSource, reward: Any, every: int = 0) -> Trainer:
    torch.manual_seed(0)
    config = RunConfig(
        run_dir=str(folder),
        prompt=PROMPT,
        algorithm=AlgorithmConfig(steps=3, prompts_per_step=4, group_size=4),
        optimizer=OptimizerConfig(lr=1e-3),
        rollout=RolloutConfig(max_new_tokens=48, reward_worker="inline"),
        evaluation=EvaluationConfig(every=every, overlays=0, bootstrap_samples=5),
        checkpoint=CheckpointConfig(every=1),
    )
    components = Components(
        policy=Speaker(),
        segmenter=GrabCutSegmenter(),
        reward=reward,
        data=data,
        tracker=NullTracker(),
        generator=InProcess(),
        protocol=OURS,
    )
    return make_trainer(config, components)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_question_that_is_too_long_is_named_before_the_first_step(tmp_path: Path, split: str) -> None:
    """Of any split, and left out where bad rows are skipped."""
    folder = dataset_of(tmp_path, Pillow.new("RGB", (40, 20), (90, 120, 80)))
    path = folder / "annotations.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows.append(rows[0] | {"id": "long", "split": split, "query": "the roof and " * 600})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    every = 1 if split == "val" else 0
    with pytest.raises(ConfigError, match=r"annotations\.jsonl:4: query: the question 'the roof"):
        trainer(tmp_path / "run", JsonlSource(str(folder)), rubric("grasp"), every=every)
    record = trainer(tmp_path / "run", JsonlSource(str(folder), on_bad="skip"), rubric("grasp"), every=every).run()
    assert record["steps"] == 3


def test_mask_free_training_cannot_see_masks(tmp_path: Path) -> None:
    """With every train mask garbage, mask-free training is the same to the last bit; training on masks is not."""
    for reward in (rubric("grasp"), rubric("think2seg")):
        name = "mask" if "mask" in reward.needs else "weak labels"
        sound = SyntheticSource(train_size=8, test_size=4)
        trainer(tmp_path / name / "sound", sound, reward).run()
        trainer(tmp_path / name / "spoilt", Spoilt(), reward).run()
        files = [METRICS, "checkpoints/step_000003/policy/model.safetensors", "eval_after/predictions.jsonl"]
        one, two = ([(tmp_path / name / kind / file).read_bytes() for file in files] for kind in ("sound", "spoilt"))
        assert [a == b for a, b in zip(one, two, strict=True)][:2] == [name == "weak labels"] * 2
        if name == "weak labels":
            assert one == two
        rewards = [row["reward_std"] for row in _rows(tmp_path / name / "sound" / METRICS)]
        assert min(rewards) > 0  # siblings differ, so there is something to learn from


def test_samples_lose_their_masks_before_a_mask_free_reward(tmp_path: Path) -> None:
    free = trainer(tmp_path / "free", Spoilt(), rubric("grasp"))
    paid = trainer(tmp_path / "paid", Spoilt(), rubric("think2seg"))
    data = Spoilt().split("train")
    assert all(sample.target_mask is None for sample in free.sampler(0))
    assert all(sample.target_mask is not None for sample in paid.sampler(0))
    assert not hasattr(free.reward_worker.pipeline.labels(data[0]), "target_mask")


def test_boxes_alone_are_enough(tmp_path: Path) -> None:
    """Weak supervision from end to end: no mask anywhere, and still a reward, a validation and a best checkpoint."""
    dataset_of(tmp_path, Pillow.new("RGB", (40, 20)))
    path = tmp_path / "annotations.jsonl"
    path.write_text(path.read_text().replace(f'"polygons": [{BOX}]', '"boxes": [[10, 5, 15, 15]]'))
    result = trainer(tmp_path / "r", JsonlSource(str(tmp_path)), rubric("grasp"), every=2).run()
    assert result["best_step"] in (2, 3)
    assert "giou" not in result["after"]
    assert 0 < result["after"]["box_iou"] < 1
    rows = _rows(tmp_path / "r" / METRICS)
    assert [row["step"] for row in rows if "val/reward" in row] == [0, 2, 3]
    assert all(row["reward_std"] > 0 for row in rows if "reward" in row)
