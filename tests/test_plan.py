"""`grasp-rl plan` against what really happens: parameters, kept activations, caches, operations, files, refusals."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from grasp_rl.cli.plan import main
from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import PromptConfig, RunConfig
from grasp_rl.config.targets import to_config
from grasp_rl.launch import compose
from grasp_rl.planning.activations import activation_bytes
from grasp_rl.planning.advice import advice
from grasp_rl.planning.calibrate import corrected, correction
from grasp_rl.planning.disk import checkpoint_bytes, disk_gib, policy_bytes
from grasp_rl.planning.estimate import Assumptions, estimate, load_of
from grasp_rl.planning.hardware import DEVICES, device_of
from grasp_rl.planning.load import Layout, Load
from grasp_rl.planning.memory import logits_bytes, memory_gib, state_bytes
from grasp_rl.planning.shapes import shapes_of
from grasp_rl.planning.step_model import Shape, build
from grasp_rl.planning.timing import decode_seconds, row_flops, step_flops, step_seconds, vision_flops
from grasp_rl.policies.activation_checkpointing import kept_operators
from grasp_rl.policies.backbones.base import ImageSize
from grasp_rl.policies.compat import cache_in
from grasp_rl.policies.pretrained import HfVlmPolicy
from grasp_rl.policies.published import PUBLISHED
from grasp_rl.policies.tiny.policy import TinyPolicy
from grasp_rl.rehearsal import models as tiny_models

SHAPE = Shape(layers=4, vision_layers=2, vision_full_attention_every=2)
LOAD = Load(
    prompt=500, completion=40, group=4, prompts=2, micro_batch=1, generated=2, rows=8, recompute="none", kl=True
)
H100 = DEVICES["h100"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build(tmp_path_factory.mktemp("model"), SHAPE))


def component(path: str, **more: Any) -> dict[str, Any]:
    image = {"_target_": "grasp_rl.policies.backbones.base.ImageSize", "max_pixels": 280 * 280, "resize": "square"}
    return {
        "_target_": "grasp_rl.policies.pretrained.HfVlmPolicy", "path": path, "dtype": "float32", "image": image,
    } | more  # fmt: skip


def policy_of(path: str, **more: Any) -> HfVlmPolicy:
    return HfVlmPolicy(path, ImageSize(max_pixels=280 * 280, resize="square"), **({"dtype": "float32"} | more))


@pytest.mark.parametrize(
    "more", [{}, {"lora_rank": 4}, {"lora_rank": 4, "train_vision_encoder": True}, {"train_vision_encoder": True}]
)
def test_parameters_are_counted(saved: str, more: dict[str, Any]) -> None:
    shapes, policy = shapes_of(component(saved, **more), (280, 280)), policy_of(saved, **more)
    assert shapes.trained == sum(p.numel() for p in policy.parameters() if p.requires_grad)
    assert shapes.total + shapes.adapter == sum(p.numel() for p in policy.parameters())
    prompt = policy.encode(np.zeros((280, 280, 3), np.uint8), "a", PromptConfig())
    assert shapes.image_tokens == int((prompt.input_ids == policy.image_token_id).sum())
    assert shapes.patches == len(prompt.inputs["pixel_values"])


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_models_need_no_download(name: str) -> None:
    published = PUBLISHED[name]
    shapes = shapes_of({"_target_": "x.HfVlmPolicy", "path": published.hub_id}, (840, 840))
    assert shapes.total == pytest.approx(published.parameters, rel=0.01)
    assert 500 < shapes.image_tokens < 6000
    assert shapes.trained == shapes.total - shapes.vision_encoder


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_every_family_is_counted_by_itself(family: str, tmp_path: Path) -> None:
    folder = tiny_models.build(family, tmp_path)
    shapes = shapes_of({"_target_": "x.HfVlmPolicy", "path": str(folder), "dtype": "float32"}, (140, 100))
    policy = HfVlmPolicy(str(folder), ImageSize(), dtype="float32")
    prompt = policy.encode(np.zeros((100, 140, 3), np.uint8), "a", PromptConfig())
    assert shapes.image_tokens == int((prompt.input_ids == policy.image_token_id).sum())
    assert shapes.total == sum(p.numel() for p in policy.parameters())


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_the_tiny_policy(family: str) -> None:
    target = "grasp_rl.policies.tiny.policy.TinyPolicy"
    shapes, policy = shapes_of({"_target_": target, "family": family}, (112, 112)), TinyPolicy(family=family)
    assert shapes.trained == shapes.total == sum(p.numel() for p in policy.parameters())


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(ConfigError, match=r"policy\.path='nobody/nothing'.*config\.json"):
        shapes_of({"_target_": "x.HfVlmPolicy", "path": "nobody/nothing"}, (840, 840))


def test_an_unknown_class_is_named() -> None:
    with pytest.raises(ConfigError, match=r"policy\._target_='mine\.Policy'"):
        shapes_of({"_target_": "mine.Policy"}, (840, 840))


@pytest.mark.parametrize("rank", [0, 4])
def test_the_tiny_policys_adapters(rank: int) -> None:
    shapes = shapes_of({"_target_": "grasp_rl.policies.tiny.policy.TinyPolicy", "lora_rank": rank}, (112, 112))
    assert shapes.trained == sum(p.numel() for p in TinyPolicy(lora_rank=rank).parameters() if p.requires_grad)


def kept_bytes(policy: HfVlmPolicy, completion: int, group: int, side: int = 280) -> tuple[int, int]:
    """(tokens of the prompt, bytes kept for the backward pass of one packed row)."""
    asked = [policy.encode(np.zeros((side, side, 3), np.uint8), "the roof", PromptConfig())]
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
        embedded = policy.embed(asked)
        policy.logprobs(embedded, [[tuple(range(45, 45 + completion))] * group])
    return len(embedded[0].embeddings), sum(sizes.values())


@pytest.mark.parametrize("vision_encoder", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rank", [0, 8])
@pytest.mark.parametrize("family", ["benchmark", *tiny_models.FAMILIES])
def test_activations_are_what_the_backward_pass_keeps(
    saved: str, tmp_path: Path, family: str, rank: int, dtype: str, vision_encoder: bool
) -> None:
    more = {"dtype": dtype, "lora_rank": rank, "train_vision_encoder": vision_encoder}
    path, side = (saved, 280) if family == "benchmark" else (str(tiny_models.build(family, tmp_path)), 140)
    prompt, kept = kept_bytes(policy_of(path, **more).train(), 40, 4, side)
    shapes, load = shapes_of(component(path, **more), (side, side)), replace(LOAD, prompt=prompt)
    chunk = logits_bytes(shapes, load) / 3  # what of it is kept
    assert activation_bytes(shapes, load) + chunk == pytest.approx(kept, rel=0.15)


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


class Products(TorchDispatchMode):
    """Bytes of the results of the operators that selective recomputation keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes, self.kept = 0, set(kept_operators())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in self.kept:
            self.nbytes += (out[0] if isinstance(out, tuple) else out).nbytes
        return out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rank", [0, 8])
