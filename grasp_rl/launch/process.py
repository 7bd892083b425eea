"""One run from outside: its folder made ready, its worker started, watched for the end, and rewarded."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Literal

from omegaconf import OmegaConf

from grasp_rl.config.differences import differences
from grasp_rl.config.errors import ConfigError
from grasp_rl.config.targets import load_config, load_raw
from grasp_rl.runs import data_record, environment, heartbeat, origin, received
from grasp_rl.runs.run_dir import (
    CONFIG,
    ENVIRONMENT,
    ERROR,
    LOG,
    PROGRESS,
    RESULT,
    STATUS,
    config_hash,
    mark_ended,
    mark_started,
    set_aside,
    state_of,
)
from grasp_rl.utils import memory
from grasp_rl.utils.files import Record, last_lines, read_json, write_json, write_text
from grasp_rl.utils.text import printable

Claim = Literal["start", "resume", "done"]

RESUMED = ("train", "fit-segmenter")
"""Commands whose runs go on from a checkpoint."""
_INTERRUPTED = 130
_POLL_S = 0.2
_MEETING_S = 600.0
"""How long another node waits for node 0."""
PORT = 29500
"""Where nodes of a hostfile meet: torchrun's own."""
_PATIENCE_S = 3.0
"""How long the other ranks may take to end by themselves, once one of them has said that it failed."""
_LOG_LINES, _LOG_BYTES = 15, 100_000
_ROOT_CAUSE = re.compile(r"Root Cause.*?\brank\s*:\s*(\d+).*?\bexitcode\s*:\s*(-?\d+)", re.DOTALL)
"""Rank and exit code in the summary that torchrun leaves at the end of the log."""


@dataclass(frozen=True)
class Job:
    """A run that is wanted."""

    run_dir: Path
    config: Record
    """The resolved config, as config.yaml will hold it."""
    trusted: tuple[str, ...] = ()
    adopted: tuple[str, ...] = ()
    """What the folder of the weights says about their policy, where the config said otherwise; as overrides."""
    point: tuple[str, ...] = ()
    """Overrides of a sweep's job, ``key=value`` each, those that all its jobs have in common included."""


class StopFile:
    """Signals written down where every process of a sweep sees them, on this machine or another.

    The starter of a worker reads it and passes the signals on; a job not yet started stays unstarted.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._halted = folder / ".stop", folder / ".halt"

    def signals(self) -> list[int]:
        """The signals received so far, in order."""
        try:
            return [int(line) for line in self._path.read_text(encoding="utf-8").split()]
        except FileNotFoundError:
            return []

    def halt(self) -> None:
        """Let no further job of the sweep begin; those that run go on."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._halted.touch()

    def ended(self) -> bool:
        """Whether no further job shall begin."""
        return bool(self.signals()) or self._halted.exists()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Write down SIGINT and SIGTERM instead of dying from them; forget them at the end."""

        def note(number: int, _frame: FrameType | None) -> None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{number}\n")

        for path in (self._path, self._halted):
            path.unlink(missing_ok=True)
        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            for path in (self._path, self._halted):
                path.unlink(missing_ok=True)


def folder_of(job: Job) -> Path:
    """Where a job of a sweep runs: where the same run already is beside ``job.run_dir``, whatever its name, else there.

    A folder's name says what differed between the jobs of the sweep that made it; the hash at its end, of all that
    decides the numbers, says which run it is.
    """
    if (job.run_dir / STATUS).exists():
        return job.run_dir
    digest = config_hash(job.config)
    for status in sorted(job.run_dir.parent.glob(f"*-{digest[:8]}/{STATUS}")):
        if (read_json(status) or {}).get("config_hash") == digest:
            return status.parent
    return job.run_dir


def claim(job: Job, *, again: bool) -> Claim:
    """What to do about ``job``, given what its folder already holds.

    Args:
        job: The run that is wanted.
        again: Whether a folder that holds the same run is to be completed (a sweep started again) or refused.

    Raises:
        ConfigError: the folder holds a run that must not be touched.
    """
    state, where = state_of(job.run_dir), f"run_dir={str(job.run_dir)!r}"
    if state is None:
        return "start"
    if state == "running":
        raise ConfigError(f"{where}: a run is going on there; wait for it, stop it, or choose another folder")
    if not again:
        raise ConfigError(f"{where}: holds a run ({state}); go on with resume={job.run_dir}, or choose another folder")
    status = read_json(job.run_dir / STATUS) or {}
    if config_hash(job.config) not in (status.get("config_hash"), _stored_hash(job.run_dir)):
        raise ConfigError(
            f"{where}: holds a run with another config ({state}){_apart(job)}; give the same words again, go on with "
            f"it as it is by resume={job.run_dir}, or choose another folder"
        )
    if data_record.changed(job.run_dir):
        return "start"  # what it holds are answers to other questions
    if state == "done":
        return "done"
    return "resume" if job.config["command"] in RESUMED else "start"


def _apart(job: Job) -> str:
    """In brackets, where ``job`` differs from the config in its folder, a few keys."""
    try:
        there = load_raw(job.run_dir / CONFIG)
    except ConfigError:
        return ""
    ignored = ("run_dir", "resume")
    found = [f"{key}={its}, not {mine}" for key, mine, its in differences(job.config, there) if key not in ignored]
    more = f" and {len(found) - 4} more" if len(found) > 4 else ""
    return printable(f", where {'; '.join(found[:4])}{more}") if found else ""


def _stored_hash(run_dir: Path) -> str | None:
    """Hash of the config in ``run_dir`` by the names of today: a run of the version before wrote another."""
    try:
        return config_hash(asdict(load_config(run_dir / CONFIG)))
    except ConfigError:
        return None


def other_commit(run_dir: Path) -> str | None:
    """A sentence where the code's commit is no longer the one that ``run_dir`` was run with."""
    git = (read_json(run_dir / ENVIRONMENT) or {}).get("git") or {}
    then = (git.get("package") or {}).get("commit")
    now = (environment.git(Path(__file__).parent) or {}).get("commit")
    if then is None or now is None or then == now:
        return None
    return f"{run_dir.name}: was run at commit {then[:8]}, the code is now at {now[:8]}"


