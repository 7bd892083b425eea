"""Supervised fine-tuning on demonstrations made from a dataset's weak labels: the papers' SFT baseline, and the warm
start.

Several questions about one image share one packed row, ``[image | question answer | question answer | ...]``: the
vision encoder and the image's tokens are paid once. Only answers are scored.

With ``attention_weight`` two heads are also taught where to look: a coordinate's prediction attends to the image
tokens that its instance covers (SegEarth-R2, arXiv 2512.20013, supervises attention maps likewise). A small model
without any pretraining otherwise sits on a plateau before it discovers looking.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import OptimizerConfig, PromptConfig, RunConfig, SftConfig, SftPhase
from grasp_rl.distributed.build import make_engine, whole
from grasp_rl.distributed.engine import Engine, pick_device
from grasp_rl.distributed.process_group import ALONE, ProcessGroup
from grasp_rl.evaluation.evaluate import check_truth, evaluate, files_of
from grasp_rl.interfaces import Components, CoordinateFrame, Dataset, Segmenter
from grasp_rl.policies.describe import describe
from grasp_rl.policies.questions import check_questions
from grasp_rl.policies.types import EncodedImage, EncodedPrompt
from grasp_rl.policies.vlm import VlmPolicy
from grasp_rl.prompts.render import format_answer, wrapped
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.runs import checkpoints, data_record
from grasp_rl.runs.progress import ProgressWriter
from grasp_rl.tracking.metrics_log import MetricsLog
from grasp_rl.training.clicks import ClickSimulator
from grasp_rl.training.demonstrations import distort, thought_of
from grasp_rl.training.questions import chosen
from grasp_rl.types import Sample, SpatialPrompt
from grasp_rl.utils.files import Record
from grasp_rl.utils.keyed_rng import keyed_generator, sample_order

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Pixels:
    """An encoded prompt in NumPy: a tensor would cross the worker's pipe as a file descriptor, one by one."""

    input_ids: NDArray[np.int64]
    images: tuple[Mapping[str, NDArray[Any]], ...]
    frame: CoordinateFrame


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image with several questions and answers."""

    prompt: _Pixels
    """The encoded prompt up to the end of the image."""
    completions: tuple[tuple[int, ...], ...]
    """Per question: the rest of its prompt, then the answer and the end of sequence."""
    unscored: tuple[int, ...]
    """Per question: how many of those tokens are prompt."""
    looks: tuple[tuple[int, int, NDArray[np.bool_]], ...]
    """(question, token of its completion, [T] bool image tokens that the token's prediction should attend to)."""


def run(config: RunConfig, components: Components) -> Record:
    """Fine-tune through the phases of ``config.sft``, saving as it goes; returns what result.json holds.

    Several processes share the rows of every optimizer step; the loss has the divisors of the whole step.

    Raises:
        ConfigError: the policy is no ``VlmPolicy``, the train split gives no weak labels, a scheme is unknown,
            ``attention_layers`` names a layer that the policy lacks, or several phases are to run under ZeRO.
    """
    if config.engine.zero_stage and len(config.sft.phases) > 1:
        raise ConfigError(
            f"sft.phases: {len(config.sft.phases)} phases, each with a fresh optimizer, run with engine=local only; "
            f"with engine={config.engine.name} give one phase, and go on with init_from"
        )
    run_dir = Path(config.run_dir)
    policy = components.policy.to(pick_device(config.engine))
    if not isinstance(policy, VlmPolicy):
        raise ConfigError(
            f"policy: {type(policy).__name__} cannot be fine-tuned on demonstrations: it is no "
            "grasp_rl.policies.vlm.VlmPolicy, whose tokens sft teaches"
        )
    _check_layers(config, policy)
    with whole(policy):
        if config.init_from:
            policy.load_weights(checkpoints.find_policy(Path(config.init_from)))
    schemes = _schemes(config)
    training = components.data.split("train")
    data = chosen(config, training)
    for split in (training, components.data.split(config.evaluation.test_split)):
        check_questions(policy, split, [prompt for prompt, _ in schemes.values()])
    check_truth(components.data.split(config.evaluation.test_split), config.evaluation.test_limit)
    total = sum(phase.steps for phase in config.sft.phases)
    policy.train()
    done = first = _resumed(config, policy, total) if config.resume is not None else 0
    begin = 0
    record: Record = {}
    for number, phase in enumerate(config.sft.phases):
        begin += phase.steps
        if done >= begin and begin < total:
            continue
        optimizer = OptimizerConfig(
            lr=phase.lr,
            weight_decay=config.optimizer.weight_decay,
            warmup_steps=phase.warmup_steps,
            schedule="cosine",
            final_lr_ratio=phase.final_lr_ratio,
        )
        engine = make_engine(policy, optimizer, phase.steps, config.engine)
        group, made = engine.process_group, done - (begin - phase.steps)
        if made:  # the run goes on within this phase
            ranks = checkpoints.load_state(run_dir, done)["ranks"]
            engine.load(checkpoints.folder_of(run_dir, done) / checkpoints.ENGINE, ranks=ranks)
        rows = _RowStream(
            policy,
            data,
            schemes,
            phase,
            seed=config.seed,
            phase_number=number,
            process_group=group,
            sft=config.sft,
            segmenter=components.segmenter,
        )
        try:
            files = _SftLog(config, components, total, done, first) if group.is_main else None
            done = _run_phase(policy, engine, rows, made, config, files, done)
            if done == total:
                record = {"steps": done}
                if not _is_stage(config):  # what follows scores the policy before it begins
                    record |= _examine(config, components, policy, engine, files.progress if files else None, done)
        finally:
            engine.close()
    return record


class _SftLog:
    """metrics.jsonl, progress.json and the record of the data, of the main rank."""

    def __init__(self, config: RunConfig, components: Components, total: int, done: int, first: int) -> None:
        run_dir = Path(config.run_dir)
        self.metrics = MetricsLog(run_dir, resume_step=done or None)
        self.progress = ProgressWriter(run_dir, total, first)
        scored = components.data.split(config.evaluation.test_split)
        data_record.write(run_dir, files_of(scored, config.evaluation.test_limit))


def _choice_of(sample: Sample) -> str:
    if sample.choice is None:
        raise ConfigError(f"sft: sample {sample.sample_id} of {sample.dataset} says of no image that it answers")
    return sample.choice


def _check_layers(config: RunConfig, policy: VlmPolicy) -> None:
    layers = policy.model.config.get_text_config().num_hidden_layers
    for number, phase in enumerate(config.sft.phases):
        absent = [layer for layer in phase.attention_layers if not 0 <= layer < layers]
        if phase.attention_weight and absent:
            raise ConfigError(
                f"sft.phases[{number}].attention_layers: {absent[0]}: the policy has decoder layers 0 to {layers - 1}"
            )


def _run_phase(
    policy: VlmPolicy, engine: Engine, rows: _RowStream, made: int, config: RunConfig, files: _SftLog | None, done: int
) -> int:
    """The steps of a phase from its step ``made`` on, the run's ``done`` before them; returns those done after."""
    sft, total = config.sft, sum(phase.steps for phase in config.sft.phases)
    losses: list[dict[str, float]] = []
    for batch in _batches(rows, made):
        losses.append(_step(policy, engine, batch, rows.phase, bf16=sft.bf16))
        done += 1
        if done % sft.log_every == 0 or done == total:
            row = {key: math.fsum(loss[key] for loss in losses) / len(losses) for key in losses[0]}
            row["phase"] = float(rows.number)
            losses.clear()
            if files is not None:
                files.metrics.log(done, row)
                files.progress.update(f"sft phase {rows.number + 1}", done)
        if done % sft.save_every == 0 or done == total:
            _save(policy, engine, config, done, rows.number)
    return done


def _batches(rows: _RowStream, made: int) -> Iterator[list[Row]]:
    """Batches from number ``made`` on; a ConfigError of a loader's process in its own words, without its traceback."""
    try:
        yield from rows.loader(made)
    except ConfigError as error:
        raise ConfigError(str(error).rstrip().rpartition("ConfigError: ")[2]) from error


def _is_stage(config: RunConfig) -> bool:
    """Whether this is a stage of a training run: it can be gone on with, and what follows scores the policy."""
    return config.command == "train"


def _resumed(config: RunConfig, policy: VlmPolicy, total: int) -> int:
    """Load the policy of the newest sound checkpoint and return its step; 0 where there is none yet.

    Raises:
        ConfigError: the run already has more steps than it shall, or another engine's state.
    """
    run_dir, group = Path(config.run_dir), ProcessGroup()
    step = group.all_gather(checkpoints.newest_sound(run_dir) if group.is_main else None)[0]
    if step is None:
        return 0
    state = checkpoints.load_state(run_dir, step)
    if step > total:
        raise ConfigError(f"sft.phases: have {total} steps, {run_dir} already has {step}")
    if (state["engine"] == "local") != (config.engine.name == "local"):
        raise ConfigError(f"engine={config.engine.name}: {run_dir} was begun with engine={state['engine']}; go on so")
    if config.engine.name == "local":
        policy.load_weights(checkpoints.folder_of(run_dir, step) / checkpoints.POLICY)
    log.info("sft: resuming from step %d, %d steps left", step, total - step)
    return int(step)


def _save(policy: VlmPolicy, engine: Engine, config: RunConfig, step: int, phase: int) -> None:
    """Write the checkpoint of ``step`` with all ranks: the policy, and in a stage of a run the optimizer's state."""
    run_dir, group = Path(config.run_dir), engine.process_group
    with checkpoints.building(run_dir, step) if group.is_main else contextlib.nullcontext():
        group.barrier()
        part = checkpoints.part_of(run_dir, step)
        if _is_stage(config):
            engine.save(part / checkpoints.ENGINE)
        with engine.full_parameters(whole=True):
            if group.is_main:
                policy.save(part / checkpoints.POLICY)
                describe(part / checkpoints.POLICY, policy, config, step=step, scores={})
        group.barrier()
        if group.is_main:
            state = {"phase": phase, "ranks": group.world_size, "engine": config.engine.name}
            checkpoints.commit(run_dir, step, state)
            checkpoints.prune(run_dir, config.checkpoint.keep_last)
    group.barrier()


def _step(policy: VlmPolicy, engine: Engine, rows: Sequence[Row], phase: SftPhase, *, bf16: bool) -> dict[str, float]:
    """One optimizer step on the mean negative log-likelihood of the answers' tokens, and on where they attend.

    Args:
        policy: trained in place.
        engine: its optimizer.
        rows: this rank's share of the step's rows.
        phase: which weights and layers.
        bf16: autocast to bfloat16.

    Returns:
        the losses of the whole step.
    """
    looks = [(b, *look) for b, row in enumerate(rows) for look in row.looks]
    scored = sum(len(c) - n for row in rows for c, n in zip(row.completions, row.unscored, strict=True))
    size = engine.process_group.all_reduce_sum({"tokens": scored, "looks": len(looks)})
    prompts = [
        EncodedPrompt(
            input_ids=torch.from_numpy(row.prompt.input_ids),
            images=tuple(
                EncodedImage(inputs={name: torch.from_numpy(array) for name, array in image.items()})
                for image in row.prompt.images
            ),
            frame=row.prompt.frame,
        )
        for row in rows
    ]
    with torch.autocast(policy.device.type, torch.bfloat16, enabled=bf16):
        logp, _, _, attention = engine.forward(
            prompts,
            [row.completions for row in rows],
            unscored=[row.unscored for row in rows],
            entropy=False,
            attention_layers=phase.attention_layers if phase.attention_weight else (),
        )
    total = nll = -logp.sum() / size["tokens"]
    losses = {"loss": nll.item()}
    if phase.attention_weight:
        losses["look_loss"] = 0.0
    if attention is not None and looks:
        b, g, t = (torch.tensor(values, device=policy.device) for values in list(zip(*looks, strict=True))[:3])
        covered = torch.from_numpy(np.stack([look[3] for look in looks])).to(policy.device)
        share = (attention[b, g, t] * covered).sum(-1)
        look_loss = -(share + 1e-6).log().sum() / size["looks"]
        losses["look_loss"] = look_loss.item()
        total = nll + phase.attention_weight * look_loss
    for _ in engine.synchronized_batches([rows], lambda: rows):  # one forward a rank: the step's only and last
        engine.backward(total)
    engine.step()
    return engine.process_group.all_reduce_sum(losses)


def _examine(
    config: RunConfig,
    components: Components,
    policy: VlmPolicy,
    engine: Engine,
    progress: ProgressWriter | None,
    step: int,
) -> dict[str, dict[str, float]]:
    """The test split scored in every scheme that was trained."""
    scores = {}
    for name, (prompt, _) in _schemes(config).items():
        if progress is not None:
            progress.update(f"test {name}", step)
        pipeline = RewardPipeline(
            segmenter=components.segmenter,
            reward=components.reward,
            prompt=prompt,
            parsing=config.parsing,
            always_segment=True,
        )
        alone = config.engine.ranks_forward_together
        with engine.full_parameters():
            result = evaluate(
                policy,
                pipeline,
                components.data.split(config.evaluation.test_split),
                config=config.evaluation,
                protocol=components.protocol,
                limit=config.evaluation.test_limit,
                process_group=ALONE if alone else engine.process_group,
                folder=Path(config.run_dir) / f"eval_{name}" if engine.process_group.is_main or not alone else None,
            )
        scores[name] = dict(result.metrics)
    return scores


def _schemes(config: RunConfig) -> dict[str, tuple[PromptConfig, float]]:
    """Scheme name to its config and weight."""
    if not config.sft.scheme_weights:
        return {config.prompt.scheme: (config.prompt, 1.0)}
    folder = resources.files("grasp_rl.conf") / "prompt"
    packaged = sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))
    schemes = {}
    for name, weight in config.sft.scheme_weights.items():
        if name not in packaged or weight <= 0:
            raise ConfigError(f"sft.scheme_weights.{name}={weight}: must be a weight > 0 of {', '.join(packaged)}")
        text = (folder / f"{name}.yaml").read_text(encoding="utf-8")
        values = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
        if not isinstance(values, dict):
            raise ConfigError(f"conf/prompt/{name}.yaml: must be a mapping, found {type(values).__name__}")
        schemes[name] = (
            PromptConfig(**{str(k): v for k, v in values.items()} | {"template": config.prompt.template}),
            weight,
        )
    return schemes


