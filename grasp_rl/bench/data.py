"""`grasp-rl bench data`: how long a large set takes to start from, in what memory, and how fast its images are read.

A drawn annotations file of as many rows as asked, 64 images of 800 x 800 beside it. Each figure is of a process of its
own on one thread: the first start checks every row and keeps a table, the next ones open it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from grasp_rl.utils.files import Record

SIDE, IMAGES = 800, 64
READ = 60
"""Samples whose images are read."""


def write_set(root: Path, rows: int) -> None:
    """A dataset of ``rows`` rows with boxes, 1 % of them for validation and test, its images JPEG."""
    import cv2
    import numpy as np

    draw = np.random.default_rng(0)
    for number in range(IMAGES):
        coarse = draw.integers(0, 255, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
        cv2.imwrite(str(root / f"{number:03d}.jpg"), cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC))
    with (root / "annotations.jsonl").open("w", encoding="utf-8") as file:
        for number in range(rows):
            x, y = number * 37 % 700, number * 91 % 700
            row = {
                "id": f"row-{number}", "image": f"{number % IMAGES:03d}.jpg", "query": f"where does road {number} end?",
                "split": ("val", "test")[number // 100 % 2] if number % 100 == 0 else "train",
                "boxes": [[x, y, x + 60, y + 40]],
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")


def start(root: Path) -> Record:
    """Seconds and MiB of this process until its first sample, and images per second after it."""
    began = time.perf_counter()
    from grasp_rl.data.readers.jsonl import JsonlSource

    split = JsonlSource(root=str(root)).split("train")
    split.check_questions(lambda query, _: None if query else "query: empty")
    _ = split[0]
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.perf_counter()
    for index in range(1, READ + 1):
        _ = split[index * 7919 % len(split)]
    return {
        "rows": len(split),
        "start_s": seconds,
        "peak_mib": peak,
        "images_per_s": READ / (time.perf_counter() - began),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``grasp-rl bench data <argv>`` and return its exit code."""
    parser = argparse.ArgumentParser(prog="grasp-rl bench data", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.rows < 100:
        parser.error("--rows: must be >= 100")
    if arguments.root:
        sys.stdout.write(json.dumps(start(arguments.root)))
        return 0
    with tempfile.TemporaryDirectory(prefix="grasp_rl_bench_") as name:
        root = Path(name) / "set"
        root.mkdir()
        write_set(root, arguments.rows)
        environment = os.environ | {"XDG_CACHE_HOME": str(Path(name) / "cache"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-m", "grasp_rl.bench.data", "--root", str(root)]
        runs = [
            json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
            for _ in range(2)
        ]
    result = {"file_rows": arguments.rows, "first": runs[0], "next": runs[1]}
    sys.stdout.write(json.dumps(result) + "\n" if arguments.json else table(result))
    return 0


def table(found: Record) -> str:
    """The measurements as Markdown."""
    lines = [
        "| start | seconds to the first sample | peak memory, MiB | images of 800 x 800 a second |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {found[name]['start_s']:.1f} | {found[name]['peak_mib']:.0f} | {found[name]['images_per_s']:.0f} |"
        for name in ("first", "next")
    ]
    return "\n".join([f"{found['file_rows']:,} rows, one thread", "", *lines, ""])


if __name__ == "__main__":
    sys.exit(main())