def prepare(job: Job, command: Sequence[str], overrides: Sequence[str], *, resume: bool) -> None:
    """Write config.yaml and environment.json; what an earlier start left goes to ``earlier/<n>``."""
    job.run_dir.mkdir(parents=True, exist_ok=True)
    if resume:
        set_aside(job.run_dir, (CONFIG, ENVIRONMENT, STATUS), keep=True)
        for name in (PROGRESS, RESULT, ERROR):
            (job.run_dir / name).unlink(missing_ok=True)
    elif (job.run_dir / STATUS).exists():
        set_aside(job.run_dir)
    received.carry_templates(job.config, job.run_dir)
    config = job.config | {"resume": str(job.run_dir) if resume else job.config.get("resume")}
    write_text(job.run_dir / CONFIG, OmegaConf.to_yaml(OmegaConf.create(config)))
    origin.sign(job.run_dir / CONFIG)
    about = environment.environment(command) | {"overrides": environment.masked(overrides)}
    write_json(job.run_dir / ENVIRONMENT, about)


def run_worker(job: Job, stop: StopFile) -> int:
    """Start the worker of a prepared folder, pass signals on, and return its exit code (128+n for signal n)."""
    code = _watch(job, stop, job.run_dir / LOG, lambda pid: mark_started(job.run_dir, pid, _hash(job)))
    _settle(job.run_dir, code)
    if (read_json(job.run_dir / STATUS) or {}).get("state") != "interrupted":
        return code
    engine = job.config["engine"]
    if engine["nproc"] > 1 and engine["nnodes"] == 1 and not stop.signals():
        mark_ended(job.run_dir, "failed", code)  # a rank died, and torchrun interrupted the others
        _say_who_died(job.run_dir)
        return code
    return _INTERRUPTED  # torchrun has a code of its own


def _say_who_died(run_dir: Path) -> None:
    """Leave the rank that torchrun calls the root cause as the run's error, where no rank said why it failed."""
    found = _ROOT_CAUSE.findall("\n".join(_log(run_dir)))
    if found and not (run_dir / ERROR).exists():
        rank, code = int(found[-1][0]), int(found[-1][1])
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        more = ", as the system does when memory runs out" if code == -signal.SIGKILL else ""
        write_json(run_dir / ERROR, {"type": "Killed", "message": f"rank {rank} {how}{more}"})


def _hash(job: Job) -> str:
    return config_hash(job.config)


def _watch(job: Job, stop: StopFile, log_path: Path, began: Callable[[int], None] | None = None) -> int:
    """Start the workers of this node, pass signals on, and return their exit code."""
    threads = str(job.config["engine"]["threads"])
    variables = memory.environment() | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            worker_command(job),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=variables,
            start_new_session=True,
        )
    if began is not None:
        began(process.pid)
    passed_on, failed_at = 0, 0.0
    while True:
        try:
            code = process.wait(timeout=_POLL_S)
            break
        except subprocess.TimeoutExpired:
            received = stop.signals()
            for number in received[passed_on:]:
                process.send_signal(number)
            passed_on = len(received)
            if heartbeat.someone_failed(job.run_dir):  # the others may wait for a rank that no longer answers
                failed_at = failed_at or time.monotonic()
                if time.monotonic() - failed_at > _PATIENCE_S:
                    heartbeat.end_all(process.pid)
                    process.wait()
                    return 1
    return code if code >= 0 else 128 - code


