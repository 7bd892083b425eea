"""Score a policy on a split: greedy answers, their masks, and numbers (see :mod:`grasp_rl.evaluation.metrics`)."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import EvaluationConfig, RunConfig
from grasp_rl.data.base import Split
from grasp_rl.distributed.build import whole
from grasp_rl.distributed.engine import pick_device
from grasp_rl.distributed.process_group import ALONE, ProcessGroup, joined
from grasp_rl.evaluation import predictions
from grasp_rl.evaluation.calibration import inference_for
from grasp_rl.evaluation.follow import follow
from grasp_rl.evaluation.metrics import score_of
from grasp_rl.evaluation.of_run import remarks
from grasp_rl.evaluation.protocols.masks import OURS
from grasp_rl.inference.pipeline import PLAIN, Inference
from grasp_rl.inference.segmenting import segmenter_of
from grasp_rl.interfaces import (
    Components,
    CoordinateFrame,
    Dataset,
    EvaluationProtocol,
    Labels,
    Policy,
    Segmenter,
    WeakLabels,
)
from grasp_rl.planning.plausibility import doubts
from grasp_rl.policies.questions import check_questions
from grasp_rl.rollouts.metrics import READ, lost_answers
from grasp_rl.rollouts.reward_pipeline import FailureLimit, RewardPipeline
from grasp_rl.rollouts.turns import LaterTurn, next_prompt, shown_of, turns_of
from grasp_rl.runs import checkpoints, data_record
from grasp_rl.runs.progress import ProgressWriter
from grasp_rl.types import (
    Answer,
    Completion,
    Image,
    MaskPrediction,
    ParseStatus,
    RewardBreakdown,
    Rollout,
    Sample,
    SegmentedRollout,
)
from grasp_rl.utils.files import Record

log = logging.getLogger(__name__)

Answers = Callable[[Sequence[Sample]], Iterator[tuple[Sample, CoordinateFrame | None, SegmentedRollout]]]
"""Gives each sample of a batch with the frame of the numbers in its answer's text (None: pixels), and its rollout."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a policy scored."""

    metrics: dict[str, float]
    """Numbers by flat name; see :mod:`grasp_rl.evaluation.metrics`, and ``seconds_per_image``."""
    records: tuple[Record, ...]
    """One per sample, in the dataset's order: the lines of predictions.jsonl."""


def evaluate(
    policy: Policy,
    pipeline: RewardPipeline,
    dataset: Dataset,
    *,
    config: EvaluationConfig,
    limit: int | None,
    protocol: EvaluationProtocol = OURS,
    process_group: ProcessGroup = ALONE,
    folder: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    inference: Inference = PLAIN,
    later: Sequence[LaterTurn] = (),
) -> Evaluation:
    """Greedy answers of ``policy`` to the first ``limit`` samples of ``dataset``, scored.

    Batches are shared out among the ranks whole, so that one process and several give the same answers. All ranks of
    ``process_group`` call it together and get the same numbers; the first writes the files.

    Args:
        policy: encodes, embeds and generates; it has whole parameters here and is left in the mode it came in.
        pipeline: parses, segments and rewards. A sample that lacks what its reward compares with is scored without it.
        dataset: samples with masks, weak labels or both.
        config: batch size, length and what is drawn.
        limit: None for all samples.
        protocol: what counts as what.
        process_group: whose ranks share the batches.
        folder: where to write predictions, numbers and images (see grasp_rl.evaluation.predictions), the same on all
            ranks; None to write nothing.
        on_progress: is called with the samples done and their total after each batch.
        inference: what is done with an answer beyond that; the pipeline's segmenter is already as it wants it.
        later: turns after the first; the last one's answer is scored.

    Raises:
        ConfigError: a sample has neither a mask nor weak labels, or a question cannot be asked.
        SegmenterError: the segmenter failed on more than ``config.max_failed_prompts`` of the prompts.
    """
    check_questions(policy, dataset, [pipeline.prompt])
    check_truth(dataset, limit)
    if later and not inference.plain:
        raise ConfigError(f"inference={inference.options.name}: goes with one turn; take inference=default")

    def answers(samples: Sequence[Sample]) -> Iterator[tuple[Sample, CoordinateFrame, SegmentedRollout]]:
        if later:
            return answer_in_turns(policy, pipeline, later, samples, config.max_new_tokens, pipeline_for)
        return _answer(policy, pipeline, samples, config, inference)

    with _evaluation_mode(policy):
        return measure(
            answers,
            dataset,
            boxes=(later[-1].pipeline if later else pipeline).prompt.box,
            config=config,
            limit=limit,
            protocol=protocol,
            process_group=process_group,
            folder=folder,
            on_progress=on_progress,
        )


