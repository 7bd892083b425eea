"""LoRA (arXiv:2106.09685) by PEFT, on the linear layers of the language model and of a trained vision encoder."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners import lora
from torch import Tensor, nn
from torch.nn.functional import linear

from grasp_rl.config.errors import ConfigError
from grasp_rl.policies.compat import quiet_peft

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class CastLinear(nn.Linear):
    """A matrix of an adapter, kept in float32 and multiplied in the input's precision."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.to(x.dtype))


class AdaptedLinear(lora.Linear):  # type: ignore[misc]
    """PEFT's linear layer with an adapter; in half precision the adapter is computed as torch's autocast would.

    PEFT keeps an adapter's two matrices in float32 and casts the layer's input and output to them. The matrices are
    the smaller part: here they are cast instead, so that no large tensor is in float32. In float32 nothing differs.
    """

    cast: tuple[Tensor, Tensor] | None = None
    """The two matrices in half precision, the scale in the first, transposed the second; see :func:`cast_once`."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        plain = not (args or kwargs or self.disable_adapters or self.merged) and len(self.active_adapters) == 1
        if not plain or x.dtype not in (torch.bfloat16, torch.float16):
            result: Tensor = super().forward(x, *args, **kwargs)
            return result
        name = self.active_adapters[0]
        base: Tensor = self.base_layer(x)
        if self.cast is not None and not torch.is_grad_enabled():
            down, up = self.cast
            return torch.addmm(base.flatten(0, -2), linear(x, down).flatten(0, -2), up).view_as(base)
        result = base + self.lora_B[name](self.lora_A[name](x) * self.scaling[name])
        return result


@contextlib.contextmanager
def cast_once(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within the block adapters are cast to ``dtype`` once rather than in every forward; their weights must not change.

    Forwards with a gradient are not affected, nor layers whose parameters ZeRO-3 has divided and gathers in turn.
    """
    half = dtype in (torch.bfloat16, torch.float16)
    layers = [module for module in model.modules() if half and isinstance(module, AdaptedLinear)]
    with torch.no_grad():
        for layer in layers:
            name = layer.active_adapters[0]
            down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
            if not down.numel() or not up.numel():
                continue
            layer.cast = (down * layer.scaling[name]).to(dtype), up.to(dtype).T
    try:
        yield
    finally:
        for layer in layers:
            layer.cast = None


def add_lora(
    model: Any,
    *,
    rank: int,
    alpha: int,
    seed: int = 0,
    targets: Sequence[str] = TARGETS,
    vision_encoder: Sequence[str] = (),
) -> Any:
    """``model`` wrapped with a fresh adapter that changes nothing yet, or ``model`` itself for rank 0.

    Args:
        model: a stock ...ForConditionalGeneration.
        rank: of the adapter's matrices.
        alpha: the adapter's scale is alpha / rank.
        seed: of its initialisation.
        targets: names of the language model's linear layers that get one.
        vision_encoder: parts of the body all of whose linear layers get one too.

    Raises:
        ConfigError: a target is no linear layer of the language model.
    """
    if rank == 0:
        return model
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    language = [name for name in linear if name.startswith("model.language_model.")]
    for target in targets:
        if not any(name.endswith(f".{target}") for name in language):
            result = ", ".join(sorted({name.rpartition(".")[2] for name in language}))
            raise ConfigError(f"policy.lora_targets: {target!r} is no linear layer here; must be of {result}")
    chosen = [name for name in language if name.rpartition(".")[2] in targets]
    chosen += [name for name in linear if name.startswith(tuple(f"model.{part}." for part in vision_encoder))]
    pattern = "|".join(sorted({re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", re.escape(name)) for name in chosen}))
    with torch.random.fork_rng(), quiet_peft():
        torch.manual_seed(seed)
        adapted = get_peft_model(
            model, LoraConfig(r=rank, lora_alpha=alpha, target_modules=f"({pattern})", lora_dropout=0.0)
        )
    for module in adapted.modules():
        if type(module) is lora.Linear:
            module.__class__ = AdaptedLinear
            for matrix in (*module.lora_A.values(), *module.lora_B.values()):
                matrix.__class__ = CastLinear
    return adapted
