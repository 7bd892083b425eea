"""The quick set of faults that a run has to survive; `make faults` runs the long one."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
import yaml
from rubrics import rubric

sys.path.insert(0, str(Path(__file__).parent))

import harness
from scripted import OneByOne

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
from grasp_rl.data.synthetic.dataset import SyntheticSource
from grasp_rl.evaluation.protocols.masks import OURS
from grasp_rl.interfaces import Components, CoordinateFrame
from grasp_rl.launch.process import failure
from grasp_rl.policies.tiny.policy import TinyPolicy
from grasp_rl.prompts.render import format_answer
from grasp_rl.rollouts.generators.in_process import InProcess
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.runs import checkpoints, origin
from grasp_rl.runs.run_dir import run_lock, state_of
from grasp_rl.segmenters.box_fill import BoxFillSegmenter
from grasp_rl.tracking.null import NullTracker
from grasp_rl.training.train import make_trainer
from grasp_rl.training.trainer import Trainer
from grasp_rl.types import Answer, Completion, FinishReason, MaskPrediction, RewardBreakdown, SpatialPrompt
from grasp_rl.utils import memory
from grasp_rl.utils.files import read_json, write_text

deepspeed = pytest.importorskip("deepspeed", reason="needs DeepSpeed: pip install 'grasp-rl[train]'")


@pytest.fixture(scope="module")
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """An uninterrupted run of an engine and of so many steps, and its words."""
    engine, steps = request.param
    words = [*harness.WORDS, *harness.ENGINES[engine], f"algorithm.steps={steps}"]
    folder = tmp_path_factory.mktemp(engine) / "whole"
    harness.finish(folder, words)
    return folder, words


@pytest.mark.parametrize(
    "whole",
    [
        pytest.param(("local", harness.STEPS), id="local"),
        pytest.param(("zero3x2", harness.STEPS), id="zero3x2", marks=pytest.mark.long),
    ],
    indirect=True,
    scope="module",
)
def test_kill_nine_and_going_on_is_the_same_run(whole: tuple[Path, list[str]], tmp_path: Path) -> None:
    """Killed in a rollout, gone on, killed where a checkpoint is written, gone on: the run that nobody killed."""
    expected, words = whole
    run_dir = tmp_path / "run"
    chance = random.Random(1)  # in the rollout of step 3, after a checkpoint; then in the next checkpoint
    assert harness.strike(harness.start(run_dir, words), run_dir, "rollout", chance) == "rollout"
    before = harness.rows(run_dir)
    harness.strike(harness.start(run_dir, words), run_dir, "checkpoint", chance)
    assert checkpoints.steps(run_dir)[0] <= before < harness.STEPS
    harness.finish(run_dir, words)
    assert harness.compare(run_dir, expected) == []


@pytest.mark.parametrize(
    "whole",
    [
        pytest.param(("local", harness.STEPS), id="local", marks=pytest.mark.long),
        pytest.param(("zero3x2", 5), id="zero3x2"),  # struck after the third step
    ],
    indirect=True,
    scope="module",
)
def test_sigterm_leaves_a_checkpoint_of_the_last_step(whole: tuple[Path, list[str]], tmp_path: Path) -> None:
    """In the middle of a rollout: the step before is saved within ten seconds, and the run goes on from it."""
    expected, words = whole
    run_dir = tmp_path / "run"
    process = harness.start(run_dir, words)
    assert harness.wait_for(process, lambda: harness.rows(run_dir) >= 3)
    time.sleep(0.05)
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=240)
    assert time.monotonic() - begun < 10 * slowed()
    assert process.returncode == 130
    assert state_of(run_dir) == "interrupted"
    steps = checkpoints.steps(run_dir)
    assert steps[-1] >= 3  # saved where no checkpoint was due
    assert checkpoints.damage(checkpoints.folder_of(run_dir, steps[-1])) is None
    harness.finish(run_dir, words)
    assert harness.compare(run_dir, expected) == []


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGKILL, id="killed"), pytest.param(signal.SIGSTOP, id="stopped", marks=pytest.mark.long)],
)
def test_a_rank_that_is_gone_takes_the_others_with_it(tmp_path: Path, number: int) -> None:
    """All ranks are gone within the timeout and 15 seconds, the exit is not 0, and the lost rank is named."""
    run_dir = tmp_path / "run"
    timeout = 10
    words = [*harness.WORDS, *harness.ENGINES["zero3x2"], f"engine.timeout_s={timeout}"]
    process = harness.start(run_dir, words)
    assert harness.wait_for(process, lambda: harness.rows(run_dir) >= 1)
    members = harness.family(process.pid)
    workers = [pid for pid in members if b"grasp_rl.launch.worker" in _command(pid) and _rank(pid) == 1]
    assert len(workers) == 1
    os.kill(workers[0], number)
    begun = time.monotonic()
    process.communicate(timeout=timeout + 240)
    took = time.monotonic() - begun
    assert (process.returncode, state_of(run_dir)) == (1, "failed")
    assert took < timeout + 15 * slowed()
    log = (run_dir / "log.txt").read_text()
    assert "rank 1" in log or "rank: 1" in log or "Rank 1" in log, log[-3000:]
    said = {signal.SIGKILL: "rank 1 was killed by signal 9", signal.SIGSTOP: "rank 1 gives no sign of life"}
    assert said[signal.Signals(number)] in failure(run_dir)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and any(harness.lives(pid) for pid in members):
        time.sleep(0.1)
    assert not [pid for pid in members if harness.lives(pid)]


@pytest.mark.parametrize("engine", ["local", pytest.param("zero3x2", marks=pytest.mark.long)])
def test_a_killed_launcher_takes_its_worker_along_with_a_checkpoint(tmp_path: Path, engine: str) -> None:
    """SIGKILL of the launcher: the worker ends at a step boundary, and the same line goes on from its checkpoint."""
    run_dir = tmp_path / "run"
    words = [*harness.WORDS, *harness.ENGINES[engine]]
    process = harness.start(run_dir, words)
    assert harness.wait_for(process, lambda: harness.rows(run_dir) >= 2)
    workers = [pid for pid in harness.family(process.pid) if pid != process.pid]
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and any(harness.lives(pid) for pid in workers):
        time.sleep(0.2)
    assert not [pid for pid in workers if harness.lives(pid)]
    done = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert state_of(run_dir) == "interrupted"
    assert checkpoints.steps(run_dir)[-1] == done
    harness.finish(run_dir, words)


def test_of_several_starts_at_once_one_runs_and_the_others_are_refused(tmp_path: Path) -> None:
    """Who is told done gets the numbers of what was asked for; five starts in one folder, another seed each."""
    words = [
        "debug=fast",
        "policy.weights=random",
        "algorithm.steps=1",
        "evaluation.every=0",
        "evaluation.test_limit=1",
        "segmenter=box_fill",
        "rollout.reward_worker=inline",
    ]
    line = [sys.executable, "-m", "grasp_rl.cli.main", "train", f"run_dir={tmp_path / 'run'}", *words]
    started = {
        seed: subprocess.Popen([*line, f"seed={seed}"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for seed in range(1, 6)
    }
    said = {seed: process.communicate(timeout=240)[1] for seed, process in started.items()}
    codes = {seed: process.returncode for seed, process in started.items()}
    ran = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["seed"]
    assert [seed for seed, code in codes.items() if code == 0] == [ran]
    assert {code for seed, code in codes.items() if seed != ran} == {2}
    assert all("run_dir=" in text for seed, text in said.items() if seed != ran)
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "done"


def slowed() -> float:
    """How many times longer anything takes on a machine that has other work to do."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _rank(pid: int) -> int | None:
    entries = dict(e.split(b"=", 1) for e in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if b"=" in e)
    return int(entries[b"RANK"]) if b"RANK" in entries else None


