"""`grasp-rl plan` against what really happens: parameters, kept activations, caches, operations, files, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from torch.utils.flop_counter import FlopCounterMode

from grasp_rl.bench.model import Shape, build
from grasp_rl.config import ConfigError, PromptConfig
from grasp_rl.plan.calibrate import correction
from grasp_rl.plan.cli import main
from grasp_rl.plan.hardware import DEVICES, device_of
from grasp_rl.plan.memory import Layout, Load, activation_bytes, disk_gib, memory_gib
from grasp_rl.plan.shapes import shapes_of
from grasp_rl.plan.timing import decode_seconds, row_flops, step_flops, step_seconds, tower_flops
from grasp_rl.policies.backbone import ImageSize
from grasp_rl.policies.hf_vlm import HfVlmPolicy
from grasp_rl.policies.published import PUBLISHED
from grasp_rl.policies.tiny import TinyPolicy

SHAPE = Shape(layers=4, tower_layers=2, tower_full_attention_every=2)
LOAD = Load(prompt=500, completion=40, group=4, prompts=2, micro_batch=1, rows=8, recompute="none", kl=True)
H100 = DEVICES["h100"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build(tmp_path_factory.mktemp("model"), SHAPE))


def component(path: str, **more: Any) -> dict[str, Any]:
    image = {"_target_": "grasp_rl.policies.backbone.ImageSize", "max_pixels": 280 * 280, "resize": "square"}
    return {
        "_target_": "grasp_rl.policies.hf_vlm.HfVlmPolicy", "path": path, "dtype": "float32", "image": image,
    } | more  # fmt: skip


def policy_of(path: str, **more: Any) -> HfVlmPolicy:
    return HfVlmPolicy(path, ImageSize(max_pixels=280 * 280, resize="square"), **({"dtype": "float32"} | more))


@pytest.mark.parametrize("more", [{}, {"lora_rank": 4}, {"lora_rank": 4, "train_tower": True}, {"train_tower": True}])
def test_parameters_are_counted(saved: str, more: dict[str, Any]) -> None:
    shapes, policy = shapes_of(component(saved, **more), (280, 280)), policy_of(saved, **more)
    assert shapes.trained == sum(p.numel() for p in policy.parameters() if p.requires_grad)
    assert shapes.total + shapes.adapter == sum(p.numel() for p in policy.parameters())
    prompt = policy.encode(np.zeros((280, 280, 3), np.uint8), "a", PromptConfig())
    assert shapes.picture_tokens == int((prompt.input_ids == policy.image_token_id).sum())
    assert shapes.patches == len(prompt.inputs["pixel_values"])


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_models_need_no_download(name: str) -> None:
    published = PUBLISHED[name]
    shapes = shapes_of({"_target_": "x.HfVlmPolicy", "path": published.hub_id}, (840, 840))
    assert shapes.total == pytest.approx(published.parameters, rel=0.01)
    assert 500 < shapes.picture_tokens < 6000
    assert shapes.trained == shapes.total - shapes.tower


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_every_family_is_counted_by_itself(family: str, tmp_path: Path) -> None:
    folder = tiny_models.build(family, tmp_path)
    shapes = shapes_of({"_target_": "x.HfVlmPolicy", "path": str(folder), "dtype": "float32"}, (140, 100))
    policy = HfVlmPolicy(str(folder), ImageSize(), dtype="float32")
    prompt = policy.encode(np.zeros((100, 140, 3), np.uint8), "a", PromptConfig())
    assert shapes.picture_tokens == int((prompt.input_ids == policy.image_token_id).sum())
    assert shapes.total == sum(p.numel() for p in policy.parameters())


def test_the_tiny_policy() -> None:
    shapes, policy = shapes_of({"_target_": "grasp_rl.policies.tiny.TinyPolicy"}, (112, 112)), TinyPolicy()
    assert shapes.trained == shapes.total == sum(p.numel() for p in policy.parameters())


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(ConfigError, match=r"policy\.path='nobody/nothing'.*config\.json"):
        shapes_of({"_target_": "x.HfVlmPolicy", "path": "nobody/nothing"}, (840, 840))


def kept_bytes(policy: HfVlmPolicy, completion: int, group: int) -> tuple[int, int]:
    """(tokens of the prompt, bytes kept for the backward pass of one packed row)."""
    with torch.no_grad():
        embedded = policy.embed([policy.encode(np.zeros((280, 280, 3), np.uint8), "the roof", PromptConfig())])
    weights = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    sizes: dict[int, int] = {}
    alive: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        policy.logprobs(embedded, [[tuple(range(45, 45 + completion))] * group])
    return len(embedded[0].embeddings), sum(sizes.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rank", [0, 8])
def test_activations_are_what_the_backward_pass_keeps(saved: str, dtype: str, rank: int) -> None:
    policy = policy_of(saved, dtype=dtype, lora_rank=rank).train()
    prompt, kept = kept_bytes(policy, 40, 4)
    shapes = shapes_of(component(saved, dtype=dtype, lora_rank=rank), (280, 280))
    predicted = activation_bytes(shapes, replace(LOAD, prompt=prompt))
    assert predicted == pytest.approx(kept, rel=0.25)


def test_recomputation_keeps_less(saved: str) -> None:
    shapes = shapes_of(component(saved), (280, 280))
    none, selective, full = (
        activation_bytes(shapes, replace(LOAD, recompute=mode)) for mode in ("none", "selective", "full")
    )
    assert full < selective < none
    prompt, kept = kept_bytes(policy_of(saved, checkpoint_activations="full").train(), 40, 4)
    entries = shapes.layers * shapes.hidden * (prompt + 160) * 4
    outside = kept_bytes(policy_of(saved).train(), 40, 4)[1] * 0.1  # embeddings, last norm, log-probabilities
    assert entries < kept < entries + outside


def test_the_cache_is_as_large_as_planned(saved: str) -> None:
    policy, shapes = policy_of(saved), shapes_of(component(saved), (280, 280))
    policy.ends = []
    with torch.no_grad():
        embedded = policy.embed([policy.encode(np.zeros((280, 280, 3), np.uint8), "a", PromptConfig())] * 2)
        caches: list[Any] = []
        policy.core.language_model.register_forward_hook(lambda _m, _i, out: caches.append(out.past_key_values))
        policy.generate(embedded, None, group_size=4, max_new_tokens=10)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in caches[-1].layers)
    load = replace(LOAD, prompt=len(embedded[0].embeddings), completion=9)  # the last token is drawn, not run
    assert memory_gib(shapes, load, Layout(), 0.0)["kv cache"] * 2**30 == pytest.approx(held, rel=1e-6)


def test_operations_are_counted(saved: str) -> None:
    policy, shapes = policy_of(saved).train(), shapes_of(component(saved), (280, 280))
    encoded = policy.encode(np.zeros((280, 280, 3), np.uint8), "the roof", PromptConfig())
    with torch.no_grad(), FlopCounterMode(display=False) as tower:
        policy.embed([encoded])
    assert tower_flops(shapes) == pytest.approx(tower.get_total_flops(), rel=0.35)  # one full-attention layer of two
    with torch.no_grad():
        embedded = policy.embed([encoded])
    load = replace(LOAD, prompt=len(encoded.input_ids), prompts=1, kl=False)
    with FlopCounterMode(display=False) as forward:
        scores = policy.logprobs(embedded, [[tuple(range(45, 85))] * 4])
    assert row_flops(shapes, load) == pytest.approx(forward.get_total_flops(), rel=0.15)
    with FlopCounterMode(display=False) as backward:
        scores.logp.sum().backward()
    whole = forward.get_total_flops() + backward.get_total_flops()
    frozen = replace(shapes, trained=shapes.language + shapes.words)
    assert step_flops(frozen, load)["update"] == pytest.approx(whole, rel=0.15)


def test_checkpoints_are_as_large_as_planned(saved: str, tmp_path: Path) -> None:
    policy, shapes = policy_of(saved), shapes_of(component(saved), (280, 280))
    policy.save(tmp_path / "policy")
    weights = sum(f.stat().st_size for f in (tmp_path / "policy").glob("*.safetensors"))
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    whole = weights + (tmp_path / "state.pt").stat().st_size
    assert disk_gib(shapes, 1) / 3 * 2**30 == pytest.approx(whole, rel=0.05)


SHAPES_3B = shapes_of({"_target_": "x.HfVlmPolicy", "path": "Qwen/Qwen2.5-VL-3B-Instruct"}, (840, 840))


def test_zero_divides_what_it_says() -> None:
    """ZeRO (arXiv 1910.02054, figure 1), in bytes a parameter: 2 + 2 + 12 divided by stages."""

    def parts(engine: str) -> dict[str, float]:
        return memory_gib(SHAPES_3B, LOAD, Layout(engine=engine, ranks=4), 0.0)

    one, two, three, offloaded = (parts(name) for name in ("zero1", "zero2", "zero3", "zero3_offload"))
    gib = SHAPES_3B.trained / 2**30
    assert one["optimizer"] == two["optimizer"] == three["optimizer"] == pytest.approx(12 * gib / 4)
    assert one["gradients"] == pytest.approx(2 * gib)
    assert two["gradients"] == three["gradients"] == pytest.approx(2 * gib / 4)
    assert three["weights"] == pytest.approx(one["weights"] / 4)
    assert three["gathered"] == pytest.approx(one["weights"])
    assert offloaded["optimizer"] == 0
    assert offloaded["peak"] < three["peak"] < two["peak"] < one["peak"]


def test_time_follows_the_work() -> None:
    def step(**changes: Any) -> dict[str, float]:
        return step_seconds(SHAPES_3B, replace(LOAD, prompt=1200, completion=200, group=8, **changes), Layout(), H100)

    base = step()
    assert step(prompts=4)["update"] == pytest.approx(2 * base["update"])
    assert step(recompute="full")["update"] == pytest.approx(base["update"] * 4 / 3)
    assert step(kl=False)["reference"] == 0
    few = decode_seconds(SHAPES_3B, replace(LOAD, completion=200, rows=8), Layout(), H100)
    many = decode_seconds(SHAPES_3B, replace(LOAD, completion=200, rows=8, prompts=4), Layout(), H100)
    assert many == pytest.approx(2 * few)
    halved = step_seconds(SHAPES_3B, LOAD, Layout(engine="zero2", ranks=2), H100)
    assert halved["update"] == pytest.approx(step_seconds(SHAPES_3B, LOAD, Layout(), H100)["update"] / 2)


# --- the command


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    said = capsys.readouterr()
    return code, said.out, said.err


BIG = ("policy=qwen2_5_vl_3b", "data=jsonl", "data.root=x", "rollout.max_new_tokens=512")


def test_a_run_that_fits(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = plan(capsys, *BIG, "policy.lora_rank=16", "--gpu", "h200")
    assert code == 0
    assert "Assumed, not measured on a GPU" in out
    assert "141 on h200" in out


def test_a_run_that_does_not_fit_is_told_what_to_turn(capsys: pytest.CaptureFixture[str]) -> None:
    """The key that is named is tried: with it the run fits."""
    words = (*BIG, "policy.lora_rank=16", "policy.checkpoint_activations=none", "--gpu", "a100_40")
    code, out, _ = plan(capsys, *words, "--json")
    assert code == 3
    record = json.loads(out)
    told = record["jobs"][0]["advice"]
    assert told
    assert plan(capsys, *words, *told)[0] == 0
    hopeless = plan(capsys, *BIG[1:], "policy=llava_1_5_7b", "--gpu", "rtx3090", "--memory-gib", "8")
    assert hopeless[0] == 3
    assert "engine=zero3" in hopeless[1]


def test_a_sweep_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    words = (*BIG, "policy.lora_rank=16", "-m", "algorithm.group_size=8,16", "seed=1,2")
    code, out, _ = plan(capsys, *words, "--json", "--gpu", "h200")
    jobs = json.loads(out)["jobs"]
    assert len(jobs) == 4
    assert jobs[0]["seconds"]["step"] < jobs[2]["seconds"]["step"]
    shown = plan(capsys, *words, "--gpu", "h200")[1]
    assert "4 jobs" in shown
    total = sum(job["device_hours"] for job in jobs)
    assert f"{total:.2f}" in shown
    assert code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("policy=qwen",), "policy"),
        (("algorithm.group_sise=4",), "group_size"),
        (("--gpu", "h1000"), "must be one of h200, h100"),
        (("--picture", "big"), "WIDTHxHEIGHT"),
        (("--calibrate", "/nowhere/step.json"), "must be a step.json"),
    ],
)
def test_wrong_words_are_one_line(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str) -> None:
    code, out, err = plan(capsys, *words)
    assert code == 2
    assert out == ""
    assert err.startswith("grasp-rl plan: ")
    assert len(err.strip().splitlines()) == 1
    assert said in err


def test_this_machine_and_a_device_of_ones_own() -> None:
    cpu = device_of("cpu", None, None, None)
    assert cpu.measured
    assert 0.001 < cpu.tflops < 100
    own = device_of("h100", 64.0, 500.0, 2000.0)
    assert (own.memory_gib, own.tflops, own.bandwidth_gbs) == (64.0, 500.0, 2000.0)


def test_a_measured_step_is_predicted() -> None:
    """The committed benchmark, within a factor of two on whatever machine runs this: the shape of the sum is right."""
    root = Path(__file__).parents[1] / "experiments" / "2026-11-21_step_benchmark"
    ratios = [correction(root / name / "step.json")["ratio"] for name in ("lora", "full", "lora_g16")]
    assert max(ratios) / min(ratios) < 2


def test_the_verb_starts_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "grasp_rl.cli", "plan", "--json", "algorithm.steps=10"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["jobs"][0]["fits"] is True
