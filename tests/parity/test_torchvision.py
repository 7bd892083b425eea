"""Images through the PIL image processors, which every policy uses, and through torchvision's.

The same shapes, and the same values to 0.02 of the range from black to white, on noise, the hardest of images.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(
        importlib.util.find_spec("torchvision") is None, reason="needs torchvision, never required: make parity-sam2"
    ),
]
PAIRS = {
    "Qwen2VLImageProcessor": {"min_pixels": 56 * 56, "max_pixels": 448 * 448},
    "CLIPImageProcessor": {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}},
    "GotOcr2ImageProcessor": {"size": {"height": 448, "width": 448}, "crop_to_patches": True, "max_patches": 4},
    "LlavaOnevisionImageProcessor": {},
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("size", [(300, 420), (840, 840), (90, 75)])
def test_the_same_pixels(name: str, size: tuple[int, int]) -> None:
    import transformers

    ramp = np.linspace(0, 200, size[0] * size[1] * 3).reshape(*size, 3)
    image = (ramp + np.random.default_rng(0).integers(0, 55, (*size, 3))).astype(np.uint8)
    found = []
    for kind in (f"{name}Pil", name):
        processor = getattr(transformers, kind)(**PAIRS[name])
        batch = processor(images=[image], return_tensors="pt", input_data_format="channels_last")
        found.append(torch.as_tensor(batch["pixel_values"]))
    assert found[0].shape == found[1].shape
    assert (found[0] - found[1]).abs().max() * max(processor.image_std) <= 0.02
