"""The ports against Meta's own code: the ``sam2`` and ``segment_anything`` packages on the same random weights.

They want torchvision and live in an environment of their own: `make parity-sam2`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from grasp_rl.geometry import mask_iou
from grasp_rl.rehearsal import models as tiny_models
from grasp_rl.segmenters.sam import SamSegmenter
from grasp_rl.segmenters.sam2 import VIDEO, Sam2Segmenter
from grasp_rl.segmenters.weights import build
from grasp_rl.types import SpatialPrompt

needs = pytest.mark.skipif(
    importlib.util.find_spec("sam2") is None or importlib.util.find_spec("segment_anything") is None,
    reason="needs the packages sam2 and segment_anything: make parity-sam2",
)
pytestmark = [pytest.mark.parity, needs]

PROMPTS = (
    SpatialPrompt(box=(100, 80, 300, 260)),
    SpatialPrompt(box=(20, 200, 120, 380)),
    SpatialPrompt(point_coords=((150.5, 120.5), (250.5, 200.5)), point_labels=(1, 1)),
    SpatialPrompt(point_coords=((50.5, 300.5),), point_labels=(1,)),
    SpatialPrompt(box=(10, 10, 500, 380), point_coords=((200, 100), (400, 300)), point_labels=(1, 0)),
)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    ramp = np.linspace(0, 200, 520 * 400 * 3).reshape(400, 520, 3)
    return (ramp + np.random.default_rng(0).integers(0, 55, (400, 520, 3))).astype(np.uint8)


def compare(ours: Any, theirs: Any, image: np.ndarray) -> None:
    """Logits within 1e-4 of their size, masks of IoU 0.999 and more."""
    first, second = ours.encode(image), theirs.encode(image)
    for prompt in PROMPTS:
        a, b = ours._decode([prompt], first)[0], theirs._decode([prompt], second)[0]
        assert a.abs().max() > 0.1
        assert (a - b).abs().max() < 1e-4 * max(1.0, float(a.abs().max()))
    ours_masks, theirs_masks = ours.decode(first, PROMPTS), theirs.decode(second, PROMPTS)
    for a, b in zip(ours_masks.masks.numpy(), theirs_masks.masks.numpy(), strict=True):
        assert mask_iou(a, b) > 0.999
    assert np.abs(ours_masks.iou_predictions - theirs_masks.iou_predictions).max() < 1e-4


@pytest.mark.parametrize("version", ["sam2", "sam2.1"])
def test_sam2_back_ends_agree(version: str, image: np.ndarray, tmp_path: Path) -> None:
    """Hiera-tiny of the package, saved as an original file, through both back ends of the segmenter."""
    from grasp_rl.segmenters.sam2_package import build_package

    GlobalHydra.instance().clear()
    torch.manual_seed(0)
    model = tiny_models.loud(build_package(version, "hiera_tiny"))
    assert not GlobalHydra.instance().is_initialized()
    path = tmp_path / "random.pt"
    torch.save({"model": model.state_dict()}, path)
    made = [
        Sam2Segmenter(str(path), architecture="hiera_tiny", allow_pickle_weights=True, backend=b, device="cpu")
        for b in ("transformers", "sam2")
    ]
    compare(made[0], made[1], image)


@pytest.mark.parametrize("version", ["sam2", "sam2.1"])
@pytest.mark.parametrize("architecture", list(Sam2Segmenter.ARCHITECTURES))
def test_every_sam2_size_has_the_packages_shapes(version: str, architecture: str) -> None:
    from grasp_rl.segmenters.sam2_package import build_package

    theirs = build_package(version, architecture).state_dict()
    with torch.device("meta"):
        ours = build(Sam2Segmenter.MODEL, Sam2Segmenter.ARCHITECTURES[architecture]).state_dict()
    renamed = Sam2Segmenter.rename(theirs)
    assert {k: v.shape for k, v in renamed.items()} == {k: v.shape for k, v in ours.items()}
    assert any(name.startswith(VIDEO) for name in theirs)


@pytest.mark.parametrize("architecture", list(SamSegmenter.ARCHITECTURES))
def test_every_sam_size_has_the_packages_shapes(architecture: str) -> None:
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        theirs = sam_model_registry[architecture]().state_dict()
        ours = build(SamSegmenter.MODEL, SamSegmenter.ARCHITECTURES[architecture]).state_dict()
    renamed = SamSegmenter.rename(theirs)
    assert {k: v.shape for k, v in renamed.items()} == {k: v.shape for k, v in ours.items()}


def test_sam_agrees_with_meta(image: np.ndarray, tmp_path: Path) -> None:
    """ViT-B with random weights: our segmenter, and Meta's modules and postprocessing called by hand."""
    from segment_anything import sam_model_registry

    torch.manual_seed(0)
    model = tiny_models.loud(sam_model_registry["vit_b"]()).eval()
    path = tmp_path / "random.pth"
    torch.save(model.state_dict(), path)
    ours = SamSegmenter(str(path), architecture="vit_b", allow_pickle_weights=True, device="cpu")
    embedding = ours.encode(image)
    height, width = ours.seen_size(image.shape[:2])
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None].float(), (height, width), mode="bilinear", antialias=True
    )
    with torch.no_grad():
        features = model.image_encoder(model.preprocess(resized))
        assert (features - embedding.features[0]).abs().max() < 1e-3 * features.abs().max()
        scale = torch.tensor([width / image.shape[1], height / image.shape[0]])
        for prompt in PROMPTS:
            points = None
            if prompt.point_coords:
                coords = torch.tensor([prompt.point_coords]) * scale
                points = (coords, torch.tensor([prompt.point_labels]))
            box = None if prompt.box is None else torch.tensor([prompt.box]) * scale.repeat(2)
            sparse, dense = model.prompt_encoder(points=points, boxes=box, masks=None)
            low, _ = model.mask_decoder(
                image_embeddings=embedding.features[0], image_pe=model.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense, multimask_output=False,
            )  # fmt: skip
            found = ours._decode([prompt], embedding)[0]
            assert (found - low[0]).abs().max() < 5e-4 * max(1.0, float(low.abs().max()))  # float32: 2e-4 was seen
            large = model.postprocess_masks(low, (height, width), image.shape[:2])[0, 0] > 0
            assert mask_iou(ours.decode(embedding, [prompt]).masks[0].numpy(), large.numpy()) > 0.999
