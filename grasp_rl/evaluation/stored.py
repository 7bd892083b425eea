"""Score answers that are there already: another system's (`score`), or a run's through another segmenter (`rescore`).

No policy is loaded. What is written is an evaluation like any other.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import RunConfig, SamplesConfig
from grasp_rl.config.targets import load_raw
from grasp_rl.distributed.process_group import joined
from grasp_rl.evaluation import foreign, predictions
from grasp_rl.evaluation.calibration import inference_again
from grasp_rl.evaluation.evaluate import concluded, files_of, last_pipeline, measure, pipeline_for
from grasp_rl.evaluation.follow import follow
from grasp_rl.inference.candidates import NOTHING, Labelling
from grasp_rl.inference.pipeline import PLAIN, Inference
from grasp_rl.inference.rollout import KEY
from grasp_rl.interfaces import Components, CoordinateFrame
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.runs import data_record
from grasp_rl.runs.progress import ProgressWriter
from grasp_rl.runs.run_dir import CONFIG
from grasp_rl.types import Answer, Completion, FinishReason, ParseStatus, Sample, SegmentedRollout, SpatialPrompt
from grasp_rl.utils.files import Record

log = logging.getLogger(__name__)

SAME_SAMPLES = "take the run's own data, evaluation.test_split and evaluation.test_limit"


def run(config: RunConfig, components: Components) -> Record:
    """Score ``config.predictions`` on ``evaluation.test_split``; returns what result.json holds.

    Raises:
        ConfigError: the answers cannot be read, or are not those of this split.
    """
    run_dir, settings = Path(config.run_dir), config.evaluation
    dataset = components.data.split(settings.test_split)
    count = len(dataset) if settings.test_limit is None else min(settings.test_limit, len(dataset))
    pipeline, source = last_pipeline(config, components), Path(str(config.predictions))
    answers: foreign.Foreign | Rescored
    if config.command == "score":
        answers = foreign.Foreign(source, pipeline, dataset, count)
    else:
        inference = inference_again(config, source)
        answers = Rescored(read_run(source, foreign.ids_of(dataset, count)), pipeline, inference)
    with joined(config.engine) as group, torch.no_grad():
        progress = ProgressWriter(run_dir, count) if group.is_main else None
        if progress is not None:
            components.tracker.start(run_dir, asdict(config), resume=False)
            data_record.write(run_dir, files_of(dataset, count))
            if isinstance(answers, Rescored) and answers.inference.affine is not None:
                answers.inference.affine.write(run_dir, {"from": config.inference.refine.path or str(source)})
        scored = measure(
            answers,
            dataset,
            boxes=config.prompt.box,
            config=settings,
            limit=settings.test_limit,
            protocol=components.protocol,
            process_group=group,
            folder=run_dir / "eval",
            on_progress=None if progress is None else lambda done, _: progress.update("evaluate", done),
        )
        tally = sum(group.all_gather(answers.tally), Counter[str]())
    if progress is not None:
        for note in answers.notes(tally):
            log.warning("%s", note)
            progress.note(note)
    segmented = config.command != "score" or tally["segmented"] > 0
    return concluded(config, components, scored, count, progress, segmented=segmented)


def read_run(run_dir: Path, ids: Sequence[str]) -> dict[str, Record]:
    """The records of the evaluation in ``run_dir`` by sample id.

    Raises:
        ConfigError: there is none, or it lacks an answer to one of ``ids``.
    """
    scheme = (load_raw(run_dir / CONFIG).get("prompt") or {}).get("scheme")
    names = [
        name
        for name in ("eval_after", "eval", f"eval_{scheme}")
        if (run_dir / name / predictions.PREDICTIONS).is_file()
    ]
    if not names:
        raise ConfigError(f"{run_dir}: holds no evaluation; name the run directory of a train, sft or evaluate command")
    folder = run_dir / names[0]
    records = {
        str(record["sample_id"]): record for record in predictions.read_predictions(folder / predictions.PREDICTIONS)
    }
    missing = [sample_id for sample_id in ids if sample_id not in records]
    if missing:
        raise ConfigError(
            f"{folder}: has no answer to {missing[0]} and {len(missing) - 1} more; {SAME_SAMPLES} (<={len(records)})"
        )
    without = next((record for record in records.values() if "frame" not in record), None)
    if without is not None:
        raise ConfigError(
            f"{folder}: its answers have no coordinate frame, being another system's (score) or an earlier version's; "
            "only a policy's answers can be segmented again: evaluate it anew"
        )
    return records


class Rescored:
    """Stored answers by sample id, read and segmented anew.

    Args:
        records: lines of predictions.jsonl by sample id.
        pipeline: reads, segments and rewards.
        inference: what is done with an answer beyond that.
    """

    def __init__(self, records: dict[str, Record], pipeline: RewardPipeline, inference: Inference = PLAIN) -> None:
        self.records, self.pipeline, self.inference = records, pipeline, inference
        self.tally: Counter[str] = Counter()

    def notes(self, _tally: Counter[str]) -> list[str]:
        """Nothing that the run itself has not said."""
        return []

    def __call__(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, CoordinateFrame, SegmentedRollout]]:
        for sample in samples:
            record = self.records.get(sample.sample_id)
            if record is None:
                raise ConfigError(f"predictions: has no answer to sample {sample.sample_id}; {SAME_SAMPLES}")
            frame = frame_of(record, sample)
            answers = completions_of(record, self.inference.options.samples)
            pipeline = pipeline_for(sample, self.pipeline)
            if "earlier_turns" in record:
                said = pipeline.run(sample, frame, answers[:1], previous=[earlier_answer(record)])[0]
            else:
                said = follow(self.inference, pipeline, sample, frame, answers, self._labelling(record))
            yield sample, frame, said

    def _labelling(self, record: Record) -> Labelling:
        """The stored labels of candidate points, where the options ask for such.

        Raises:
            ConfigError: there are none, or they are of another grid or scheme.
        """
        requested = {k: v for k, v in self.inference.options.changed.items() if k.startswith("candidates.")}
        if not self.inference.options.candidates.alpha:
            return NOTHING
        entry = record.get(KEY) or {}
        stored = {k: v for k, v in (entry.get("settings") or {}).items() if k.startswith("candidates.")}
        free = "candidates.confidence"
        if "candidates" not in entry or stored | {free: 0} != requested | {free: 0}:
            raise ConfigError(
                f"inference.candidates: {record['sample_id']} has no labels of these candidate points; "
                "evaluate with these options asks for them"
            )
        return Labelling.of(entry["candidates"])


def frame_of(record: Record, sample: Sample) -> CoordinateFrame:
    """The frame that the numbers in a record's text are in."""
    width, height = record["frame"]
    left, top, shown_width, shown_height = record.get("window") or (0, 0, sample.size[1], sample.size[0])
    return CoordinateFrame(
        width=width, height=height, image_width=shown_width, image_height=shown_height, left=left, top=top
    )


