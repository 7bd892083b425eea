"""Generation, rewarding and streaming of rollouts: layouts, cut distributions, limits, overlap, dynamic sampling."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import rolling
import torch
from rubrics import rubric
from scripted import OneByOne

from grasp_rl.config.schema import AlgorithmConfig, ParsingConfig, PromptConfig, RolloutConfig, RunConfig
from grasp_rl.data.sampler import PromptSampler
from grasp_rl.data.synthetic.dataset import SyntheticSource
from grasp_rl.distributed.process_group import ProcessGroup
from grasp_rl.grpo.loss import StepSize
from grasp_rl.policies.generation.state import ANSWER_ENDS
from grasp_rl.policies.tiny.policy import TinyPolicy
from grasp_rl.policies.types import Sampling
from grasp_rl.rewards.stages import FIRST
from grasp_rl.rollouts.collect import collect_rollouts
from grasp_rl.rollouts.generators.in_process import InProcess
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.rollouts.reward_worker import RewardTask, RewardWorker, result_of, rewarded
from grasp_rl.segmenters.grabcut import GrabCutSegmenter
from grasp_rl.types import Answer, Completion, FinishReason, RewardBreakdown, Sample
from grasp_rl.utils.keyed_rng import token_uniforms

COMPACT = PromptConfig(template="compact")


@pytest.fixture(scope="module")
def speaking() -> TinyPolicy:
    """The shipped policy, which gives well-formed answers."""
    return TinyPolicy()


# --- the draw


def boundary_distance(
    policy: TinyPolicy, sample: Sample, said: Sequence[int], uniform: float, tokens: Sequence[int]
) -> float:
    """How far ``uniform`` is from the nearest edge of the CDF steps of ``tokens`` after ``said``."""
    embedded = policy.embed([policy.encode(sample.image, sample.query, COMPACT)])
    hidden: list[torch.Tensor] = []
    hook = policy.scorer.register_forward_pre_hook(lambda _m, words: hidden.append(words[0]))
    with torch.no_grad():
        policy.logprobs(embedded, [[(*said, 0)]])
        logits = policy.stock.lm_head(hidden[0][-1])
    hook.remove()
    cdf = torch.log_softmax(logits.float(), -1).double().exp().cumsum(-1)
    cdf = cdf / cdf[-1]
    edges = [float(cdf[t]) for t in tokens] + [float(cdf[t - 1]) for t in tokens if t]
    return min(abs(edge - uniform) for edge in edges)


@pytest.mark.parametrize(("noise", "reach"), [(0.0, 1e-5), (3e-4, 3e-3)])
def test_another_layout_changes_a_token_only_at_a_boundary(
    random_policy: TinyPolicy, samples: list[Sample], noise: float, reach: float
) -> None:
    """All rows at once or eight at a time, in another order: at least 99.9 % of the tokens are equal.

    Weights that differ by a little noise stand for another machine's rounding, so that there are differences to look
    at; each of them is where the uniform meets a step of the CDF.
    """
    settings = RolloutConfig(max_new_tokens=48)
    wide = rolling.generate(random_policy, samples, COMPACT, group_size=8, config=settings, seed=3)
    other = TinyPolicy(weights="random")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1 + noise * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    backwards = samples[::-1]
    narrow = rolling.generate(other, backwards, COMPACT, group_size=8, config=replace(settings, batch_rows=8), seed=3)[
        ::-1
    ]
    compared = differences = 0
    for sample, first, second in zip(samples, wide, narrow, strict=True):
        for g, (a, b) in enumerate(zip(first, second, strict=True)):
            differs = [i for i, (x, y) in enumerate(zip(a.token_ids, b.token_ids, strict=False)) if x != y]
            compared += differs[0] + 1 if differs else len(a.token_ids)
            if not differs:
                assert len(a.token_ids) == len(b.token_ids)
                continue
            differences += 1
            place = differs[0]
            uniform = token_uniforms(3, 0, sample.sample_id, g, 48)[place]
            tokens = (a.token_ids[place], b.token_ids[place])
            distance = boundary_distance(random_policy, sample, a.token_ids[:place], float(uniform), tokens)
            assert distance < reach
    assert compared > 2000
    assert differences / compared < (1e-3 if noise == 0 else 1e-2)
    assert noise == 0 or differences  # else nothing was looked at


@pytest.mark.parametrize(
    "changes", [{"top_k": 5}, {"top_p": 0.6}, {"top_k": 20, "top_p": 0.8, "temperature": 0.7}, {"temperature": 1.6}]
)
def test_cut_distributions_are_scored_as_they_are_drawn(
    random_policy: TinyPolicy, samples: list[Sample], changes: dict[str, Any]
) -> None:
    settings = RolloutConfig(max_new_tokens=12, **changes)
    groups = rolling.generate(random_policy, samples[:3], COMPACT, group_size=4, config=settings)
    prompts = [random_policy.encode(s.image, s.query, COMPACT) for s in samples[:3]]
    said = [[c.token_ids for c in group] for group in groups]
    with torch.no_grad():
        cut = random_policy.logprobs(random_policy.embed(prompts), said, sampling=Sampling(**changes)).logp
        whole = random_policy.logprobs(random_policy.embed(prompts), said).logp
    assert (cut - whole).abs().max() > 0.1
    for b, group in enumerate(groups):
        for g, completion in enumerate(group):
            drawn = torch.tensor(completion.logprobs)
            assert (cut[b, g, : len(drawn)] - drawn).abs().max() < 1e-5


def test_what_is_cut_by_brute_force() -> None:
    logits = torch.randn(50, 40, generator=torch.Generator().manual_seed(1)) * 3
    for sampling in (Sampling(top_k=3), Sampling(top_p=0.7), Sampling(top_k=6, top_p=0.9, temperature=2.0)):
        found = sampling.log_softmax(logits)
        for row, line in zip(logits / sampling.temperature, found, strict=True):
            order = row.argsort(descending=True).tolist()
            kept = order[: sampling.top_k or None]
            share = torch.softmax(row[kept], 0)
            while len(kept) > 1 and float(share[: len(kept) - 1].sum()) >= sampling.top_p:
                kept.pop()
            assert sorted(kept) == line.isfinite().nonzero()[:, 0].tolist()
            assert float(line.exp().sum()) == pytest.approx(1, abs=1e-5)
            expected = torch.log_softmax(row[kept], 0)
            assert torch.allclose(line[kept], expected, atol=1e-5)
    dropped = Sampling(top_k=3).log_softmax(logits, keep=logits.argmin(-1))
    assert bool(dropped.gather(1, logits.argmin(-1)[:, None]).isfinite().all())  # a drawn token has a probability


# --- how a completion ends


def test_the_end_of_the_answer_can_end_the_completion(speaking: TinyPolicy, samples: list[Sample]) -> None:
    embedded = speaking.embed([speaking.encode(s.image, s.query, COMPACT) for s in samples[:3]])
    with torch.no_grad():
        whole = speaking.generate(embedded, None, group_size=1, max_new_tokens=96)
        short = speaking.generate(embedded, None, group_size=1, max_new_tokens=96, stop_at_answer=True)
    for (a,), (b,) in zip(whole, short, strict=True):
        assert a.token_ids[-1] in speaking.ends
        assert b.token_ids == a.token_ids[: len(b.token_ids)]
        assert b.finish_reason is FinishReason.STOP
        assert b.text.endswith(ANSWER_ENDS)
        assert len(b.token_ids) < len(a.token_ids)


def test_a_time_limit_cuts_and_leaves_out(
    random_policy: TinyPolicy, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock runs out while the first two groups are decoded: they are cut, the other two are missing."""
    clock = iter(np.arange(0, 1000, 0.1))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    settings = RolloutConfig(max_new_tokens=40, batch_rows=8, time_limit_s=1.5)
    rollouts = rolling.rollouts(
        random_policy, samples[:4], algorithm=AlgorithmConfig(group_size=4), rollout=settings, prompt=COMPACT
    )
    groups = list(rollouts)
    assert [group.sample.sample_id for group in groups] == [s.sample_id for s in samples[:2]]
    reasons = {r.completion.finish_reason for group in groups for r in group.rollouts}
    assert FinishReason.TIMEOUT in reasons
    assert all(0 < len(r.completion.token_ids) < 40 for group in groups for r in group.rollouts)
    assert rollouts.counters() == {"groups": 4.0, "groups_missing": 2.0, "groups_not_finite": 0.0}


