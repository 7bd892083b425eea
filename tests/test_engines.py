"""Engines: the same answer on any layout, DeepSpeed's settings, checkpoints that other numbers of ranks go on from."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
import uneven_ranks
from safetensors.torch import load_file
from transformers import Qwen3VLForConditionalGeneration

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import EngineConfig, OptimizerConfig
from grasp_rl.distributed.deepspeed import settings
from grasp_rl.launch import process
from grasp_rl.rehearsal import models as tiny_models
from grasp_rl.utils import memory

pytest.importorskip("deepspeed", reason="needs DeepSpeed: pip install 'grasp-rl[train]'")

STEPS = 5
WORDS = [
    "policy.weights=warm_start", "reward=think2seg", "segmenter=box_fill", f"algorithm.steps={STEPS}",
    "algorithm.prompts_per_step=4", "algorithm.group_size=4", "optimizer.lr=1e-4", "checkpoint.every=5",
    "evaluation.every=0", "evaluation.test_limit=2", "evaluation.overlays=0", "rollout.max_new_tokens=64",
    "evaluation.max_new_tokens=8", "rollout.reward_worker=inline",
]  # fmt: skip
LAYOUTS = {
    "local": [],
    "local, one group at a time": ["algorithm.micro_batch_groups=1"],
    "zero2": ["engine=zero2"],
    "zero2 x 2": ["engine=zero2", "engine.nproc=2"],
    "zero3": ["engine=zero3"],
    "zero3 x 2": ["engine=zero3", "engine.nproc=2"],
}
LONG = {
    "zero1 x 2": ["engine=zero1", "engine.nproc=2"],
    "zero3 x 2, layer by layer": ["engine=zero3", "engine.nproc=2", "engine.gather=layer"],
    "zero3 x 4": ["engine=zero3", "engine.nproc=4"],
    "zero3_offload x 2": ["engine=zero3_offload", "engine.nproc=2"],
}


def train(run_dir: Path, *words: str, code: int = 0) -> str:
    """One run by the launcher; its log."""
    done = forked.grasp_rl("train", f"run_dir={run_dir}", *WORDS, *words)
    log = (run_dir / "log.txt").read_text() if (run_dir / "log.txt").exists() else ""
    assert done.returncode == code, done.stdout + done.stderr + log[-3000:]
    return done.stderr + log


def rows(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def weights(run_dir: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "checkpoints" / f"step_{step:06d}" / "policy" / "model.safetensors")


def close(run_dir: Path, expected: Path, steps: int = STEPS) -> None:
    """Rollouts alike (rewards, lengths and parse statuses of every step), losses to 1e-5, weights to 1e-4."""
    for ours, theirs in zip(rows(run_dir), rows(expected), strict=True):
        for key in ("reward", "length", "parse/ok", "truncated", "reward_std"):
            assert ours[key] == pytest.approx(theirs[key], abs=1e-6), key
        for key in ("loss", "entropy", "kl"):
            assert ours[key] == pytest.approx(theirs[key], abs=1e-5), key
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
        assert ours["mismatch"] < 1e-5
    for name, tensor in weights(expected, steps).items():
        assert (weights(run_dir, steps)[name] - tensor).abs().max() < 1e-4, name


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines") / "reference"
    train(folder)
    return folder


def test_random_weights_are_divided_like_read_ones(tmp_path: Path) -> None:
    """A policy that is built, not read, under ZeRO-3 on two ranks: the first step's numbers are those of one process."""
    words = ["policy.weights=random", "algorithm.steps=1", "checkpoint.every=1", "segmenter=grabcut"]
    for name, layout in (("one", []), ("two", ["engine=zero3", "engine.nproc=2"])):
        train(tmp_path / name, *words, *layout)
    close(tmp_path / "two", tmp_path / "one", steps=1)


@pytest.mark.parametrize(
    "layout",
    [name for name in LAYOUTS if name != "local"] + [pytest.param(name, marks=pytest.mark.long) for name in LONG],
)
def test_the_same_answer_on_any_layout(reference: Path, tmp_path: Path, layout: str) -> None:
    train(tmp_path / "run", *(LAYOUTS | LONG)[layout])
    close(tmp_path / "run", reference)
    plain = Qwen3VLForConditionalGeneration.from_pretrained(
        tmp_path / "run/checkpoints" / f"step_{STEPS:06d}" / "policy"
    )
    expected = weights(tmp_path / "run")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in plain.state_dict().items() if name in expected)


@pytest.mark.long
def test_two_turns_over_ranks(tmp_path: Path) -> None:
    words = ["rollout=two_turns", "prompt=box", "algorithm.micro_batch_groups=1"]
    train(tmp_path / "alone", *words)
    train(tmp_path / "two", *words, "engine=zero3", "engine.nproc=2")
    close(tmp_path / "two", tmp_path / "alone")


