"""Which questions an optimizer step asks, and how they are numbered."""

from __future__ import annotations

from scripted import Paying, Scripted, said

from grasp_rl.config.schema import AlgorithmConfig, ParsingConfig, PromptConfig, RolloutConfig, RunConfig
from grasp_rl.data.sampler import PromptSampler
from grasp_rl.data.synthetic.dataset import SyntheticSource
from grasp_rl.policies.tiny.policy import TinyPolicy
from grasp_rl.rollouts.collect import collect_rollouts
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.rollouts.reward_worker import RewardWorker
from grasp_rl.segmenters.box_fill import BoxFillSegmenter
from grasp_rl.types import Sample

COMPACT = PromptConfig(template="compact")


def test_questions_of_later_rounds_are_numbered_on(random_policy: TinyPolicy, samples: list[Sample]) -> None:
    """Two rounds of three questions without any advantage: six groups, in the order in which they were asked for."""
    algorithm = AlgorithmConfig(group_size=2, prompts_per_step=3, sampling_rounds=2)
    config = RunConfig(algorithm=algorithm, prompt=COMPACT, rollout=RolloutConfig(max_new_tokens=4))
    pipeline = RewardPipeline(segmenter=BoxFillSegmenter(), reward=Paying(1.0), prompt=COMPACT, parsing=ParsingConfig())
    rollouts = collect_rollouts(
        random_policy, Scripted([said(5), said(6)]), RewardWorker(pipeline),
        lambda number: samples[3 * number : 3 * number + 3], config, 0,
    )  # fmt: skip
    assert [group.sample.sample_id for group in rollouts.groups] == [s.sample_id for s in samples[:6]]
    assert [outcome.question for outcome in rollouts.everywhere()] == [0, 1, 2, 3, 4, 5]
    assert list(rollouts) == []


def test_no_question_is_asked_twice_in_an_epoch() -> None:
    """Four steps of two rounds of three questions: 24 of 24, whichever rounds are needed."""
    algorithm = AlgorithmConfig(prompts_per_step=3, sampling_rounds=2)
    ask = PromptSampler(SyntheticSource(train_size=24).split("train"), RunConfig(algorithm=algorithm), masks=False)
    asked = [sample.sample_id for step in range(4) for number in range(2) for sample in ask(step, number)]
    assert len(set(asked)) == 24


def test_a_reward_without_masks_gets_none(source: SyntheticSource) -> None:
    config = RunConfig(algorithm=AlgorithmConfig(prompts_per_step=2))
    for masks in (False, True):
        samples = PromptSampler(source.split("train"), config, masks=masks)(0)
        assert [sample.target_mask is not None for sample in samples] == [masks, masks]
