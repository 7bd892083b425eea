"""The processes of a run: rank and world size, and the collective calls on plain values."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from grasp_rl.config.schema import EngineConfig


class ProcessGroup:
    """One of ``world_size`` processes; alone unless :func:`init` was called. Sums are made in rank order."""

    def __init__(self) -> None:
        initialized = dist.is_available() and dist.is_initialized()
        self.rank: int = dist.get_rank() if initialized else 0
        self.world_size: int = dist.get_world_size() if initialized else 1

    @classmethod
    def alone(cls) -> ProcessGroup:
        """A group of one."""
        group = cls.__new__(cls)
        group.rank, group.world_size = 0, 1
        return group

    @property
    def is_main(self) -> bool:
        """Whether this one writes the files."""
        return self.rank == 0

    def all_gather(self, value: Any) -> list[Any]:
        """Every rank's ``value``, by rank, on every rank. Plain values only: it travels as a pickle among the ranks."""
        if self.world_size == 1:
            return [value]
        result: list[Any] = [None] * self.world_size
        dist.all_gather_object(result, value)
        return result

    def all_reduce_sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """The sum over ranks, key by key."""
        rows = self.all_gather(dict(values))
        return {key: sum(row[key] for row in rows) for key in values}

    def any_rank(self, value: bool) -> bool:
        """Whether it is true on some rank."""
        if self.world_size == 1:
            return value
        flag = torch.tensor([int(value)], device=_device())
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def barrier(self) -> None:
        """Wait until every rank has called it."""
        if self.world_size > 1:
            dist.barrier()


ALONE = ProcessGroup.alone()
"""One process without others, whether or not there is a process group."""


@contextlib.contextmanager
def joined(engine: EngineConfig) -> Iterator[ProcessGroup]:
    """The process group of a run's processes for the length of a block, for work that needs no optimizer."""
    if engine.nproc * engine.nnodes == 1:
        yield ALONE
        return
    group = init(engine.timeout_s)
    try:
        yield group
    finally:
        destroy()


@contextlib.contextmanager
def kept(engine: EngineConfig) -> Iterator[ProcessGroup]:
    """Within the block the process group of a run's processes outlives the engines that are built and closed in it."""
    global _kept  # noqa: PLW0603
    group = init(engine.timeout_s) if engine.nproc * engine.nnodes > 1 else ProcessGroup()
    _kept += 1
    try:
        yield group
    finally:
        _kept -= 1
        destroy()


_kept = 0
"""Blocks of :func:`kept` that are open."""


def init(timeout_s: float) -> ProcessGroup:
    """Initialise the process group of the processes that torchrun started, if it did; with gloo on a CPU, NCCL on a
    GPU.

    Args:
        timeout_s: after which a rank that waits for another gives up.
    """
    if not dist.is_initialized():
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.set_device(local_rank())
        alone: dict[str, Any] = {} if "RANK" in os.environ else {"store": HashStore(), "rank": 0, "world_size": 1}
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed wants to be told
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(seconds=timeout_s), **alone)
    return ProcessGroup()


def destroy() -> None:
    """Destroy the process group, unless it is :func:`kept`."""
    if not _kept and dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def local_rank() -> int:
    """The number of this process on its node."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def _device() -> torch.device:
    return torch.device("cuda", local_rank()) if dist.get_backend() == "nccl" else torch.device("cpu")
