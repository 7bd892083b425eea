"""`grasp-rl fit-segmenter`: a promptable segmenter of the SAM family trained on masks, with prompts drawn from them.

Each step draws a few images and, for each of two decoder calls, a layout of prompts
(:mod:`grasp_rl.training.prompt_mix`).
The loss of a mask is 5 BCE + dice, of three masks that of the best one, as SAM is trained (arXiv:2304.02643, section A;
weights chosen here), and the squared error of each predicted IoU. All draws are functions of the seed and the step, so
a run that goes on equals one that was never stopped, to the bit on one thread.

From random weights ``fit.blind_steps`` come first: image features are zero, and the decoder learns what a prompt means
at the cost of a step without encoder. Otherwise it takes longer to tell the prompts of an image apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from grasp_rl.config.errors import ConfigError, require
from grasp_rl.config.schema import FitConfig, RunConfig
from grasp_rl.distributed.local import LocalEngine, load_plain
from grasp_rl.evaluation.evaluate import files_of
from grasp_rl.interfaces import Components, Dataset
from grasp_rl.runs import checkpoints, data_record, signals
from grasp_rl.runs.progress import ProgressWriter
from grasp_rl.segmenters.base import PromptableSegmenter
from grasp_rl.segmenters.embedding_cache import Features
from grasp_rl.tracking.metrics_log import MetricsLog
from grasp_rl.training.fit_adapters import Adapters
from grasp_rl.training.fit_output import save_segmenter
from grasp_rl.training.fit_scores import instances_of, score
from grasp_rl.training.prompt_mix import draw_layout, draw_prompt
from grasp_rl.types import BoolMask, Image
from grasp_rl.utils.files import Record
from grasp_rl.utils.keyed_rng import keyed_generator, sample_order

SEGMENTER = "segmenter"
"""Folder of a run with the weights, as transformers loads them."""
CALLS = 2
"""Decoder calls of a step, each with prompts of another layout."""
BCE = 5.0
_STATE = "segmenter.pt"

Scene = tuple[Image, list[BoolMask]]


def run(config: RunConfig, components: Components) -> Record:
    """Train the segmenter of ``components`` as ``config.fit`` says; returns what result.json holds.

    Raises:
        ConfigError: the segmenter cannot be trained, the data has no masks or none with foreground, or the loss is not
            finite.
        OSError: a checkpoint could not be written.
        KeyboardInterrupt: the run was interrupted; its last step is a checkpoint.
    """
    segmenter = _trainable(config, components)
    run_dir, fit = Path(config.run_dir), config.fit
    train, test = components.data.split("train"), components.data.split(config.evaluation.test_split)
    trainer = _Trainer(config, segmenter, train)
    first = _load(run_dir, trainer) if config.resume else 0
    metrics = MetricsLog(run_dir, resume_step=first if config.resume else None)
    progress = ProgressWriter(run_dir, fit.steps, first)
    data_record.write(run_dir, files_of(test, config.evaluation.test_limit))
    validation = components.data.split("val") if config.evaluation.every else None
    for step in range(first, fit.steps):
        with signals.held():
            trainer.step(step)
            done = step + 1
            if done % fit.log_every == 0 or done == fit.steps:
                metrics.log(done, trainer.means())
                progress.update("fit", done)
            if validation is not None and (done % config.evaluation.every == 0 or done == fit.steps):
                progress.update("validate", done)
                with trainer.averaged():
                    scores = score(segmenter, validation, config.evaluation.val_limit)
                metrics.log(done, {f"val/{kind}": value for kind, value in scores.items()})
            due = config.checkpoint.every and done % config.checkpoint.every == 0
            if due or done == fit.steps or signals.pending():
                _save(run_dir, trainer, done, keep_last=config.checkpoint.keep_last)
        if signals.pending() and done < fit.steps:
            raise KeyboardInterrupt
    with trainer.averaged():
        return _finish(config, trainer, test)


def _trainable(config: RunConfig, components: Components) -> PromptableSegmenter:
    segmenter = components.segmenter
    if not isinstance(segmenter, PromptableSegmenter):
        raise ConfigError(
            f"segmenter: {type(segmenter).__name__} has no weights to train; take one of SAM or SAM 2, such as "
            "segmenter=synthetic_sam2_small"
        )
    require(segmenter.dtype == torch.float32, "segmenter.dtype", str(segmenter.dtype), "float32 to be trained")
    cache = config.segmenter.get("cache", "none")
    require(cache == "none", "segmenter.cache", cache, "none: the embeddings of a segmenter that is trained change")
    require(config.engine.name == "local", "engine.name", config.engine.name, "local with fit-segmenter")
    return segmenter


class _Trainer:
    """The weights, their running average, the optimizer, and a step of them."""

    def __init__(self, config: RunConfig, segmenter: PromptableSegmenter, data: Dataset) -> None:
        self.fit, self.seed = config.fit, config.seed
        self.segmenter, self.data = segmenter, data
        model, parts = segmenter.model, self.fit.parts
        self.adapters = Adapters(model, self.fit.lora_rank, config.seed) if parts == "lora" else None
        for name, parameter in model.named_parameters():
            # one position code for images and prompts: it stays as drawn
            code = name.endswith("positional_embedding")
            chosen = parts == "all" or name.startswith("mask_decoder.") or ".lora_" in name
            parameter.requires_grad_(chosen and not code)
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average = {name: parameter.detach().clone() for name, parameter in self.named.items()}
        self.engine = LocalEngine(model, config.optimizer, self.fit.steps)
        self.rows: list[dict[str, float]] = []
        """Losses since the last row of metrics."""
        self._zeros: Features | None = None

    @property
    def trained(self) -> int:
        """Number of parameters that are trained."""
        return sum(parameter.numel() for parameter in self.named.values())

    def step(self, number: int) -> None:
        """Optimizer step ``number``, from 0.

        Raises:
            ConfigError: the loss is not finite, or nothing in the data is foreground.
        """
        rng = keyed_generator("fit", self.seed, number)
        scenes = draw_scenes(rng, self.data, self.fit, seed=self.seed, step=number)
        self.segmenter.model.train()
        features = self._features([image for image, _ in scenes], blind=number < self.fit.blind_steps)
        every = self.fit.multimask_every
        masks = (False, True) if every and number % every == 0 and number >= self.fit.blind_steps else (False,)
        parts = [
            call_losses(self.segmenter, features, scenes, rng, self.fit, multimask=multimask)
            for _ in range(CALLS)
            for multimask in masks
        ]
        loss = torch.stack([part["loss"] for part in parts]).sum() / CALLS
        if not math.isfinite(loss.item()):
            raise ConfigError(
                f"fit: the loss of step {number + 1} is {loss.item()}; lower optimizer.lr or raise "
                "optimizer.warmup_steps"
            )
        self.engine.backward(loss)
        report = self.engine.step()
        decay = min(self.fit.ema_decay, (number + 1) / (number + 10))
        with torch.no_grad():
            for name, parameter in self.named.items():
                self.average[name].lerp_(parameter, 1 - decay)
        single = parts[:: len(masks)]
        row = {
            key: math.fsum(part[key].item() for part in single) / CALLS for key in ("bce", "dice", "iou", "iou_error")
        }
        self.rows.append({"loss": loss.item(), **row, "grad_norm": report.grad_norm, "lr": report.lr})

    def means(self) -> dict[str, float]:
        """Means of the losses since they were last asked for."""
        row = {key: math.fsum(losses[key] for losses in self.rows) / len(self.rows) for key in self.rows[0]}
        self.rows = []
        return row

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block the model has the averaged weights and is in evaluation mode."""
        kept = {name: parameter.detach().clone() for name, parameter in self.named.items()}
        self.segmenter.model.eval()
        self._put(self.average)
        try:
            yield
        finally:
            self._put(kept)

    def _put(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(values[name])

    def _features(self, images: Sequence[Image], *, blind: bool) -> Features:
        if blind and self._zeros is not None and len(self._zeros[0]) == len(images):
            return self._zeros
        pixels = torch.cat([self.segmenter.prepare(image) for image in images])
        with torch.set_grad_enabled(self.fit.parts != "mask_decoder" and not blind):
            features = self.segmenter.embed(pixels)
        if blind:
            self._zeros = features = tuple(torch.zeros_like(level) for level in features)
        return features


def draw_scenes(rng: np.random.Generator, data: Dataset, fit: FitConfig, *, seed: int, step: int) -> list[Scene]:
    """The images of a step with their instances; behind an image without foreground, the next of the order stands in.

    Raises:
        ConfigError: the data has no masks, or so many in a row are empty that there may be none.
    """
    count, scenes, tried = fit.images, [], 0
    position = step * count
    for index in sample_order(seed, len(data), position, count):
        image, masks = instances_of(data, index)
        while not masks:
            tried += 1
            if tried >= max(100, min(len(data), 1000)):
                raise ConfigError(
                    f"data: {tried} masks of {data.name}, {data.split}, have no foreground pixel; see "
                    "data.mask_foreground and `grasp-rl data check`"
                )
            index = (index + 1) % len(data)  # noqa: PLW2901
            image, masks = instances_of(data, index)
        scenes.append((jittered(rng, image) if fit.colour_jitter else image, masks))
    return scenes


def jittered(rng: np.random.Generator, image: Image) -> Image:
    """``image`` in another light, and every other time with its channels permuted."""
    gain, bias = rng.uniform(0.8, 1.2, 3), rng.uniform(-20, 20, 3)
    result = (image.astype(np.float32) - 110) * gain + 110 + bias
    if rng.random() < 0.5:
        result = result[..., rng.permutation(3)]
    return np.clip(result, 0, 255).astype(np.uint8)


def call_losses(
    segmenter: PromptableSegmenter,
    features: Features,
    scenes: Sequence[Scene],
    rng: np.random.Generator,
    fit: FitConfig,
    *,
    multimask: bool,
) -> dict[str, Tensor]:
    """``loss`` of one decoder call, and its parts: ``bce``, ``dice``, the IoU reached and the error of its prediction.

    Args:
        segmenter: decodes.
        features: image embeddings of B images.
        scenes: these, with their instances.
        rng: draws the layout, the instances and the prompts.
        fit: how many prompts an image, and their mix.
        multimask: three masks a prompt, of which the best is trained.
    """
    layout = draw_layout(rng, fit.mix)
    inputs: dict[str, list[Tensor]] = {}
    targets: list[Tensor] = []
    for image, masks in scenes:
        chosen = rng.choice(len(masks), fit.prompts, replace=len(masks) < fit.prompts)
        prompts = [draw_prompt(rng, masks[index], layout, fit.mix) for index in chosen]
        size = (image.shape[0], image.shape[1])
        for key, value in segmenter.inputs_of(prompts, size).items():
            inputs.setdefault(key, []).append(value)
        targets.append(on_canvas(segmenter, [masks[index] for index in chosen], size))
    joined = {key: torch.cat(values) for key, values in inputs.items()}
    output = segmenter.model(image_embeddings=segmenter.joined(features), multimask_output=multimask, **joined)
    return mask_losses(output.pred_masks.flatten(0, 1), output.iou_scores.flatten(0, 1), torch.cat(targets))


def mask_losses(logits: Tensor, predicted: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Losses of logits [N, K, h, w] and predicted IoU [N, K] for targets [N, S, S]; of K masks the best one counts."""
    large = F.interpolate(logits, targets.shape[1:], mode="bilinear", align_corners=False)
    goal = targets[:, None].expand_as(large)
    bce = F.binary_cross_entropy_with_logits(large, goal, reduction="none").mean((2, 3))
    p = large.sigmoid()
    dice = 1 - (2 * (p * goal).sum((2, 3)) + 1) / (p.sum((2, 3)) + goal.sum((2, 3)) + 1)
    drawn, true = large.detach() > 0, goal > 0.5
    iou = (drawn & true).sum((2, 3)) / (drawn | true).sum((2, 3)).clamp(min=1)
    error = (predicted - iou).square().mean()
    best = (BCE * bce + dice).min(1)
    row = torch.arange(len(logits), device=logits.device)
    return {
        "loss": best.values.mean() + error,
        "bce": bce[row, best.indices].mean(),
        "dice": dice[row, best.indices].mean(),
        "iou": iou[row, best.indices].mean(),
        "iou_error": error,
    }


def on_canvas(segmenter: PromptableSegmenter, masks: Sequence[BoolMask], size: tuple[int, int]) -> Tensor:
    """Masks of an image of ``size`` as the encoder sees it: [N, S, S] in [0, 1], resized and padded as the image is."""
    target = torch.from_numpy(np.stack(masks)).to(segmenter.device).float()
    seen = segmenter.seen_size(size)
    if seen != size:
        target = F.interpolate(target[None], seen, mode="bilinear", antialias=True, align_corners=False)[0]
    return F.pad(target, (0, segmenter.side - seen[1], 0, segmenter.side - seen[0]))


def _save(run_dir: Path, trainer: _Trainer, step: int, *, keep_last: int) -> None:
    with checkpoints.building(run_dir, step) as folder:
        trainer.engine.save(folder / checkpoints.ENGINE)
        weights = {name: parameter.detach() for name, parameter in trainer.named.items()}
        torch.save({"weights": weights, "average": trainer.average}, folder / checkpoints.ENGINE / _STATE)
        checkpoints.commit(run_dir, step, {"rows": trainer.rows})
    checkpoints.prune(run_dir, keep_last)


def _load(run_dir: Path, trainer: _Trainer) -> int:
    """The step of the newest checkpoint that is whole, its state loaded; 0 where there is none."""
    step = checkpoints.newest_sound(run_dir)
    if step is None:
        return 0
    folder = checkpoints.folder_of(run_dir, step) / checkpoints.ENGINE
    trainer.engine.load(folder)
    state = load_plain(folder / _STATE, ("weights", "average"), trainer.segmenter.device)
    trainer._put(state["weights"])
    trainer.average = state["average"]
    trainer.rows = checkpoints.load_state(run_dir, step, ("rows",))["rows"]
    return step


def _finish(config: RunConfig, trainer: _Trainer, test: Dataset) -> Record:
    """Score the test split and write the weights, adapters among them, with their card."""
    segmenter = trainer.segmenter
    scores = score(segmenter, test, config.evaluation.test_limit)
    if trainer.adapters is not None:
        trainer.adapters.merge()
    folder = Path(config.run_dir) / SEGMENTER
    save_segmenter(folder, segmenter, config, {config.evaluation.test_split: scores})
    kilobytes = sum(path.stat().st_size for path in folder.iterdir()) / 1000
    about = {"steps": config.fit.steps, "trained_parameters": trainer.trained, "kilobytes": round(kilobytes)}
    return {**about, "weights": str(folder), config.evaluation.test_split: scores}