@pytest.mark.long
def test_ranks_with_nothing_to_learn_keep_in_step(tmp_path: Path) -> None:
    """Three questions over two ranks, micro-batches of one, groups without advantage left out: uneven everywhere."""
    words = ["algorithm.prompts_per_step=3", "algorithm.micro_batch_groups=1", "reward=grasp", "algorithm=dr_grpo"]
    train(tmp_path / "alone", *words)
    train(tmp_path / "two", *words, "engine=zero3", "engine.nproc=2")
    close(tmp_path / "two", tmp_path / "alone")
    assert any(row["zero_variance"] > 0 for row in rows(tmp_path / "alone"))


def test_weights_to_start_from_and_a_reference_over_ranks(reference: Path, tmp_path: Path) -> None:
    """Full fine-tuning from another run's weights with a KL term: read, copied and divided under ZeRO-3."""
    words = [
        f"init_from={reference}",
        "algorithm=grpo",
        "algorithm.beta=0.05",
        "algorithm.steps=3",
        "checkpoint.every=3",
    ]
    train(tmp_path / "alone", *words)
    train(tmp_path / "two", *words, "engine=zero3", "engine.nproc=2")
    close(tmp_path / "two", tmp_path / "alone", steps=3)
    assert rows(tmp_path / "two")[-1]["kl"] > 1e-6
    first = rows(reference)[0]["reward"]
    assert rows(tmp_path / "two")[0]["reward"] != first  # of the same questions: not the warm start's


@pytest.mark.parametrize("lora_rank", [pytest.param(0, marks=pytest.mark.long), 4])
def test_ranks_whose_shares_differ_fetch_alike(tmp_path: Path, lora_rank: int) -> None:
    """Other numbers of groups, tokens and chunks on each rank, two passes, a reference; every collective is compared."""
    path = tmp_path / "weights.safetensors"
    done = forked.ranks(uneven_ranks.__file__, "zero3", lora_rank, path, TORCH_DISTRIBUTED_DEBUG="DETAIL")
    assert done.returncode == 0, done.stderr[-5000:]
    alone, two = uneven_ranks.learned("local", lora_rank), load_file(path)
    assert alone.keys() == two.keys()
    assert all((two[name] - tensor).abs().max() < 1e-4 for name, tensor in alone.items())
    assert alone["kl"] > 1e-3


@pytest.mark.parametrize(("before", "after"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.long)])
def test_going_on_with_another_number_of_ranks(reference: Path, tmp_path: Path, before: int, after: int) -> None:
    """Two ranks, then one, and the other way round, through the universal checkpoint: the run is the uninterrupted one to rounding."""
    run = tmp_path / "run"
    train(run, "engine=zero3", f"engine.nproc={before}", "algorithm.steps=3", "checkpoint.every=3")
    done = forked.grasp_rl("train", f"resume={run}", f"engine.nproc={after}", f"algorithm.steps={STEPS}")
    log = (run / "log.txt").read_text()
    assert done.returncode == 0, done.stderr + log[-3000:]
    assert f"written by {before} ranks, read by {after}" in log
    assert len(rows(run)) == STEPS
    close(run, reference)


