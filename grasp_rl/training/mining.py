"""Hard samples: questions that the policy gets neither always right nor always wrong, found before it is trained.

A group whose rewards are all alike has no advantage: nothing is learned from it. GeoZero (arXiv 2511.22645) trains on
about 20 000 questions mined after supervised fine-tuning; how they were chosen is not published. Here every question is
answered G times, as in training, and kept where the rewards of its answers spread.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import MiningConfig, RunConfig
from grasp_rl.data.subset import Subset
from grasp_rl.distributed.build import whole
from grasp_rl.distributed.engine import pick_device
from grasp_rl.distributed.process_group import ProcessGroup
from grasp_rl.interfaces import Components, Dataset, Policy
from grasp_rl.policies.questions import check_questions
from grasp_rl.rollouts.collect import collect_rollouts
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.rollouts.reward_worker import RewardWorker
from grasp_rl.rollouts.turns import stages_of
from grasp_rl.runs import checkpoints
from grasp_rl.runs.progress import ProgressWriter
from grasp_rl.runs.run_dir import MINED
from grasp_rl.types import GroupOutcome, Sample
from grasp_rl.utils.files import Record, Unreadable, parse_json, read_lines, write_text

ASKED = "asked.jsonl"
"""All questions asked so far, as in mined.jsonl: number in the training split, id, mean and range of rewards."""

log = logging.getLogger(__name__)


def run(config: RunConfig, components: Components, questions: Dataset) -> Record:
    """Answer the training questions and write those that are kept into ``<run_dir>/mined.jsonl``.

    A pass that was left goes on behind the last optimizer step's worth of questions that it finished.

    Args:
        config: the run's; ``algorithm.prompts_per_step`` questions are asked together, ``group_size`` times each.
        components: the policy is as the weights of ``config.init_from`` have it.
        questions: of the training split.

    Returns:
        how many were asked and kept, and the mean reward of all answers.

    Raises:
        ConfigError: nothing is kept, or a question cannot be asked.
    """
    run_dir, group, mining = Path(config.run_dir), ProcessGroup(), config.regime.mining
    policy: Policy = components.policy.to(pick_device(config.engine))
    check_questions(policy, questions, [config.prompt])
    pipeline = RewardPipeline(
        segmenter=components.segmenter, reward=components.reward, prompt=config.prompt, parsing=config.parsing
    )
    worker = RewardWorker(pipeline, config.rollout.reward_worker, stages_of(config, pipeline))
    config = replace(config, algorithm=replace(config.algorithm, sampling_rounds=1))
    total, size = min(len(questions), mining.limit or len(questions)), config.algorithm.prompts_per_step
    progress = ProgressWriter(run_dir, total) if group.is_main else None
    try:
        with whole(policy):
            if config.init_from:
                policy.load_weights(checkpoints.find_policy(Path(config.init_from)))
            policy.train()
            rows = group.all_gather(_rows_before(run_dir, size) if group.is_main else None)[0]
            for first in range(len(rows), total, size):
                samples = [questions[number] for number in range(first, min(first + size, total))]
                new = _asked(config, components, worker, policy, samples, first, group)
                rows += new
                if progress is not None:
                    with (run_dir / ASKED).open("a", encoding="utf-8") as file:
                        file.writelines(json.dumps(row) + "\n" for row in new)
                    progress.update("mine", len(rows))
    finally:
        worker.close()
    kept = [row for row in rows if is_hard(row, mining)]
    if not kept:
        raise ConfigError(
            f"regime.mining: of {len(rows)} questions none is kept, {_why(rows)}; lower regime.mining.min_range, widen "
            "min_mean and max_mean, raise algorithm.group_size, or take a policy that is neither perfect nor lost"
        )
    if group.is_main:
        write_text(run_dir / MINED, "".join(json.dumps(row) + "\n" for row in kept))
    group.barrier()
    log.info("mined: %d of %d questions", len(kept), len(rows))
    known = [row["mean"] for row in rows if row["mean"] is not None]
    return {"asked": len(rows), "kept": len(kept), "reward": sum(known) / max(1, len(known))}


def is_hard(row: Mapping[str, float | None], mining: MiningConfig) -> bool:
    """Whether a question's answers, with this mean and range of rewards, are neither all right nor all wrong."""
    mean, spread = row["mean"], row["range"]
    if mean is None or spread is None:  # no group came of it
        return False
    low, high = mining.min_mean, mining.max_mean
    return spread > mining.min_range and (low is None or mean >= low) and (high is None or mean <= high)


def listed(source: str, dataset: Dataset) -> Subset:
    """The samples of ``dataset`` that a list names.

    Args:
        source: a run directory with a ``mined.jsonl``, or such a file.
        dataset: the split that it was made on.

    Raises:
        ConfigError: there is no such list, it is empty or damaged, or it names a sample that is not there.
    """
    path = Path(source) / MINED if Path(source).is_dir() else Path(source)
    try:
        lines = list(read_lines(path))
    except (OSError, Unreadable) as error:
        raise ConfigError(
            f"regime.mining.reuse={source!r}: no list there ({error}); name a run with {MINED}"
        ) from error
    numbers, sample_ids = [], []
    for place, line in enumerate(lines, 1):
        try:
            row = parse_json(line)
            number, sample_id = row["number"], row["sample_id"]
        except (Unreadable, KeyError, TypeError):
            number = sample_id = None
        if type(number) is not int or not isinstance(sample_id, str):
            raise ConfigError(f"{path}:{place}: must be a JSON object with number and sample_id")
        if not 0 <= number < len(dataset):
            raise ConfigError(
                f"{path}:{place}: number={number}: {dataset.name}/{dataset.split} has {len(dataset)} samples; take the "
                "data that the list was made on"
            )
        numbers.append(number)
        sample_ids.append(sample_id)
    if not numbers:
        raise ConfigError(f"regime.mining.reuse={source!r}: {path} names no sample")
    return Subset(dataset, numbers, sample_ids, str(path))


def _rows_before(run_dir: Path, size: int) -> list[Record]:
    """What was asked before, whole steps of ``size`` questions; a torn last line and its step are asked again."""
    path, rows = run_dir / ASKED, []
    for line in read_lines(path) if path.is_file() else ():
        try:
            rows.append(parse_json(line))
        except Unreadable:
            break
    rows = rows[: len(rows) // size * size]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def _asked(
    config: RunConfig,
    components: Components,
    worker: RewardWorker,
    policy: Policy,
    samples: list[Sample],
    first: int,
    group: ProcessGroup,
) -> list[Record]:
    """A row for each of ``samples``, the first of which has the number ``first`` in the training split."""
    shown = samples if "mask" in components.reward.needs else [sample.without_mask() for sample in samples]
    step = first // config.algorithm.prompts_per_step
    batch = collect_rollouts(policy, components.generator, worker, lambda _: shown, config, step, group)
    last: dict[int, GroupOutcome] = {outcome.question: outcome for outcome in batch.everywhere()}  # of several turns
    rows: list[Record] = []
    for place, sample in enumerate(samples):
        rewards = [r.reward.reward for r in last[place].rollouts] if place in last else []
        mean = sum(rewards) / len(rewards) if rewards else None
        spread = max(rewards) - min(rewards) if rewards else None
        rows.append({"number": first + place, "sample_id": sample.sample_id, "mean": mean, "range": spread})
    return rows


def _why(rows: list[Record]) -> str:
    spreads = [row["range"] for row in rows if row["range"] is not None]
    if not spreads:
        return "no group of answers came back (see the log)"
    return f"the largest range of a group's rewards is {max(spreads):.3g}"
