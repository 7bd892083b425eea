"""`grasp-rl bench`: choose a benchmark by its name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

BENCHMARKS = {
    "segment": "the reward of one group through a promptable segmenter, and its embedding cache",
    "demo": "the demo's optimizer step, here and in a naive loop",
    "step": "one optimizer step of GRPO, here and in TRL's GRPOTrainer",
    "data": "how long a dataset of a million rows takes to start from, and how fast images are read",
}
"""Name, a module of this package with ``main(argv)``, and what it measures."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``grasp-rl bench <argv>`` and return its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    lines = [f"  {name:<10} {text}" for name, text in BENCHMARKS.items()]
    usage = "\n".join(["Usage: grasp-rl bench WHAT [arguments]", "", *lines, "", "  grasp-rl bench WHAT --help"]) + "\n"
    if not args or args[0] in ("--help", "-h", "help"):
        sys.stdout.write(usage)
        return 0
    if args[0] not in BENCHMARKS:
        sys.stderr.write(f"grasp-rl bench: {args[0]}: must be one of {', '.join(BENCHMARKS)}\n")
        return 2
    code: int = importlib.import_module(f"grasp_rl.bench.{args[0]}").main(args[1:])
    return code
