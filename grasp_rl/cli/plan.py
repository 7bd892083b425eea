"""`grasp-rl plan`: memory, time and disk of a run or a sweep, before anything runs.

Counts come from the config and the model's shape, peaks from the makers' data sheets. What a step reaches of the
peaks was measured with one model on one H100, see grasp_rl/planning/hardware.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.table import Table

from grasp_rl.config import messages
from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import RunConfig
from grasp_rl.config.targets import to_config
from grasp_rl.launch import compose
from grasp_rl.launch.process import Job
from grasp_rl.planning.advice import MORE_DEVICES, advice
from grasp_rl.planning.calibrate import corrected, correction
from grasp_rl.planning.estimate import Assumptions, Estimate, estimate, image_of, text_tokens
from grasp_rl.planning.hardware import DEVICES, Device, device_of
from grasp_rl.planning.plausibility import doubts
from grasp_rl.utils.console import PlainConsole, PlainTable
from grasp_rl.utils.files import Record, to_json

DOES_NOT_FIT = 3
UNREAD = ("data",)
"""Groups that no estimate reads: their folders need not be named."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``grasp-rl plan <argv>``: exit 0 where everything fits, 3 where something does not, 2 for a wrong line."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(args)
    except (ConfigError, OSError) as error:
        sys.stderr.write(f"grasp-rl plan: {messages.of_system(error)}\n")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="grasp-rl plan",
        usage="grasp-rl plan [the words of grasp-rl train, -m for a sweep included] [flags]",
        description=(__doc__ or "").splitlines()[0],
        epilog="Exit code 0: all of it fits. 3: something does not. 2: the command line is wrong.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--gpu", metavar="NAME", help=f"{', '.join(DEVICES)} or cpu (default: h100)")
    parser.add_argument("--gpus", type=int, metavar="N", help="how many there are: engine.nproc, and what is advised")
    parser.add_argument("--memory-gib", type=float, metavar="X", help="its memory, if not the usual")
    parser.add_argument("--tflops", type=float, metavar="X", help="its peak of dense bfloat16, 10^12 a second")
    parser.add_argument("--bandwidth-gbs", type=float, metavar="X", help="its peak bandwidth, 10^9 bytes a second")
    parser.add_argument(
        "--prompt-tokens", type=int, metavar="N", help="beside the image (default: about what templates take)"
    )
    parser.add_argument(
        "--completion-tokens", type=int, metavar="N", help="mean length (default: rollout.max_new_tokens)"
    )
    parser.add_argument("--image", metavar="WxH", help="pixels (default: the largest that the policy takes)")
    parser.add_argument(
        "--calibrate", type=Path, metavar="STEP_JSON",
        help="of `grasp-rl bench step` on such a device: say how it is predicted; with --gpu, correct the plan by it",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return parser


def _run(args: list[str]) -> int:
    flags, rest = _flags(args)
    console = PlainConsole(stderr=flags.json, highlight=False, markup=False, soft_wrap=True)
    device = device_of(flags.gpu or "h100", flags.memory_gib, flags.tflops, flags.bandwidth_gbs)
    result: Record | None = None
    if flags.calibrate:
        result = correction(flags.calibrate, device if flags.gpu else device_of("cpu", None, None, None))
        console.print(result["sentence"])
        if not flags.gpu:
            _print_json(flags, {"calibration": result})
            return 0
        device = corrected(device, result["ratio"])
    jobs = _jobs(rest)
    planned = [_planned(job, swept, flags, device) for job, swept in zip(jobs, _swept(jobs), strict=True)]
    console.print(_bill(planned[0].bill, device) if len(planned) == 1 else _table(planned))
    advised = {}
    for job in planned:
        if not job.bill.fits:
            advised[job.name] = advice(job.config, device, job.assumed, flags.gpus)
            name = job.title if len(planned) > 1 else "it"
            console.print(_said(name, job.bill, device, advised[job.name], flags.gpus))
    for doubt in dict.fromkeys([*(d for job in planned for d in _doubts(job.config)), *_much_disk(planned)]):
        console.print(f"warning: {doubt}")
    console.print(_assumed(planned, flags))
    if not device.measured:
        console.print(
            f"Assumed, as measured with a 3B model on one H100: {device.compute_share:.0%} of the peak arithmetic in "
            f"forward and backward, {device.bandwidth_share:.0%} of the peak bandwidth in decoding; "
            f"{device.reserve:.0%} more memory than is held."
        )
    _print_json(flags, _as_record(device, planned, advised) | ({"calibration": result} if result else {}))
    return DOES_NOT_FIT if advised else 0


def _flags(args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our own flags, and the words that are Hydra's."""
    try:
        flags, rest = _parser().parse_known_args(args)
    except argparse.ArgumentError as error:
        raise ConfigError(str(error)) from error
    for name in ("gpus", "prompt_tokens", "completion_tokens"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: must be >= 1")
    return flags, rest


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One job and its bill."""

    name: str
    """Of its folder."""
    swept: tuple[str, ...]
    """The overrides in which it differs from another job of the sweep."""
    config: RunConfig
    assumed: Assumptions
    bill: Estimate

    @property
    def title(self) -> str:
        """What a person calls it."""
        return " ".join(self.swept) or self.name


def _swept(jobs: Sequence[Job]) -> list[tuple[str, ...]]:
    """Of each job the overrides that not all of them have."""
    common = set(jobs[0].point).intersection(*(job.point for job in jobs))
    return [tuple(word for word in job.point if word not in common) for job in jobs]


def _planned(job: Job, swept: tuple[str, ...], flags: argparse.Namespace, device: Device) -> Planned:
    config = to_config(job.config)
    if flags.gpus and config.engine.name != "local":
        config.engine = replace(config.engine, nproc=flags.gpus, nnodes=1, node_rank=None)
    assumed = Assumptions(
        prompt_tokens=flags.prompt_tokens,
        completion_tokens=flags.completion_tokens,
        image=image_of(config, _image(flags.image)),
    )
    bill = estimate(config, device, assumed)
    return Planned(name=job.run_dir.name, swept=swept, config=config, assumed=assumed, bill=bill)


def _jobs(args: list[str]) -> list[Job]:
    """The jobs that `grasp-rl train` would run."""
    flags = compose.parse_flags([*args, "command=train"])
    trusted = compose.trusted_on(flags.overrides)
    with compose.hydra("train") as engine:
        if flags.multirun or compose.is_sweep(engine, flags.overrides):
            jobs = compose.sweep(engine, flags.overrides, trusted, UNREAD)[1]
            if not jobs:
                raise ConfigError("hydra/sweeper: decides its jobs while it runs; plan one of them")
            return jobs
        return [compose.single(engine, flags.overrides, trusted, UNREAD)]


def _image(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise ConfigError(f"--image {text}: must be WIDTHxHEIGHT in pixels, for example 840x840")
    return int(width), int(height)


def _bill(bill: Estimate, device: Device) -> Table:
    table = PlainTable("", "", box=None, pad_edge=False, show_header=False)
    for part, gib in bill.memory.items():
        if gib >= 0.005:
            share = f" of {device.memory_gib:.0f} on {device.name}" if part == "peak" else ""
            table.add_row(f"memory: {part}", f"{gib:.2f} GiB{share}")
    for phase, seconds in bill.seconds.items():
        table.add_row(f"seconds: {phase}", f"{seconds:.2f}")
    for phase, hours in bill.hours.items():
        table.add_row(f"hours: {phase}", f"{hours:.2f}")
    table.add_row("device-hours", f"{bill.device_hours:.2f} on {bill.devices}")
    for part, gib in bill.disk.items():
        if gib >= 0.005 or part == "total":
            table.add_row(f"disk: {part}", f"{gib:.2f} GiB")
    return table


def _table(planned: Sequence[Planned]) -> Table:
    table = PlainTable(box=None, pad_edge=False)
    for heading in ("job", "peak GiB", "s/step", "device-hours", "disk GiB", "fits"):
        table.add_column(heading, overflow="fold", no_wrap=heading != "job")
    for job in planned:
        bill = job.bill
        numbers = (bill.memory["peak"], bill.seconds["step"], bill.device_hours, bill.disk["total"])
        table.add_row(job.title, *(f"{number:.2f}" for number in numbers), "yes" if bill.fits else "no")
    hours, left = sum(job.bill.device_hours for job in planned), sum(job.bill.disk["left"] for job in planned)
    disk = left + max(job.bill.disk["total"] - job.bill.disk["left"] for job in planned)  # one at a time
    table.add_row(f"{len(planned)} jobs", "", "", f"{hours:.2f}", f"{disk:.2f}", "")
    return table


MUCH_DISK = 200
"""GiB that the runs of a sweep may leave before it is said."""


def _much_disk(planned: Sequence[Planned]) -> list[str]:
    """A sentence where what a sweep leaves fills a disk, with the key that changes it."""
    left = sum(job.bill.disk["left"] for job in planned)
    if len(planned) == 1 or left <= MUCH_DISK:
        return []
    return [
        f"the {len(planned)} runs leave {left:.0f} GiB on disk; checkpoint.keep=best or last leaves of each its policy "
        "alone, checkpoint.keep=none the numbers"
    ]


def _said(name: str, bill: Estimate, device: Device, advised: list[str] | None, devices: int | None) -> str:
    needs = f"{name} needs {bill.memory['peak']:.1f} GiB, {device.name} has {device.memory_gib:.0f}"
    if advised is None:
        many = f"{devices} of them" if devices else f"up to {MORE_DEVICES[-1]} of them"
        return f"{needs}; no key makes it fit, not even on {many}: take a smaller policy or a larger device"
    return f"{needs}; it fits with {' '.join(advised)}"


def _assumed(planned: Sequence[Planned], flags: argparse.Namespace) -> str:
    sizes = " and ".join(dict.fromkeys("{} x {}".format(*job.assumed.image) for job in planned))
    length = f"of {flags.completion_tokens} tokens" if flags.completion_tokens else "as long as they may be"
    text = " or ".join(dict.fromkeys(str(text_tokens(job.config, job.assumed)) for job in planned))
    alone = all(job.bill.devices == 1 for job in planned)
    return (
        f"Assumed: images of {sizes}, {text} tokens of a prompt beside them, completions {length}, "
        f"{Assumptions.validation} answers where a validation or test has no limit"
        f"{'' if alone else ', no time lost between devices and host'}."
    )


def _as_record(device: Device, planned: Sequence[Planned], advised: Mapping[str, list[str] | None]) -> Record:
    jobs = [
        {
            "job": job.name,
            "overrides": job.swept,
            **asdict(job.bill),
            "image": job.assumed.image,
            "advice": advised.get(job.name),
            "warnings": _doubts(job.config),
        }
        for job in planned
    ]
    return {"device": asdict(device), "jobs": jobs}


def _doubts(config: RunConfig) -> list[str]:
    """What is unlikely to be meant, and what the estimate leaves out."""
    turns = config.rollout.turns
    left_out = (
        f"rollout.turns={', '.join(turns)}: not in the estimate, which is of one turn; a later turn has a prompt of "
        "its own for every completion, with one image more"
    )
    return [*doubts(config), *([left_out] if turns else [])]


def _print_json(flags: argparse.Namespace, record: Record) -> None:
    if flags.json:
        sys.stdout.write(json.dumps(to_json(record), allow_nan=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
