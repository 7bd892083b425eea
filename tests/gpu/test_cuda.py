"""The CUDA paths; skipped, with the reason, where there is no GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from grasp_rl.config import PromptConfig
from grasp_rl.policies.tiny import TinyPolicy
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


def test_sam2_masks_agree_with_the_cpu(tiny_sam2: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (90, 112, 3), dtype=np.uint8)
    prompts = [SpatialPrompt(box=(10, 12, 60, 50)), SpatialPrompt(point_coords=((30.5, 30.5),), point_labels=(1,))]
    masks = []
    for device in ("cpu", "cuda"):
        segmenter = Sam2Segmenter(str(tiny_sam2), device=device)
        masks.append(segmenter.decode(segmenter.encode(image), prompts).masks.cpu())
    assert (masks[0] == masks[1]).float().mean() > 0.999
