"""A torchvision that cannot load its compiled operators, made importable."""

from __future__ import annotations

import importlib
from typing import Any

import torch

_OPERATORS = ("nms", "qnms")
_KEPT: list[Any] = []
"""A declaration ends with its Library."""


def declare_missing() -> tuple[str, ...]:
    """Declare torchvision's two compiled operators where its import fails for want of them; what was declared.

    A CUDA build of torchvision under a CPU build of torch (the parity environment) then imports, and transformers under
    it. A torchvision that works is left alone: to declare an operator twice ends the interpreter.
    """
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return ()
    except RuntimeError:
        missing = tuple(name for name in _OPERATORS if not hasattr(torch.ops.torchvision, name))
        if missing:
            _KEPT.append(torch.library.Library("torchvision", "FRAGMENT"))
        for name in missing:
            _KEPT[-1].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return missing
    return ()
