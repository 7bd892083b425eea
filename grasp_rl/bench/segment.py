"""`grasp-rl bench segment`: what encoding once and decoding together saves, against one call a completion.

Random weights of published shapes: the arithmetic is that of the real model, the masks are noise. One thread; all
ratios are of times taken in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grasp_rl.config.schema import ParsingConfig, PromptConfig
from grasp_rl.interfaces import CoordinateFrame
from grasp_rl.prompts.render import format_answer
from grasp_rl.rewards.rubric import Rubric
from grasp_rl.rewards.terms.masks import MaskIou
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.runs.environment import version_of
from grasp_rl.segmenters.sam import SamSegmenter
from grasp_rl.segmenters.sam2 import Sam2Segmenter
from grasp_rl.segmenters.weights import build
from grasp_rl.types import Completion, FinishReason, Image, Sample, SpatialPrompt
from grasp_rl.utils import memory
from grasp_rl.utils.files import Record

SIDE = 1024
GROUP, INSTANCES = 16, 3
SCHEME = PromptConfig(positive_points=2)


def random_sam2(folder: Path, **options: Any) -> Sam2Segmenter:
    """SAM 2 Hiera-tiny with random weights, saved and loaded as a checkpoint is."""
    torch.manual_seed(0)
    if not (folder / "config.json").is_file():
        build(Sam2Segmenter.MODEL, Sam2Segmenter.ARCHITECTURES["hiera_tiny"]).save_pretrained(folder)
    return Sam2Segmenter(str(folder), **options)


def random_sam(folder: Path, **options: Any) -> SamSegmenter:
    """SAM ViT-B with random weights, saved and loaded as a checkpoint is."""
    torch.manual_seed(0)
    if not (folder / "config.json").is_file():
        build(SamSegmenter.MODEL, SamSegmenter.ARCHITECTURES["vit_b"]).save_pretrained(folder)
    return SamSegmenter(str(folder), **options)


def task(group: int, instances: int) -> tuple[Sample, CoordinateFrame, list[Completion]]:
    """One image of 1024 x 1024, and ``group`` completions of ``instances`` different boxes with two points each."""
    draw = np.random.default_rng(0)
    image = draw.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    mask = np.zeros((SIDE, SIDE), dtype=np.bool_)
    mask[200:700, 300:800] = True
    sample = Sample(
        sample_id="bench", image=image, query="q", target_mask=mask, weak_labels=None, dataset="bench", split="test"
    )
    frame = CoordinateFrame(width=SIDE, height=SIDE, image_width=SIDE, image_height=SIDE)
    completions = []
    for _ in range(group):
        prompts = []
        for place in range(instances):
            x, y = place * 340 + draw.uniform(0, 60), draw.uniform(0, 600)
            w, h = draw.uniform(60, 250), draw.uniform(60, 400)
            points = ((x + 0.3 * w, y + 0.5 * h), (x + 0.7 * w, y + 0.5 * h))
            prompts.append(SpatialPrompt(box=(x, y, x + w, y + h), point_coords=points, point_labels=(1, 1)))
        text = format_answer(prompts, "t", frame, SCHEME)
        completions.append(Completion(token_ids=(1,), logprobs=(0.0,), text=text, finish_reason=FinishReason.STOP))
    return sample, frame, completions


class Counter:
    """Counts passes of a model's image encoder and mask decoder by forward hooks."""

    def __init__(self, segmenter: Any) -> None:
        self.calls = {"encoder": 0, "decoder": 0}
        segmenter.model.vision_encoder.register_forward_hook(lambda *_: self._count("encoder"))
        segmenter.model.mask_decoder.register_forward_hook(lambda *_: self._count("decoder"))

    def _count(self, name: str) -> None:
        self.calls[name] += 1

    def take(self) -> dict[str, int]:
        """The counts since the last call."""
        taken, self.calls = self.calls, dict.fromkeys(self.calls, 0)
        return taken


def per_completion(
    pipeline: RewardPipeline, sample: Sample, frame: CoordinateFrame, completions: Sequence[Completion]
) -> list[float]:
    """The reward as loops do it that take each completion by itself.

    The image is encoded for every completion, every instance is decoded alone, masks come to host memory, and union
    and IoU are NumPy's; as in the public training code of Think2Seg-RS.
    """
    from grasp_rl.prompts.parse import parse

    result = []
    for completion in completions:
        answer = parse(completion.text, SCHEME, frame, pipeline.parsing)
        embedding = pipeline.segmenter.encode(sample.image)
        union = np.zeros(sample.size, dtype=np.bool_)
        for prompt in answer.prompts:
            union |= pipeline.segmenter.decode(embedding, [prompt]).union
        target = sample.target_mask
        assert target is not None
        either = np.count_nonzero(union | target)
        result.append(float(np.count_nonzero(union & target) / either))
    return result


def timed(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """The shortest of ``repeats`` wall-clock times in seconds, and what the last run returned."""
    best, result = float("inf"), None
    for _ in range(repeats):
        began = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - began)
    return best, result


