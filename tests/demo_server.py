"""The page of `grasp-rl demo` in a process of its own: `python demo_server.py SETTINGS`, its address on stdout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grasp_rl


@contextmanager
def served(
    folder: Path, runs: Mapping[str, Path] | None = None, *, says: str | None = None, queue: int | None = None
) -> Iterator[str]:
    """The address of a page; it ends with the block.

    Args:
        folder: its folder for temporary files.
        runs: runs by name.
        says: what the policy says instead of its answer.
        queue: questions that wait at most.
    """
    settings = {"runs": {name: str(path) for name, path in (runs or {}).items()}, "says": says, "queue": queue}
    variables = os.environ | {
        "TMPDIR": str(folder), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(grasp_rl.__file__).parents[1]),
    }  # fmt: skip
    words = [sys.executable, "-P", __file__, json.dumps(settings)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=variables) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip().rstrip("/")
        finally:
            process.kill()


def main() -> None:
    settings = json.loads(sys.argv[1])
    from grasp_rl.demo import cli

    cli.quiet()
    assert tempfile.gettempdir() == os.environ["TMPDIR"]
    from grasp_rl.demo import page
    from grasp_rl.demo.answers import Answering
    from grasp_rl.demo.guard import LOCAL
    from grasp_rl.policies.tiny.policy import TinyPolicy
    from grasp_rl.types import Completion, FinishReason

    def generate(self: TinyPolicy, prompts: Any, uniforms: Any, **_: Any) -> list[list[Completion]]:
        said = Completion(token_ids=(1,), logprobs=(0.0,), text=settings["says"], finish_reason=FinishReason.STOP)
        return [[said] for _ in prompts]

    if settings["says"] is not None:
        TinyPolicy.generate = generate  # type: ignore[method-assign]
    page.QUEUE = settings["queue"] or page.QUEUE
    built = page.build(Answering({name: Path(path) for name, path in settings["runs"].items()}, time_limit_s=60))
    sys.stdout.write(page.launch(built, host="127.0.0.1", port=None, hosts=LOCAL) + "\n")
    sys.stdout.flush()
    built.block_thread()


if __name__ == "__main__":
    main()
