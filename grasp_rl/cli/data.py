"""`grasp-rl data`: check a dataset, look at it. No torch."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.messages import of_system
from grasp_rl.data.annotations import annotations_path
from grasp_rl.data.base import RecordDataset, Split
from grasp_rl.data.image_io import MAX_PIXELS, write_image
from grasp_rl.data.readers.jsonl import JsonlSource
from grasp_rl.data.synthetic.dataset import SyntheticSource
from grasp_rl.data.validate import Report, validate
from grasp_rl.utils.text import printable


def main(argv: Sequence[str]) -> int:
    """Run ``grasp-rl data <argv>``: 0 done, 1 bad rows or a file that cannot be written, 2 nothing there to work on."""
    arguments = _parser().parse_args(argv)
    try:
        return _validate(arguments) if arguments.command == "validate" else _show(arguments)
    except (ConfigError, OSError) as error:
        sys.stderr.write(printable(f"grasp-rl data {arguments.command}: {of_system(error)}") + "\n")
        return 2 if isinstance(error, ConfigError) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="grasp-rl data", description="Check a dataset, or look at it.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{validate,show}")
    check = commands.add_parser("validate", help="check every row; exit 1 if one is bad")
    check.add_argument("root", help="a folder with annotations.jsonl, or such a file")
    check.add_argument("--strict", action="store_true", help="what is only unlikely is an error, too")
    check.add_argument("--json", action="store_true", help="one JSON object on stdout")
    check.add_argument("--max-pixels", type=_positive, default=MAX_PIXELS, metavar="N", help="largest image to decode")
    show = commands.add_parser("show", help="draw samples with their question, mask and cues")
    show.add_argument("root", help="a folder with annotations.jsonl, such a file, or the word synthetic")
    show.add_argument("--split", help="train where there is one, else the first")
    show.add_argument("--count", type=_positive, default=8, metavar="N", help="samples to draw (8)")
    show.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the images")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number >= 1")
    return int(text)


def _validate(arguments: argparse.Namespace) -> int:
    report = validate(annotations_path(arguments.root), arguments.max_pixels, strict=arguments.strict)
    text = json.dumps(report.as_record()) + "\n" if arguments.json else _as_text(report)
    sys.stdout.write(text)
    return 0 if report.ok else 1


def _as_text(report: Report) -> str:
    said = {"error": "", "warning": "warning: "}
    lines = [f"{report.path}:{finding.line}: {said[finding.level]}{finding.problem}" for finding in report.findings]
    lines += [f"{'split':<12}{'rows':>8}{'no target':>12}"] if report.splits else []
    for name, count in report.splits.items():
        lines.append(f"{name:<12}{count:>8}{report.no_target[name] / count:>12.0%}")
    if report.kinds:
        lines.append("given as " + ", ".join(f"{kind} ({count})" for kind, count in report.kinds.items()))
    warned = f", {report.warnings} warnings" if report.warnings else ""
    share = f"{report.no_target_share:.0%} of the good ones without target"
    lines.append(f"{report.rows} rows, {report.bad} bad{warned}, {share}")
    return "".join(f"{printable(line)}\n" for line in lines)


def _show(arguments: argparse.Namespace) -> int:
    dataset = _split_of(arguments.root, arguments.split)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for index in range(min(arguments.count, len(dataset))):
        sample = dataset[index]
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", sample.sample_id).strip("._")[:80]
        path = arguments.out / f"{index:03d}_{name}.png"
        write_image(path, dataset.plot(sample))
        sys.stdout.write(printable(f"{path}  {sample.query}") + "\n")
    return 0


def _split_of(root: str, split: str | None) -> Split:
    dataset: RecordDataset = SyntheticSource() if root == "synthetic" else JsonlSource(root)
    return dataset.split(split or ("train" if "train" in dataset.splits() else dataset.splits()[0]))