def worker_command(job: Job) -> list[str]:
    """The command line that runs ``job`` from its folder; by hand, without ``--with-launcher``."""
    nproc = int(job.config["engine"]["nproc"])
    python = [sys.executable, "-P"]
    start = _torchrun(job.config["engine"]) if nproc > 1 or int(job.config["engine"]["nnodes"]) > 1 else []
    command = [*python, *start, "-m", "grasp_rl.launch.worker", str(job.run_dir / CONFIG), "--with-launcher"]
    return [*command, "--trust", *job.trusted] if job.trusted else command


def _torchrun(engine: Record) -> list[str]:
    """The words that start torchrun on this node."""
    args = ["-m", "torch.distributed.run", f"--nproc-per-node={engine['nproc']}"]
    if engine["nnodes"] == 1:
        return [*args, "--standalone"]
    host, _, port = str(engine["rendezvous"]).rpartition(":")
    args += [f"--nnodes={engine['nnodes']}", f"--node-rank={engine['node_rank']}"]
    return [*args, f"--master-addr={host}", f"--master-port={port}"]


def placed(job: Job) -> Job:
    """``job`` with what its hostfile says about nodes.

    Raises:
        ConfigError: the file cannot be read, or this machine is not in it.
    """
    engine = job.config["engine"]
    if not engine.get("hostfile"):
        return job
    try:
        lines = Path(engine["hostfile"]).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"engine.hostfile={engine['hostfile']!r}: {error.strerror}") from error
    hosts = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
    here = [name for name in hosts if name in (socket.gethostname(), socket.getfqdn())]
    if not here:
        raise ConfigError(f"engine.hostfile={engine['hostfile']!r}: {socket.gethostname()} is not in it; found {hosts}")
    said = {"nnodes": len(hosts), "node_rank": hosts.index(here[0]), "rendezvous": f"{hosts[0]}:{PORT}"}
    return replace(job, config=job.config | {"engine": engine | said})


def join(job: Job, stop: StopFile) -> int:
    """Take part in a run that node 0 has begun, or is about to; the exit code of this node's workers.

    Raises:
        ConfigError: node 0 does not begin it in time, or runs something else.
    """
    engine, deadline = job.config["engine"], time.monotonic() + _MEETING_S
    while state_of(job.run_dir) != "running":
        if time.monotonic() > deadline:
            raise ConfigError(f"run_dir={str(job.run_dir)!r}: node 0 has not begun this run within {_MEETING_S:.0f} s")
        time.sleep(_POLL_S)
    if (read_json(job.run_dir / STATUS) or {}).get("config_hash") != config_hash(job.config):
        raise ConfigError(f"run_dir={str(job.run_dir)!r}: node 0 runs another config there; start the same line on all")
    log = job.run_dir / f"log_node{engine['node_rank']}.txt"
    return _watch(job, stop, log)


def _settle(run_dir: Path, code: int) -> None:
    """Complete the status where the worker could not."""
    status = read_json(run_dir / STATUS) or {}
    if status.get("state") != "running":
        return
    stopped = code in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    mark_ended(run_dir, "done" if code == 0 else "interrupted" if stopped else "failed", code)
    if code == 128 + signal.SIGKILL and not (run_dir / ERROR).exists():
        message = "killed by signal 9, as the system does when memory runs out"
        write_json(run_dir / ERROR, {"type": "Killed", "message": message})


def outcome(run_dir: Path) -> Record:
    """How the run in ``run_dir`` ended, with its result or its error."""
    status = read_json(run_dir / STATUS) or {}
    about = read_json(run_dir / ENVIRONMENT) or {}
    state = state_of(run_dir) or "not started"
    error = read_json(run_dir / ERROR)
    if state == "failed" and error is None:
        error = {"type": "unexpected", "message": (_log(run_dir) or ["no word in the log"])[-1]}
    return {
        "run_dir": str(run_dir),
        "overrides": about.get("overrides", []),
        "state": state,
        "exit_code": status.get("exit_code"),
        "started": status.get("started"),
        "ended": status.get("ended"),
        "result": read_json(run_dir / RESULT),
        "error": error,
    }


def failure(run_dir: Path) -> str:
    """Why the run in ``run_dir`` failed: one line where the worker knew it, otherwise the end of its log."""
    error = read_json(run_dir / ERROR)
    lines = [str(error.get("message"))] if error is not None else _log(run_dir)[-_LOG_LINES:]
    return "\n".join(map(printable, [*lines, f"log: {run_dir / LOG}"]))


def _log(run_dir: Path) -> list[str]:
    return last_lines(run_dir / LOG, _LOG_BYTES)
