"""Bytes of a training run on one device, part by part."""

from __future__ import annotations

from dataclasses import dataclass

from grasp_rl.plan.shapes import Shapes
from grasp_rl.policies.scoring import LOGITS_AT_ONCE

KEPT_PER_HIDDEN = {(2, False): 14.0, (2, True): 21.0, (4, False): 12.0, (4, True): 10.0}
"""Values kept for the backward pass per token, layer and unit of width, by (bytes of a value, LoRA)."""
KEPT_PER_INNER = {(2, False): 4.0, (2, True): 5.0, (4, False): 4.0, (4, True): 4.0}
"""The same per unit of the MLP's width. Both were counted on a Qwen2.5-VL with hooks on saved tensors; a test counts
them again."""
RESERVE = 0.10
"""Share of the sum that fragmentation and the device's own libraries take. Assumed."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a run asks of its policy."""

    prompt: int
    """P, tokens of a prompt, its picture's included."""
    completion: int
    """C, tokens of a completion."""
    group: int
    """G."""
    prompts: int
    """Prompts of an optimizer step, over all ranks."""
    micro_batch: int
    """Groups per forward."""
    rows: int
    """Completions decoded together."""
    recompute: str
    """none | selective | full"""
    kl: bool
    """Whether a reference scores, too."""
    iterations: int = 1


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How parameters, gradients and moments lie over ranks."""

    engine: str = "local"
    ranks: int = 1

    @property
    def stage(self) -> int:
        """ZeRO's stage (arXiv 1910.02054); 0 for none."""
        return {"zero1": 1, "zero2": 2, "zero3": 3, "zero3_offload": 3}.get(self.engine, 0)


def memory_gib(shapes: Shapes, load: Load, layout: Layout, segmenter_gib: float) -> dict[str, float]:
    """GiB by part at the two heights of a step, generation and learning; ``peak`` is the larger with the reserve."""
    each, trained = shapes.bytes_each, shapes.trained
    trained_bytes = trained * (4 if shapes.adapter else each)
    shared = layout.ranks if layout.stage else 1
    full_parameters = layout.ranks if layout.stage == 3 else 1
    base = shapes.total * each
    parts = {"weights": (base + (trained_bytes if shapes.adapter else 0)) / full_parameters}
    parts["gradients"] = trained_bytes / (shared if layout.stage >= 2 else 1)
    in_float32 = trained * (8 if each == 4 or shapes.adapter else 12)  # DeepSpeed's moments, and masters of halves
    moments = in_float32 / shared if layout.stage else 2 * trained_bytes
    parts["optimizer"] = 0.0 if layout.engine == "zero3_offload" else moments
    parts["reference"] = base / full_parameters if load.kl and not shapes.adapter else 0.0
    parts["segmenter"] = segmenter_gib * 2**30
    resident = sum(parts.values())
    rows = min(load.rows, load.prompts * load.group)
    context = load.prompt + load.completion
    generation = {
        "gathered": base if layout.stage == 3 else 0.0,
        "kv cache": rows * context * shapes.layers * 2 * shapes.kv_width * each,
        "draw": rows * shapes.vocabulary * 20.0,  # float32 logits, float64 probabilities and their sums
    }
    logits = min(LOGITS_AT_ONCE, load.micro_batch * load.group * load.completion * shapes.vocabulary)
    learning = {"activations": activation_bytes(shapes, load), "logits": logits * 12.0}
    peak = (resident + max(sum(generation.values()), sum(learning.values()))) * (1 + RESERVE)
    found = {**parts, **generation, **learning, "peak": peak}
    return {name: value / 2**30 for name, value in found.items()}


def activation_bytes(shapes: Shapes, load: Load) -> float:
    """Kept for the backward pass of one micro-batch of packed rows ``[prompt | c1 | ... | cG]``."""
    each, lora = shapes.bytes_each, shapes.adapter > 0
    tokens = load.micro_batch * (load.prompt + load.group * load.completion)
    layer = KEPT_PER_HIDDEN[each, lora] * shapes.hidden + KEPT_PER_INNER[each, lora] * shapes.inner
    # every completion's keys and values stand behind a copy of the prompt's
    pairs = load.micro_batch * load.group * (load.prompt + load.completion) * 2 * shapes.kv_width
    whole = (tokens * layer + pairs) * each
    entry = tokens * shapes.hidden * each
    if load.recompute == "full":
        return entry * shapes.layers + whole
    if load.recompute == "selective":
        products = 4 * shapes.hidden + shapes.query_width + 2 * shapes.kv_width + 2 * shapes.inner
        return tokens * products * each * shapes.layers * (2 if lora else 1) + whole
    return whole * shapes.layers


def disk_gib(shapes: Shapes, keep: int) -> float:
    """Of ``keep`` checkpoints, the best one and the one that is being written: weights or adapter, and the moments."""
    trained = shapes.trained * (4 if shapes.adapter else shapes.bytes_each)
    saved = trained if shapes.adapter else shapes.total * shapes.bytes_each
    return (keep + 2) * (saved + 2 * trained) / 2**30