def test_selective_recomputation_keeps_products(saved: str, rank: int, dtype: str) -> None:
    policy = policy_of(saved, lora_rank=rank, dtype=dtype).train()
    shapes = shapes_of(component(saved, lora_rank=rank, dtype=dtype), (280, 280))
    with torch.no_grad():
        embedded = policy.embed([policy.encode(np.zeros((280, 280, 3), np.uint8), "the roof", PromptConfig())])
        with Products() as products:
            policy.logprobs(embedded, [[tuple(range(45, 85))] * 4])
    head = 160 * shapes.vocabulary * shapes.bytes_each
    load = replace(LOAD, prompt=len(embedded[0].embeddings), recompute="selective")
    entries = shapes.layers * shapes.hidden * load.row_tokens * shapes.bytes_each
    one_layer = activation_bytes(replace(shapes, layers=0), load)
    predicted = activation_bytes(shapes, load) - one_layer - entries
    assert predicted == pytest.approx(products.nbytes - head, rel=0.1)


def test_the_cache_is_as_large_as_planned(saved: str) -> None:
    policy, shapes = policy_of(saved), shapes_of(component(saved), (280, 280))
    policy.ends = []
    with torch.no_grad():
        embedded = policy.embed([policy.encode(np.zeros((280, 280, 3), np.uint8), "a", PromptConfig())] * 2)
        caches: list[Any] = []
        policy.core.language_model.register_forward_hook(lambda _m, _i, out: caches.append(cache_in(out)))
        policy.generate(embedded, None, group_size=4, max_new_tokens=10)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in caches[-1].layers)
    load = replace(LOAD, prompt=len(embedded[0].embeddings), completion=9)  # the last token is drawn, not run
    assert memory_gib(shapes, load, Layout())["kv cache"] * 2**30 == pytest.approx(held, rel=1e-6)


