"""Where the IoU is lost: one stage of an answer after the other is replaced by the truth, through the same segmenter.

A ladder of oracles per sample; what each rung gains is the loss of its stage, and the losses add up to 1 - IoU:

===========  ==========================================================================================================
``unread``   the answer could not be read: all that the true prompts would gain
``count``    missing instances are added with their true prompts, surplus ones dropped (the best matching by box IoU)
``object``   instances that hardly touch their match (box IoU < 0.1) get its true prompts: another object was meant
``box``      true boxes for the rest
``points``   true points for the rest
``ceiling``  what is still lost with every prompt true: the segmenter's, or the prompt scheme's, own limit
===========  ==========================================================================================================

A rung can lose: its stage then counts negative. Points are compared where the scheme has no boxes, by the bounding box
of each instance's points.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import InferenceConfig, PromptConfig, RunConfig
from grasp_rl.distributed.process_group import joined
from grasp_rl.evaluation.calibration import inference_again
from grasp_rl.evaluation.evaluate import files_of, last_pipeline
from grasp_rl.evaluation.foreign import ids_of
from grasp_rl.evaluation.stored import Rescored, read_run
from grasp_rl.geometry import match, outside, pairwise_box_iou
from grasp_rl.interfaces import Components
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.runs import data_record, started
from grasp_rl.runs.progress import ProgressWriter
from grasp_rl.segmenters.segment import segment
from grasp_rl.types import Answer, Box, ParseStatus, Sample, SpatialPrompt
from grasp_rl.utils.files import Record, write_json

STAGES = ("unread", "count", "object", "box", "points", "ceiling")
ANOTHER_OBJECT = 0.1
"""Box IoU below which a predicted instance is taken for another object than its match."""
DIAGNOSIS = "diagnosis.json"

Prompts = tuple[SpatialPrompt, ...]


def run(config: RunConfig, components: Components) -> Record:
    """Diagnose the run ``config.predictions``; returns what result.json holds.

    The whole of it goes to diagnosis.json, here and, unless something of it was changed, in the run that was diagnosed,
    whose report shows it.

    Raises:
        ConfigError: the run has no answers to this split, or a sample has no mask or no instances.
    """
    run_dir, settings, source = Path(config.run_dir), config.evaluation, Path(str(config.predictions))
    dataset = components.data.split(settings.test_split)
    count = len(dataset) if settings.test_limit is None else min(settings.test_limit, len(dataset))
    pipeline = last_pipeline(config, components)
    samples = config.inference.samples
    if samples.count and samples.pick == "agreement":
        raise ConfigError(
            "inference.samples.pick=agreement: such a mask has no prompts of its own to replace; diagnose with "
            "inference.samples.count=0"
        )
    stored = Rescored(read_run(source, ids_of(dataset, count)), pipeline, inference_again(config, source))
    with joined(config.engine) as group, torch.no_grad():
        progress = ProgressWriter(run_dir, count) if group.is_main else None
        if progress is not None:
            data_record.write(run_dir, files_of(dataset, count))
        own_rows: dict[int, Record] = {}
        for index in range(group.rank, count, group.world_size):
            ((sample, _, rollout),) = stored([dataset[index]])
            own_rows[index] = _row(pipeline, sample, rollout.answer)
            if progress is not None:
                progress.update("diagnose", min(count, len(own_rows) * group.world_size))
        shares = group.all_gather(own_rows)
    every = {index: row for share in shares for index, row in share.items()}
    rows = [every[index] for index in range(count)]
    result = {"giou": float(np.mean([row["iou"] for row in rows])), "lost": sums(rows)}
    document = result | {
        "samples": count,
        "segmenter": type(components.segmenter).__name__,
        "by": by_attribute(rows),
        "rows": rows,
    }
    if group.is_main:
        for folder in (run_dir, source) if _of_the_run(config, source) else (run_dir,):
            write_json(folder / DIAGNOSIS, document)
    metrics = {"giou": result["giou"]} | {f"lost_{stage}": value for stage, value in sums(rows).items()}
    return {"split": settings.test_split, "samples": count, "diagnosis": str(run_dir / DIAGNOSIS), "metrics": metrics}


def _of_the_run(config: RunConfig, source: Path) -> bool:
    """Whether segmenter, data, prompt, parsing, inference and samples are the run's own."""
    ours, theirs = asdict(config), started.config_of(source, (), ("command",))
    same = all(ours[key] == theirs.get(key) for key in ("segmenter", "data", "prompt", "parsing"))
    same = same and ours["inference"] == (theirs.get("inference") or asdict(InferenceConfig()))
    evaluation = theirs.get("evaluation") or {}
    return same and all(ours["evaluation"][key] == evaluation.get(key) for key in ("test_split", "test_limit"))