# --- numbers that are none


class Moody(OneByOne):
    """A reward that is no number now and then."""

    needs = frozenset({"boxes"})

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance

    def __call__(self, answer: Answer, reference: object, prediction: object) -> RewardBreakdown:
        odd = self.chance.random()
        value = float("nan") if odd < 0.2 else float("inf") if odd < 0.3 else -float("inf") if odd < 0.4 else odd
        return RewardBreakdown(reward=value, terms={})


class Spread(OneByOne):
    """A reward that always tells siblings apart."""

    needs = frozenset({"boxes"})

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, answer: Answer, reference: object, prediction: object) -> RewardBreakdown:
        self.calls += 1
        return RewardBreakdown(reward=float(self.calls % 3), terms={})


def trainer(folder: Path, reward: Any, steps: int) -> Trainer:
    config = RunConfig(
        run_dir=str(folder),
        prompt=PromptConfig(template="compact"),
        algorithm=AlgorithmConfig(steps=steps, prompts_per_step=2, group_size=3),
        optimizer=OptimizerConfig(lr=1e-3),
        rollout=RolloutConfig(max_new_tokens=6, reward_worker="inline"),
        evaluation=EvaluationConfig(every=0, test_limit=1, overlays=0, bootstrap_samples=5, max_new_tokens=4),
        checkpoint=CheckpointConfig(every=0),
    )
    components = Components(
        policy=TinyPolicy(weights="random"), segmenter=BoxFillSegmenter(), reward=reward,
        data=SyntheticSource(train_size=8, test_size=4), tracker=NullTracker(), generator=InProcess(), protocol=OURS,
    )  # fmt: skip
    return make_trainer(config, components)


