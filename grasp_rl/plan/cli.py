"""`grasp-rl plan`: memory, time and disk of a run or a sweep, before anything runs.

Counts come from the config and the model's shape, peaks from the makers' data sheets. No GPU has been measured by this
project: what a step reaches of the peaks is assumed, see grasp_rl/plan/hardware.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from grasp_rl import compose, explain, runs
from grasp_rl.config import ConfigError, RunConfig
from grasp_rl.job import Job
from grasp_rl.plan.calibrate import correction
from grasp_rl.plan.estimate import Assumptions, Estimate, advice, estimate, picture_of
from grasp_rl.plan.hardware import DEVICES, Device, device_of
from grasp_rl.schema import to_config
from grasp_rl.types import Record

DOES_NOT_FIT = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``grasp-rl plan <argv>``: exit 0 where everything fits, 3 where something does not, 2 for a wrong line."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except (ConfigError, OSError) as error:
        sys.stderr.write(f"grasp-rl plan: {explain.of_system(error)}\n")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="grasp-rl plan",
        description=(__doc__ or "").splitlines()[0],
        epilog="All other words are those of `grasp-rl train`, -m for a sweep included. Exit code 3: does not fit.",
    )
    parser.add_argument("--gpu", default="h100", metavar="NAME", help=f"{', '.join(DEVICES)} or cpu (default: h100)")
    parser.add_argument("--memory-gib", type=float, help="its memory, if not the usual")
    parser.add_argument("--tflops", type=float, help="its peak of dense bfloat16 arithmetic, 10^12 a second")
    parser.add_argument("--bandwidth-gbs", type=float, help="its peak bandwidth, 10^9 bytes a second")
    parser.add_argument("--prompt-tokens", type=int, default=330, help="beside the picture (default: %(default)s)")
    parser.add_argument("--completion-tokens", type=int, help="mean length (default: rollout.max_new_tokens)")
    parser.add_argument("--picture", metavar="WxH", help="pixels (default: the largest that the policy takes)")
    parser.add_argument("--calibrate", type=Path, metavar="STEP_JSON", help="say how a measured step was predicted")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return parser


def _run(words: list[str]) -> int:
    flags, rest = _parser().parse_known_args(words)
    console = Console(stderr=flags.json, highlight=False, markup=False, soft_wrap=True)
    if flags.calibrate:
        found = correction(flags.calibrate)
        console.print(found["sentence"])
        if flags.json:
            sys.stdout.write(json.dumps(found) + "\n")
        return 0
    device = device_of(flags.gpu, flags.memory_gib, flags.tflops, flags.bandwidth_gbs)
    picture = _picture(flags.picture)
    jobs = _jobs(rest)
    rows: list[tuple[str, RunConfig, Assumptions, Estimate]] = []
    for job in jobs:
        config = to_config(job.config)
        assumed = Assumptions(
            prompt_tokens=flags.prompt_tokens,
            completion_tokens=flags.completion_tokens,
            picture=picture_of(config, picture),
        )
        rows.append((job.run_dir.name, config, assumed, estimate(config, device, assumed)))
    if len(rows) == 1:
        console.print(_bill(rows[0][3], device))
    else:
        console.print(_table(rows))
    told: dict[str, list[str] | None] = {}
    for name, config, assumed, bill in rows:
        if not bill.fits:
            told[name] = advice(config, device, assumed)
            console.print(_said(name if len(rows) > 1 else "it", bill, device, told[name]))
    if not device.measured:
        console.print(
            f"Assumed, not measured on a GPU: {device.compute_share:.0%} of the peak arithmetic in forward and "
            f"backward, {device.bandwidth_share:.0%} of the peak bandwidth in decoding."
        )
    if flags.json:
        sys.stdout.write(json.dumps(runs.plain(_as_record(device, rows, told)), allow_nan=False) + "\n")
    return DOES_NOT_FIT if told else 0


def _jobs(words: list[str]) -> list[Job]:
    """The jobs that `grasp-rl train` would run."""
    flags = compose.parse_flags([*words, "verb=train"])
    trusted = compose.trusted_on(flags.overrides)
    with compose.hydra("train") as engine:
        if flags.multirun or compose.is_sweep(engine, flags.overrides):
            jobs = compose.sweep(engine, flags.overrides, trusted)[1]
            if not jobs:
                raise ConfigError("hydra/sweeper: decides its jobs while it runs; plan one of them")
            return jobs
        return [compose.single(engine, flags.overrides, trusted)]


def _picture(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise ConfigError(f"--picture {text}: must be WIDTHxHEIGHT in pixels, for example 840x840")
    return int(width), int(height)


def _bill(bill: Estimate, device: Device) -> Table:
    table = Table("", "", box=None, pad_edge=False, show_header=False)
    for part, gib in bill.memory.items():
        if gib >= 0.005:
            share = f" of {device.memory_gib:.0f} on {device.name}" if part == "peak" else ""
            table.add_row(f"memory: {part}", f"{gib:.2f} GiB{share}")
    for phase, seconds in bill.seconds.items():
        table.add_row(f"seconds: {phase}", f"{seconds:.2f}")
    table.add_row("device-hours", f"{bill.device_hours:.2f}")
    table.add_row("disk", f"{bill.disk_gib:.2f} GiB")
    return table


def _table(rows: Sequence[tuple[str, RunConfig, Assumptions, Estimate]]) -> Table:
    table = Table("job", "peak GiB", "s/step", "device-hours", "disk GiB", "fits", box=None, pad_edge=False)
    for name, _, _, bill in rows:
        numbers = (bill.memory["peak"], bill.seconds["step"], bill.device_hours, bill.disk_gib)
        table.add_row(name, *(f"{number:.2f}" for number in numbers), "yes" if bill.fits else "no")
    hours, disk = sum(row[3].device_hours for row in rows), sum(row[3].disk_gib for row in rows)
    table.add_row(f"{len(rows)} jobs", "", "", f"{hours:.2f}", f"{disk:.2f}", "")
    return table


def _said(name: str, bill: Estimate, device: Device, told: list[str] | None) -> str:
    needs = f"{name} needs {bill.memory['peak']:.1f} GiB, {device.name} has {device.memory_gib:.0f}"
    if told is None:
        return f"{needs}; no single device's keys make it fit: take engine=zero3 over several, or a smaller policy"
    return f"{needs}; it fits with {' '.join(told)}"


def _as_record(
    device: Device,
    rows: Sequence[tuple[str, RunConfig, Assumptions, Estimate]],
    told: dict[str, list[str] | None],
) -> Record:
    jobs = [
        {"job": name, **asdict(bill), "picture": assumed.picture, "advice": told.get(name)}
        for name, _, assumed, bill in rows
    ]
    return {"device": asdict(replace(device)), "jobs": jobs}
