"""Adapters in half precision: computed in the input's precision, kept in float32."""

from __future__ import annotations

import pytest
import torch
from peft.tuners import lora
from torch import nn

from grasp_rl.policies.lora import AdaptedLinear, CastLinear, add_lora, cast_once


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(32, 48)
        self.config = {"model_type": "none"}


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.language_model = Language()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Body()
        self.config = {"model_type": "none"}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model.language_model.q_proj(x)
        return found


def adapted(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = add_lora(Model().to(dtype), rank=4, alpha=8, targets=["q_proj"])
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.3)
    return model


X = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))


def outcome(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The output, and the gradients of the adapter in one vector."""
    out = model(x)
    out.float().square().sum().backward()
    return out.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_float32_is_pefts_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = outcome(adapted(torch.float32), X)
    monkeypatch.setattr(AdaptedLinear, "forward", lora.Linear.forward)
    monkeypatch.setattr(CastLinear, "forward", nn.Linear.forward)
    theirs = outcome(adapted(torch.float32), X)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_half_precision_is_exact_to_its_rounding() -> None:
    """Outputs and gradients, which stay in float32 like the matrices themselves; 2^-9 is half a unit of bfloat16."""
    model, x = adapted(torch.bfloat16), X.bfloat16()
    ours = outcome(model, x)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert ours[0].dtype == torch.bfloat16
    exact = outcome(adapted(torch.bfloat16).float(), x.float())
    for found, truth in zip(ours, exact, strict=True):
        assert (found.float() - truth).norm() < 2 * 2**-9 * truth.norm()


def test_cast_once_gives_the_same_and_lets_gradients_through() -> None:
    model, x = adapted(torch.bfloat16), X.bfloat16()
    with torch.no_grad():
        expected = model(x)
    with cast_once(model, torch.bfloat16):
        with torch.no_grad():
            assert (model(x) - expected).abs().max() <= 0.05 * expected.abs().max()
            assert not torch.equal(model(x), model.get_base_model()(x) * 0)
        _, gradients = outcome(model, x)
    assert gradients.abs().sum() > 0
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.zeros_(p)
    with torch.no_grad():  # nothing is left of the cast
        changed = model(x)
    with model.disable_adapter(), torch.no_grad():  # type: ignore[operator]
        assert torch.equal(changed, model(x))


def test_a_disabled_adapter_stays_disabled_while_cast() -> None:
    model, x = adapted(torch.bfloat16), X.bfloat16()
    with cast_once(model, torch.bfloat16), model.disable_adapter(), torch.no_grad():  # type: ignore[operator]
        base = model(x)
    expected = nn.functional.linear(
        x, model.get_parameter("base_model.model.model.language_model.q_proj.base_layer.weight"),
        model.get_parameter("base_model.model.model.language_model.q_proj.base_layer.bias"),
    )  # fmt: skip
    assert torch.equal(base, expected)


def test_divided_parameters_are_left_to_their_hooks() -> None:
    """Under ZeRO-3 with engine.gather=layer a parameter is empty until its own layer runs."""
    model = adapted(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.empty(0)
    with cast_once(model, torch.bfloat16):
        assert [m.cast for m in model.modules() if isinstance(m, AdaptedLinear)] == [None]
