"""What every engine has: the schedule, the report of a step, the verbs that need no other ranks."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import EngineConfig, OptimizerConfig
from grasp_rl.distributed.process_group import ProcessGroup, local_rank

Batch = TypeVar("Batch")


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What an optimizer step did."""

    grad_norm: float
    """Global L2 norm before clipping."""
    lr: float
    applied: bool
    """False where the gradient was not finite and the weights were left alone."""


class Engine(Protocol):
    """Owns the optimizer and knows where parameters lie. The training loop is the same for all."""

    process_group: ProcessGroup
    steps_done: int

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The policy's own forward on this rank's batch."""
        ...

    def wrap_frozen(self, module: Any) -> Any:
        """A module that is not trained (None stays None), laid out like the policy; it is called as before."""
        ...

    def full_parameters(self, *, whole: bool = False, write: bool = False) -> contextlib.AbstractContextManager[None]:
        """Within the block the policy has whole parameters on this rank: to roll out, evaluate and save.

        Args:
            whole: even where ``engine.gather`` is layer: to read or write all of them.
            write: rank 0's parameters are everybody's after the block.
        """
        ...

    def synchronized_batches(
        self, batches: Iterable[Batch], dummy: Callable[[], Batch]
    ) -> Iterator[tuple[Batch, bool]]:
        """Every batch of this rank, and fillers while other ranks have batches: (batch, whether it counts)."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one micro-batch's share of the loss of the whole step, over all ranks."""
        ...

    def step(self) -> StepReport:
        """Clip, update, clear. A gradient that is not finite leaves weights and moments alone."""
        ...

    def skip_step(self) -> StepReport:
        """Count a step that had nothing to learn from; weights and moments are left alone."""
        ...

    def zero_grad(self) -> None:
        """Throw the gradient so far away."""
        ...

    def save(self, folder: Path) -> None:
        """Write this rank's share of the optimizer's state."""
        ...

    def load(self, folder: Path, *, ranks: int = 1, trusted: bool = False) -> None:
        """Read it again, written by ``ranks`` of them; code in a pickle is run only where it is ``trusted``."""
        ...

    def close(self) -> None:
        """Give up what is held."""
        ...


def learning_rate(config: OptimizerConfig, step: int, total: int) -> float:
    """The rate of optimizer step ``step`` (from 0) of ``total``."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    share = min(1.0, (step - config.warmup_steps) / max(1, total - config.warmup_steps))
    decay = {"constant": 1.0, "linear": 1 - share, "cosine": 0.5 * (1 + math.cos(math.pi * share))}[config.schedule]
    if config.schedule == "constant":
        return config.lr
    return config.lr * (config.final_lr_ratio + (1 - config.final_lr_ratio) * decay)


def pick_device(config: EngineConfig) -> torch.device:
    """The device of ``engine.device``; with several processes on a node, each its own GPU.

    Raises:
        ConfigError: cuda is asked for and there is none, or fewer than processes.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("engine.device='cuda': this machine has no usable GPU; must be auto or cpu here")
    if config.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank() >= torch.cuda.device_count():
        raise ConfigError(f"engine.nproc={config.nproc}: must be <= {torch.cuda.device_count()}, the GPUs of this node")
    return torch.device("cuda", local_rank())
