"""The ``sam2`` package behind the same calls as transformers' port; ``make parity-sam2`` shows an environment.

Importing the package starts Hydra. It is imported here and nowhere else, when a worker asks for it, and Hydra's global
state is put back.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from grasp_rl.config.errors import ConfigError
from grasp_rl.segmenters.weights import Weights, fit, read_original

SIZES = {"hiera_tiny": "t", "hiera_small": "s", "hiera_base_plus": "b+", "hiera_large": "l"}
_STABLE = {
    "dynamic_multimask_via_stability": True,
    "dynamic_multimask_stability_delta": 0.05,
    "dynamic_multimask_stability_thresh": 0.98,
}
"""What the package's own ``build_sam2`` adds, and the port's configs contain."""


def load_package(weights: Weights) -> Sam2Package:
    """A model of the package with the weights of an original file.

    Raises:
        ConfigError: the package is not installed, the file is none of its own, or the weights do not fit.
    """
    if weights.architecture not in SIZES:
        raise ConfigError(f"segmenter.architecture={weights.architecture!r}: must be one of {', '.join(SIZES)}")
    state = read_original(weights)
    version = "sam2.1" if "no_obj_embed_spatial" in state else "sam2"
    model = build_package(version, weights.architecture)
    fit(weights, model, state)
    model.load_state_dict(state)
    return Sam2Package(model)


def build_package(version: str, architecture: str) -> Any:
    """A model of the package on torch's default device, random weights.

    Args:
        version: sam2 | sam2.1
        architecture: a key of :data:`SIZES`.

    Raises:
        ConfigError: the package is not installed.
    """
    result = importlib.util.find_spec("sam2")
    if result is None or not result.submodule_search_locations:
        raise ConfigError(
            "segmenter.backend='sam2': the package is not installed; pip install --no-deps --no-build-isolation sam2 "
            "iopath portalocker (and a torchvision that fits torch), or take segmenter.backend=transformers"
        )
    folder = Path(next(iter(result.submodule_search_locations))) / "configs" / version
    config = OmegaConf.load(folder / f"{version}_{SIZES[architecture]}.yaml".replace("_", "_hiera_", 1))
    config.model.sam_mask_decoder_extra_args = _STABLE
    started = importlib.import_module("hydra.core.global_hydra").GlobalHydra.instance()
    before = started.hydra
    try:
        return importlib.import_module("hydra.utils").instantiate(config.model, _recursive_=True)
    finally:
        started.hydra = before  # importing sam2 starts Hydra where it was not


class Sam2Package(nn.Module):
    """The calls of transformers' ``Sam2Model`` that a segmenter makes, on a ``sam2.modeling.sam2_base.SAM2Base``."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.config = SimpleNamespace(prompt_encoder_config=SimpleNamespace(image_size=int(model.image_size)))

    def get_image_embeddings(self, pixels: Tensor) -> list[Tensor]:
        """Embeddings of one preprocessed image [1, 3, S, S], coarsest last, as the package's predictor keeps them."""
        _, levels, _, sizes = self.model._prepare_backbone_features(self.model.forward_image(pixels))
        levels[-1] = levels[-1] + self.model.no_mem_embed
        return [f.permute(1, 2, 0).view(1, -1, *size) for f, size in zip(levels, sizes, strict=True)]

    def forward(
        self,
        image_embeddings: list[Tensor],
        multimask_output: bool,
        input_points: Tensor | None = None,
        input_labels: Tensor | None = None,
        input_boxes: Tensor | None = None,
    ) -> SimpleNamespace:
        """``pred_masks`` [1, N, K, h, w] and ``iou_scores`` [1, N, K] of N prompts in the encoder's pixels."""
        coords, labels = [], []
        if input_boxes is not None:  # corners are points with labels of their own
            coords.append(input_boxes[0].reshape(-1, 2, 2))
            labels.append(torch.tensor([[2, 3]], device=input_boxes.device).expand(len(input_boxes[0]), 2))
        if input_points is not None and input_labels is not None:
            coords.append(input_points[0])
            labels.append(input_labels[0])
        low, quality = self._decode(torch.cat(coords, 1), torch.cat(labels, 1), image_embeddings, multimask_output)
        return SimpleNamespace(pred_masks=low[None], iou_scores=quality[None])

    def _decode(self, coords: Tensor, labels: Tensor, levels: list[Tensor], multimask: bool) -> tuple[Tensor, Tensor]:
        sparse, dense = self.model.sam_prompt_encoder(points=(coords, labels.int()), boxes=None, masks=None)
        low, quality, _, _ = self.model.sam_mask_decoder(
            image_embeddings=levels[-1],
            image_pe=self.model.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            repeat_image=len(coords) > 1,
            high_res_features=levels[:-1],
        )
        return low, quality
