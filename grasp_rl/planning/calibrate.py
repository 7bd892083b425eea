"""How well a step is predicted: a measured one of `grasp-rl bench step` against the same sums."""

from __future__ import annotations

import tempfile
from dataclasses import fields, replace
from pathlib import Path

from grasp_rl.config.errors import ConfigError
from grasp_rl.planning.hardware import Device
from grasp_rl.planning.load import Layout, Load
from grasp_rl.planning.memory import memory_gib
from grasp_rl.planning.shapes import Shapes, shapes_of
from grasp_rl.planning.step_model import LORA_RANK, Shape, save_config
from grasp_rl.planning.timing import step_seconds
from grasp_rl.utils.files import Record, read_json

_PHASES = {"prefill": ("vision_encoder", "prefill"), "decode": ("decode",), "reference": ("reference",),
           "update": ("policy", "backward", "optimizer")}  # fmt: skip
"""Ours, and the benchmark's that they are made of; a trained vision encoder's are all counted with prefill there."""


def correction(path: Path, device: Device) -> Record:
    """Measured over predicted seconds and memory of our side in a step.json, on the device that it was measured on.

    Seconds are CPU-seconds on a CPU, by the clock on a GPU. Memory is what a step adds to the loaded model.

    Raises:
        ConfigError: it is no such file, or was measured on another kind of device.
    """
    result = read_json(path)
    if result is None or result.get("benchmark") != "step" or "ours" not in result.get("sides", {}):
        raise ConfigError(f"--calibrate {path}: must be a step.json of `grasp-rl bench step` with our side in it")
    task, ours = result["task"], result["sides"]["ours"]
    if (task["device"] == "cpu") != (device.name == "cpu"):
        raise ConfigError(f"--calibrate {path}: was measured on {task['device']}; say which device with --gpu")
    shapes, questions = _shapes(task, result["model"]), task.get("questions", 1)
    load = Load(
        prompt=task["prompt_tokens"],
        completion=task["length"],
        group=task["groups"],
        prompts=questions,
        micro_batch=1,
        generated=questions,
        rows=questions * task["groups"],
        recompute="none",
        kl=True,
        varlen=task["device"] != "cpu",
    )
    measured = ours["cpu_s" if device.name == "cpu" else "wall_s"]["median"]
    predicted = step_seconds(shapes, load, device)
    memory = memory_gib(shapes, load, Layout())
    added = memory["activations"] + memory["logits"] + memory["gradients"] + memory["optimizer"] + memory["reference"]
    phases = {name: sum(ours["phases_s"].get(part, 0.0) for part in parts) for name, parts in _PHASES.items()}
    peak = ours["peak_mib"]["median"] / 1024
    ratio, memory_ratio = measured / predicted["step"], peak / added
    return {
        "measured_s": {**phases, "step": measured},
        "predicted_s": predicted,
        "ratio": ratio,
        "measured_gib": peak,
        "predicted_gib": added,
        "memory_ratio": memory_ratio,
        "sentence": f"a step: measured {measured:.2f} s, predicted {predicted['step']:.2f} s, ratio {ratio:.2f}; "
        f"its memory: measured {peak:.2f} GiB, predicted {added:.2f} GiB, ratio {memory_ratio:.2f}",
    }


def corrected(device: Device, ratio: float) -> Device:
    """``device`` as much slower or faster as the measured step was."""
    return replace(
        device,
        compute_share=device.compute_share / ratio,
        bandwidth_share=device.bandwidth_share / ratio,
        measured=True,
    )


def _shapes(task: Record, model: Record) -> Shapes:
    shape = Shape(**{field.name: model[field.name] for field in fields(Shape) if field.name in model})
    with tempfile.TemporaryDirectory() as folder:
        save_config(Path(folder), shape)
        policy = {
            "_target_": "grasp_rl.policies.pretrained.HfVlmPolicy",
            "path": folder,
            "dtype": "float32" if task["device"] == "cpu" else "bfloat16",
            "lora_rank": LORA_RANK if task["mode"] == "lora" else 0,
            "train_vision_encoder": task["mode"] == "full",
            "image": {"max_pixels": task["side"] ** 2, "resize": "square"},
        }
        return shapes_of(policy, (task["side"], task["side"]))
