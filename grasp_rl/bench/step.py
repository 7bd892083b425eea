"""`grasp-rl bench step`: one optimizer step of GRPO, here and in TRL's GRPOTrainer.

Both sides train the same saved model (a random Qwen2.5-VL in the proportions of Qwen2.5-VL-3B, see
grasp_rl.planning.step_model) in float32 on one question about each of Q images: G completions of exactly C tokens, a
drawn reward, a KL term. Each has a process of its own. On a CPU that has one thread, and their steps take turns, so
that a busy machine troubles both; on a GPU one side is measured after the other, each with the whole card: they would
not fit together. The first step of each is not counted. TRL's settings stand in grasp_rl/bench/peer.py. Both have the
allocator's settings of grasp_rl.utils.memory: memory once used stays, so a peak is the highest so far.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from grasp_rl.bench.measure import PHASES
from grasp_rl.bench.task import Task
from grasp_rl.config.errors import ConfigError
from grasp_rl.planning.step_model import SHAPES, build
from grasp_rl.runs.environment import git, masked, version_of
from grasp_rl.utils import memory
from grasp_rl.utils.files import Record, to_json, write_json, write_text

SIDES = {"ours": "grasp_rl.bench.ours", "trl": "grasp_rl.bench.peer"}
PACKAGES = ("torch", "transformers", "peft", "trl", "grasp-rl")
TEXT_TOKENS = 330
"""About what a prompt has beside its image: twice the prompt is twice the image and this once more."""
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "RAYON")}
COUNTS = {
    "vision_encoder_images": "images through the vision encoder",
    "prefill_tokens": "tokens in prefill",
    "decode_tokens": "tokens decoded",
    "reference_tokens": "tokens in the reference forward",
    "policy_tokens": "tokens in the policy forward",
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured."""

    task: Task
    sides: tuple[str, ...]
    parity: bool
    """Whether the losses are compared."""
    growth: bool
    """Whether our side is measured with twice the completions, and with twice the image, too."""
    out: Path | None = None
    """Where a side's steps are written as soon as they are measured, where one side follows the other."""


