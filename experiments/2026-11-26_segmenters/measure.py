"""Segmenters on the same drawn scenes and prompts: mean IoU by kind of prompt, milliseconds, size of the weights.

python experiments/2026-11-26_segmenters/measure.py --scenes 256
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grasp_rl.config.targets import instantiate
from grasp_rl.data.synthetic.dataset import SyntheticSource
from grasp_rl.launch.compose import option
from grasp_rl.segmenters.synthetic.build import PACKAGED, packaged
from grasp_rl.training.fit_scores import host, instances_of, prompts_of

HERE = Path(__file__).parent


def measured(segmenter: Any, split: Any, scenes: int) -> dict[str, float]:
    """Mean IoU of every kind; medians of milliseconds an image and a prompt (all of a scene's of one kind together)."""
    found: dict[str, list[float]] = {}
    encoding, decoding = [], []
    for index in range(scenes):
        image, masks = instances_of(split, index)
        if not masks:
            continue
        began = time.perf_counter()
        embedding = segmenter.encode(image)
        encoding.append(time.perf_counter() - began)
        for kind, prompts in prompts_of(masks, index).items():
            began = time.perf_counter()
            predicted = host(segmenter.decode(embedding, prompts).masks)
            decoding.append((time.perf_counter() - began) / len(prompts))
            pairs = zip(predicted, masks, strict=True)
            found.setdefault(kind, []).extend(float((a & b).sum() / (a | b).sum()) for a, b in pairs)
    scores = {kind: float(np.mean(values)) for kind, values in found.items()}
    times = {"encode_ms": 1000 * float(np.median(encoding)), "prompt_ms": 1000 * float(np.median(decoding))}
    return {**scores, "instances": len(next(iter(found.values()))), **times}


def kilobytes(name: str) -> int | str:
    path = str(option(f"segmenter/{name}").get("path", ""))
    folder = packaged(path.removeprefix(PACKAGED)) if path.startswith(PACKAGED) else None
    return round((folder / "model.safetensors").stat().st_size / 1000) if folder else ""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scenes", type=int, default=256)
    parser.add_argument("--segmenters", nargs="+", default=["grabcut", "synthetic_sam2_small", "synthetic_sam_base"])
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    source = SyntheticSource(test_size=max(512, arguments.scenes))
    for name in arguments.segmenters:
        rows = []
        segmenter = instantiate(option(f"segmenter/{name}"))
        for split in ("test", "test_ood"):
            numbers = measured(segmenter, source.split(split), arguments.scenes)
            rows.append({"segmenter": name, "split": split, "kB": kilobytes(name), **numbers})
            print({key: round(value, 3) if isinstance(value, float) else value for key, value in rows[-1].items()})
        with (HERE / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
