"""One process, one device: AdamW, gradient clipping and a schedule by optimizer step."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from grasp_rl.config.schema import OptimizerConfig
from grasp_rl.distributed.engine import Batch, StepReport, learning_rate
from grasp_rl.distributed.process_group import ProcessGroup

_STATE = "optimizer.pt"


class LocalEngine:
    """Owns the optimizer of ``module``.

    Args:
        module: trained in place; parameters that need no gradient are left out.
        optimizer: AdamW's settings and schedule.
        total_steps: length of the schedule.
    """

    def __init__(self, module: nn.Module, optimizer: OptimizerConfig, total_steps: int) -> None:
        self.config, self.total_steps, self.steps_done = optimizer, total_steps, 0
        self.module, self.process_group = module, ProcessGroup()
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=optimizer.lr,
            betas=(optimizer.beta1, optimizer.beta2),
            weight_decay=optimizer.weight_decay,
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The policy's own forward."""
        return self.module(*args, **kwargs)

    def wrap_frozen(self, module: Any) -> Any:
        """The module itself."""
        return module

    def full_parameters(self, *, whole: bool = False, write: bool = False) -> contextlib.AbstractContextManager[None]:
        """Nothing to do: parameters are whole."""
        return contextlib.nullcontext()

    def synchronized_batches(
        self, batches: Iterable[Batch], dummy: Callable[[], Batch]
    ) -> Iterator[tuple[Batch, bool]]:
        """The batches; there is no other rank to keep in step with."""
        return ((batch, True) for batch in batches)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one micro-batch's share of the loss."""
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self) -> StepReport:
        """Clip, update, clear. A gradient that is not finite leaves weights and moments alone."""
        rate = learning_rate(self.config, self.steps_done, self.total_steps)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm))
        applied = math.isfinite(norm)
        if applied:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps_done += 1
        return StepReport(grad_norm=norm, lr=rate, applied=applied)

    def skip_step(self) -> StepReport:
        """Count a step that had nothing to learn from; weights and moments are left alone."""
        rate = learning_rate(self.config, self.steps_done, self.total_steps)
        self.steps_done += 1
        return StepReport(grad_norm=0.0, lr=rate, applied=True)

    def zero_grad(self) -> None:
        """Throw the gradient so far away."""
        self.optimizer.zero_grad(set_to_none=True)

    def save(self, folder: Path) -> None:
        """Write the optimizer's state: tensors and plain values."""
        torch.save({"optimizer": self.optimizer.state_dict(), "steps_done": self.steps_done}, folder / _STATE)

    def load(self, folder: Path, *, ranks: int = 1) -> None:
        """Read it again (``weights_only``)."""
        state = torch.load(folder / _STATE, map_location="cpu", weights_only=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps_done = state["steps_done"]

    def close(self) -> None:
        """Nothing to give up."""