class Worker:
    """A process of its own that measures when it is asked to.

    Raises:
        RuntimeError: it ended before it answered.
    """

    def __init__(self, module: str, task: Task) -> None:
        environment = memory.environment() | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        if task.device == "cpu":
            environment |= ONE_THREAD
        reads, writes = os.pipe()
        command = [sys.executable, "-P", "-m", module, task.dumps(), str(writes)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=2, pass_fds=(writes,), text=True, env=environment
        )
        os.close(writes)
        self._answers = os.fdopen(reads, encoding="utf-8")
        self._module = module
        self.loaded: Record = {}

    def __enter__(self) -> Worker:
        try:
            self.loaded = self._answer()
        except BaseException:
            self._process.kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        if kind is not None:
            self._process.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._answers.close()

    def measure(self) -> Record:
        """Ask for one measurement and wait for it."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Record:
        line = self._answers.readline()
        if not line:
            raise RuntimeError(f"{self._module} ended with {self._process.wait()} before it answered; see above")
        answer: Record = json.loads(line)
        return answer


def compare(plan: Plan) -> Record:
    """Measure every side of ``plan``; returns what ``--json`` prints, without what names the run."""
    tokens = plan.task.questions * plan.task.groups * plan.task.length
    result: Record = {"task": {k: v for k, v in asdict(plan.task).items() if k != "model"}}
    result["sides"] = {name: summary(rows, tokens) | about for name, (rows, about) in taking_turns(plan).items()}
    ours, theirs = (result["sides"].get(name) for name in SIDES)
    if ours is not None:
        result["task"]["prompt_tokens"] = int(ours["counts"]["prefill_tokens"]) // plan.task.questions
    if ours is not None and theirs is not None:
        result["trl_over_ours"] = {
            key: theirs[key]["median"] / ours[key]["median"] for key in ("cpu_s", "wall_s", "peak_mib")
        }
    if plan.parity:
        with Worker("grasp_rl.bench.parity", plan.task) as worker:
            result["parity"] = worker.measure()
    return result


def taking_turns(plan: Plan) -> dict[str, tuple[list[Record], Record]]:
    """The counted steps of every side and what it loaded; on a CPU the sides take turns."""
    if plan.task.device != "cpu" and len(plan.sides) > 1:
        results: dict[str, tuple[list[Record], Record]] = {}
        for name in plan.sides:
            results |= taking_turns(replace(plan, sides=(name,)))
            if plan.out is not None:
                write_json(plan.out / f"{name}.json", {"steps": results[name][0], **results[name][1]})
        return results
    rows: dict[str, list[Record]] = {name: [] for name in plan.sides}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(SIDES[name], plan.task)) for name in plan.sides}
        for number in range(plan.task.steps):
            for name, worker in workers.items():
                row = worker.measure()
                line = f"{row['cpu_s']:.1f} CPU-s, {row['wall_s']:.1f} s, {row['peak_mib']:.0f} MiB"
                sys.stderr.write(f"{name}: step {number} of {plan.task.steps - 1}: {line}\n")
                if number:  # the first one warms up
                    rows[name].append(row)
        return {name: (rows[name], worker.loaded) for name, worker in workers.items()}


def summary(rows: Sequence[Record], tokens: int) -> Record:
    """Median, least and most of the steps of one side, with the counts, which are the same in every step.

    Args:
        rows: one record a step.
        tokens: generated in a step.

    Raises:
        RuntimeError: the counts differ between steps.
    """
    counts = rows[0]["counts"]
    if any(row["counts"] != counts for row in rows):
        raise RuntimeError(f"the counts differ between steps: {[row['counts'] for row in rows]}")
    made = [row | {"tokens_per_s": tokens / row["wall_s"]} for row in rows]
    spreads = {key: spread([row[key] for row in made]) for key in ("cpu_s", "wall_s", "peak_mib", "tokens_per_s")}
    phases = {name: statistics.median(row["phases"].get(name, 0.0) for row in rows) for name in PHASES}
    return {**spreads, "counts": counts, "phases_s": phases, "steps": [dict(row) for row in rows]}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def growth(plan: Plan) -> list[Record]:
    """Our side alone with G doubled, and with the image's tokens about doubled."""
    result = []
    wider = round((2 * plan.task.images + TEXT_TOKENS) ** 0.5) * 28
    for larger in (replace(plan.task, groups=2 * plan.task.groups), replace(plan.task, side=wider)):
        task = replace(larger, steps=2)
        part = compare(replace(plan, task=task, sides=("ours",), parity=False))
        result.append({"task": part["task"], **part["sides"]["ours"]})
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``grasp-rl bench step <argv>`` and return its exit code."""
    arguments = _parser().parse_args(argv)
    command = ["grasp-rl", "bench", "step", *(sys.argv[1:] if argv is None else argv)]
    try:
        with tempfile.TemporaryDirectory() as folder:
            plan = _plan(arguments, folder)
            build(Path(folder), SHAPES[arguments.shape], device=arguments.device)
            result = _about(arguments, command) | compare(plan)
            if plan.growth:
                result["growth"] = growth(plan)
    except (ConfigError, RuntimeError, OSError) as error:
        sys.stderr.write(f"grasp-rl bench step: {error}\n")
        return 2 if isinstance(error, ConfigError) else 1
    text = table(result, profile=arguments.profile)
    if arguments.out is not None:
        write_json(arguments.out / "step.json", result)
        write_text(arguments.out / "step.md", text)
    sys.stdout.write(json.dumps(to_json(result)) + "\n" if arguments.json else text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="grasp-rl bench step", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--groups", type=int, default=8, metavar="G", help="completions (default: %(default)s)")
    parser.add_argument("--questions", type=int, default=1, metavar="Q", help="images a step (default: %(default)s)")
    parser.add_argument("--length", type=int, default=200, metavar="C", help="tokens of each (default: %(default)s)")
    parser.add_argument("--side", type=int, default=840, metavar="PIXELS", help="of the image (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="steps counted (default: %(default)s)")
    parser.add_argument(
        "--mode",
        choices=("lora", "full"),
        default="lora",
        help="lora: frozen vision encoder; full: trained vision encoder",
    )
    parser.add_argument(
        "--attention",
        choices=("two_calls", "mask"),
        default="two_calls",
        help="of our packed rows, see policy.packed_attention (default: %(default)s)",
    )
    parser.add_argument("--only", choices=tuple(SIDES), help="measure one side alone, without the comparison of losses")
    parser.add_argument("--no-parity", action="store_true", help="measure both sides without the comparison of losses")
    parser.add_argument(
        "--peer-batch",
        type=int,
        default=0,
        metavar="N",
        help="sequences in one batch of TRL's, where a whole group does not fit the GPU (default: G)",
    )
    parser.add_argument("--profile", action="store_true", help="add seconds by phase to the table")
    parser.add_argument("--growth", action="store_true", help="our side with G doubled, and the image doubled, too")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    parser.add_argument(
        "--shape",
        choices=tuple(SHAPES),
        default="standard",
        help="smoke: seconds, and says nothing; 3b: real size, for a GPU",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write step.json and step.md there")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return parser


def _plan(arguments: argparse.Namespace, folder: str) -> Plan:
    """What the command line asks for.

    Raises:
        ConfigError: a number is out of range, or TRL is not installed.
    """
    least = {"groups": 2, "questions": 1, "length": 1, "repeats": 1, "side": 28}
    for key, lowest in least.items():
        if getattr(arguments, key) < lowest:
            raise ConfigError(f"--{key} {getattr(arguments, key)}: must be >= {lowest}")
    if arguments.side % 28:
        raise ConfigError(f"--side {arguments.side}: must be a multiple of 28, two patches of Qwen2.5-VL")
    sequences = arguments.questions * arguments.groups
    if arguments.peer_batch < 0 or (arguments.peer_batch and sequences % arguments.peer_batch):
        raise ConfigError(f"--peer-batch {arguments.peer_batch}: must divide the {sequences} sequences of a step")
    if arguments.only != "ours" and version_of("trl") is None:
        raise ConfigError("TRL is not installed: pip install 'grasp-rl[bench]', or measure --only ours")
    task = Task(
        model=folder,
        groups=arguments.groups,
        questions=arguments.questions,
        length=arguments.length,
        side=arguments.side,
        mode=arguments.mode,
        steps=1 + arguments.repeats,
        device=arguments.device,
        attention=arguments.attention,
        peer_batch=arguments.peer_batch,
    )
    return Plan(
        task=task,
        sides=(arguments.only,) if arguments.only else tuple(SIDES),
        parity=arguments.only is None and not arguments.no_parity,
        growth=arguments.growth,
        out=arguments.out,
    )


def _about(arguments: argparse.Namespace, command: Sequence[str]) -> Record:
    """Where the numbers come from."""
    shape = SHAPES[arguments.shape]
    patches = (arguments.side // 14) ** 2
    return {
        "benchmark": "step",
        "command": shlex.join(masked(command)),
        "date": datetime.now(UTC).date().isoformat(),
        "device": _device(arguments.device),
        "git": git(Path(__file__).parent),
        "versions": {"python": platform.python_version()} | {name: version_of(name) for name in PACKAGES},
        "model": asdict(shape) | {"vision_gflop": shape.vision_flops(patches) / 1e9},
    }


def _device(name: str) -> str:
    """The machine in words."""
    if name == "cuda":
        import torch

        return f"one {torch.cuda.get_device_name()}"
    path = Path("/proc/cpuinfo")
    result = re.search(r"model name\s*: (.+)", path.read_text(encoding="utf-8")) if path.exists() else None
    return f"one thread of {os.cpu_count()} CPUs ({result[1] if result else platform.machine()})"


def table(result: Record, *, profile: bool) -> str:
    """The result as Markdown."""
    task, sides = result["task"], result["sides"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    state = result["git"] or {"commit": "unknown", "dirty": False}
    commit = f"{state['commit'][:7]}{', changed' if state['dirty'] else ''}"
    lines = [
        f"`{result['command']}` ({result['date']}, {result['device']}; {versions}; commit {commit})",
        "",
        f"Q = {task['questions']}, G = {task['groups']}, C = {task['length']}, P = {task.get('prompt_tokens', '?')}, "
        f"image {task['side']} x {task['side']}, {task['mode']}. Median (least to most) of "
        f"{len(next(iter(sides.values()))['steps'])} steps.",
        "",
        f"| | {' | '.join(sides)} |{' trl / ours |' if len(sides) > 1 else ''}",
        "|---|" + "---|" * (len(sides) + (len(sides) > 1)),
    ]
    names = {"cpu_s": "CPU-seconds", "wall_s": "wall seconds", "peak_mib": "peak above baseline, MiB"}
    for key, name in (names | {"tokens_per_s": "generated tokens / s"}).items():
        cells = [_spread_cell(side[key]) for side in sides.values()]
        lines.append(_row(name, cells, [side[key]["median"] for side in sides.values()]))
    for key, name in COUNTS.items():
        values = [side["counts"].get(key, 0) for side in sides.values()]
        lines.append(_row(name, [f"{value:,}" for value in values], values))
    for key, name in {"baseline_mib": "baseline, MiB", "trainable": "trained parameters"}.items():
        lines.append(_row(name, [f"{side[key]:,.0f}" for side in sides.values()], []))
    if "parity" in result:
        parity = result["parity"]
        lines += [
            "",
            f"On the same completions and rewards the losses differ by {parity['loss_difference']:.1e}, the "
            f"log-probabilities by at most {parity['logprob_difference']:.1e}.",
        ]
    if profile:
        lines += ["", *_profile(sides, task["device"])]
    if "growth" in result:
        lines += ["", *_growth(sides.get("ours"), task, result["growth"])]
    return "\n".join(lines) + "\n"


def _row(name: str, cells: Sequence[str], values: Sequence[float]) -> str:
    """A table row; a ratio where there are two values to divide."""
    ratio = ""
    if len(cells) > 1:
        ratio = f" {values[1] / values[0]:.2f} |" if len(values) > 1 and values[0] else " |"
    return f"| {name} | {' | '.join(cells)} |{ratio}"


def _seconds(device: str) -> str:
    """What seconds are counted in: a GPU's host mostly waits."""
    return "CPU-seconds" if device == "cpu" else "seconds"


