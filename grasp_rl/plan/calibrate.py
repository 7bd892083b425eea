"""How well a step is predicted: a measured one of `grasp-rl bench step` against the same sum on this CPU."""

from __future__ import annotations

import tempfile
from pathlib import Path

from grasp_rl.bench.model import SHAPES, build
from grasp_rl.config import ConfigError
from grasp_rl.plan.hardware import this_cpu
from grasp_rl.plan.memory import Layout, Load
from grasp_rl.plan.shapes import shapes_of
from grasp_rl.plan.timing import step_seconds
from grasp_rl.runs import read_json
from grasp_rl.types import Record


def correction(path: Path) -> Record:
    """Measured over predicted CPU-seconds of our side in a step.json of the standard shape.

    Raises:
        ConfigError: it is no such file.
    """
    found = read_json(path)
    if found is None or found.get("benchmark") != "step" or "ours" not in found.get("sides", {}):
        raise ConfigError(f"--calibrate {path}: must be a step.json of `grasp-rl bench step` with our side in it")
    task, measured = found["task"], found["sides"]["ours"]["cpu_s"]["median"]
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder), SHAPES["standard"])
        policy = {
            "_target_": "grasp_rl.policies.hf_vlm.HfVlmPolicy",
            "path": folder,
            "dtype": "float32",
            "lora_rank": 16 if task["mode"] == "lora" else 0,
            "train_tower": task["mode"] == "full",
            "image": {"max_pixels": task["side"] ** 2, "resize": "square"},
        }
        shapes = shapes_of(policy, (task["side"], task["side"]))
    load = Load(
        prompt=task["prompt_tokens"],
        completion=task["length"],
        group=task["groups"],
        prompts=1,
        micro_batch=1,
        rows=task["groups"],
        recompute="none",
        kl=True,
    )
    predicted = step_seconds(shapes, load, Layout(), this_cpu(1.0))
    ratio = measured / predicted["step"]
    return {
        "measured_s": measured,
        "predicted_s": predicted,
        "ratio": ratio,
        "sentence": f"measured {measured:.2f} s, predicted {predicted['step']:.2f} s: ratio {ratio:.2f}",
    }