def test_operations_are_counted(saved: str) -> None:
    """Against torch's counter, which sees attention only where it is made of plain matrix products."""
    policy, shapes = policy_of(saved).train(), shapes_of(component(saved), (280, 280))
    encoded = policy.encode(np.zeros((280, 280, 3), np.uint8), "the roof", PromptConfig())
    prompt = len(encoded.input_ids)
    load = replace(LOAD, prompt=prompt, prompts=1, generated=1, kl=False)
    with sdpa_kernel(SDPBackend.MATH):
        with torch.no_grad(), FlopCounterMode(display=False) as vision_encoder:
            embedded = policy.embed([encoded])
        with FlopCounterMode(display=False) as forward:
            scores = policy.logprobs(embedded, [[tuple(range(45, 85))] * 4])
        with FlopCounterMode(display=False) as backward:
            scores.logp.sum().backward()
    assert vision_flops(shapes) == pytest.approx(vision_encoder.get_total_flops(), rel=0.05)
    masked = prompt**2 / 2 + 4 * 40**2 / 2  # plain products of what a causal kernel leaves out
    left_out = 4 * shapes.layers * shapes.query_width * masked
    assert row_flops(shapes, load) + left_out == pytest.approx(forward.get_total_flops(), rel=0.05)
    whole = forward.get_total_flops() + backward.get_total_flops()
    assert step_flops(shapes, load)["update"] + 3 * left_out == pytest.approx(whole, rel=0.05)


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
    assert checkpoint_bytes(shapes, Layout()) == pytest.approx(whole, rel=0.05)


ZERO = """
import sys
from pathlib import Path
import torch
from torch import nn
from grasp_rl.config.schema import EngineConfig, OptimizerConfig
from grasp_rl.distributed.deepspeed import ZeroEngine

name, dtype, folder = sys.argv[1], getattr(torch, sys.argv[2]), Path(sys.argv[3])
model = nn.Sequential(nn.Linear(512, 512, bias=False), nn.Linear(512, 512, bias=False)).to(dtype)
model[0].weight.requires_grad_(False)
engine = ZeroEngine(model, OptimizerConfig(), 1, EngineConfig(name=name, device="cpu"))
engine.ds.set_gradient_accumulation_boundary(True)
engine.backward(engine.forward(torch.randn(4, 512, dtype=dtype)).float().sum())
engine.step()
engine.save(folder)
engine.close()
"""


