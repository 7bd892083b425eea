"""Supported versions of transformers name things differently: both names, on the installed classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from grasp_rl.bench.measure import Meter
from grasp_rl.bench.task import Pipe
from grasp_rl.config.schema import PromptConfig
from grasp_rl.policies import compat
from grasp_rl.policies.tiny.policy import TinyPolicy
from grasp_rl.types import Sample


class _Silent(Pipe):
    def __init__(self) -> None:
        pass


@pytest.mark.parametrize("decoding", ["growing", "static"])
@pytest.mark.parametrize("name", compat.CACHE_KEYWORDS)
def test_decoding_calls_the_cache_by_the_name_that_the_class_accepts(
    name: str, decoding: str, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = TinyPolicy()
    policy.decoding = decoding
    prompts = [policy.encode(s.image, s.query, PromptConfig(template="compact")) for s in samples[:2]]
    wanted: dict[str, Any] = {"group_size": 2, "max_new_tokens": 12}
    with torch.no_grad():
        expected = policy.generate(policy.embed(prompts), None, **wanted)
    stock = type(policy.core.language_model)
    forward, real = stock.forward, compat.cache_keyword(policy.core.language_model)
    taken: list[str] = []

    def old(self: Any, *, past_key_values: Any = None, **named: Any) -> Any:
        taken.append("past_key_values")
        return forward(self, **named, **{real: past_key_values})

    def new(self: Any, *, cache: Any = None, **named: Any) -> Any:
        taken.append("cache")
        return forward(self, **named, **{real: cache})

    monkeypatch.setattr(stock, "forward", old if name == "past_key_values" else new)
    meter = Meter(_Silent(), "cpu")
    meter.watch(policy.core)
    with torch.no_grad():
        found = policy.generate(policy.embed(prompts), None, **wanted)
    assert found == expected
    assert set(taken) == {name}
    assert meter.counts["prefill_tokens"] > 0
    assert meter.counts["decode_tokens"] > 0
    assert meter.counts["reference_tokens"] == 0


def test_a_class_that_takes_neither_name_is_named() -> None:
    class Other:
        def forward(self, memory: object = None) -> None:
            pass

    with pytest.raises(TypeError, match=r"Other\.forward takes none of cache, past_key_values"):
        compat.cache_keyword(Other())
