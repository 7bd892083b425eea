"""The engine of a config."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from grasp_rl.config.schema import EngineConfig, OptimizerConfig, RunConfig
from grasp_rl.distributed.engine import Engine
from grasp_rl.distributed.local import LocalEngine


def make_engine(module: Any, optimizer: OptimizerConfig, total_steps: int, engine: EngineConfig) -> Engine:
    """The engine that ``engine.name`` says.

    Raises:
        ConfigError: DeepSpeed is wanted and not installed.
    """
    if engine.name == "local":
        return LocalEngine(module, optimizer, total_steps)
    from grasp_rl.distributed.deepspeed import ZeroEngine

    return ZeroEngine(module, optimizer, total_steps, engine)


def loading(config: RunConfig) -> contextlib.AbstractContextManager[Any]:
    """The block in which the policy is built: under ZeRO-3 its weights are divided as they are read."""
    if config.engine.zero_stage < 3:
        return contextlib.nullcontext()
    from grasp_rl.distributed.deepspeed import partitioned_loading

    dtype = torch.bfloat16 if config.policy.get("dtype") == "bfloat16" else torch.float32
    return partitioned_loading(config.engine, config.optimizer, dtype)


@contextlib.contextmanager
def whole(module: Any) -> Iterator[None]:
    """Within the block, a module that no engine has yet holds all its weights; what rank 0 writes counts for all."""
    parted = [p for p in module.parameters() if hasattr(p, "ds_id")]
    if not parted:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parted, modifier_rank=0):
        yield