def reward_row(folder: Path, repeats: int) -> Record:
    """The whole reward of one group, ours and one call a completion."""
    segmenter = random_sam2(folder / "sam2")
    pipeline = RewardPipeline(
        segmenter=segmenter, reward=Rubric({"mask_iou": MaskIou()}), prompt=SCHEME, parsing=ParsingConfig()
    )
    sample, frame, completions = task(GROUP, INSTANCES)
    counter = Counter(segmenter)
    pipeline.run(sample, frame, completions)  # warm-up
    ours_calls = counter.take()
    ours, rollouts = timed(lambda: pipeline.run(sample, frame, completions), repeats)
    counter.take()
    theirs, rewards = timed(lambda: per_completion(pipeline, sample, frame, completions), 1)
    theirs_calls = counter.take()
    difference = max(abs(r.reward.reward - other) for r, other in zip(rollouts, rewards, strict=True))
    return {
        "group": GROUP,
        "instances": INSTANCES,
        "ours_s": ours,
        "per_completion_s": theirs,
        "ratio": ours / theirs,
        "ours_calls": ours_calls,
        "per_completion_calls": theirs_calls,
        "largest_reward_difference": difference,
    }


def cache_row(folder: Path, repeats: int) -> Record:
    """Encoding with SAM ViT-B against reading its embedding from memory and from disk."""
    image: Image = task(1, 1)[0].image
    row: Record = {}
    for kind in ("ram", "disk"):
        segmenter = random_sam(folder / "sam", cache=kind, cache_dir=str(folder / "cache"))
        row["encode_s"], _ = timed(lambda: segmenter.encode(image), 1)  # noqa: B023
        row[f"{kind}_s"], _ = timed(lambda: segmenter.encode(image), max(3, repeats))  # noqa: B023
        row[f"{kind}_ratio"] = row["encode_s"] / row[f"{kind}_s"]
    return row


def memory_row(folder: Path) -> Record:
    """Peak resident memory of processes that decode 16 and 64 prompts, in MiB."""
    row: Record = {}
    for count in (16, 64):
        command = [
            sys.executable,
            "-P",
            "-m",
            "grasp_rl.bench.segment",
            "--prompts",
            str(count),
            "--folder",
            str(folder),
        ]
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
        row[f"prompts_{count}_mib"] = float(ended.stdout)
    row["ratio"] = row["prompts_64_mib"] / row["prompts_16_mib"]
    return row


def peak_of(folder: Path, count: int) -> float:
    """Peak resident memory in MiB of encoding one image and decoding ``count`` prompts in this process."""
    segmenter = random_sam2(folder / "sam2")
    sample, frame, completions = task(count, 1)
    pipeline = RewardPipeline(
        segmenter=segmenter, reward=Rubric({"mask_iou": MaskIou()}), prompt=SCHEME, parsing=ParsingConfig()
    )
    pipeline.run(sample, frame, completions)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def table(found: Record) -> str:
    """The measurements as Markdown."""
    reward, cache, memory = found["reward"], found["cache"], found["memory"]
    ours, theirs = reward["ours_calls"], reward["per_completion_calls"]
    lines = [
        "| what | ours | one call a completion | ratio | target |",
        "|---|---|---|---|---|",
        f"| encoder passes, G={GROUP} x {INSTANCES} instances | {ours['encoder']} | {theirs['encoder']} | | 1 |",
        f"| decoder calls | {ours['decoder']} | {theirs['decoder']} | | <= 2 |",
        f"| whole reward, SAM 2 Hiera-tiny | {reward['ours_s']:.2f} s | {reward['per_completion_s']:.2f} s | "
        f"1/{1 / reward['ratio']:.1f} | <= 1/8 |",
        "",
        "| what | encoding | cached | ratio | target |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| SAM ViT-B embedding, {kind} | {cache['encode_s']:.2f} s | {1000 * cache[f'{kind}_s']:.1f} ms | "
        f"{cache[f'{kind}_ratio']:.0f} | >= 20 |"
        for kind in ("ram", "disk")
    ]
    lines += [
        "",
        "| what | 16 prompts | 64 prompts | ratio | target |",
        "|---|---|---|---|---|",
        f"| peak resident memory | {memory['prompts_16_mib']:.0f} MiB | {memory['prompts_64_mib']:.0f} MiB | "
        f"{memory['ratio']:.2f} | <= 1.5 |",
        "",
        f"{found['machine']}, one thread, {found['date']}; torch {found['torch']}, "
        f"transformers {found['transformers']}.",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``grasp-rl bench segment <argv>`` and return its exit code."""
    parser = argparse.ArgumentParser(prog="grasp-rl bench segment", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2, help="the shortest of so many times counts (default 2)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--prompts", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if not memory.SETTINGS.keys() <= os.environ.keys():  # read when a process starts; the workers have them
        again = [sys.executable, "-P", "-m", "grasp_rl.bench.segment", *(sys.argv[1:] if argv is None else argv)]
        os.execve(sys.executable, again, memory.environment())
    torch.set_num_threads(1)
    if arguments.prompts:
        sys.stdout.write(str(peak_of(arguments.folder, arguments.prompts)))
        return 0
    with tempfile.TemporaryDirectory(prefix="grasp_rl_bench_") as name:
        folder = Path(name)
        result: Record = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{platform.machine()} CPU",
            "torch": version_of("torch"),
            "transformers": version_of("transformers"),
            "reward": reward_row(folder, arguments.repeats),
            "cache": cache_row(folder, arguments.repeats),
            "memory": memory_row(folder),
        }
    sys.stdout.write(json.dumps(result) + "\n" if arguments.json else table(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