@pytest.mark.parametrize(
    ("name", "dtype"),
    [pytest.param("zero1", "bfloat16", marks=pytest.mark.long), ("zero2", "float32"), ("zero3", "bfloat16")],
)
def test_deepspeeds_checkpoints_are_as_large_as_planned(saved: str, tmp_path: Path, name: str, dtype: str) -> None:
    pytest.importorskip("deepspeed")
    script = tmp_path / "zero.py"
    script.write_text(ZERO)
    done = forked.ranks(str(script), name, dtype, tmp_path, count=1)
    assert done.returncode == 0, done.stderr
    size, each = 512 * 512, 4 if dtype == "float32" else 2
    shapes = shapes_of(component(saved), (280, 280))
    shapes = replace(shapes, vision_encoder=size, language=size, words=0, trained=size, adapter=0, bytes_each=each)
    policy = 2 * size * each  # saved beside the engine's files
    written = sum(f.stat().st_size for f in tmp_path.rglob("*.pt"))
    assert checkpoint_bytes(shapes, Layout(engine=name)) - policy == pytest.approx(written, rel=0.02)


def test_disk_is_the_sum_of_what_is_kept() -> None:
    config = composed("policy=qwen2_5_vl_3b", "checkpoint.keep_last=3", "segmenter=sam2_1_hiera_tiny",
                      "segmenter.cache=disk", "segmenter.cache_mb=1024", "evaluation.overlays=0")  # fmt: skip
    parts = disk_gib(SHAPES_3B, Layout(), config, answers=100, pixels=840 * 840)
    assert parts["checkpoints"] * 2**30 == 5 * checkpoint_bytes(SHAPES_3B, Layout())  # 3, the best, the next
    assert parts["embeddings"] == 1
    assert parts["total"] == pytest.approx(sum(gib for part, gib in parts.items() if part not in ("total", "left")))
    assert (parts["total"] - parts["left"]) * 2**30 == pytest.approx(checkpoint_bytes(SHAPES_3B, Layout()))


def test_what_a_run_leaves_is_what_it_keeps() -> None:
    def left(keep: str) -> float:
        config = composed("policy=qwen2_5_vl_3b", f"checkpoint.keep={keep}", "evaluation.overlays=0")
        parts = disk_gib(SHAPES_3B, Layout(), config, answers=0, pixels=0)
        return (parts["left"] - parts["logs"]) * 2**30

    assert left("all") == pytest.approx(2 * checkpoint_bytes(SHAPES_3B, Layout()))
    assert left("best") == left("last") == pytest.approx(policy_bytes(SHAPES_3B))
    assert left("none") == pytest.approx(0, abs=1)


def test_a_sweep_that_fills_a_disk_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["-m", "experiment=think2seg_rs/group_size", "data.root=x", "--gpu", "h100"]
    main(line)
    assert "warning: the 4 runs leave 392 GiB on disk; checkpoint.keep=best" in " ".join(
        capsys.readouterr().out.split()
    )
    main([*line, "checkpoint.keep=best"])
    assert "GiB on disk" not in capsys.readouterr().out


SHAPES_3B = shapes_of({"_target_": "x.HfVlmPolicy", "path": "Qwen/Qwen2.5-VL-3B-Instruct"}, (840, 840))


def composed(*words: str) -> RunConfig:
    with compose.hydra("train") as engine:
        return to_config(compose.single(engine, ["command=train", "data=jsonl", "data.root=x", *words], ()).config)


def test_zero_divides_what_it_says() -> None:
    """ZeRO (arXiv 1910.02054, figure 1), in bytes a parameter: 2 + 2 + 12 divided by stages."""

    def parts(engine: str) -> dict[str, float]:
        return memory_gib(SHAPES_3B, LOAD, Layout(engine=engine, ranks=4))

    one, two, three, offloaded = (parts(name) for name in ("zero1", "zero2", "zero3", "zero3_offload"))
    gib = SHAPES_3B.trained / 2**30
    assert one["optimizer"] == two["optimizer"] == three["optimizer"] == pytest.approx(12 * gib / 4)
    assert one["gradients"] == pytest.approx(2 * gib)
    assert two["gradients"] == three["gradients"] == pytest.approx(2 * gib / 4)
    assert three["weights"] == pytest.approx(one["weights"] / 4)
    assert three["gathered"] == pytest.approx(one["weights"])
    assert offloaded["weights"] == offloaded["gradients"] == offloaded["optimizer"] == 0
    assert offloaded["host"] == pytest.approx(three["weights"] + three["gradients"] + three["optimizer"])
    assert offloaded["peak"] < three["peak"] < two["peak"] < one["peak"]
    layered = memory_gib(SHAPES_3B, LOAD, Layout(engine="zero3", ranks=4, gather="layer"))
    assert layered["gathered"] < three["gathered"] / 4


