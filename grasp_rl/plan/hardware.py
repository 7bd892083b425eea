"""What a GPU has: memory, arithmetic and bandwidth, as its maker states them."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from grasp_rl.config import ConfigError


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device."""

    name: str
    memory_gib: float
    tflops: float
    """Peak of dense bfloat16 matrix products, 10^12 per second."""
    bandwidth_gbs: float
    """Peak of memory, 10^9 bytes per second."""
    compute_share: float = 0.4
    """Share of the peak that a training step reaches. Assumed: not measured on a GPU by this project."""
    bandwidth_share: float = 0.5
    """Share of the peak that decoding reaches. Assumed, like ``compute_share``."""
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

CPU_SHARE = 0.46
"""Seconds of a large float32 matrix product's throughput per second of a training step on a CPU; see --calibrate."""


def this_cpu(memory_gib: float) -> Device:
    """The CPU of this machine on one thread, by a matrix product of half a second."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    a, b = torch.randn(768, 768), torch.randn(768, 768)
    a @ b
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < 0.5:
        a @ b
        count += 1
    rate = 2 * 768**3 * count / (time.perf_counter() - begun)
    torch.set_num_threads(before)
    return Device(
        name="cpu",
        memory_gib=memory_gib,
        tflops=rate / 1e12,
        bandwidth_gbs=8.0,
        compute_share=CPU_SHARE,
        bandwidth_share=1.0,
        measured=True,
    )


def device_of(name: str, memory_gib: float | None, tflops: float | None, bandwidth_gbs: float | None) -> Device:
    """A known device, or one of one's own.

    Raises:
        ConfigError: it is unknown.
    """
    if name == "cpu":
        return this_cpu(memory_gib or _host_memory_gib())
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


def _host_memory_gib() -> float:
    with open("/proc/meminfo", encoding="ascii") as file:
        return int(file.readline().split()[1]) / 2**20