def test_rewards_that_are_no_numbers_reach_no_weight(tmp_path: Path) -> None:
    run = trainer(tmp_path, Moody(random.Random(0)), 20)
    run.run()
    assert all(bool(p.isfinite().all()) for p in run.policy.parameters())
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 20
    assert sum(row.get("nonfinite", 0) > 0 for row in rows) >= 10
    assert all(row["skipped"] == 0 for row in rows)


def test_gradients_that_are_no_numbers_skip_their_step(tmp_path: Path) -> None:
    """At 30 of 60 steps, never three in a row: skipped and counted, weights as before and finite."""
    chance = random.Random(1)
    bad: set[int] = set()
    while len(bad) < 30:
        step = chance.randrange(60)
        if not {step - 2, step - 1} <= bad and not {step - 1, step + 1} <= bad and not {step + 1, step + 2} <= bad:
            bad.add(step)
    run = trainer(tmp_path, Spread(), 60)
    stock = run.engine.backward
    first = next(p for p in run.policy.parameters() if p.requires_grad)
    calls: list[int] = []

    def backward(loss: torch.Tensor) -> None:
        stock(loss)
        if not calls or calls[-1] != run.engine.steps_done:
            calls.append(run.engine.steps_done)
        if run.engine.steps_done in bad and first.grad is not None:
            first.grad[0] = float(chance.choice(["nan", "inf"]))

    run.engine.backward = backward  # type: ignore[method-assign]
    run.run()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {row["step"] - 1 for row in rows if row["skipped"]} == bad & set(calls)
    assert len(bad & set(calls)) == 30
    assert all(bool(p.isfinite().all()) for p in run.policy.parameters())


def test_three_such_steps_in_a_row_stop_the_run(tmp_path: Path) -> None:
    run = trainer(tmp_path, Spread(), 9)
    stock = run.engine.backward

    def backward(loss: torch.Tensor) -> None:
        stock(loss * float("nan"))

    run.engine.backward = backward  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match=r"3 steps in a row were lost: the gradient was not finite"):
        run.run()
    assert all(bool(p.isfinite().all()) for p in run.policy.parameters())


@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_a_gradient_that_is_no_number_is_skipped_on_all_ranks(tmp_path: Path, engine: str) -> None:
    code = """
import sys, torch
from grasp_rl.config.schema import EngineConfig, OptimizerConfig
from grasp_rl.distributed.deepspeed import ZeroEngine
if __name__ == "__main__":
    torch.manual_seed(0)
    module = torch.nn.Linear(4, 3)
    engine = ZeroEngine(module, OptimizerConfig(lr=0.1), 10, EngineConfig(name=sys.argv[1]))
    def weights():
        with engine.full_parameters():
            return module.weight.detach().clone()
    def step(factor):
        for batch, _ in engine.synchronized_batches([torch.ones(2, 4) * (1 + engine.process_group.rank)], lambda: None):
            engine.backward((engine.forward(batch) ** 2).sum() * (factor if engine.process_group.rank else 1.0))
        return engine.step()
    first = weights()
    assert step(1.0).applied
    second = weights()
    assert not torch.equal(first, second)
    for bad in (float("nan"), float("inf")):
        report = step(bad)
        assert not report.applied, report
        assert torch.equal(weights(), second)
    assert step(1.0).applied
    assert bool(weights().isfinite().all()) and not torch.equal(weights(), second)
    engine.close()
    print("sound", flush=True)
"""
    (tmp_path / "two.py").write_text(code)
    done = forked.ranks(str(tmp_path / "two.py"), engine, DS_ACCELERATOR="cpu")
    assert done.stdout.count("sound") == 2, done.stdout[-2000:] + done.stderr[-3000:]


# --- checkpoints