def test_another_kind_of_engine_is_refused(reference: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    config = (run / "config.yaml").read_text()
    config = config.replace("name: local\n", "name: zero2\n").replace(f"steps: {STEPS}\n", "steps: 9\n", 1)
    (run / "config.yaml").write_text(config.replace(str(reference), str(run)))
    done = forked.worker(run / "config.yaml", "--resume")
    assert done.returncode == 2
    assert "was written by engine=local" in done.stderr


# --- settings


def zero(**changes: Any) -> EngineConfig:
    return EngineConfig(**({"name": "zero3"} | changes))


def test_deepspeeds_json_says_what_the_config_says() -> None:
    made = settings(zero(), OptimizerConfig(max_grad_norm=0.5), torch.bfloat16)
    assert made["gradient_clipping"] == 0.5
    assert made["bf16"] == {"enabled": True}
    assert made["zero_optimization"]["stage"] == 3
    assert "offload_optimizer" not in made["zero_optimization"]
    offloaded = settings(zero(name="zero3_offload"), OptimizerConfig(), torch.float32)
    assert offloaded["zero_optimization"]["offload_param"] == {"device": "cpu"}
    assert offloaded["bf16"] == {"enabled": False}
    assert [
        settings(zero(name=f"zero{n}"), OptimizerConfig(), torch.float32)["zero_optimization"]["stage"] for n in (1, 2)
    ] == [1, 2]


def test_ones_own_json_is_merged_and_may_not_contradict(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(
        json.dumps({"zero_optimization": {"overlap_comm": True, "reduce_bucket_size": 1000}, "bf16": "auto"})
    )
    made = settings(zero(deepspeed_config=str(path)), OptimizerConfig(), torch.bfloat16)
    assert made["zero_optimization"]["overlap_comm"] is True
    assert made["zero_optimization"]["reduce_bucket_size"] == 1000
    assert made["zero_optimization"]["stage"] == 3
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    with pytest.raises(ConfigError, match=r"zero_optimization\.stage=2, but the run's config says 3"):
        settings(zero(deepspeed_config=str(path)), OptimizerConfig(), torch.bfloat16)
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"engine\.deepspeed_config=.*no JSON"):
        settings(zero(deepspeed_config=str(path)), OptimizerConfig(), torch.bfloat16)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "local", "nproc": 2}, "engine.nproc=2"),
        ({"nnodes": 2}, "engine.rendezvous=None"),
        ({"nnodes": 2, "rendezvous": "a:1", "node_rank": 2}, "engine.node_rank=2"),
        ({"gather": "some"}, "engine.gather='some'"),
        ({"name": "zero4"}, "engine.name='zero4'"),
    ],
)
def test_layouts_that_cannot_be(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        zero(**changes)


def test_two_nodes_meet_on_loopback(reference: Path, tmp_path: Path) -> None:
    """The same line on two nodes, a number of its own on each: one run, and the answer of one process."""
    run = tmp_path / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [*WORDS, "engine=zero3", "engine.nnodes=2", f"engine.rendezvous=127.0.0.1:{port}"]
    environment = memory.environment() | {"OMP_NUM_THREADS": "1"}
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "grasp_rl.cli.main", "train", f"run_dir={run}", *words, f"engine.node_rank={number}"],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number in (1, 0)
    ]  # fmt: skip
    said = [node.communicate(timeout=300)[0] for node in nodes]
    log = (run / "log.txt").read_text()[-3000:]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join([*said, log])
    assert (run / "log_node1.txt").exists()
    close(run, reference)


