"""Bytes that a run leaves on disk."""

from __future__ import annotations

from grasp_rl.config.schema import CheckpointConfig, RunConfig
from grasp_rl.planning.activations import FLOAT
from grasp_rl.planning.load import Layout
from grasp_rl.planning.memory import trained_bytes
from grasp_rl.planning.shapes import Shapes

LINE = 2000
"""Bytes of an optimizer step in the metrics, of an answer in predictions.jsonl. Assumed."""


def disk_gib(shapes: Shapes, layout: Layout, config: RunConfig, answers: int, pixels: int) -> dict[str, float]:
    """GiB by part; ``total``, the most that stands on disk at once; ``left``, once the run is done (checkpoint.keep).

    Args:
        shapes: of the policy.
        layout: its engine.
        config: what is kept.
        answers: that are scored and written down before and after training.
        pixels: of an image.
    """
    kept = config.checkpoint.keep_last + 2  # the best one, and the one being written
    overlays = 2 * config.evaluation.overlays * 3 * pixels
    cache = config.segmenter.get("cache_mb", 0) * 2**20 if config.segmenter.get("cache") == "disk" else 0
    result = {
        "checkpoints": kept * checkpoint_bytes(shapes, layout),
        "logs": float(LINE * (config.algorithm.steps + answers) + overlays),
        "embeddings": float(cache),
    }
    stays = result | {"checkpoints": _left(shapes, layout, config.checkpoint)}
    sums = {"total": sum(result.values()), "left": sum(stays.values())}
    return {name: value / 2**30 for name, value in (result | sums).items()}


def _left(shapes: Shapes, layout: Layout, settings: CheckpointConfig) -> float:
    """Bytes of the checkpoints of a run that is done."""
    if settings.keep == "all":
        return (settings.keep_last + 1) * checkpoint_bytes(shapes, layout)
    return 0.0 if settings.keep == "none" else float(policy_bytes(shapes))


def policy_bytes(shapes: Shapes) -> float:
    """Of the policy in a checkpoint: the adapter alone where there is one."""
    return float(trained_bytes(shapes) if shapes.adapter else shapes.total * shapes.bytes_each)


def checkpoint_bytes(shapes: Shapes, layout: Layout) -> float:
    """Of one checkpoint over all ranks: the policy to load, and the engine's state to go on from.

    DeepSpeed saves masters and moments in float32, beside them the whole module (stages 1 and 2) or what of it is
    frozen (stage 3).
    """
    trained = trained_bytes(shapes)
    policy = policy_bytes(shapes)
    if not layout.stage:
        return float(policy + 2 * trained)
    module = shapes.total * shapes.bytes_each + (trained if shapes.adapter else 0)
    if layout.stage == 3:
        module -= trained
    return float(policy + module + 3 * FLOAT * shapes.trained)
