"""Decoding with tensors that never move: the same completions as with a growing cache, on every family."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from grasp_rl.config.schema import PromptConfig
from grasp_rl.policies.backbones.base import ImageSize
from grasp_rl.policies.generation import static as static_decoding
from grasp_rl.policies.pretrained import HfVlmPolicy
from grasp_rl.policies.types import Sampling
from grasp_rl.rehearsal import models as tiny_models
from grasp_rl.types import Completion


@pytest.fixture(scope="module", params=tiny_models.FAMILIES)
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HfVlmPolicy:
    folder = tiny_models.build(request.param, tmp_path_factory.mktemp(request.param))
    policy = HfVlmPolicy(str(folder), ImageSize(), dtype="float32")
    tiny_models.loud(policy.model)
    return policy


def ask(policy: HfVlmPolicy, decoding: str, greedy: bool, **more: Any) -> list[list[Completion]]:
    policy.decoding = decoding
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (size, 70, 3), dtype=np.uint8) for size in (60, 90)]
    prompts = [policy.encode(p, q, PromptConfig()) for p, q in zip(images, ("a", "the longer roof"), strict=True)]
    uniforms = None if greedy else torch.from_numpy(rng.random((2, 3, 40)))
    with torch.no_grad():
        embedded = policy.embed(prompts)
        return policy.generate(embedded, uniforms, group_size=3, max_new_tokens=40, **more)


@pytest.mark.parametrize("greedy", [True, False])
def test_static_equals_growing(policy: HfVlmPolicy, greedy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token by token, prompts of different lengths, rows that end and leave."""
    kept: list[int] = []
    stock = static_decoding.StaticState.keep
    monkeypatch.setattr(
        static_decoding.StaticState, "keep", lambda self, living: (kept.append(len(living)), stock(self, living))[1]
    )
    growing = ask(policy, "growing", greedy)
    if not greedy:  # the most frequent tokens end a completion, so that rows leave
        common = torch.tensor([t for g in growing for c in g for t in c.token_ids]).bincount().topk(4).indices
        policy.ends, before = common.tolist(), policy.ends
        growing = ask(policy, "growing", greedy)
    static = ask(policy, "static", greedy)
    for a, b in zip(*([c for g in groups for c in g] for groups in (growing, static)), strict=True):
        assert a.token_ids == b.token_ids
        assert a.finish_reason == b.finish_reason
        assert np.abs(np.array(a.logprobs) - np.array(b.logprobs)).max() < 1e-5
    if not greedy:
        policy.ends = before
        assert len({len(c.token_ids) for g in growing for c in g}) > 1


def test_cut_distributions_and_limits(policy: HfVlmPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = Sampling(top_k=5, temperature=0.8)
    static, growing = (ask(policy, how, False, sampling=sampling) for how in ("static", "growing"))
    assert [c.token_ids for g in static for c in g] == [c.token_ids for g in growing for c in g]
    late = ask(policy, "static", False, deadline=0.0)
    assert max(len(c.token_ids) for g in late for c in g) == static_decoding.LOOK_EVERY


def test_a_cpu_takes_the_growing_cache(policy: HfVlmPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(static_decoding, "decode", never)
    (group, *_) = ask(policy, "auto", True)
    assert all(completion.token_ids for completion in group)


def test_scores_travel_as_they_are() -> None:
    scores = torch.tensor([[0.1, -0.0, float("inf")], [-1e-42, float("nan"), -3.25]])[:, 1:]
    tokens = torch.tensor([[1, 151_935], [0, 7]])
    same_tokens, same_scores = static_decoding.fetch(tokens, scores)
    assert same_tokens == tokens.tolist()
    assert np.array(same_scores).tobytes() == np.array(scores.tolist()).tobytes()


def test_the_last_step_can_be_rehearsed(policy: HfVlmPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the trial runs before a capture change is taken back, so that they do not write behind the last token."""
    stock, rehearsed = static_decoding.StaticState.advance, []

    def twice_before(self: static_decoding.StaticState) -> None:
        before = (int(self.step), int(self.place), self.tokens.clone(), self.seen.clone())
        for _ in range(2):
            self.rehearse()
        assert (int(self.step), int(self.place)) == before[:2]
        assert torch.equal(self.tokens, before[2])
        assert torch.equal(self.seen, before[3])
        rehearsed.append(before[0])
        stock(self)

    expected = ask(policy, "static", False)
    monkeypatch.setattr(static_decoding.StaticState, "advance", twice_before)
    found = ask(policy, "static", False)
    assert [c.token_ids for g in found for c in g] == [c.token_ids for g in expected for c in g]
    assert max(rehearsed) == 39  # of 40 tokens
