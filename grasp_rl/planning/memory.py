"""Bytes of a training run on one device, part by part."""

from __future__ import annotations

from grasp_rl.planning.activations import FLOAT, activation_bytes
from grasp_rl.planning.load import Layout, Load
from grasp_rl.planning.shapes import Shapes
from grasp_rl.policies.logprobs import LOGITS_AT_ONCE


def memory_gib(
    shapes: Shapes, load: Load, layout: Layout, *, segmenter_gib: float = 0.0, reserve: float = 0.0
) -> dict[str, float]:
    """GiB by part at the two heights of a step, generation and learning.

    ``peak`` is what is always there and the larger height, and a share ``reserve`` on top. ``host`` is what offloading
    keeps in host memory, and no part of the peak.
    """
    resident = state_bytes(shapes, layout)
    resident["reference"] = 0.0
    if load.kl and not shapes.adapter:  # an adapter is disabled instead
        resident["reference"] = shapes.total * shapes.bytes_each / (layout.ranks if layout.stage == 3 else 1)
    resident["segmenter"] = segmenter_gib * 2**30
    host = resident.pop("host")
    fetched = _fetched(shapes, layout, whole=layout.gather == "whole")
    generation = {"gathered": 0.0 if load.elsewhere else fetched} | _generation(shapes, load)
    learning = {
        "layer": _fetched(shapes, layout, whole=False),
        "activations": activation_bytes(shapes, load),
        "logits": logits_bytes(shapes, load),
    }
    heights = max(sum(generation.values()), sum(learning.values()))
    peak = (sum(resident.values()) + heights) * (1 + reserve)
    result = resident | generation | learning | {"host": host, "peak": peak}
    return {name: value / 2**30 for name, value in result.items()}


def state_bytes(shapes: Shapes, layout: Layout) -> dict[str, float]:
    """Of weights, gradients and optimizer on one device, and of what is in ``host`` memory instead.

    ZeRO divides the optimizer from stage 1 on, gradients from 2, parameters from 3. DeepSpeed's optimizer holds two
    moments and a master copy in float32, of float32 parameters too unless they are divided themselves. Ours holds two
    moments in the parameters' own type.
    """
    trained = trained_bytes(shapes)
    weights = shapes.total * shapes.bytes_each + (trained if shapes.adapter else 0)
    master = not (layout.stage == 3 and trained == shapes.trained * FLOAT)
    optimizer = shapes.trained * FLOAT * (3 if master else 2) if layout.stage else 2 * trained
    ranks = layout.ranks
    result = {
        "weights": weights / (ranks if layout.stage == 3 else 1),
        "gradients": trained / (ranks if layout.stage >= 2 else 1),
        "optimizer": optimizer / (ranks if layout.stage else 1),
        "host": 0.0,
    }
    if layout.offloads:
        result = {"weights": 0.0, "gradients": 0.0, "optimizer": 0.0, "host": sum(result.values())}
    return result


def trained_bytes(shapes: Shapes) -> int:
    """Of the parameters with a gradient, adapters in float32."""
    return shapes.trained * (FLOAT if shapes.adapter else shapes.bytes_each)


def _fetched(shapes: Shapes, layout: Layout, *, whole: bool) -> float:
    """Of the parameters that ZeRO-3 brings together to compute: all of them, or the widest layer and the next."""
    if layout.stage < 3:
        return 0.0
    largest = max(shapes.language / shapes.layers, shapes.hidden * shapes.vocabulary)
    return (shapes.total if whole else 2 * largest) * shapes.bytes_each


def _generation(shapes: Shapes, load: Load) -> dict[str, float]:
    if load.elsewhere:
        return {"kv cache": 0.0, "draw": 0.0}
    context = load.prompt + load.completion
    return {
        "kv cache": float(load.rows * context * shapes.layers * 2 * shapes.kv_width * shapes.bytes_each),
        "draw": load.rows * shapes.vocabulary * 20.0,  # float32 logits, float64 probabilities and their sums
    }


def logits_bytes(shapes: Shapes, load: Load) -> float:
    """Of one chunk of logits in float32, their softmax and its gradient."""
    said = load.micro_batch * load.group * load.completion
    return min(LOGITS_AT_ONCE, said * shapes.vocabulary) * 3.0 * FLOAT