def test_a_hostfile_says_who_is_who(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text(f"# ours\nother slots=8\n\n{socket.gethostname()} slots=8\n")
    engine = {"name": "zero3", "nproc": 8, "nnodes": 1, "node_rank": None, "rendezvous": None, "hostfile": str(path)}
    found = process.placed(process.Job(run_dir=tmp_path, config={"engine": engine})).config["engine"]
    assert (found["nnodes"], found["node_rank"], found["rendezvous"]) == (2, 1, "other:29500")
    words = process.worker_command(process.Job(run_dir=tmp_path, config={"engine": found}))
    assert {"--nnodes=2", "--node-rank=1", "--master-addr=other", "--nproc-per-node=8"} <= set(words)
    path.write_text("somebody else\n")
    with pytest.raises(ConfigError, match=r"engine\.hostfile=.*is not in it"):
        process.placed(process.Job(run_dir=tmp_path, config={"engine": engine}))


def test_half_precision_gives_the_same_statistics(tmp_path: Path) -> None:
    """A Qwen2.5-VL in bfloat16: alone and on two ranks under ZeRO-3, loaded in parts.

    Rounding moves draws: two of the sixteen completions may end anywhere. The reference keeps groups of equal reward.
    """
    model = tiny_models.build("qwen2_5_vl", tmp_path / "model")
    words = [
        "policy=hf_vlm", f"policy.path={model}", "policy.dtype=bfloat16", "policy.image.max_pixels=12544",
        "policy.checkpoint_activations=selective", "reward=grasp", "algorithm=grpo", "algorithm.beta=0.001", "optimizer.lr=1e-5",
        "algorithm.steps=2",
    ]  # fmt: skip
    words_of_tiny = [word for word in WORDS if not word.startswith("policy.weights")]
    found = []
    for name, layout in (("alone", []), ("two", ["engine=zero3", "engine.nproc=2"])):
        run = tmp_path / name
        done = forked.grasp_rl("train", f"run_dir={run}", *words_of_tiny, *words, *layout)
        assert done.returncode == 0, done.stderr + (run / "log.txt").read_text()[-3000:]
        found.append(rows(run))
    for ours, theirs in zip(*found, strict=True):
        assert ours["length"] == pytest.approx(theirs["length"], abs=2 * 64 / 16)
        assert ours["entropy"] > 1
        assert ours["entropy"] == pytest.approx(theirs["entropy"], rel=0.02)
        assert ours["reward"] == pytest.approx(theirs["reward"], abs=0.1)
        assert 0 < ours["mismatch"] < 0.05


def other(command: str, run_dir: Path, *words: str) -> Path:
    """One run of another command through the launcher; its folder."""
    done = forked.grasp_rl(command, f"run_dir={run_dir}", "segmenter=box_fill", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return run_dir


SMALL = [
    "evaluation.test_limit=7",
    "evaluation.batch_size=2",
    "evaluation.overlays=3",
    "evaluation.bootstrap_samples=9",
]


@pytest.fixture(scope="module")
def scored_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process writes of the seven samples."""
    return other("evaluate", tmp_path_factory.mktemp("scored") / "one", *SMALL) / "eval"


@pytest.mark.parametrize(
    "layout", [pytest.param("zero1 x 2", marks=pytest.mark.long), "zero3 x 2", "zero3 x 2, layer by layer"]
)
def test_evaluate_shares_samples_out_and_scores_the_same(scored_alone: Path, tmp_path: Path, layout: str) -> None:
    """predictions.jsonl equal to the byte, the same metrics and overlays; 7 samples in batches of 2 over 2 ranks."""
    one = scored_alone
    two = other("evaluate", tmp_path / "two", *SMALL, *(LAYOUTS | LONG)[layout]) / "eval"
    assert (two / "predictions.jsonl").read_bytes() == (one / "predictions.jsonl").read_bytes()
    numbers = [json.loads((folder / "metrics.json").read_text()) for folder in (one, two)]
    assert [n.pop("seconds_per_image") > 0 for n in numbers] == [True, True]
    assert numbers[0] == numbers[1]
    images = [sorted((path.name, path.read_bytes()) for path in (f / "overlays").iterdir()) for f in (one, two)]
    assert len(images[0]) == 3
    assert images[0] == images[1]


def test_training_scores_its_splits_over_ranks_alike(tmp_path: Path) -> None:
    words = [*SMALL, "evaluation.every=2", "algorithm.steps=2", "evaluation.val_limit=5"]
    train(tmp_path / "one", *words)
    train(tmp_path / "two", *words, *LAYOUTS["zero2 x 2"])
    one, two = ((tmp_path / n / "eval_before" / "predictions.jsonl").read_bytes() for n in ("one", "two"))
    assert one == two
    after = [json.loads((tmp_path / n / "eval_after" / "metrics.json").read_text()) for n in ("one", "two")]
    assert after[0]["reward"] == pytest.approx(after[1]["reward"], abs=1e-6)
    scored = [[row for row in rows(tmp_path / n) if "val/reward" in row] for n in ("one", "two")]
    for ours, theirs in zip(*scored, strict=True):
        assert ours.pop("val/reward") == pytest.approx(theirs.pop("val/reward"), abs=1e-6)


@pytest.mark.parametrize("layout", [pytest.param("zero2 x 2", marks=pytest.mark.long), "zero3 x 2"])
def test_sft_over_ranks_ends_at_the_same_weights(tmp_path: Path, layout: str) -> None:
    """Five rows a step over two ranks: losses to 1e-6, weights to 1e-5 of one process."""
    words = [*SMALL, "sft.phases=[{steps: 3, batch_size: 5, warmup_steps: 0, lr: 1e-4}]", "sft.log_every=1"]
    one = other("sft", tmp_path / "one", *words)
    two = other("sft", tmp_path / "two", *words, *LAYOUTS[layout])
    for ours, theirs in zip(rows(two), rows(one), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    found = weights(two, 3)
    for name, tensor in weights(one, 3).items():
        assert (found[name] - tensor).abs().max() < 1e-5, name


@pytest.mark.long
def test_sft_then_grpo_over_ranks_is_that_of_one_process(tmp_path: Path) -> None:
    """Both stages in one command, each with an engine and, under ZeRO, a policy of its own."""
    words = [
        "regime=sft_grpo", "sft.phases=[{steps: 3, batch_size: 5, warmup_steps: 0, lr: 1e-4}]", "sft.log_every=1",
        "algorithm.steps=3", "checkpoint.every=3",
    ]  # fmt: skip
    train(tmp_path / "alone", *words)
    train(tmp_path / "two", *words, "engine=zero3", "engine.nproc=2")
    for ours, theirs in zip(rows(tmp_path / "two" / "sft"), rows(tmp_path / "alone" / "sft"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
    close(tmp_path / "two", tmp_path / "alone", steps=3)


def test_sft_of_several_phases_under_zero_is_refused(tmp_path: Path) -> None:
    phases = "sft.phases=[{steps: 1}, {steps: 1}]"
    done = forked.grasp_rl("sft", f"run_dir={tmp_path / 'r'}", "engine=zero2", phases)
    assert done.returncode == 2
    assert "sft.phases: 2 phases" in done.stderr
