"""Command lines in a fork of a process that has the heavy imports behind it.

A worker of its own spends 3.5 s of CPU on importing torch and transformers, and a rank under ZeRO 1.5 s more on DeepSpeed,
which imports torch's compiler. Here one server a test session imports them, and each command line is a fork of it: the launcher
in one process and its worker, or its ranks, in others, with exit codes, signals and files as ever. What is not
tested this way: the console script, `python -m`, torchrun and the C library's settings; the tests of the door and of
faults start those.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from grasp_rl.utils import memory

WORKER = "grasp_rl.launch.worker"
IMPORTS = (
    "deepspeed", "deepspeed.module_inject.auto_ep_layer", "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.zero.stage3", "deepspeed.utils.zero_to_fp32", "grasp_rl.cli.main", "grasp_rl.cli.predict",
    "grasp_rl.data.readers.jsonl", "grasp_rl.data.synthetic.dataset",
    "grasp_rl.distributed.deepspeed", "grasp_rl.evaluation.diagnose", "grasp_rl.evaluation.evaluate",
    "grasp_rl.evaluation.stored", "grasp_rl.launch.main", WORKER, "grasp_rl.policies.tiny.policy",
    "grasp_rl.reporting.render", "grasp_rl.segmenters.box_fill", "grasp_rl.segmenters.grabcut", "grasp_rl.segmenters.sam2",
    "grasp_rl.training.sft", "grasp_rl.training.train", "hydra.main", "torch.optim.adamw",
)  # fmt: skip
"""What the server imports; one that is not installed is left out."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(list(IMPORTS))


