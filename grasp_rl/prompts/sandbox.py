"""Templates that are files, rendered by a process of their own, with little time, little memory, no environment.

A run folder carries its template, and run folders are exchanged. Jinja's sandbox keeps a template from the program's
objects; a loop in a loop or a width of a thousand million it renders. Here that ends the other process.

    python -P -m grasp_rl.prompts.sandbox

reads the template and then requests, JSON one a line, and answers each with a line.
"""

from __future__ import annotations

import json
import os
import resource
import select
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import SandboxedEnvironment

import grasp_rl
from grasp_rl.config.errors import ConfigError
from grasp_rl.utils.text import printable

LIMIT_S = 5.0
"""Seconds that a rendering may take, and the start of the process besides."""
_START_S = 60.0
_MEMORY = 512 * 2**20
_MOST_TEXT = 256 * 2**10
"""Characters of a rendered block."""


def compiled(source: str) -> Template:
    """The template in ``source``.

    Raises:
        TemplateError: it is none.
    """
    return SandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(source)


def rendered(template: Template, block: str | None, variables: dict[str, Any]) -> str:
    """The text of a block, or of the whole template.

    Raises:
        TemplateError: it cannot be rendered.
    """
    if block is None:
        return template.render(variables).strip()
    return "".join(template.blocks[block](template.new_context(variables))).strip()


class Sandbox:
    """A template and the process that renders it, started when it is first asked for.

    Args:
        name: for messages.
        source: the template's text.

    Raises:
        ConfigError: it is no template.
    """

    def __init__(self, name: str, source: str) -> None:
        self.name, self._source = name, source
        self._process: subprocess.Popen[bytes] | None = None
        self._owner, self._lock = 0, threading.Lock()
        self.blocks: list[str] = self._start()

    def render(self, block: str | None, variables: dict[str, Any]) -> str:
        """The text of a block, or of the whole template.

        Raises:
            ConfigError: it cannot be rendered, or not within its time, memory and size.
        """
        with self._lock:
            if self._process is None or self._owner != os.getpid():  # a fork shares no pipe with its parent
                self._start()
            return str(self._ask({"block": block, "variables": variables}, LIMIT_S))

    def _start(self) -> list[str]:
        command = [sys.executable, "-P", "-m", "grasp_rl.prompts.sandbox"]
        variables = {"PYTHONPATH": str(Path(grasp_rl.__file__).parents[1])}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=variables)
        self._owner = os.getpid()
        weakref.finalize(self, _end, self._process)
        self._ask(None, _START_S)  # it is there
        return list(self._ask({"source": self._source}, LIMIT_S))

    def _ask(self, request: dict[str, Any] | None, limit_s: float) -> Any:
        """What the process answers; it is ended where it does not."""
        assert self._process is not None
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if request is not None:
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
            answer = json.loads(_line(process.stdout.fileno(), time.monotonic() + limit_s))
        except (BrokenPipeError, TimeoutError, ValueError) as error:
            self._process = None
            _end(process)
            raise ConfigError(
                f"prompt.template={self.name!r}: could not be rendered within {LIMIT_S:g} s and {_MEMORY >> 20} MiB"
            ) from error
        if "error" in answer:
            raise ConfigError(f"prompt.template={self.name!r}: {printable(str(answer['error']))[:500]}")
        return answer["value"]


def _line(descriptor: int, until: float) -> bytes:
    """The next line of a pipe.

    Raises:
        TimeoutError: it was not whole in time.
        ValueError: the pipe ended, or the line is too long.
    """
    line = b""
    while not line.endswith(b"\n"):
        if not select.select([descriptor], [], [], max(0.0, until - time.monotonic()))[0]:
            raise TimeoutError("no answer")
        piece = os.read(descriptor, 2**16)
        if not piece or len(line) > 8 * _MOST_TEXT:
            raise ValueError("no answer")
        line += piece
    return line


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None and not pipe.closed:
            pipe.close()


def _answer(request: dict[str, Any], state: dict[str, Template]) -> dict[str, Any]:
    """One line of the process."""
    try:
        if "source" in request:
            state["template"] = compiled(request["source"])
            return {"value": sorted(state["template"].blocks)}
        text = rendered(state["template"], request["block"], request["variables"])
    except TemplateError as error:
        what = "not a valid template" if "source" in request else "cannot be rendered"
        return {"error": f"{what}: {error}"}
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError, MemoryError) as error:
        return {"error": f"cannot be rendered: {type(error).__name__}: {error}"}
    return {"value": text} if len(text) <= _MOST_TEXT else {"error": f"renders more than {_MOST_TEXT} characters"}


def main() -> int:
    """Answer requests until there are no more."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    state: dict[str, Template] = {}
    sys.stdout.write('{"value": null}\n')
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_answer(json.loads(line), state)) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
