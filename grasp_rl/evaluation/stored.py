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
from grasp_rl.config.schema import RunConfig
from grasp_rl.config.targets import load_raw
from grasp_rl.distributed.process_group import joined
from grasp_rl.evaluation import foreign, predictions
from grasp_rl.evaluation.evaluate import concluded, files_of, measure, pipeline_for, pipeline_of
from grasp_rl.interfaces import Components, CoordinateFrame
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.runs import data_record
from grasp_rl.runs.progress import ProgressWriter
from grasp_rl.runs.run_dir import CONFIG
from grasp_rl.types import Completion, FinishReason, Sample, SegmentedRollout
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
    pipeline, source = pipeline_of(config, components), Path(str(config.predictions))
    answers: foreign.Foreign | Rescored
    if config.command == "score":
        answers = foreign.Foreign(source, pipeline, dataset, count)
    else:
        answers = Rescored(read_run(source, foreign.ids_of(dataset, count)), pipeline)
    with joined(config.engine) as group, torch.no_grad():
        progress = ProgressWriter(run_dir, count) if group.is_main else None
        if progress is not None:
            components.tracker.start(run_dir, asdict(config), resume=False)
            data_record.write(run_dir, files_of(dataset, count))
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
    """Stored answers by sample id, read and segmented anew."""

    def __init__(self, records: dict[str, Record], pipeline: RewardPipeline) -> None:
        self.records, self.pipeline = records, pipeline
        self.tally: Counter[str] = Counter()

    def notes(self, _tally: Counter[str]) -> list[str]:
        """Nothing that the run itself has not said."""
        return []

    def __call__(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, CoordinateFrame, SegmentedRollout]]:
        for sample in samples:
            record = self.records.get(sample.sample_id)
            if record is None:
                raise ConfigError(f"predictions: has no answer to sample {sample.sample_id}; {SAME_SAMPLES}")
            width, height = record["frame"]
            frame = CoordinateFrame(width=width, height=height, image_width=sample.size[1], image_height=sample.size[0])
            completion = Completion(
                token_ids=(0,) * record["tokens"],
                logprobs=(0.0,) * record["tokens"],
                text=record["text"],
                finish_reason=FinishReason.LENGTH if record["truncated"] else FinishReason.STOP,
            )
            yield sample, frame, pipeline_for(sample, self.pipeline).run(sample, frame, [completion])[0]