def _spread_cell(record: Record) -> str:
    return f"{record['median']:.2f} ({record['min']:.2f} to {record['max']:.2f})"


def _profile(sides: Record, device: str) -> list[str]:
    """Seconds by phase; TRL's calls outside the vision encoder and the language model are its `other`."""
    lines = [f"| {_seconds(device)} in | {' | '.join(sides)} |", "|---|" + "---|" * len(sides)]
    for phase in PHASES:
        cells = []
        for side in sides.values():
            seconds, total = side["phases_s"][phase], sum(side["phases_s"].values())
            cells.append(f"{seconds:.2f} ({100 * seconds / total:.1f} %)")
        lines.append(f"| {phase} | {' | '.join(cells)} |")
    return lines


def _growth(ours: Record | None, task: Record, grown: Sequence[Record]) -> list[str]:
    """Our cost against G and against P."""
    lines = [f"| G | P | {_seconds(task['device'])} | peak above baseline, MiB |", "|---|---|---|---|"]
    key = "cpu_s" if task["device"] == "cpu" else "wall_s"
    base = [] if ours is None else [{"task": task, **ours}]
    for part in [*base, *grown]:
        setting = part["task"]
        numbers = f"{part[key]['median']:.2f} | {part['peak_mib']['median']:.0f}"
        lines.append(f"| {setting['groups']} | {setting['prompt_tokens']} | {numbers} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