def test_a_row_that_is_no_number_ends_alone(
    random_policy: TinyPolicy, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = RolloutConfig(max_new_tokens=12)
    sound = rolling.generate(random_policy, samples[:2], COMPACT, group_size=4, config=settings)
    calls: list[int] = []

    def poison(_module: object, _inputs: object, logits: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            logits = logits.clone()
            logits[1] = float("nan")
        return logits

    hook = random_policy.stock.lm_head.register_forward_hook(poison)
    rollouts = rolling.rollouts(
        random_policy, samples[:2], algorithm=AlgorithmConfig(group_size=4), rollout=settings, prompt=COMPACT
    )
    hook.remove()
    (kept,) = list(rollouts)
    broken, whole = rollouts.groups
    assert kept is whole
    assert broken.rollouts[1].completion.finish_reason is FinishReason.NOT_FINITE
    assert broken.rollouts[1].completion.token_ids == sound[0][1].token_ids[:2]
    others = [r.completion.token_ids for r in (*broken.rollouts, *whole.rollouts)]
    expected = [c.token_ids for group in sound for c in group]
    assert [t for i, t in enumerate(others) if i != 1] == [t for i, t in enumerate(expected) if i != 1]
    assert rollouts.counters()["groups_not_finite"] == 1


# --- rewarding beside the main work


def pipeline_of(reward: Any = None) -> RewardPipeline:
    return RewardPipeline(
        segmenter=GrabCutSegmenter(), reward=reward or rubric("think2seg"), prompt=COMPACT, parsing=ParsingConfig()
    )


@pytest.mark.parametrize("where", ["process", "thread", "inline"])
def test_every_reward_worker_gives_the_same_rewards(speaking: TinyPolicy, samples: list[Sample], where: str) -> None:
    groups = rolling.generate(speaking, samples[:3], COMPACT, group_size=4, config=RolloutConfig(max_new_tokens=96))
    frames = [speaking.encode(s.image, s.query, COMPACT).frame for s in samples[:3]]
    pipeline, reward_worker = pipeline_of(), RewardWorker(pipeline_of(), where)
    cases = zip(samples[:3], frames, groups, strict=True)
    tasks = [RewardTask(sample=s, frames=f, completions=c) for s, f, c in cases]
    futures = [reward_worker.submit(task) for task in tasks]
    for future, task in zip(futures, tasks, strict=True):
        rollouts, _ = result_of(future)
        expected, _ = rewarded({FIRST: pipeline}, task)
        assert [r.reward for r in rollouts] == [r.reward for r in expected]
        assert [r.answer for r in rollouts] == [r.answer for r in expected]
        assert rollouts == expected
        assert sum(r.segmented_prompts for r in rollouts) == sum(len(r.answer.prompts) for r in rollouts) > 0
    reward_worker.close()


def test_a_cpu_segmenter_gets_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    reward_worker = RewardWorker(pipeline_of(), "auto")
    assert reward_worker.where == "process"
    reward_worker.close()


class Fatal(OneByOne):
    """A reward that takes its process with it."""

    needs = frozenset({"mask"})

    def __call__(self, answer: Answer, reference: object, prediction: object) -> RewardBreakdown:
        os._exit(9)


def test_a_reward_worker_that_dies_is_named(speaking: TinyPolicy, samples: list[Sample]) -> None:
    reward_worker = RewardWorker(pipeline_of(Fatal()), "process")
    frame = speaking.encode(samples[0].image, samples[0].query, COMPACT).frame
    said = Completion(token_ids=(1,), logprobs=(-1.0,), text="x", finish_reason=FinishReason.STOP)
    with pytest.raises(RuntimeError, match=r"rollout\.reward_worker=inline"):
        result_of(reward_worker.submit(RewardTask(sample=samples[0], frames=frame, completions=[said])))
    with pytest.raises(RuntimeError, match=r"rollout\.reward_worker=inline"):
        reward_worker.submit(RewardTask(sample=samples[0], frames=frame, completions=[said]))
    reward_worker.close()


def test_the_reward_workers_process_ends_with_a_killed_run() -> None:
    code = """
import os, time
from grasp_rl.config.schema import ParsingConfig, PromptConfig
from grasp_rl.rewards.rubric import Rubric
from grasp_rl.rewards.terms.format import ThinkFormat
from grasp_rl.rewards.stages import FIRST
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.rollouts.reward_worker import RewardWorker
from grasp_rl.segmenters.box_fill import BoxFillSegmenter
if __name__ == "__main__":
    pipeline = RewardPipeline(segmenter=BoxFillSegmenter(), reward=Rubric({"think": ThinkFormat()}), prompt=PromptConfig(), parsing=ParsingConfig())
    reward_worker = RewardWorker(pipeline, "process")
    print(reward_worker._executor.submit(os.getpid).result(), flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        child = int(run.stdout.readline())
        run.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and _lives(child):
        time.sleep(0.1)
    assert not _lives(child)


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_groups_are_given_as_their_rewards_come_in(speaking: TinyPolicy, samples: list[Sample]) -> None:
    """The first group can be learned from while the last is still before the pipeline."""
    rewarded: list[str] = []

    class Slow(OneByOne):
        needs = frozenset({"boxes"})

        def __call__(self, answer: Answer, reference: object, prediction: object) -> RewardBreakdown:
            time.sleep(0.05)
            rewarded.append(answer.status)
            return RewardBreakdown(reward=0.0, terms={})

    config = RunConfig(prompt=COMPACT, algorithm=AlgorithmConfig(group_size=2), rollout=RolloutConfig(max_new_tokens=4))
    reward_worker = RewardWorker(pipeline_of(Slow()), "thread")
    rollouts = collect_rollouts(speaking, InProcess(), reward_worker, lambda _: samples, config, 0)
    next(iter(rollouts))
    assert len(rewarded) < 2 * len(samples)
    assert len(list(rollouts)) == len(samples)
    assert len(rewarded) == 2 * len(samples)
    assert rollouts.waited_s > 0.2
    waited = rollouts.waited_s
    assert len(list(rollouts)) == len(samples)
    assert rollouts.waited_s == waited
    reward_worker.close()


# --- which questions


class Lottery(OneByOne):
    """Pays the siblings of every other question alike."""

    needs = frozenset({"boxes"})

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, answer: Answer, reference: object, prediction: object) -> RewardBreakdown:
        self.calls += 1
        group = (self.calls - 1) // 2
        return RewardBreakdown(reward=float(self.calls % 2) if group % 2 else 1.0, terms={})


def test_dynamic_sampling_asks_until_siblings_differ(random_policy: TinyPolicy, source: SyntheticSource) -> None:
    algorithm = AlgorithmConfig(group_size=2, prompts_per_step=4, sampling_rounds=3)
    config = RunConfig(algorithm=algorithm, prompt=COMPACT, rollout=RolloutConfig(max_new_tokens=3))
    questions = PromptSampler(source.split("train"), config, masks=True)
    asked: list[int] = []

    def ask(number: int) -> list[Sample]:
        asked.append(number)
        return questions(5, number)

    rollouts = collect_rollouts(random_policy, InProcess(), RewardWorker(pipeline_of(Lottery())), ask, config, 5)
    assert asked == [0, 1]  # two of four differ in each round
    groups = list(rollouts)
    assert len(groups) == 4
    assert all(any(group.advantages) for group in groups)
    assert rollouts.size(3).sequences == 8
    assert len(rollouts.groups) == rollouts.counters()["groups"] == 8
    names = [group.sample.sample_id for group in rollouts.groups]
    assert len(set(names)) == 8
    never = collect_rollouts(
        random_policy, InProcess(), RewardWorker(pipeline_of(AllTheSame())), questions_at(questions), config, 5
    )
    assert list(never) == []
    assert never.counters()["groups"] == 12


class ByText(OneByOne):
    """Pays by what is written, half of the questions' siblings alike."""

    needs = frozenset({"boxes"})

    def __call__(self, answer: Answer, reference: Any, prediction: object) -> RewardBreakdown:
        alike = zlib.crc32(reference.query.encode()) % 2
        return RewardBreakdown(reward=0.0 if alike else float(zlib.crc32((answer.text or "").encode()) % 97), terms={})


class Ranks:
    """Process groups of ranks that are threads."""

    def __init__(self, count: int) -> None:
        self.barrier, self.values = threading.Barrier(count, timeout=60), [None] * count

    def group(self, rank: int) -> ProcessGroup:
        group, ranks = ProcessGroup.alone(), self
        group.rank, group.world_size = rank, len(self.values)

        def all_gather(value: Any) -> list[Any]:
            ranks.barrier.wait()
            ranks.values[rank] = value
            ranks.barrier.wait()
            return list(ranks.values)

        group.all_gather = all_gather  # type: ignore[method-assign]
        return group


def test_dynamic_sampling_learns_from_the_same_groups_on_any_number_of_ranks(
    random_policy: TinyPolicy, source: SyntheticSource
) -> None:
    algorithm = AlgorithmConfig(group_size=2, prompts_per_step=3, sampling_rounds=4)
    config = RunConfig(algorithm=algorithm, prompt=COMPACT, rollout=RolloutConfig(max_new_tokens=3))
    questions = PromptSampler(source.split("train"), config, masks=True)

    def learned_from(group: ProcessGroup) -> tuple[list[str], StepSize]:
        rollouts = collect_rollouts(
            random_policy, InProcess(), RewardWorker(pipeline_of(ByText())), questions_at(questions), config, 5, group
        )
        return [group.sample.sample_id for group in rollouts], rollouts.size(3)

    alone, size = learned_from(ProcessGroup.alone())
    assert len(alone) == 3
    ranks = Ranks(2)
    with ThreadPoolExecutor(2) as pool:
        shares = list(pool.map(learned_from, map(ranks.group, range(2))))
    assert sorted(shares[0][0] + shares[1][0]) == sorted(alone)
    assert shares[0][1] == shares[1][1] == size


class AllTheSame(OneByOne):
    needs = frozenset({"boxes"})

    def __call__(self, answer: Answer, reference: object, prediction: object) -> RewardBreakdown:
        return RewardBreakdown(reward=0.5, terms={})


def questions_at(questions: PromptSampler) -> Any:
    return lambda number: questions(5, number)


def test_reading_ahead_changes_nothing(source: SyntheticSource) -> None:
    for rounds in (1, 3):
        config = RunConfig(algorithm=AlgorithmConfig(prompts_per_step=3, sampling_rounds=rounds))
        plain = PromptSampler(source.split("train"), config, masks=False)
        ahead = PromptSampler(source.split("train"), config, masks=False)
        with ahead.read_ahead():
            for step in range(4):
                for number in range(rounds if step % 2 else 1):
                    expected = [s.sample_id for s in plain(step, number)]
                    assert [s.sample_id for s in ahead(step, number)] == expected


def test_what_reading_ahead_meets_is_raised_where_it_is_wanted() -> None:
    class Torn:
        name, split = "torn", "train"

        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> Sample:
            self.read = getattr(self, "read", 0) + 1
            if self.read > 2:
                raise OSError("image 3 is torn")
            return Sample(
                sample_id=str(index), image=np.zeros((4, 4, 3), np.uint8), query="", target_mask=None, weak_labels=(),
                dataset="d", split="train",
            )  # fmt: skip

    questions = PromptSampler(Torn(), RunConfig(algorithm=AlgorithmConfig(prompts_per_step=2)), masks=False)
    with questions.read_ahead():
        assert len(questions(0)) == 2
        with pytest.raises(OSError, match="image 3 is torn"):
            questions(1)


def test_groups_leave_the_decoder_when_they_end(samples: list[Sample]) -> None:
    """Groups leave the decoder as soon as their last sibling has ended."""
    policy = TinyPolicy()
    embedded = policy.embed([policy.encode(s.image, s.query, COMPACT) for s in samples])
    order = [index for index, _ in policy.stream(embedded, None, group_size=1, max_new_tokens=96)]
    lengths = {i: len(c[0].token_ids) for i, c in policy.stream(embedded, None, group_size=1, max_new_tokens=96)}
    assert order == sorted(order, key=lambda index: (lengths[index], index))
    assert len(set(lengths.values())) > 1
