"""One process, one device: AdamW, gradient clipping and a schedule by optimizer step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from grasp_rl.config import ConfigError, EngineConfig, OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What an optimizer step did."""

    grad_norm: float
    """Global L2 norm before clipping."""
    lr: float
    applied: bool
    """False where the gradient was not finite and the weights were left alone."""


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
    """The device of ``engine.device``.

    Raises:
        ConfigError: cuda is asked for and there is none.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("engine.device='cuda': this machine has no usable GPU; must be auto or cpu here")
    name = "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"
    return torch.device(name)


class LocalEngine:
    """Owns the optimizer of ``module``.

    Args:
        module: trained in place; parameters that need no gradient are left out.
        optimizer: AdamW's settings and schedule.
        total_steps: length of the schedule.
    """

    def __init__(self, module: nn.Module, optimizer: OptimizerConfig, total_steps: int) -> None:
        self.config, self.total_steps, self.steps_done = optimizer, total_steps, 0
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=optimizer.lr,
            betas=(optimizer.beta1, optimizer.beta2),
            weight_decay=optimizer.weight_decay,
        )

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one micro-batch's share of the loss."""
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self) -> StepReport:
        """Clip, update, clear. A gradient that is not finite leaves weights and moments alone."""
        rate = learning_rate(self.config, self.steps_done, self.total_steps)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        applied = bool(norm.isfinite())
        if applied:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps_done += 1
        return StepReport(grad_norm=float(norm), lr=rate, applied=applied)

    def pass_by(self) -> StepReport:
        """Count a step that had nothing to learn from; weights and moments are left alone."""
        rate = learning_rate(self.config, self.steps_done, self.total_steps)
        self.steps_done += 1
        return StepReport(grad_norm=0.0, lr=rate, applied=True)

    def discard(self) -> None:
        """Throw the gradient so far away."""
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "steps_done": self.steps_done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps_done = state["steps_done"]
