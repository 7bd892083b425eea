"""What goes wrong inside an optimizer step: memory that runs out, rewards all alike, numbers that are none."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import rolling
import torch
from rolling import generate
from rubrics import rubric
from scripted import OneByOne

from grasp_rl.config.schema import (
    AlgorithmConfig,
    CheckpointConfig,
    EvaluationConfig,
    OptimizerConfig,
    PromptConfig,
    RolloutConfig,
    RunConfig,
)
from grasp_rl.data.synthetic.dataset import SyntheticSource
from grasp_rl.distributed.local import LocalEngine
from grasp_rl.evaluation.protocols.masks import OURS
from grasp_rl.grpo.loss import StepSize
from grasp_rl.interfaces import Components
from grasp_rl.policies.generation import decode as decoding
from grasp_rl.policies.tiny.policy import TinyPolicy
from grasp_rl.rollouts.generators.in_process import InProcess
from grasp_rl.rollouts.reward_pipeline import SegmenterError
from grasp_rl.segmenters.box_fill import BoxFillSegmenter
from grasp_rl.tracking.null import NullTracker
from grasp_rl.training import hooks
from grasp_rl.training.train import make_trainer
from grasp_rl.training.trainer import Trainer
from grasp_rl.training.update import PolicyUpdater, make_reference
from grasp_rl.types import Answer, MaskPrediction, RewardBreakdown, RolloutGroup, Sample, SpatialPrompt

COMPACT = PromptConfig(template="compact")
SETTINGS = RolloutConfig(max_new_tokens=10)
ERRORS = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
    MemoryError(),
)


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("where", ["prefill", "decode_token"])
def test_memory_runs_out_in_generation(
    random_policy: TinyPolicy, samples: list[Sample], monkeypatch: pytest.MonkeyPatch, where: str, error: Exception
) -> None:
    """Fewer rows at once, the same completions; a group that does not fit is decoded in parts."""
    expected = generate(random_policy, samples[:4], COMPACT, group_size=4, config=SETTINGS)
    stock: Any = getattr(decoding, where)
    seen: list[int] = []

    def scarce(policy: Any, first: Any, *more: Any) -> Any:
        rows = len(first) * more[0] if where == "prefill" else len(more[0])
        seen.append(rows)
        if rows > 2:
            raise error
        return stock(policy, first, *more)

    monkeypatch.setattr(decoding, where, scarce)
    generator = InProcess()
    prompts = [random_policy.encode(s.image, s.query, COMPACT) for s in samples[:4]]
    found = dict(generator.generate(random_policy, samples[:4], prompts, group_size=4, config=SETTINGS, seed=0, step=0))
    assert [[c.token_ids for c in found[i]] for i in range(4)] == [[c.token_ids for c in g] for g in expected]
    assert max(seen) == 16
    assert seen[-1] <= 2
    assert generator.rows == 2 or where == "decode_token"  # finished rows may leave few enough
    assert generator.counters()["rollout_out_of_memory"] == generator.out_of_memory >= 1
    before = generator.out_of_memory
    list(generator.generate(random_policy, samples[:4], prompts, group_size=4, config=SETTINGS, seed=0, step=1))
    assert generator.out_of_memory == before  # remembered


def test_memory_for_nothing_names_the_keys(
    random_policy: TinyPolicy, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    def scarce(*_: Any) -> None:
        raise ERRORS[0]

    monkeypatch.setattr(decoding, "prefill", scarce)
    with pytest.raises(RuntimeError, match=r"policy\.image\.max_pixels.*rollout\.max_new_tokens"):
        generate(random_policy, samples[:2], COMPACT, group_size=4, config=SETTINGS)


def test_another_error_is_not_taken_for_memory(
    random_policy: TinyPolicy, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(decoding, "prefill", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        generate(random_policy, samples[:2], COMPACT, group_size=4, config=SETTINGS)


def compared(policy: TinyPolicy, samples: list[Sample]) -> list[RolloutGroup]:
    algorithm = AlgorithmConfig(group_size=4)
    groups = list(rolling.rollouts(policy, samples, algorithm=algorithm, rollout=SETTINGS, prompt=COMPACT))
    return rolling.with_advantages(groups, torch.randn(len(groups), 4, generator=torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("iterations", [1, 2])
@pytest.mark.parametrize("where", ["forward", "backward", "reference"])
def test_memory_runs_out_in_the_update(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch, where: str, iterations: int
) -> None:
    """The same step as with micro-batches that fit from the start, however far the first attempt came."""
    algorithm = AlgorithmConfig(group_size=4, micro_batch_groups=4, beta=0.1, iterations=iterations)

    def step(scarce: bool) -> tuple[dict[str, float], torch.Tensor, PolicyUpdater]:
        policy = TinyPolicy(weights="random")
        groups = compared(policy, samples[:6])
        engine = LocalEngine(policy, OptimizerConfig(lr=1e-3), 10)
        reference = make_reference(policy, 0.1)
        updater = PolicyUpdater(policy, engine, reference, algorithm=algorithm, rollout=SETTINGS)
        calls: list[int] = []

        def once_in(stock: Any, number: int) -> Any:
            def faulty(*words: Any, **named: Any) -> Any:
                calls.append(1)
                if len(calls) == number:
                    raise ERRORS[0]
                return stock(*words, **named)

            return faulty

        if scarce and where == "forward":
            monkeypatch.setattr(policy, "logprobs", once_in(policy.logprobs, 2))
        elif scarce and where == "backward":
            monkeypatch.setattr(engine, "backward", once_in(engine.backward, 2))
        elif scarce:
            updater.reference = once_in(reference, 2)
        row = updater(groups, rolling.size_of(groups, 10))
        weights = torch.cat([p.detach().flatten() for p in policy.parameters()])
        return row, weights, updater

    row, weights, updater = step(scarce=True)
    expected, reference_weights, _ = step(scarce=False)
    assert updater.size == 2
    assert row.pop("update_out_of_memory") == 1
    assert expected.pop("update_out_of_memory") == 0
    for key, value in expected.items():
        assert row[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key
    assert (weights - reference_weights).abs().max() < 1e-4  # a tenth of the first Adam step


def test_memory_for_not_one_group_names_the_keys(samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    policy = TinyPolicy(weights="random")
    groups = compared(policy, samples[:2])

    def scarce(*_: Any, **__: Any) -> None:
        raise ERRORS[0]

    monkeypatch.setattr(policy, "logprobs", scarce)
    with pytest.raises(RuntimeError, match=r"policy\.checkpoint_activations"):
        rolling.update(policy, groups, AlgorithmConfig(group_size=4), SETTINGS)
    assert all(p.grad is None for p in policy.parameters())


def test_weights_of_another_engine_are_cut_off(samples: list[Sample]) -> None:
    """Truncated importance sampling: exp(scored - sampled), at most the cap, on the policy term."""
    policy = TinyPolicy(weights="random")
    groups = compared(policy, samples[:2])

    def moved(cap: float | None, shift: float) -> float:
        shifted = [_with_logprobs(group, shift) for group in groups]
        fresh = TinyPolicy(weights="random")
        engine = LocalEngine(fresh, OptimizerConfig(max_grad_norm=1e9), 10)
        updater = PolicyUpdater(
            fresh, engine, None, algorithm=AlgorithmConfig(group_size=4), rollout=SETTINGS, mismatch_cap=cap
        )
        return updater(shifted, rolling.size_of(groups, 10))["grad_norm"]

    plain = moved(None, 0.0)
    assert moved(None, -0.5) == pytest.approx(plain, rel=1e-6)  # nothing to correct
    assert moved(2.0, 0.0) == pytest.approx(plain, rel=1e-4)
    assert moved(2.0, 0.5) == pytest.approx(plain * 2.718281828**-0.5, rel=1e-4)
    assert moved(2.0, -3.0) == pytest.approx(plain * 2, rel=1e-4)


def _with_logprobs(group: RolloutGroup, shift: float) -> RolloutGroup:
    rollouts = tuple(
        replace(r, completion=replace(r.completion, logprobs=tuple(v + shift for v in r.completion.logprobs)))
        for r in group.rollouts
    )
    return replace(group, rollouts=rollouts)


# --- whole runs


class Alike(OneByOne):
    needs = frozenset({"boxes"})

    def __call__(self, answer: Answer, reference: object, prediction: object) -> RewardBreakdown:
        return RewardBreakdown(reward=0.5, terms={})


class FailsOn(BoxFillSegmenter):
    """A segmenter that raises on some of its prompts."""

    def __init__(self, fails: Callable[[SpatialPrompt], bool]) -> None:
        super().__init__()
        self.fails = fails

    def decode(self, embedding: Any, prompts: Sequence[SpatialPrompt]) -> MaskPrediction:
        if any(self.fails(prompt) for prompt in prompts):
            raise RuntimeError("the weights are gone")
        return super().decode(embedding, prompts)


def trainer(
    folder: Path, reward: Any = None, *, steps: int = 4, segmenter: Any = None, weights: str = "random",
    loss: str = "constant", **rollout: Any,
) -> Trainer:  # fmt: skip
    config = RunConfig(
        run_dir=str(folder),
        prompt=COMPACT,
        algorithm=AlgorithmConfig(steps=steps, prompts_per_step=2, group_size=3, loss=loss),
        optimizer=OptimizerConfig(lr=1e-3),
        rollout=RolloutConfig(**({"max_new_tokens": 8, "reward_worker": "inline"} | rollout)),
        evaluation=EvaluationConfig(every=0, test_limit=2, overlays=0, bootstrap_samples=5, max_new_tokens=4),
        checkpoint=CheckpointConfig(every=0),
    )
    components = Components(
        policy=TinyPolicy(weights=weights), segmenter=segmenter or BoxFillSegmenter(), reward=reward or rubric("grasp"),
        data=SyntheticSource(train_size=8, test_size=4), tracker=NullTracker(), generator=InProcess(), protocol=OURS,
    )  # fmt: skip
    return make_trainer(config, components)


def rows_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_rewards_all_alike_move_nothing_and_stop_nothing(tmp_path: Path) -> None:
    run = trainer(tmp_path, Alike(), steps=5)
    before = torch.cat([p.detach().flatten().clone() for p in run.policy.parameters()])
    run.run()
    after = torch.cat([p.detach().flatten() for p in run.policy.parameters()])
    assert torch.equal(before, after)
    rows = rows_of(tmp_path)
    assert len(rows) == 5
    assert all(row["empty"] == 1 and row["zero_variance"] == 1 and row["skipped"] == 0 for row in rows)
    assert run.engine.steps_done == 5


class Torn(OneByOne):
    """A term that gives no number for every ``every``-th answer."""

    needs = frozenset({"boxes"})

    def __init__(self, every: int) -> None:
        self.every, self.calls = every, 0

    def __call__(self, answer: Answer, reference: object, prediction: object) -> RewardBreakdown:
        self.calls += 1
        value = float("nan") if self.calls % self.every == 0 else float(self.calls % 2)
        names = ("torn", "odd") if self.calls % 2 else ("odd", "torn")  # in another order every time
        return RewardBreakdown(reward=value + 1, terms={"sound": 1.0, **dict.fromkeys(names, value)})


def test_rewards_that_are_no_numbers_are_counted_named_and_stop_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer(tmp_path / "some", Torn(3), steps=4).run()
    assert [row["reward_not_finite"] for row in rows_of(tmp_path / "some")] == pytest.approx([1 / 3] * 4)
    assert caplog.text.count("2 rewards are not finite (reward.terms.odd, reward.terms.torn)") == 4
    with pytest.raises(
        RuntimeError, match=r"3 steps in a row were lost: most rewards.*mend reward\.terms\.odd, reward\.terms\.torn$"
    ):
        trainer(tmp_path / "all", Torn(1), steps=9).run()
    assert len(rows_of(tmp_path / "all")) == 3


def test_a_run_of_no_steps_scores_once_under_both_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``algorithm=none``: a zero-shot row of a grid, whatever number of steps the grid sets."""
    run = trainer(tmp_path, steps=7, loss="none")
    before = torch.cat([p.detach().flatten().clone() for p in run.policy.parameters()])
    scored, calls = hooks.evaluate, []
    monkeypatch.setattr(hooks, "evaluate", lambda *args, **kwargs: calls.append(args) or scored(*args, **kwargs))
    result = run.run()
    assert torch.equal(before, torch.cat([p.detach().flatten() for p in run.policy.parameters()]))
    assert (result["steps"], result["best_step"], len(calls)) == (0, None, 1)
    assert result["before"] == result["after"]
    assert rows_of(tmp_path) == []
    first, last = ((tmp_path / f"eval_{when}" / "predictions.jsonl").read_bytes() for when in ("before", "after"))
    assert first == last