def build(run_dir: Path, step: int, content: bytes) -> None:
    with checkpoints.building(run_dir, step) as part:
        for name in ("policy/config.json", "policy/model.safetensors", "engine/optimizer.pt"):
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            (part / name).write_bytes(content + name.encode())
        checkpoints.commit(run_dir, step, {"best": None})


def test_a_flipped_byte_anywhere_is_found_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build(tmp_path, 1, b"a" * 100)
    build(tmp_path, 2, b"b" * 100)
    folder = checkpoints.folder_of(tmp_path, 2)
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != origin.SUFFIX]
    assert len(files) == 5
    for path in files:
        sound = path.read_bytes()
        for place in {0, len(sound) // 2, len(sound) - 2}:
            caplog.clear()
            path.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
            assert checkpoints.newest_sound(tmp_path) == 1, (path, place)
            named = (
                path.name
                if path.name != "manifest.json"
                else ("manifest.json", "is missing", "is not in", "is damaged")
            )
            assert any(word in caplog.text for word in ([named] if isinstance(named, str) else named))
        path.unlink()
        assert checkpoints.newest_sound(tmp_path) == 1
        path.write_bytes(sound)
    (folder / "surplus").write_text("x")
    assert checkpoints.newest_sound(tmp_path) == 1
    (folder / "surplus").unlink()
    assert checkpoints.newest_sound(tmp_path) == 2


def test_a_full_disk_at_every_write_leaves_a_sound_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The n-th file operation fails, for every n: the checkpoint before is whole, and nothing half-built stays."""
    build(tmp_path, 1, b"a" * 50)
    calls, limit = [0], [10**9]

    def failing(stock: Any) -> Any:
        def wrapped(*words: Any, **named: Any) -> Any:
            calls[0] += 1
            if calls[0] == limit[0]:
                raise OSError(28, "No space left on device")
            return stock(*words, **named)

        return wrapped

    for holder, name in ((Path, "write_bytes"), (Path, "write_text"), (Path, "mkdir"), (Path, "rename"), (os, "fsync")):
        monkeypatch.setattr(holder, name, failing(getattr(holder, name)))
    build(tmp_path, 2, b"b" * 50)
    operations = calls[0]
    assert operations > 12
    for number in range(1, operations + 1):
        calls[0], limit[0] = 0, number
        with contextlib.suppress(OSError):
            build(tmp_path, 3, b"c" * 50)
        limit[0] = 10**9
        newest = checkpoints.newest_sound(tmp_path)
        assert newest in (2, 3), number
        checkpoints.prune(tmp_path, 2)
        assert not list((tmp_path / "checkpoints").glob(".step_*"))
        for step in checkpoints.steps(tmp_path):
            if step == 3:
                shutil.rmtree(checkpoints.folder_of(tmp_path, 3))


@pytest.mark.parametrize("on_error", ["stop", "continue"])
def test_training_says_that_a_checkpoint_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, on_error: str
) -> None:
    run = trainer(tmp_path, rubric("grasp"), 3)
    run.checkpointer.settings.every, run.checkpointer.settings.on_error = 1, on_error
    stock, calls = checkpoints.commit, [0]

    def full(*words: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise OSError(28, "No space left on device")
        return stock(*words)

    monkeypatch.setattr(checkpoints, "commit", full)
    if on_error == "stop":
        with pytest.raises(OSError, match="No space left on device"):
            run.run()
        assert checkpoints.newest_sound(tmp_path) == 1
    else:
        run.run()
        assert "going on, since checkpoint.on_error=continue" in caplog.text
        assert checkpoints.newest_sound(tmp_path) == 3


# --- sweeps


@pytest.mark.long
def test_a_sweep_of_twelve_with_three_faults(tmp_path: Path) -> None:
    """Three die, one by each signal; nine are done. The same line runs exactly the three again and touches no other."""
    words = [
        "-m", "debug=fast", "policy.weights=random", "algorithm.steps=1", "evaluation.every=0", "evaluation.test_limit=1",
        "rollout.reward_worker=inline", "rollout.max_new_tokens=4", "evaluation.max_new_tokens=4", "checkpoint.every=0",
        "seed=1,2,3,4", "algorithm.group_size=2,3,4", f"hydra.sweep.dir={tmp_path / 'sweep'}", "launcher=joblib",
    ]  # fmt: skip
    command = [sys.executable, "-m", "grasp_rl.cli.main", "train", *words, "--json"]
    environment = memory.environment() | {"OMP_NUM_THREADS": "1"}
    sweep = tmp_path / "sweep"
    ends = (signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM)
    victims = dict(zip(("group_size=2,seed=1", "group_size=3,seed=2", "group_size=4,seed=3"), ends, strict=True))
    driver = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with ThreadPoolExecutor(1) as pool:
        said = pool.submit(driver.communicate, timeout=600)
        waiting = dict(victims)
        while waiting and not said.done():
            for status in sweep.glob("*/status.json"):
                name = next((n for n in waiting if n in status.parent.name), None)
                if name and (pid := (read_json(status) or {}).get("pid")):
                    os.kill(pid, waiting.pop(name))
            time.sleep(0.05)
        out, told = said.result()
    assert driver.returncode == 1, told
    states = {Path(job["run_dir"]): job["state"] for job in json.loads(out)["jobs"]}
    assert sorted(states.values()) == ["done"] * 9 + ["failed"] * 2 + ["interrupted"]
    hit = {folder for folder, state in states.items() if state != "done"}
    assert all(any(name in folder.name for folder in hit) for name in victims)
    assert "9 of 12 done, 2 failed, 1 interrupted" in told
    assert told.count(" failed: ") == 2  # each said at once
    assert all(f"log: {folder}/log.txt" in told for folder, state in states.items() if state == "failed")
    kept = {
        p: (p.stat().st_mtime_ns, p.stat().st_size)
        for p in sweep.rglob("*")
        if p.is_file() and not set(p.parents) & hit and p.parent != sweep
    }
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert {job["state"] for job in json.loads(again.stdout)["jobs"]} == {"done"}
    assert "12 jobs" in again.stderr
    assert "9 of them done before" in again.stderr
    assert {folder.parent for folder in sweep.glob("*/earlier")} == hit
    after = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in kept if p.exists()}
    assert after == kept


def test_two_drivers_do_not_share_a_sweep(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    with run_lock(sweep):
        done = forked.grasp_rl("train", "-m", "debug=fast", "seed=1,2", f"hydra.sweep.dir={sweep}")
    assert done.returncode == 2
    assert "a run is going on there" in done.stderr


def test_a_sweep_can_stop_at_the_first_failure(tmp_path: Path) -> None:
    write_text(tmp_path / "empty/config.json", "{}")  # without weights, which a worker finds out
    words = ["debug=fast", f"init_from={tmp_path / 'empty'}", "seed=1,2,3", "sweep.on_error=stop"]
    done = forked.grasp_rl("train", "-m", *words, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert done.returncode == 1
    assert "0 of 3 done, 1 failed, 2 not started" in done.stdout
    assert "log: " in done.stderr


# --- segmenters


class Fussy(BoxFillSegmenter):
    """Cannot take one prompt; with it among others the whole call fails."""

    poison: SpatialPrompt | None = None

    def decode(self, embedding: Any, prompts: Sequence[SpatialPrompt]) -> MaskPrediction:
        if self.poison in prompts:
            raise RuntimeError("CUDA error: device-side assert triggered")
        return super().decode(embedding, prompts)


def test_a_segmenter_that_fails_on_one_of_sixteen_costs_one() -> None:
    sample = SyntheticSource().split("train")[0]
    prompt = PromptConfig(positive_points=0, scheme="box", template="compact")
    frame = CoordinateFrame(width=112, height=112, image_width=112, image_height=112)
    boxes = [SpatialPrompt(box=(2.0 + i, 3.0, 40.0 + 2 * i, 50.0)) for i in range(16)]
    said = [
        Completion(
            token_ids=(1,), logprobs=(-1.0,), text=format_answer([box], "1 roof", frame, prompt),
            finish_reason=FinishReason.STOP,
        )
        for box in boxes
    ]  # fmt: skip
    segmenter = Fussy()
    pipeline = RewardPipeline(segmenter=segmenter, reward=rubric("think2seg"), prompt=prompt, parsing=ParsingConfig())
    clean = pipeline.run(sample, frame, said)
    segmenter.poison = clean[7].answer.prompts[0]
    found = pipeline.run(sample, frame, said)
    assert found[7].masks is not None
    assert found[7].masks.error is not None
    for number in set(range(16)) - {7}:
        ours, theirs = found[number].masks, clean[number].masks
        assert ours is not None
        assert theirs is not None
        assert ours.error is None
        assert (ours.masks == theirs.masks).all()
        assert found[number].reward == clean[number].reward