def earlier_answer(record: Record) -> Answer:
    """The answer of the turn before a record's, as far as a reward compares with it."""
    before = record["earlier_turns"][-1]
    prompts = tuple(
        SpatialPrompt(
            box=None if item["box"] is None else tuple(item["box"]),  # type: ignore[arg-type]
            point_coords=tuple(map(tuple, item["point_coords"])),  # type: ignore[arg-type]
            point_labels=tuple(item["point_labels"]),
        )
        for item in before["prompts"]
    )
    return Answer(prompts=prompts, status=ParseStatus(before["status"]), text=before["text"])


def completions_of(record: Record, wanted: SamplesConfig) -> list[Completion]:
    """The greedy completion in a line of predictions.jsonl, and as many drawn ones as are wanted.

    Raises:
        ConfigError: there are fewer, or they were drawn otherwise.
    """
    entry = record.get(KEY) or {}
    stored = [_completion(answer) for answer in entry.get("answers") or [record]]
    settings = entry.get("settings") or {}
    if len(stored) <= wanted.count:
        raise ConfigError(
            f"inference.samples.count={wanted.count}: {record['sample_id']} has {len(stored) - 1} drawn answers; "
            f"evaluate with inference.samples.count={wanted.count} draws them"
        )
    for key, value in (("temperature", wanted.temperature), ("top_p", wanted.top_p)):
        drawn = settings.get(f"samples.{key}", getattr(SamplesConfig(), key))
        if wanted.count and drawn != value:
            raise ConfigError(f"inference.samples.{key}={value}: the stored answers were drawn with {drawn}")
    return stored[: wanted.count + 1]


def _completion(answer: Record) -> Completion:
    return Completion(
        token_ids=(0,) * answer["tokens"],
        logprobs=(0.0,) * answer["tokens"],
        text=answer["text"],
        finish_reason=FinishReason.LENGTH if answer["truncated"] else FinishReason.STOP,
    )
