"""Whole runs on a GPU; skipped, with the reason, where there is none."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from grasp_rl.config.schema import PromptConfig
from grasp_rl.policies.backbones.base import ImageSize
from grasp_rl.policies.pretrained import HfVlmPolicy
from grasp_rl.policies.tiny.policy import TinyPolicy
from grasp_rl.rehearsal import models as tiny_models
from grasp_rl.types import Sample

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: torch.cuda.is_available() is False"),
]
TRAINING = [
    "reward=think2seg", "algorithm.prompts_per_step=4", "algorithm.group_size=4", "optimizer.lr=1e-4",
    "checkpoint.every=2", "evaluation.every=0", "evaluation.test_limit=2", "evaluation.overlays=0",
    "rollout.max_new_tokens=48", "evaluation.max_new_tokens=8", "tracker=none",
]  # fmt: skip


def run(command: str, *words: str) -> None:
    """One command of the launcher; its log is shown when it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "grasp_rl.cli.main", command, *words], capture_output=True, text=True, timeout=300,
        env=dict(os.environ), check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def rows(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("qwen2_5_vl", tmp_path_factory.mktemp("qwen"))


@pytest.mark.parametrize("engine", ["local", "zero2", "zero3"])
def test_a_pretrained_policy_and_sam2_train_and_resume(
    qwen: Path, tiny_sam2: Path, tmp_path: Path, engine: str
) -> None:
    """Two steps in bfloat16 with LoRA and a KL term, and two more of the same run in another process."""
    if engine != "local":
        pytest.importorskip("deepspeed", reason="needs DeepSpeed: pip install 'grasp-rl[train]'")
    folder = tmp_path / "run"
    words = [
        f"run_dir={folder}", f"engine={engine}", "policy=hf_vlm", f"policy.path={qwen}", "policy.lora_rank=4",
        "policy.image.max_pixels=12544", "segmenter=sam2", f"segmenter.path={tiny_sam2}", "algorithm=grpo", *TRAINING,
    ]  # fmt: skip
    run("train", *words, "algorithm.steps=2")
    run("train", f"resume={folder}", "algorithm.steps=4")
    found = [row for row in rows(folder) if "loss" in row]
    assert [row["step"] for row in found] == [1, 2, 3, 4]
    assert all(math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"]) for row in found)
    assert all(row["mismatch"] < 0.1 for row in found)


def test_two_turns_train(qwen: Path, tiny_sam2: Path, tmp_path: Path) -> None:
    """The second turn's image and question packed behind the first's, in bfloat16."""
    words = [
        f"run_dir={tmp_path / 'run'}", "policy=hf_vlm", f"policy.path={qwen}", "policy.lora_rank=4",
        "policy.image.max_pixels=12544", "segmenter=sam2", f"segmenter.path={tiny_sam2}", *TRAINING,
        "rollout=socio_reasoner", "reward=socio_reasoner", "prompt=box", "algorithm.steps=2",
    ]  # fmt: skip
    run("train", *words)
    found = [row for row in rows(tmp_path / "run") if "loss" in row]
    assert [row["step"] for row in found] == [1, 2]
    assert all(math.isfinite(row["loss"]) and row["mismatch"] < 0.1 for row in found)


def test_the_tiny_policy_learns_the_same_as_on_the_cpu(tmp_path: Path) -> None:
    """The first step's rollouts and loss, in float32."""
    found = {}
    for device in ("cpu", "cuda"):
        words = [f"run_dir={tmp_path / device}", f"engine.device={device}", "segmenter=box_fill", *TRAINING]
        run("train", *words, "algorithm.steps=2")
        found[device] = rows(tmp_path / device)[0]
    for key in ("reward", "length"):
        assert found["cuda"][key] == pytest.approx(found["cpu"][key], abs=1e-3), key
    assert found["cuda"]["grad_norm"] == pytest.approx(found["cpu"]["grad_norm"], rel=1e-2)


@pytest.mark.parametrize("tokens", [1, 2, 17, 33])
def test_the_last_tokens_can_be_captured(samples: list[Sample], tokens: int) -> None:
    """A graph that is captured for the last token, at the start and after rows have left."""
    policy = TinyPolicy().to("cuda")
    prompts = [policy.encode(s.image, s.query, PromptConfig(template="compact")) for s in samples[:4]]
    uniforms = torch.rand(4, 4, tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    texts = {}
    for policy.decoding in ("growing", "static"):
        with torch.no_grad():
            groups = policy.generate(policy.embed(prompts), uniforms, group_size=4, max_new_tokens=tokens)
        texts[policy.decoding] = [c.token_ids for group in groups for c in group]
    equal = sum(a == b for a, b in zip(*texts.values(), strict=True))
    assert equal >= 0.9 * len(texts["static"])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_fused_head_scores_like_the_plain_one(qwen: Path, temperature: float) -> None:
    """Liger's kernel in bfloat16: log-probabilities and gradients."""
    pytest.importorskip("liger_kernel", reason="needs Liger: pip install 'grasp-rl[liger]'")
    from grasp_rl.policies.types import Sampling

    found = []
    for fused in (False, True):
        policy = HfVlmPolicy(str(qwen), ImageSize(), dtype="bfloat16", fused_head=fused).to("cuda").train()
        prompts = [policy.encode(np.full((100, 140, 3), 90, np.uint8), "the roof", PromptConfig())]
        ids = [[(45, 46, 47), (48, 49)]]
        logp = policy.logprobs(policy.embed(prompts), ids, sampling=Sampling(temperature=temperature)).logp
        logp.sum().backward()
        grads = torch.cat([p.grad.flatten().float() for p in policy.parameters() if p.grad is not None])
        found.append((logp.detach().float(), grads))
    (plain, plain_grads), (fused_logp, fused_grads) = found
    assert (plain - fused_logp).abs().max() < 0.05
    assert (plain_grads - fused_grads).norm() < 0.05 * plain_grads.norm()
