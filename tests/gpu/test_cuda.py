"""The CUDA paths; skipped, with the reason, where there is no GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from grasp_rl.config.schema import PromptConfig
from grasp_rl.policies import attention
from grasp_rl.policies.backbones.base import ImageSize
from grasp_rl.policies.pretrained import HfVlmPolicy
from grasp_rl.policies.tiny.policy import TinyPolicy
from grasp_rl.rehearsal import models as tiny_models
from grasp_rl.segmenters.sam2 import Sam2Segmenter
from grasp_rl.types import Sample, SpatialPrompt

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: torch.cuda.is_available() is False"),
]


def test_the_policy_scores_as_on_the_cpu(samples: list[Sample]) -> None:
    prompt = PromptConfig(template="compact")
    ids = [[(45, 46, 47), (48,)], [(50, 51), (52, 53, 54)]]
    results = []
    for device in ("cpu", "cuda"):
        policy = TinyPolicy(weights="random").to(device)
        prompts = [policy.encode(s.image, s.query, prompt) for s in samples[:2]]
        results.append(policy.logprobs(policy.embed(prompts), ids).logp.cpu())
    assert (results[0] - results[1]).abs().max() < 1e-3


def test_greedy_decoding_is_the_same_on_the_gpu(samples: list[Sample]) -> None:
    prompt = PromptConfig(template="compact")
    texts = []
    for device in ("cpu", "cuda"):
        policy = TinyPolicy().to(device)
        prompts = [policy.encode(s.image, s.query, prompt) for s in samples[:4]]
        with torch.no_grad():
            drawn = policy.generate(policy.embed(prompts), None, group_size=1, max_new_tokens=64)
        texts.append([group[0].text for group in drawn])
    assert texts[0] == texts[1]


def test_the_captured_graph_decodes_like_the_growing_cache(samples: list[Sample]) -> None:
    """The same completions, greedy and drawn, with rows that end and leave."""
    prompt = PromptConfig(template="compact")
    policy = TinyPolicy().to("cuda")
    prompts = [policy.encode(s.image, s.query, prompt) for s in samples[:6]]
    uniforms = torch.rand(6, 4, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for drawn in (None, uniforms):
        found = []
        for policy.decoding in ("growing", "static"):
            with torch.no_grad():
                groups = policy.generate(policy.embed(prompts), drawn, group_size=4, max_new_tokens=96)
            found.append([c.token_ids for group in groups for c in group])
        equal = sum(a == b for a, b in zip(*found, strict=True))
        assert equal >= 0.95 * len(found[0])  # another kernel may round across a boundary


def test_sequences_of_different_lengths_score_like_the_mask(tmp_path: Path) -> None:
    """The kernel for sequences of different lengths in bfloat16 against the 4-D mask in bfloat16 and in float32."""
    folder = tiny_models.build("qwen2_5_vl", tmp_path)
    ids = [[(45, 46, 47), (48,)], [(50, 51), (52, 53, 54, 55, 56)]]
    found = {}
    for packed, dtype in (("two_calls", "bfloat16"), ("mask", "bfloat16"), ("mask", "float32")):
        policy = HfVlmPolicy(str(folder), ImageSize(), dtype=dtype, packed_attention=packed).to("cuda").train()
        images = [np.full((100, 140, 3), 90, np.uint8), np.full((60, 84, 3), 200, np.uint8)]
        prompts = [policy.encode(p, "the roof", PromptConfig()) for p in images]
        logp = policy.logprobs(policy.embed(prompts), ids).logp
        logp.sum().backward()
        grads = torch.cat([p.grad.flatten().float() for p in policy.parameters() if p.grad is not None])
        found[packed, dtype] = logp.detach(), grads
    exact = found["mask", "float32"]
    for index in (0, 1):
        ours = (found["two_calls", "bfloat16"][index] - exact[index]).norm()
        stock = (found["mask", "bfloat16"][index] - exact[index]).norm()
        assert ours < 2 * stock + 1e-3


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_the_vision_encoder_sees_sequences_like_chunks(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call a layer over all images and windows in bfloat16, against one SDPA call each, and against float32."""
    folder = tiny_models.build(family, tmp_path)
    images = [np.random.default_rng(n).integers(0, 255, (100, 140 + 56 * n, 3), dtype=np.uint8) for n in range(2)]
    found = {}
    for name, dtype, kernel in (
        ("ours", "bfloat16", attention.varlen_attn), ("chunks", "bfloat16", None), ("exact", "float32", None),
    ):  # fmt: skip
        monkeypatch.setattr(attention, "varlen_attn", kernel)
        policy = HfVlmPolicy(str(folder), ImageSize(), dtype=dtype, train_vision_encoder=True).to("cuda").train()
        prompts = [policy.encode(p, "the roof", PromptConfig()) for p in images]
        tokens = torch.cat([e.tokens for e in policy.encode_images(prompts)]).float()
        assert policy.core.visual.config._attn_implementation == (attention.VISION if kernel else "sdpa")
        tokens.square().sum().backward()
        grads = torch.cat([p.grad.flatten().float() for p in policy.parameters() if p.grad is not None])
        found[name] = tokens.detach(), grads
    for index in (0, 1):
        ours, stock = ((found[name][index] - found["exact"][index]).norm() for name in ("ours", "chunks"))
        assert ours < 2 * stock + 1e-3


def test_sam2_masks_agree_with_the_cpu(tiny_sam2: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (90, 112, 3), dtype=np.uint8)
    prompts = [SpatialPrompt(box=(10, 12, 60, 50)), SpatialPrompt(point_coords=((30.5, 30.5),), point_labels=(1,))]
    masks = []
    for device in ("cpu", "cuda"):
        segmenter = Sam2Segmenter(str(tiny_sam2), device=device)
        masks.append(segmenter.decode(segmenter.encode(image), prompts).masks.cpu())
    assert (masks[0] == masks[1]).float().mean() > 0.999
