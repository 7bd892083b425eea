"""What a GPU has: memory, arithmetic and bandwidth, as its maker states them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import psutil
import torch

from grasp_rl.config.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device."""

    name: str
    memory_gib: float
    tflops: float
    """Peak of dense bfloat16 matrix products, 10^12 per second."""
    bandwidth_gbs: float
    """Peak of memory, 10^9 bytes per second."""
    compute_share: float = 0.16
    """Share of the peak that a training step reaches.

    From steps of Qwen2.5-VL-3B's size on one H100 (experiments/2026-11-26_gpu): 0.83 to 1.12 times what these shares
    say. Assumed for every other GPU.
    """
    bandwidth_share: float = 0.2
    """Share of the peak that decoding reaches, like ``compute_share``."""
    reserve: float = 0.1
    """Share of the memory needed that fragmentation and the device's own libraries take on top. Assumed."""
    measured: bool = False


DEVICES = {
    device.name: device
    for device in (
        Device(name="h200", memory_gib=141, tflops=989, bandwidth_gbs=4800),
        Device(name="h100", memory_gib=80, tflops=989, bandwidth_gbs=3350),
        Device(name="a100_80", memory_gib=80, tflops=312, bandwidth_gbs=2039),
        Device(name="a100_40", memory_gib=40, tflops=312, bandwidth_gbs=1555),
        Device(name="l40s", memory_gib=48, tflops=362, bandwidth_gbs=864),
        Device(name="rtx4090", memory_gib=24, tflops=165, bandwidth_gbs=1008),
        Device(name="rtx3090", memory_gib=24, tflops=71, bandwidth_gbs=936),
    )
}
"""The makers' data sheets; dense bfloat16, no sparsity."""

CPU_RESERVE = 0.5
"""Resident memory of a step beyond what it holds: glibc with the settings of grasp_rl.utils.memory; see --calibrate."""
CPU_SHARE = 0.46
"""Share of a large float32 matrix product's throughput that a training step reaches on a CPU; see --calibrate."""


def this_cpu(memory_gib: float) -> Device:
    """The CPU of this machine on one thread, by matrix products and copies of about a second, the quickest of them.

    In CPU-seconds, so that other programs do not count.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    a, b, c = (torch.randn(768, 768) for _ in range(3))
    block = torch.zeros(2**24)  # 64 MiB
    other = torch.zeros_like(block)
    product = _quickest(lambda: torch.mm(a, b, out=c), 0.7)
    copy = _quickest(lambda: other.copy_(block), 0.3)
    torch.set_num_threads(threads)
    return Device(
        name="cpu",
        memory_gib=memory_gib,
        tflops=2 * 768**3 / product / 1e12,
        bandwidth_gbs=2 * block.nbytes / copy / 1e9,
        compute_share=CPU_SHARE,
        bandwidth_share=1.0,
        reserve=CPU_RESERVE,
        measured=True,
    )


def _quickest(work: Callable[[], object], seconds: float) -> float:
    """CPU-seconds of the quickest of the calls that fit into ``seconds``."""
    times, spent = [], 0.0
    while spent < seconds:
        begun = time.thread_time()
        work()
        times.append(time.thread_time() - begun)
        spent += times[-1]
    return min(times)


def device_of(name: str, memory_gib: float | None, tflops: float | None, bandwidth_gbs: float | None) -> Device:
    """A known device, or one of one's own.

    Raises:
        ConfigError: it is unknown, or a number is not positive.
    """
    for flag, value in (("memory-gib", memory_gib), ("tflops", tflops), ("bandwidth-gbs", bandwidth_gbs)):
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"--{flag} {value}: must be > 0")
    if name == "cpu":
        cpu = this_cpu(memory_gib or psutil.virtual_memory().total / 2**30)
        return replace(cpu, tflops=tflops or cpu.tflops, bandwidth_gbs=bandwidth_gbs or cpu.bandwidth_gbs)
    known = DEVICES.get(name)
    if known is None:
        raise ConfigError(
            f"--gpu {name}: must be one of {', '.join([*DEVICES, 'cpu'])}; or h100 with its numbers changed"
        )
    return Device(
        name=name,
        memory_gib=memory_gib or known.memory_gib,
        tflops=tflops or known.tflops,
        bandwidth_gbs=bandwidth_gbs or known.bandwidth_gbs,
    )
