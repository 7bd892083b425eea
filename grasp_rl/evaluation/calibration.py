"""Where the fit of a box refinement comes from: a calibration split, another run, or the run that is scored again."""

from __future__ import annotations

from pathlib import Path

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import RunConfig
from grasp_rl.distributed.process_group import ProcessGroup
from grasp_rl.inference import refine
from grasp_rl.inference.pipeline import Inference
from grasp_rl.inference.refine import Affine, Pair
from grasp_rl.interfaces import Dataset, DataSource, Policy
from grasp_rl.policies.questions import check_questions
from grasp_rl.prompts.parse import parse
from grasp_rl.utils.files import Record


def inference_for(config: RunConfig, policy: Policy, data: DataSource, process_group: ProcessGroup) -> Inference:
    """The options of ``config``, fitted where they ask for it; the fit is written into the run directory.

    All ranks call it together. ``policy`` is in evaluation mode.

    Raises:
        ConfigError: the calibration split is the scored one, or too few of its boxes were found.
    """
    options = config.inference.refine
    affine, about = None, {}
    if options.path is not None:
        affine, about = refine.read(Path(options.path)), {"from": options.path}
    elif options.fit_split is not None:
        if options.fit_split == config.evaluation.test_split:
            raise ConfigError(
                f"inference.refine.fit_split={options.fit_split}: is the split that is scored; take another"
            )
        affine, about = fit_on(policy, data.split(options.fit_split), config, process_group)
    if affine is not None and process_group.is_main:
        affine.write(Path(config.run_dir), about)
    return Inference(options=config.inference, affine=affine, seed=config.seed)


def inference_again(config: RunConfig, source: Path) -> Inference:
    """The options of ``config`` for stored answers: a fit is that of ``inference.refine.path``, else of ``source``.

    Raises:
        ConfigError: a fit is asked for and there is none.
    """
    return Inference(options=config.inference, affine=stored_fit(config, source), seed=config.seed)


def stored_fit(config: RunConfig, source: Path | None) -> Affine | None:
    """The fit that ``config`` asks for, from ``inference.refine.path``, else the run directory ``source``.

    Raises:
        ConfigError: there is none.
    """
    options = config.inference.refine
    if options.path is not None:
        return refine.read(Path(options.path))
    if options.fit_split is None:
        return None
    if source is None:
        raise ConfigError("inference.refine.fit_split: only evaluate fits; give inference.refine.path=RUN")
    return refine.read(source)


def fit_on(
    policy: Policy, dataset: Dataset, config: RunConfig, process_group: ProcessGroup
) -> tuple[Affine, Record]:  # fmt: skip
    """The refinement that the greedy answers to the first samples of ``dataset`` ask for, and what to say of it.

    Ranks share whole batches, so that one process and several fit the same. Samples without true boxes are passed over.

    Raises:
        ConfigError: too few boxes were found.
    """
    limit, settings = config.inference.refine.limit, config.evaluation
    total = len(dataset) if limit is None else min(limit, len(dataset))
    check_questions(policy, dataset, [config.prompt])
    own_pairs: dict[int, list[Pair]] = {}
    for start in range(0, total, settings.batch_size)[process_group.rank :: process_group.world_size]:
        indices = range(start, min(start + settings.batch_size, total))
        samples = [dataset[index] for index in indices]
        prompts = [policy.encode(sample.image, sample.query, config.prompt) for sample in samples]
        groups = policy.generate(policy.embed(prompts), None, group_size=1, max_new_tokens=settings.max_new_tokens)
        for index, sample, prompt, group in zip(indices, samples, prompts, groups, strict=True):
            answer = parse(group[0].text, config.prompt, prompt.frame, config.parsing)
            own_pairs[index] = refine.pairs_of(answer.prompts, sample.weak_labels or ())
    every = {index: pairs for share in process_group.all_gather(own_pairs) for index, pairs in share.items()}
    pairs = [pair for index in range(total) for pair in every[index]]
    affine = refine.fit(pairs)
    return affine, {
        "split": dataset.split,
        "samples": total,
        "box_iou_before": refine.mean_iou(pairs),
        "box_iou_after": refine.mean_iou(pairs, affine),
    }
