"""The completions of one sample followed to one answer, its mask and its reward, as the inference options say."""

from __future__ import annotations

from collections.abc import Sequence

from grasp_rl.inference.candidates import NOTHING, Labelling
from grasp_rl.inference.pipeline import Inference
from grasp_rl.inference.rollout import InferredRollout
from grasp_rl.interfaces import CoordinateFrame
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.types import Completion, Sample, SegmentedRollout


def follow(
    inference: Inference,
    pipeline: RewardPipeline,
    sample: Sample,
    frame: CoordinateFrame,
    completions: Sequence[Completion],
    labelling: Labelling = NOTHING,
) -> SegmentedRollout:
    """The rollout of ``sample``; its reward is of the answer as it is segmented, refined, labelled or voted.

    Args:
        inference: the options; the plain ones take the first completion as it is.
        pipeline: parses, segments and rewards.
        sample: with what the reward needs.
        frame: the policy's coordinate frame for the image.
        completions: the greedy one first, as :meth:`Inference.completions` gives them.
        labelling: of :meth:`Inference.label`.

    Raises:
        ConfigError: the sample lacks what the reward needs.
    """
    if inference.plain:
        return pipeline.run(sample, frame, completions[:1])[0]
    answers = pipeline.read(frame, completions)
    name = sample.sample_id
    vote, masks = inference.decide(pipeline.segmenter, sample.image, answers, name=name, labelling=labelling)
    record = inference.record(vote, completions, sample.size)
    if inference.options.candidates.alpha:
        record["candidates"] = labelling.record
    return InferredRollout(
        completion=completions[vote.chosen],
        answer=vote.answer,
        masks=masks,
        reward=pipeline.rewards(sample, [vote.answer], [masks])[0],
        record=record,
        segmented=vote.segmented,
    )