def test_masters_of_float32() -> None:
    """DeepSpeed copies float32 parameters into its optimizer at stages 1 and 2, and not at 3."""
    shapes = replace(SHAPES_3B, bytes_each=4)
    sizes = [state_bytes(shapes, Layout(engine=name))["optimizer"] for name in ("local", "zero2", "zero3")]
    assert [size / shapes.trained for size in sizes] == [8, 12, 8]


def test_work_is_divided_among_all_ranks_of_all_nodes() -> None:
    device, assumed = H100, Assumptions()
    words = ("policy=qwen2_5_vl_3b", "engine=zero3", "algorithm.prompts_per_step=16")
    nodes = ("engine.nproc=4", "engine.nnodes=2", "engine.node_rank=0", "engine.rendezvous=a:1")
    one, eight = composed(*words), composed(*words, *nodes)
    load = load_of(eight, device, assumed, SHAPES_3B)
    assert (load.prompts, load.generated, load.micro_batch) == (2, 2, 2)
    alone, divided = estimate(one, device, assumed), estimate(eight, device, assumed)
    assert divided.devices == 8
    assert divided.seconds["update"] == pytest.approx(alone.seconds["update"] / 8)
    assert divided.hours["evaluation"] == pytest.approx(alone.hours["evaluation"])  # rank 0 scores, the others wait
    assert divided.device_hours == pytest.approx(8 * sum(divided.hours.values()))
    in_step = load_of(composed(*words, *nodes, "engine.gather=layer"), device, assumed, SHAPES_3B)
    assert (in_step.prompts, in_step.generated) == (2, 16)  # every rank decodes all groups


def test_a_servers_cache_is_not_ours() -> None:
    config = composed("policy=qwen2_5_vl_3b", "policy.lora_rank=16", "generator=vllm_server")
    bill = estimate(config, H100, Assumptions())
    assert bill.memory["kv cache"] == bill.memory["draw"] == bill.seconds["decode"] == 0
    assert bill.hours["evaluation"] > 0


def test_time_follows_the_work() -> None:
    def step(**changes: Any) -> dict[str, float]:
        return step_seconds(SHAPES_3B, replace(LOAD, prompt=1200, completion=200, group=8, **changes), H100)

    base = step()
    assert step(prompts=4)["update"] == pytest.approx(2 * base["update"])
    assert step(recompute="full")["update"] == pytest.approx(base["update"] * 4 / 3)
    assert step(kl=False)["reference"] == 0
    assert step(rounds=3)["prefill"] == pytest.approx(3 * base["prefill"])
    few = decode_seconds(SHAPES_3B, replace(LOAD, completion=200, rows=8), H100)
    many = decode_seconds(SHAPES_3B, replace(LOAD, completion=200, rows=8, generated=4), H100)
    assert many == pytest.approx(2 * few)


def test_validations_are_those_that_are_made() -> None:
    def hours(*words: str) -> float:
        wanted = ("evaluation.val_limit=100", "evaluation.test_limit=1", *words)
        return estimate(composed("policy=qwen2_5_vl_3b", *wanted), H100, Assumptions()).hours["evaluation"]

    never = hours("evaluation.every=0")
    twice, thrice = (hours("evaluation.every=50", f"algorithm.steps={steps}") for steps in (100, 101))
    assert thrice / never == pytest.approx(402 / 2)  # before the first step, too
    assert twice / never == pytest.approx(302 / 2)