def test_a_segmenter_that_always_fails_stops_the_run(tmp_path: Path) -> None:
    """The first step is logged, no second one is made on rewards of 0, and the error is named."""
    broken = FailsOn(lambda _: True)
    run = trainer(tmp_path, rubric("think2seg"), segmenter=broken, weights="warm_start", max_new_tokens=96)
    with pytest.raises(SegmenterError, match=r"failed on (\d+) of \1 prompts .*RuntimeError: the weights are gone"):
        run.run()  # in the evaluation before the first step
    run = trainer(tmp_path, rubric("think2seg"), segmenter=broken, weights="warm_start", max_new_tokens=96)
    run.evaluator.config.max_failed_prompts = 1.0
    with pytest.raises(
        SegmenterError, match=r"failed on (\d+) of \1 prompts of step 1: .*raise rollout\.max_failed_prompts=0\.5"
    ):
        run.run()
    assert [row["step"] for row in rows_of(tmp_path)] == [1]


def test_a_segmenter_that_fails_now_and_then_costs_those_answers(tmp_path: Path) -> None:
    def unlucky(prompt: SpatialPrompt) -> bool:
        return prompt.box is not None and int(prompt.box[0]) % 5 == 0

    words: dict[str, Any] = {"weights": "warm_start", "max_new_tokens": 96}
    trainer(tmp_path / "some", rubric("think2seg"), segmenter=FailsOn(unlucky), **words).run()
    assert 0 < max(row["segmenter_failed"] for row in rows_of(tmp_path / "some")) < 1
    assert len(rows_of(tmp_path / "some")) == 4


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_memory_that_runs_out_in_rewarding_is_not_the_updates(tmp_path: Path, error: Exception) -> None:
    """A reward with a model of its own: the groups are rewarded while the first are learned from."""

    class Scarce(Alike):
        def __call__(self, answer: Answer, reference: object, prediction: object) -> RewardBreakdown:
            raise error

    run = trainer(tmp_path, Scarce(), reward_worker="thread")
    with pytest.raises(RuntimeError, match="memory did not suffice to segment and reward") as caught:
        run.update(
            run.collect(run.reward_worker, partial(run.sampler, 0), 0), StepSize(sequences=6, tokens=48, max_tokens=8)
        )
    assert caught.value.__cause__ is error
    assert run.update.out_of_memory == 0
    run.close()