class _RowStream(TorchDataset[list[Row]]):
    """The share of a rank in batches of packed rows; batch ``index`` is a function of (seed, phase, index)."""

    def __init__(
        self,
        policy: VlmPolicy,
        data: Dataset,
        schemes: dict[str, tuple[PromptConfig, float]],
        phase: SftPhase,
        *,
        seed: int,
        phase_number: int,
        process_group: ProcessGroup = ALONE,
        sft: SftConfig | None = None,
        segmenter: Segmenter | None = None,
    ) -> None:
        self.policy, self.data, self.phase = policy, data, phase
        self.seed, self.number = seed, phase_number
        self.rank, self.world_size = process_group.rank, process_group.world_size
        if phase.batch_size < self.world_size:
            raise ConfigError(
                f"sft.phases[].batch_size={phase.batch_size}: must be >= {self.world_size}, the number of processes"
            )
        self.prompts = [prompt for prompt, _ in schemes.values()]
        self.sft = sft or SftConfig()
        self.clicks: dict[str, ClickSimulator] = {}
        """By the scheme's name, where clicks are simulated."""
        if segmenter is not None and self.sft.clicks.source == "simulated":
            stop = self.sft.clicks.stop_iou
            self.clicks = {p.scheme: ClickSimulator(segmenter, p.clicks, stop) for p in self.prompts if p.clicks}
        weights = torch.tensor([weight for _, weight in schemes.values()], dtype=torch.float64)
        self.weights = (weights / weights.sum()).numpy()

    def __len__(self) -> int:
        return self.phase.steps

    def loader(self, first: int) -> DataLoader[list[Row]]:
        """The batches from number ``first`` on, made ahead by other processes; by this one where it needs its GPU."""
        numbers: Any = range(first, len(self))
        if any(simulator.on_gpu for simulator in self.clicks.values()):
            return DataLoader(self, batch_size=None, sampler=numbers, num_workers=0)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = max(1, min(4, cores // (4 * self.world_size)))
        return DataLoader(self, batch_size=None, sampler=numbers, num_workers=workers, prefetch_factor=4)

    def __getitem__(self, index: int) -> list[Row]:
        if index >= len(self):
            raise IndexError(index)
        count = self.phase.batch_size
        chosen = sample_order(self.seed + 1000 * self.number, len(self.data), index * count, count)
        mine = list(enumerate(chosen))[self.rank :: self.world_size]
        return [self._row(number, f"{index}-{place}") for place, number in mine]

    def _row(self, number: int, key: str) -> Row:
        rng = keyed_generator("demonstration", self.seed, self.number, key)
        samples = self._same_image(number)
        chosen = [self.prompts[int(rng.choice(len(self.prompts), p=self.weights))] for _ in samples]
        questions = [(s.query, scheme) for s, scheme in zip(samples, chosen, strict=True)]
        encoded = self.policy.encode_questions(samples[0].image, questions, samples[0].more_images)
        split = self.policy.image_end(encoded[0])
        completions, unscored, looks = [], [], []
        for place, (sample, scheme, question) in enumerate(zip(samples, chosen, encoded, strict=True)):
            shown = self._shown(sample, scheme)
            weak_labels = distort(
                shown,
                rng,
                sample.size,
                scale=self.phase.box_scale_bias,
                shift=self.phase.box_shift_bias,
                noise=self.phase.noise,
            )
            thought = thought_of(sample, self.sft.reasoning, rng, len(shown))
            try:
                if scheme.answer == "choice":
                    text = wrapped(_choice_of(sample), thought, scheme)
                else:
                    text = format_answer(weak_labels, thought, question.frame, scheme)
            except ValueError as error:  # a weak label without the points that the scheme asks for
                raise ConfigError(f"sft: sample {sample.sample_id} of {sample.dataset}: {error}") from error
            asked, said = tuple(question.input_ids[split:].tolist()), self.policy.tokens_of(text)
            completions.append((*asked, *said))
            unscored.append(len(asked))
            if self.phase.attention_weight:
                covered = [self.policy.covered(weak_label.box, question) for weak_label in shown if weak_label.box]
                looks += [(place, len(asked) + t, covered[i]) for t, i in self.policy.coordinates_in(said)]
        first = encoded[0]
        return Row(
            prompt=_Pixels(
                input_ids=first.input_ids[:split].numpy(),
                images=tuple({name: t.numpy() for name, t in image.inputs.items()} for image in first.images),
                frame=first.frame,
            ),
            completions=tuple(completions),
            unscored=tuple(unscored),
            looks=tuple(looks),
        )

    def _shown(self, sample: Sample, scheme: PromptConfig) -> tuple[SpatialPrompt, ...]:
        """The instances that a demonstration in ``scheme`` shows."""
        if scheme.scheme in self.clicks:
            return self.clicks[scheme.scheme](sample)
        if sample.weak_labels is None and scheme.answer != "choice":
            raise ConfigError(f"sft: sample {sample.sample_id} of {sample.dataset} has no boxes or points")
        return sample.weak_labels or ()

    def _same_image(self, number: int) -> list[Sample]:
        several = getattr(self.data, "same_image", None)
        if several is None:
            return [self.data[number]]
        return list(several(number, self.phase.questions_per_image))
