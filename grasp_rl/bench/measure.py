"""What a step costs: CPU-seconds, wall seconds, peak memory, work done, seconds by phase.

Phases are in CPU-seconds on a CPU and by the clock on a GPU, where the host only waits.
"""

from __future__ import annotations

import contextlib
import gc
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from grasp_rl.bench.task import Pipe
from grasp_rl.policies.compat import cache_in

MIB = 2**20
PHASES = (
    "encode",
    "vision_encoder",
    "prefill",
    "decode",
    "reward",
    "reference",
    "policy",
    "backward",
    "optimizer",
    "other",
)
"""Parts of a step, in the order in which they first happen; ``other`` is what no part claims."""


class Meter:
    """Measures the steps of this process, one at a time, each when the pipe asks for it.

    Copies of a module with hooks of a meter (a reference policy is one) report to the same meter.

    Args:
        pipe: where steps are asked for and their numbers go.
        device: cpu, or cuda: then memory is what torch allocated there.
    """

    def __init__(self, pipe: Pipe, device: str) -> None:
        self.pipe, self.device = pipe, device
        self.replays = False
        """Whether tokens are decoded by replays of a CUDA graph: no hook sees them, they are counted elsewhere."""
        self.counts: Counter[str] = Counter()
        self._spent: defaultdict[str, float] = defaultdict(float)
        self._stack: list[str] = ["other"]
        self._last = self._cpu = self._wall = 0.0
        self._baseline = 0.0

    def __deepcopy__(self, _memo: dict[int, Any]) -> Meter:
        return self

    def ready(self, **facts: Any) -> None:
        """Everything is loaded: what is resident now is the baseline of the peaks."""
        gc.collect()
        self._baseline = self._resident()
        self.pipe.send({"baseline_mib": self._baseline, **facts})

    def begin(self) -> None:
        """Wait until a step is asked for and start to measure it."""
        self.pipe.wait()
        self.counts.clear()
        self._spent.clear()
        self._stack = ["other"]
        self._forget_peak()
        self._synchronize()
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        self._last = self._wall if self.device == "cuda" else self._cpu

    def end(self, **facts: Any) -> None:
        """The step is done: send its numbers."""
        self._lap()
        cpu = self._last if self.device == "cpu" else time.process_time()
        self.pipe.send(
            {
                "cpu_s": cpu - self._cpu,
                "wall_s": time.perf_counter() - self._wall,
                "peak_mib": self._peak() - self._baseline,
                "counts": dict(self.counts),
                "phases": dict(self._spent),
                **facts,
            }
        )

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Seconds inside count for ``name``, those of a phase within it for that one alone."""
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def enter(self, name: str) -> None:
        """A phase begins."""
        self._lap()
        self._stack.append(name)

    def leave(self) -> None:
        """The phase that began last ends."""
        self._lap()
        self._stack.pop()

    def watch(self, core: Any) -> None:
        """Count and time what goes through ``core``, a stock body with ``visual`` and ``language_model``."""
        core.visual.register_forward_pre_hook(self._before_vision_encoder, with_kwargs=True)
        core.visual.register_forward_hook(self._after)
        core.language_model.register_forward_pre_hook(self._before_language, with_kwargs=True)
        core.language_model.register_forward_hook(self._after)

    def _before_vision_encoder(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.counts["vision_encoder_images"] += len(kwargs["grid_thw"] if "grid_thw" in kwargs else args[1])
        self.enter("vision_encoder")

    def _before_language(self, _module: Any, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows, length = kwargs["inputs_embeds"].shape[:2]
        name = "policy" if torch.is_grad_enabled() else "reference"
        if cache_in(kwargs) is not None:
            name = "prefill" if length > 1 else "decode"
        if name != "decode" or not self.replays:
            self.counts[f"{name}_tokens"] += rows * length
        self.enter(name)

    def _after(self, *_: Any) -> None:
        self.leave()

    def _lap(self) -> None:
        """Charge the time since the last lap to the phase that is on."""
        self._synchronize()
        now = self._now()
        self._spent[self._stack[-1]] += now - self._last
        self._last = now

    def _now(self) -> float:
        return time.perf_counter() if self.device == "cuda" else time.process_time()

    def _synchronize(self) -> None:
        if self.device == "cuda" and not torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()

    def _resident(self) -> float:
        if self.device == "cuda":
            return torch.cuda.memory_allocated() / MIB
        return _status("VmRSS")

    def _forget_peak(self) -> None:
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            return
        gc.collect()
        with contextlib.suppress(OSError):  # where the kernel does not let us, the peak is that of the whole process
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def _peak(self) -> float:
        return torch.cuda.max_memory_allocated() / MIB if self.device == "cuda" else _status("VmHWM")


def _status(key: str) -> float:
    """A size of this process in MiB, as Linux tells it in /proc/self/status (proc(5), in kB)."""
    result = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.M)
    return int(result[1]) / 1024 if result else float("nan")