def sums(rows: Sequence[Record]) -> dict[str, float]:
    """Mean loss by stage; together they are 1 - gIoU."""
    return {stage: float(np.mean([row["lost"][stage] for row in rows])) for stage in STAGES}


def by_attribute(rows: Sequence[Record]) -> dict[str, dict[str, Record]]:
    """The same for every value of every attribute, and by number of instances."""
    groups: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for name, value in row["attributes"].items():
            groups[name][str(value)].append(row)
    return {
        name: {
            value: {"samples": len(of), "giou": float(np.mean([row["iou"] for row in of])), "lost": sums(of)}
            for value, of in sorted(values.items())
        }
        for name, values in sorted(groups.items())
    }


def _row(pipeline: RewardPipeline, sample: Sample, answer: Answer) -> Record:
    if sample.target_mask is None or sample.weak_labels is None:
        raise ConfigError(
            f"diagnose: sample {sample.sample_id} of {sample.dataset} has no mask or no instances; both are needed"
        )
    answer = replace(answer, prompts=outside(answer.prompts, sample.ignore_mask))  # they cost nothing anywhere
    truth = tuple(in_scheme(label, pipeline.prompt) for label in sample.weak_labels)
    rungs = ladder(answer, truth)
    answers = [replace(answer, prompts=prompts, status=ParseStatus.OK) for prompts in rungs]
    masks = segment(pipeline.segmenter, sample.image, answers, name=sample.sample_id)
    ious = [_iou(sample, prompts, mask) for prompts, mask in zip(rungs, masks, strict=True)]
    if not answer.ok:
        ious[0] = 0.0
    lost = dict.fromkeys(STAGES, 0.0)
    lost["ceiling"] = 1.0 - ious[-1]
    if answer.ok:
        for stage, before, after in zip(STAGES[1:5], ious, ious[1:], strict=False):
            lost[stage] = after - before
    else:
        lost["unread"] = ious[-1] - ious[0]
    instances = "several" if len(truth) > 1 else "one" if truth else "none"
    return {
        "sample_id": sample.sample_id,
        "iou": ious[0],
        "lost": lost,
        "attributes": dict(sample.attributes) | {"instances": instances},
    }


def _iou(sample: Sample, prompts: Prompts, masks: object) -> float:
    """IoU as our own protocol has it: silence where nothing is asked for is 1, a mask there 0."""
    assert sample.target_mask is not None
    if not sample.target_mask.any():
        return float(not prompts)
    if getattr(masks, "error", None) is not None:
        return 0.0
    return float(masks.iou(sample.target_mask, sample.ignore_mask))  # type: ignore[attr-defined]


def in_scheme(label: SpatialPrompt, scheme: PromptConfig) -> SpatialPrompt:
    """A true instance as an answer in ``scheme`` would put it."""
    if scheme.clicks:
        coords, labels = label.point_coords[: scheme.clicks], label.point_labels[: scheme.clicks]
        return SpatialPrompt(box=label.box if scheme.box else None, point_coords=coords, point_labels=labels)
    positive = label.positive_points[: scheme.positive_points]
    negative = label.negative_points[: scheme.negative_points]
    return SpatialPrompt(
        box=label.box if scheme.box or not positive else None,
        point_coords=(*positive, *negative),
        point_labels=(1,) * len(positive) + (0,) * len(negative),
    )


def ladder(answer: Answer, truth: Prompts) -> list[Prompts]:
    """The prompts of the rungs, the answer's own first, all true ones last.

    Args:
        answer: read or not; what was not read has one rung below the top.
        truth: of the instances, in the answer's scheme.
    """
    if not answer.ok:
        return [(), truth]
    said = answer.prompts
    table = pairwise_box_iou([_extent(p) for p in said], [_extent(t) for t in truth])
    pairs = dict(match(table)) if said and truth else {}
    order = sorted(pairs)
    matched = set(pairs.values())
    added = tuple(t for column, t in enumerate(truth) if column not in matched)
    kept = [said[row] for row in order]
    true = [truth[pairs[row]] for row in order]
    far = [table[row, pairs[row]] < ANOTHER_OBJECT for row in order]
    meant = [t if other else p for p, t, other in zip(kept, true, far, strict=True)]
    boxed = [replace(p, box=t.box) if p.box is not None else p for p, t in zip(meant, true, strict=True)]
    return [said, (*kept, *added), (*meant, *added), (*boxed, *added), (*true, *added)]


def _extent(prompt: SpatialPrompt) -> Box:
    """The box, or that around the points, at least a pixel wide and high."""
    if prompt.box is not None:
        return prompt.box
    xs, ys = zip(*(prompt.positive_points or ((0.0, 0.0),)), strict=True)
    return min(xs) - 0.5, min(ys) - 0.5, max(xs) + 0.5, max(ys) + 0.5
