"""The weights that fit-segmenter leaves: a folder that transformers loads, with a card of how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from grasp_rl.config.schema import RunConfig
from grasp_rl.segmenters.base import PromptableSegmenter
from grasp_rl.training.fit_scores import LOOSE, SHIFTED, SHRUNK, table
from grasp_rl.utils.files import write_json, write_text
from grasp_rl.utils.text import markdown_code, markdown_text

CARD = "MODEL_CARD.md"


def save_segmenter(
    folder: Path, segmenter: PromptableSegmenter, config: RunConfig, scores: Mapping[str, Mapping[str, float]]
) -> None:
    """Write the segmenter's weights in bfloat16, config, preprocessor and card to ``folder``.

    Raises:
        OSError: they could not be written.
    """
    kept = {name: tensor.detach().clone() for name, tensor in segmenter.model.state_dict().items()}
    try:
        segmenter.model.to(torch.bfloat16).save_pretrained(folder)
    finally:
        segmenter.model.to(torch.float32).load_state_dict(kept)
    write_json(folder / "preprocessor_config.json", preprocessor(segmenter))
    write_text(folder / CARD, card(segmenter, config, scores))


def preprocessor(segmenter: PromptableSegmenter) -> dict[str, Any]:
    """What transformers' image processor of the family reads."""
    family = type(segmenter.model).__name__.removesuffix("Model")
    side = segmenter.side
    canvas = {"height": side, "width": side}
    size: dict[str, Any] = {"longest_edge": side} if family == "Sam" else canvas
    return {
        "image_processor_type": f"{family}ImageProcessor",
        "processor_class": f"{family}Processor",
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "do_convert_rgb": True,
        "image_mean": list(segmenter.MEAN),
        "image_std": list(segmenter.DEVIATION),
        "rescale_factor": 1 / 255,
        "resample": 2,
        "size": size,
    } | ({"do_pad": True, "pad_size": canvas} if family == "Sam" else {})


def card(segmenter: PromptableSegmenter, config: RunConfig, scores: Mapping[str, Mapping[str, float]]) -> str:
    """The model card in Markdown."""
    fit, began = config.fit, config.segmenter.get("path", "")
    count = sum(parameter.numel() for parameter in segmenter.model.parameters())
    mix = ", ".join(f"{kind} {weight:g}" for kind, weight in fit.mix.items() if weight)
    limit = config.evaluation.test_limit
    scored = "all" if limit is None else f"the first {limit}"
    return f"""# Model card: {markdown_text(config.name)}

A `{type(segmenter.model).__name__}` of {count:,} parameters in bfloat16, trained by `grasp-rl fit-segmenter` on
{markdown_code(config.data["_target_"])} from {markdown_code(f"segmenter.path={began}")}.

- trained: {fit.parts}; {fit.steps} optimizer steps, {fit.blind_steps} of them without image features
- a step: {fit.images} images, twice {fit.prompts} prompts each; learning rate {config.optimizer.lr:g}
  ({config.optimizer.schedule}); seed {config.seed}
- prompts, by weight: {mix}
- weights: running average of decay {fit.ema_decay:g}
- torch {torch.__version__}, transformers {transformers.__version__}

Mean IoU by instance before rounding to bfloat16, {scored} images of the split, one prompt an instance and kind. loose:
every edge out by {LOOSE:.0%} of the box's side; shifted: by {SHIFTED:.0%} both ways; shrunk: every edge in by
{SHRUNK:.0%}; points: the two deepest.

{table(scores)}
"""
