"""Small repairs of masks: holes filled, specks dropped (OpenCV connected components)."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from grasp_rl.types import BoolMask


def tidy(masks: Tensor, *, fill_holes: int, min_region: int) -> Tensor:
    """``masks`` [N, H, W] bool with small holes filled and small regions dropped, on the same device.

    Args:
        masks: at original resolution.
        fill_holes: background regions, 4-connected and not touching the border, of at most this many pixels are filled.
        min_region: 8-connected regions of fewer pixels are dropped; the largest region of a mask always stays.
    """
    kept = [_tidy(mask, fill_holes, min_region) for mask in masks.cpu().numpy()]
    return torch.from_numpy(np.stack(kept)).to(masks.device) if kept else masks


def _tidy(mask: BoolMask, fill_holes: int, min_region: int) -> BoolMask:
    if fill_holes:
        _, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
        border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
        small = [i for i in range(1, len(stats)) if stats[i, cv2.CC_STAT_AREA] <= fill_holes and i not in border]
        mask = mask | np.isin(labels, small)
    if min_region:
        _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
        areas = stats[1:, cv2.CC_STAT_AREA]
        if len(areas) > 1:
            kept = [i + 1 for i, area in enumerate(areas) if area >= min_region or i == int(areas.argmax())]
            mask = np.isin(labels, kept)
    return np.asarray(mask, dtype=np.bool_)