def test_logits_that_are_no_numbers_stop_the_run(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.policy.stock.lm_head.register_forward_hook(
        lambda _m, _i, out: out * float("nan") if run.policy.training or out.shape[0] == 6 else out
    )
    with pytest.raises(
        RuntimeError, match=r"3 steps in a row were lost: .*logits were not finite; lower optimizer\.lr"
    ):
        run.run()
    rows = rows_of(tmp_path)
    assert [row["groups_not_finite"] for row in rows] == [2, 2, 2]
    assert [row["empty"] for row in rows] == [1, 1, 1]
    assert all(bool(p.isfinite().all()) for p in run.policy.parameters())


def test_no_completion_in_time_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every completion is cut after its first token: counted for three steps, then advice."""
    with pytest.raises(RuntimeError, match=r"raise rollout\.time_limit_s"):
        trainer(tmp_path, time_limit_s=1e-9).run()
    rows = rows_of(tmp_path)
    assert len(rows) == 3
    assert all(row["groups_missing"] == 2 or row["timed_out"] == 1 for row in rows)


def test_counters_of_lost_memory_reach_the_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(tmp_path, steps=2)
    stock: Any = decoding.prefill

    def scarce(policy: Any, prompts: Any, group: int, length: int) -> Any:
        if run.policy.training is False and len(prompts) * group > 4 and group == 3:
            raise ERRORS[0]
        return stock(policy, prompts, group, length)

    monkeypatch.setattr(decoding, "prefill", scarce)
    run.run()
    assert [row["rollout_out_of_memory"] for row in rows_of(tmp_path)] == [1, 1]
