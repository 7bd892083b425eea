"""The processes of a run: who one is, what all have together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore


class Ranks:
    """One of ``count`` processes; without others unless :func:`join` was called. Sums are made in rank order."""

    def __init__(self) -> None:
        joined = dist.is_available() and dist.is_initialized()
        self.rank: int = dist.get_rank() if joined else 0
        self.count: int = dist.get_world_size() if joined else 1

    @property
    def leads(self) -> bool:
        """Whether this one writes the files."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Every rank's ``value``, by rank, on every rank. Plain values only: it travels as a pickle among the ranks."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def total(self, values: Mapping[str, float]) -> dict[str, float]:
        """The sum over ranks, key by key."""
        rows = self.gather(dict(values))
        return {key: sum(row[key] for row in rows) for key in values}

    def any(self, value: bool) -> bool:
        """Whether it is true on some rank."""
        if self.count == 1:
            return value
        flag = torch.tensor([int(value)], device=_device())
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def wait(self) -> None:
        """Until every rank is here."""
        if self.count > 1:
            dist.barrier()


def join(timeout_s: float) -> Ranks:
    """Meet the other processes that torchrun started, if it did; with gloo on a CPU, NCCL on a GPU.

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
    return Ranks()


def leave() -> None:
    """Part from the other processes."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def local_rank() -> int:
    """The number of this process on its node."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def _device() -> torch.device:
    return torch.device("cuda", local_rank()) if dist.get_backend() == "nccl" else torch.device("cpu")