def grasp_rl(*words: object, cwd: Path | None = None, timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
    """`grasp-rl <words>` to its end, in ``cwd``.

    Raises:
        subprocess.TimeoutExpired: it is not done after ``timeout`` seconds; its processes are killed.
    """
    return _run(_command, [str(word) for word in words], cwd, timeout)


def door(folder: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """:func:`grasp_rl` in ``folder``."""
    return partial(grasp_rl, cwd=folder)


def worker(*words: object, cwd: Path | None = None, timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
    """`python -m grasp_rl.launch.worker <words>` to its end, in ``cwd``; raises as :func:`grasp_rl`."""
    return _run(_worker, [str(word) for word in words], cwd, timeout)


def ranks(script: str, *words: object, count: int = 2, **variables: str) -> subprocess.CompletedProcess[str]:
    """`torchrun --nproc-per-node=<count> script <words>` to its end; raises as :func:`grasp_rl`."""
    line = [script, *(str(word) for word in words)]
    with _variables(variables):
        return _run(partial(_scripts, count), line, None, 200.0)


def _run(
    main: Callable[[list[str]], int], line: list[str], cwd: Path | None, timeout: float
) -> subprocess.CompletedProcess[str]:
    variables = memory.environment() | {"OMP_NUM_THREADS": "1", "TERM": "dumb"}
    with TemporaryDirectory(prefix="forked_") as name:
        out, err = Path(name, "out"), Path(name, "err")
        with _variables(memory.SETTINGS):  # glibc reads them where a process starts: in the server
            process = _context.Process(
                target=_begin, args=(main, line, str(cwd or Path.cwd()), variables, str(out), str(err))
            )
            process.start()
        process.join(timeout)
        if process.exitcode is None:
            _end(process.pid)
            process.join()
            raise subprocess.TimeoutExpired(line, timeout, out.read_bytes(), err.read_bytes())
        return subprocess.CompletedProcess(line, process.exitcode, out.read_text(), err.read_text())


def _begin(
    main: Callable[[list[str]], int], line: list[str], cwd: str, variables: Mapping[str, str], out: str, err: str
) -> NoReturn:
    """What the fork does: ``main`` with a place, variables and files of its own."""
    multiprocessing.set_start_method(None, force=True)  # the default, as in a process that nobody forked
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    for path, descriptor in ((out, 1), (err, 2)):
        with open(path, "ab") as file:
            os.dup2(file.fileno(), descriptor)
    sys.exit(main(line))


def _command(line: list[str]) -> int:
    """The launcher's process, or that of another command."""
    from grasp_rl.cli import main
    from grasp_rl.launch import process

    _Subprocess.parent, here = multiprocessing.Pipe()
    pid = _fork(partial(_parent_of_workers, _Subprocess.parent, here))
    here.close()
    process.subprocess = _Subprocess  # type: ignore[attr-defined]
    os.execve = _module_instead  # type: ignore[assignment]
    try:
        return main.main(line)
    finally:
        _Subprocess.parent.close()
        os.waitpid(pid, 0)


def _module_instead(_path: str, words: Sequence[str], _variables: Mapping[str, str]) -> NoReturn:
    """`python -P -m MODULE ...` in this process: what the command line makes of `predict`, `export` and `bench`."""
    module = words.index("-m") + 1
    sys.argv = list(words[module:])
    runpy.run_module(words[module], run_name="__main__")
    sys.exit(0)


class _Subprocess:
    """Of :mod:`subprocess`, what the launcher starts its worker with.

    The launcher has a thread that watches progress, and a fork beside a thread may take a held lock along. So a process
    that was made before the launcher began has the workers.
    """

    DEVNULL, STDOUT, TimeoutExpired = subprocess.DEVNULL, subprocess.STDOUT, subprocess.TimeoutExpired
    parent: Connection

    class Popen:
        """A worker, or the parent of as many ranks as torchrun is told to start."""

        def __init__(self, words: Sequence[str], *, stdout: Any, env: Mapping[str, str], **_: Any) -> None:
            _Subprocess.parent.send((list(words), dict(env), os.path.abspath(stdout.name)))
            self.pid = _Subprocess.parent.recv()

        def wait(self, timeout: float) -> int:
            deadline = time.monotonic() + timeout
            while (code := self._code()) is None:
                if time.monotonic() > deadline:
                    raise subprocess.TimeoutExpired(WORKER, timeout)
                time.sleep(0.01)
            return code

        def _code(self) -> int | None:
            _Subprocess.parent.send(self.pid)
            found: int | None = _Subprocess.parent.recv()
            return found

        def send_signal(self, number: int) -> None:
            os.kill(self.pid, number)


def _parent_of_workers(there: Connection, here: Connection) -> int:
    """Start what is asked for and say its process id, or say the exit code of one that was started; until the end."""
    there.close()  # so that the launcher's end is the end of the connection
    while True:
        try:
            asked = here.recv()
        except EOFError:
            return 0
        here.send(_ended(asked) if isinstance(asked, int) else _fork(partial(_started, *asked)))


def _started(words: list[str], variables: Mapping[str, str], log: str) -> int:
    os.setsid()
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(variables)
    arguments = words[words.index(WORKER) + 1 :]
    count = next((int(word.partition("=")[2]) for word in words if word.startswith("--nproc-per-node=")), 0)
    return _all(partial(_worker, arguments), count) if count else _worker(arguments)


def _worker(arguments: Sequence[str]) -> int:
    from grasp_rl.launch import worker as module

    sys.modules["__main__"] = module  # which a reward worker's process, spawned, imports
    return module.main(arguments)


def _scripts(count: int, line: list[str]) -> int:
    def work() -> int:
        torch.distributed.set_debug_level_from_env()  # type: ignore[attr-defined]
        sys.argv[:] = line
        runpy.run_path(line[0], run_name="__main__")
        return 0

    import torch.distributed

    return _all(work, count)


def _all(main: Callable[[], int], ranks: int) -> int:
    """All ranks of a node: 0, or 1 as soon as one of them fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "GROUP_RANK": 0, "GROUP_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
    }  # fmt: skip
    os.environ.update({name: str(value) for name, value in common.items()})

    def rank(number: int) -> Callable[[], int]:
        def work() -> int:
            os.environ.update({name: str(number) for name in ("RANK", "LOCAL_RANK", "ROLE_RANK")})
            return main()

        return work

    left = [_fork(rank(number)) for number in range(ranks)]
    while left:
        codes = {pid: _ended(pid) for pid in left}
        left = [pid for pid, code in codes.items() if code is None]
        if any(codes.values()):
            for pid in left:
                os.kill(pid, signal.SIGTERM)
                os.waitpid(pid, 0)
            return 1
        time.sleep(0.01)
    return 0


def _fork(work: Callable[[], int]) -> int:
    """The process id of a child that ends with what ``work`` returns."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = work()
    finally:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _ended(pid: int) -> int | None:
    """The exit code of a child, -n for a signal; None while it lives."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def _end(pid: int | None) -> None:
    """Kill a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            children.setdefault(int(stat.read_text().rsplit(")", 1)[1].split()[1]), []).append(int(stat.parent.name))
    new = [pid] if pid else []
    while new:
        for one in new:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        new = [child for parent in new for child in children.get(parent, [])]


@contextlib.contextmanager
def _variables(wanted: Mapping[str, str]) -> Any:
    """Environment variables, as long as nobody has set them, for the length of a block."""
    added = [name for name in wanted if name not in os.environ]
    os.environ.update({name: wanted[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