# --- the command


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    said = capsys.readouterr()
    return code, said.out, said.err


BIG = ("policy=qwen2_5_vl_3b", "data=jsonl", "data.root=x", "rollout.max_new_tokens=512")


def test_a_run_that_fits(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = plan(capsys, *BIG, "policy.lora_rank=16", "--gpu", "h200")
    assert code == 0
    assert "Assumed, as measured with a 3B model on one H100" in out
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
    hopeless = plan(capsys, *BIG[1:], "policy=llava_1_5_7b", "--gpu", "rtx3090", "--memory-gib", "4")
    assert hopeless[0] == 3
    assert "no key makes it fit" in hopeless[1]


@pytest.mark.parametrize(
    ("memory", "devices", "told"),
    [
        (36, None, ["rollout.batch_rows=48"]),  # more time
        (27, 4, ["engine=zero2", "engine.nproc=4"]),  # more devices, where there are
        (27, None, ["policy.lora_rank=16"]),  # else another way to train
    ],
)
def test_advice_costs_as_little_as_it_can(memory: float, devices: int | None, told: list[str]) -> None:
    config = composed("policy=qwen2_5_vl_3b", "algorithm.micro_batch_groups=1")
    device, assumed = replace(H100, memory_gib=memory), Assumptions()
    assert not estimate(config, device, assumed).fits
    assert advice(config, device, assumed, devices) == told


@pytest.mark.parametrize("memory", [6, 9, 12, 18, 24, 28])
@pytest.mark.parametrize("devices", [None, 1, 4])
def test_every_advice_fits_and_needs_all_of_its_words(memory: float, devices: int | None) -> None:
    words = ("policy=qwen2_5_vl_3b", "rollout.max_new_tokens=512")
    device, assumed = replace(H100, memory_gib=memory), Assumptions()
    told = advice(composed(*words), device, assumed, devices)
    if told is None:
        assert memory <= 9
        return
    assert estimate(composed(*words, *told), device, assumed).fits
    for word in told:
        rest = [other for other in told if other != word]
        if not word.startswith("engine"):
            assert not estimate(composed(*words, *rest), device, assumed).fits
    assert devices != 1 or not any(word.startswith("engine=zero2") for word in told)


def test_gpus_are_the_engines(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = ("engine.nnodes=2", "engine.node_rank=1", "engine.rendezvous=a:1")
    for words in ((), nodes):
        code, out, _ = plan(capsys, *BIG, "engine=zero3", *words, "--gpus", "4", "--json")
        assert code == 0
        assert json.loads(out)["jobs"][0]["devices"] == 4


def test_what_is_assumed_can_be_said(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("algorithm.steps=10", "--gpu", "h100")
    usual, longer = (json.loads(plan(capsys, *words, *more, "--json")[1])["jobs"][0] for more in LENGTHS)
    assert longer["memory"]["kv cache"] > 2 * usual["memory"]["kv cache"]
    assert "150 tokens of a prompt" in plan(capsys, *words)[1]
    shared = plan(capsys, *BIG, "engine=zero3", "--gpus", "2")[1]
    assert "no time lost between devices and host" in shared


LENGTHS = ((), ("--prompt-tokens", "600"))


def test_a_sweep_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    words = (*BIG, "policy.lora_rank=16", "-m", "algorithm.group_size=8,16", "seed=1,2")
    code, out, _ = plan(capsys, *words, "--json", "--gpu", "h200")
    jobs = json.loads(out)["jobs"]
    assert len(jobs) == 4
    assert jobs[0]["seconds"]["step"] < jobs[2]["seconds"]["step"]
    shown = plan(capsys, *words, "--gpu", "h200")[1]
    assert "4 jobs" in shown
    assert "Assumed: images of 840 x 840, 330 tokens" in shown
    total = sum(job["device_hours"] for job in jobs)
    assert f"{total:.2f}" in shown
    assert code == 0


def test_the_rows_of_a_sweep_say_what_differs(capsys: pytest.CaptureFixture[str]) -> None:
    """Paired axes, too; what all jobs have in common is left out."""
    words = ("-m", "experiment=think2seg_rs/backbone", "rollout.top_k=0", "--gpu", "a100_40")
    _, out, _ = plan(capsys, *words, "--json")
    record = json.loads(out)
    policies = ["qwen2_5_vl_3b", "qwen2_5_vl_7b", "internvl3_8b", "llava_1_5_7b"]
    assert [job["overrides"][0] for job in record["jobs"]] == [f"policy={name}" for name in policies]
    shown = plan(capsys, *words)[1]
    assert [name for name in policies if f"\npolicy={name} " not in shown] == []
    assert "engine_" not in shown
    assert "top_k" not in shown
    assert re.search(r"^policy=llava_1_5_7b .* needs [\d.]+ GiB", shown, re.M)


def test_a_plan_needs_no_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    """Its folder alone may be missing: a policy's path decides what is planned."""
    for words in (["data=jsonl"], ["experiment=grasp/main"], ["-m", "data=jsonl,rrsis_d"]):
        code, out, err = plan(capsys, *words)
        assert code in (0, 3), err
        assert "device-hours" in out
    code, _, err = plan(capsys, "policy=hf_vlm")
    assert (code, err) == (2, "grasp-rl plan: policy.path: has no default; give policy.path=VALUE\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("policy=qwen",), "policy"),
        (("algorithm.group_sise=4",), "group_size"),
        (("--gpu", "h1000"), "must be one of h200, h100"),
        (("--image", "big"), "WIDTHxHEIGHT"),
        (("--memory-gib", "much"), "--memory-gib: invalid float value"),
        (("--memory-gib", "-4"), "must be > 0"),
        (("--tflops", "nan"), "must be > 0"),
        (("--gpus", "0"), "must be >= 1"),
        (("--completion-tokens", "0"), "must be >= 1"),
        (("--gpu",), "expected one argument"),
        (("--nonsense",), "no such flag"),
        (("policy.checkpoint_activations=true",), "policy.checkpoint_activations"),
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


RESULTS = [
    Path(__file__).parents[1] / "experiments" / "2026-11-21_step_benchmark" / name / "step.json"
    for name in ("lora", "full", "lora_g16")
]


def test_a_measured_step_is_predicted() -> None:
    """The committed benchmark, on whatever machine runs this: one factor corrects all three. Memory needs no factor."""
    cpu = device_of("cpu", None, None, None)
    found = [correction(path, cpu) for path in RESULTS]
    ratios = [one["ratio"] for one in found]
    assert max(ratios) / min(ratios) < 1.5
    assert all(1.0 < one["memory_ratio"] < 1 + cpu.reserve + 0.1 for one in found)
    again = correction(RESULTS[0], corrected(cpu, ratios[0]))
    assert again["ratio"] == pytest.approx(1.0)


def test_a_plan_is_corrected_by_a_measured_step(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = plan(capsys, "--calibrate", str(RESULTS[0]), "--gpu", "cpu", "--json", "algorithm.steps=10")
    record = json.loads(out)
    assert code == 0
    assert record["calibration"]["ratio"] > 0
    assert record["jobs"][0]["hours"]["training"] > 0
    assert plan(capsys, "--calibrate", str(RESULTS[0]), "--gpu", "h100")[2].count("was measured on cpu") == 1


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["algorithm.steps=10"]) == 0
    assert main(["-m", "seed=1,2"]) == 0
    assert list(tmp_path.iterdir()) == []


def test_the_verb_starts_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "grasp_rl.cli.main", "plan", "--json", "algorithm.steps=10"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["jobs"][0]["fits"] is True
