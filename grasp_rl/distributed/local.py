"""One process, one device: AdamW, gradient clipping and a schedule by optimizer step."""

from __future__ import annotations

import contextlib
import math
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import OptimizerConfig
from grasp_rl.distributed.engine import Batch, StepReport, learning_rate
from grasp_rl.distributed.process_group import ProcessGroup

_STATE = "optimizer.pt"


def load_plain(path: Path, keys: Sequence[str], device: Any = "cpu") -> dict[str, Any]:
    """The mapping in a file of torch's that holds tensors and plain values; nothing in it is run (``weights_only``).

    Raises:
        ConfigError: it is damaged, holds more than that, or lacks one of ``keys``.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        said = str(error).partition("\n")[0][:200]
        raise ConfigError(f"{path}: is damaged, or holds more than tensors and plain values ({said})") from error
    if not isinstance(state, dict) or not set(keys) <= set(state):
        raise ConfigError(f"{path}: is damaged; it must hold {', '.join(keys)}")
    return state


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

    def load(self, folder: Path, *, ranks: int = 1, trusted: bool = False) -> None:
        """Read it again; it holds nothing that could be run.

        Raises:
            ConfigError: it is damaged, or another module's.
        """
        state = load_plain(folder / _STATE, ("optimizer", "steps_done"))
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            self.steps_done = int(state["steps_done"])
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"{folder / _STATE}: is no state of this policy's optimizer ({error})") from error

    def close(self) -> None:
        """Nothing to give up."""