def measure(
    answers: Answers,
    dataset: Dataset,
    *,
    boxes: bool,
    config: EvaluationConfig,
    limit: int | None,
    protocol: EvaluationProtocol = OURS,
    process_group: ProcessGroup = ALONE,
    folder: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score the answers to the first ``limit`` samples of ``dataset``, wherever they come from.

    Args:
        answers: see :data:`Answers`; the rollouts have their masks.
        dataset: see :func:`evaluate`, as for the rest.
        boxes: whether the answers were asked for boxes.
        config: batch size and what is drawn.
        limit: None for all samples.
        protocol: what counts as what.
        process_group: whose ranks share the batches.
        folder: where to write, or None.
        on_progress: is called with the samples done and their total after each batch.

    Raises:
        SegmenterError: the segmenter failed on more than ``config.max_failed_prompts`` of the prompts.
    """
    total = len(dataset) if limit is None else min(limit, len(dataset))
    records: dict[int, Record] = {}
    images: dict[str, Image] = {}
    rollouts: list[Rollout] = []
    began = time.perf_counter()
    starts = range(0, total, config.batch_size)[process_group.rank :: process_group.world_size]
    for start in starts:
        indices = range(start, min(start + config.batch_size, total))
        samples = [dataset[index] for index in indices]
        for index, (sample, frame, rollout) in zip(indices, answers(samples), strict=True):
            if folder is not None and index < config.overlays:
                images[predictions.overlay_name(index, sample.sample_id)] = predictions.draw(sample, rollout)
            records[index] = predictions.record_of(sample, rollout, boxes=boxes, protocol=protocol, frame=frame)
            rollouts.append(rollout.without_masks())
        if on_progress is not None:
            on_progress(min(total, len(records) * process_group.world_size), total)
    shares = process_group.all_gather((records, images, rollouts))
    seconds = time.perf_counter() - began
    records = {index: record for share in shares for index, record in share[0].items()}
    images = {name: image for share in shares for name, image in share[1].items()}
    FailureLimit(config.max_failed_prompts, "evaluation.max_failed_prompts").check(
        chain.from_iterable(share[2] for share in shares), f"the {total} samples"
    )
    ordered = tuple(records[index] for index in range(total))
    metrics = protocol.summarise([score_of(r) for r in ordered], bootstrap_samples=config.bootstrap_samples)
    metrics["seconds_per_image"] = seconds / max(total, 1)
    if folder is not None and process_group.is_main:
        predictions.write_folder(folder, ordered, metrics, dict(sorted(images.items())))
    return Evaluation(metrics=metrics, records=ordered)


def recompute(
    predictions_path: Path, protocol: EvaluationProtocol = OURS, *, bootstrap_samples: int = 2000
) -> dict[str, float]:
    """The numbers of an evaluation, from the masks and answers in its predictions.jsonl; no model is needed.

    Raises:
        ConfigError: the file is not there or not one of predictions.
    """
    records = predictions.read_predictions(predictions_path)
    scores = [predictions.remeasured(record) for record in records]
    return protocol.summarise(scores, bootstrap_samples=bootstrap_samples)


def run(config: RunConfig, components: Components) -> Record:
    """Score the configured policy on ``evaluation.test_split``; returns what result.json holds.

    Several processes share the samples; under ZeRO-3 the divided parameters are gathered first.

    Raises:
        ConfigError: there is no such split, or no weights in ``init_from``.
    """
    run_dir, settings = Path(config.run_dir), config.evaluation
    dataset = components.data.split(settings.test_split)
    policy: Policy = components.policy.to(pick_device(config.engine))
    pipeline, later = turns_of(config, pipeline_of(config, components))
    count = len(dataset) if settings.test_limit is None else min(settings.test_limit, len(dataset))
    folder = run_dir / "eval"
    with joined(config.engine) as group, whole(policy):
        if config.init_from:
            policy.load_weights(checkpoints.find_policy(Path(config.init_from)))
        progress = ProgressWriter(run_dir, count) if group.is_main else None
        if group.is_main:
            components.tracker.start(run_dir, asdict(config), resume=False)
        if progress is not None:
            data_record.write(run_dir, files_of(dataset, count))
            for doubt in [*doubts(config), *remarks(config)]:
                log.warning("%s", doubt)
                progress.note(doubt)
        with _evaluation_mode(policy):
            inference = inference_for(config, policy, components.data, group)
        scored = evaluate(
            policy,
            pipeline,
            dataset,
            config=settings,
            limit=settings.test_limit,
            protocol=components.protocol,
            process_group=group,
            folder=folder,
            on_progress=None if progress is None else lambda done, _: progress.update("evaluate", done),
            inference=inference,
            later=later,
        )
    return concluded(config, components, scored, count, progress)


def pipeline_of(config: RunConfig, components: Components) -> RewardPipeline:
    """What follows an answer to its mask and reward; masks are made even where the reward needs none.

    Raises:
        ConfigError: the segmenter cannot do what ``config.inference`` asks of it.
    """
    return RewardPipeline(
        segmenter=segmenter_of(config.inference, components.segmenter),
        reward=components.reward,
        prompt=config.prompt,
        parsing=config.parsing,
        always_segment=True,
    )


def last_pipeline(config: RunConfig, components: Components) -> RewardPipeline:
    """:func:`pipeline_of` for the last turn's answers."""
    first, later = turns_of(config, pipeline_of(config, components))
    return later[-1].pipeline if later else first


def concluded(
    config: RunConfig,
    components: Components,
    scored: Evaluation,
    count: int,
    progress: ProgressWriter | None,
    *,
    segmented: bool = True,
) -> Record:
    """Report what was scored to progress and tracker, of the first rank; returns what result.json holds.

    ``segmented``: whether the run's segmenter made masks for it.
    """
    metrics, folder, settings = scored.metrics, Path(config.run_dir) / "eval", config.evaluation
    if progress is not None:
        for warning in warnings_of(components.protocol, components.segmenter if segmented else None):
            log.warning("%s", warning)
            progress.note(warning)
        statuses = Counter(ParseStatus(record["status"]) for record in scored.records)
        unread = {status: statuses[status] / max(1, count) for status in ParseStatus if status not in READ}
        if lost := lost_answers(metrics.get("truncated", 0.0), unread, "evaluation.max_new_tokens"):
            progress.note(lost.sentence)
        progress.update("evaluate", count, reward=metrics.get("reward"), giou=metrics.get("giou"))
        components.tracker.log({f"test/{name}": value for name, value in metrics.items()}, 0)
        components.tracker.images("test", sorted((folder / predictions.OVERLAYS).glob("*.png")), 0)
        about = {"step": 0, "split": settings.test_split, "protocol": components.protocol.name, **metrics}
        components.tracker.artifact("evaluation", evaluation_files(folder), about)
        components.tracker.finish(0)
        for text in getattr(components.tracker, "notes", ()):
            progress.note(text)
    result: Record = {"split": settings.test_split, "samples": count, "protocol": components.protocol.name}
    if config.inference.changed:
        result["inference"] = config.inference.label
    return result | {"predictions": str(folder / predictions.PREDICTIONS), "metrics": metrics}


def evaluation_files(folder: Path) -> list[Path]:
    """What an evaluation wrote into ``folder`` beside its overlays: its scores, and a line a sample."""
    return [path for path in (folder / predictions.METRICS, folder / predictions.PREDICTIONS) if path.is_file()]


def check_truth(dataset: Dataset, limit: int | None) -> None:
    """See that the first ``limit`` samples can be scored, as far as their records tell.

    Raises:
        ConfigError: one has neither a mask nor boxes.
    """
    if isinstance(dataset, Split):
        dataset.check_truth(limit)


def warnings_of(protocol: EvaluationProtocol, segmenter: Segmenter | None) -> list[str]:
    """What must be said beside a protocol's numbers, or those of several, where ``segmenter`` made the masks.

    A protocol is scored from stored masks, so what it demands of their making can only be compared with the
    segmenter's setting, where that has one.
    """
    several = [protocol, *getattr(protocol, "others", {}).values()]
    warnings = [warning for p in several if (warning := getattr(p, "warning", None))]
    made = getattr(segmenter, "multimask", None)
    other = [p.name for p in several if made is not None and getattr(p, "multimask", None) == (not made)]
    if other:
        masks = "one mask of a prompt" if made else "the best of three masks of a prompt"
        warnings.append(
            f"{', '.join(other)}: of {masks} as published, scored here with segmenter.multimask={str(made).lower()}; "
            f"evaluate, or rescore the run, with segmenter.multimask={str(not made).lower()} for such numbers"
        )
    return warnings


def files_of(dataset: Dataset, count: int | None) -> list[Path]:
    """Files that the first ``count`` samples are read from, where the dataset says so."""
    return dataset.files(count) if isinstance(dataset, Split) else []


def _answer(
    policy: Policy,
    pipeline: RewardPipeline,
    samples: Sequence[Sample],
    config: EvaluationConfig,
    inference: Inference,
) -> Iterator[tuple[Sample, CoordinateFrame, SegmentedRollout]]:
    """Each sample with its answer followed to mask and reward, and the frame of the answer's coordinates."""
    prompts = [policy.encode(s.image, s.query, pipeline.prompt, s.more_images) for s in samples]
    groups = inference.completions(
        policy,
        policy.embed(prompts),
        [s.sample_id for s in samples],
        max_new_tokens=config.max_new_tokens,
        rows=config.batch_size,
    )
    labellings = inference.label(
        policy,
        [s.image for s in samples],
        [s.query for s in samples],
        [pipeline.read(p.frame, c[:1])[0] for p, c in zip(prompts, groups, strict=True)],
        max_new_tokens=config.max_new_tokens,
    )
    for sample, prompt, completions, labelling in zip(samples, prompts, groups, labellings, strict=True):
        yield (
            sample,
            prompt.frame,
            follow(inference, pipeline_for(sample, pipeline), sample, prompt.frame, completions, labelling),
        )


def answer_in_turns(
    policy: Policy,
    pipeline: RewardPipeline,
    later: Sequence[LaterTurn],
    samples: Sequence[Sample],
    max_new_tokens: int,
    scored: Callable[[Sample, RewardPipeline], RewardPipeline] = lambda sample, pipeline: pipeline,
) -> Iterator[tuple[Sample, CoordinateFrame, SegmentedRollout]]:
    """Each sample with its greedy answer of the last turn, and the frame of the answer's coordinates.

    Args:
        policy: answers.
        pipeline: of the first turn.
        later: the turns behind it.
        samples: are asked.
        max_new_tokens: of each turn's answer.
        scored: makes a sample's pipeline of a turn's, such as :func:`pipeline_for`.
    """

    def said(prompts: Sequence[Any]) -> list[list[Completion]]:
        return policy.generate(policy.embed(prompts), None, group_size=1, max_new_tokens=max_new_tokens)

    prompts = [policy.encode(s.image, s.query, pipeline.prompt, s.more_images) for s in samples]
    rollouts = [
        scored(sample, pipeline).run(sample, prompt.frame, completions)[0]
        for sample, prompt, completions in zip(samples, prompts, said(prompts), strict=True)
    ]
    for turn in later:
        seen = [shown_of([r], s.image, turn.settings)[0] for s, r in zip(samples, rollouts, strict=True)]
        prompts = [
            next_prompt(policy, before, rollout.completion, image, sample.query, turn.settings)
            for before, rollout, image, sample in zip(prompts, rollouts, seen, samples, strict=True)
        ]
        rollouts = [
            scored(sample, turn.pipeline).run(sample, prompt.frame, completions, previous=[before.answer])[0]
            for sample, prompt, completions, before in zip(samples, prompts, said(prompts), rollouts, strict=True)
        ]
    yield from zip(samples, [prompt.frame for prompt in prompts], rollouts, strict=True)


@contextmanager
def _evaluation_mode(policy: Policy) -> Iterator[None]:
    """``policy`` in evaluation mode without gradients; every module's mode is put back."""
    modes = [(module, module.training) for module in policy.modules()]
    policy.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


class Unrewarded:
    """Stands in for a reward whose labels a sample cannot give: the answer is still segmented and measured."""

    needs: frozenset[str] = frozenset()

    def score_group(
        self,
        answers: Sequence[Answer],
        labels: WeakLabels | Labels,
        predictions: Sequence[MaskPrediction | None],
        step: int | None = None,
    ) -> list[RewardBreakdown]:
        return [RewardBreakdown(reward=math.nan, terms={}) for _ in answers]


def pipeline_for(sample: Sample, pipeline: RewardPipeline) -> RewardPipeline:
    """``pipeline`` with masks predicted, and without its reward where ``sample`` lacks what that compares with."""
    needs = pipeline.reward.needs
    if sample.weak_labels is None and sample.target_mask is None:
        raise ConfigError(
            f"data: sample {sample.sample_id} of {sample.dataset} has neither a mask nor boxes and points to score by"
        )
    lacks_mask = "mask" in needs and sample.target_mask is None
    lacks_instances = bool(needs & {"boxes", "points"}) and sample.weak_labels is None
    if lacks_mask or lacks_instances:
        return replace(pipeline, always_segment=True, reward=Unrewarded())
    return replace(pipeline, always_segment=True)
