"""Qwen3-VL (arXiv:2511.21631): coordinates 0..1000, interleaved M-RoPE, DeepStack features."""

from __future__ import annotations

from grasp_rl.policies.backbones.qwen2_5_vl import Qwen25VL


class Qwen3VL(Qwen25VL):
    """``Qwen3VLForConditionalGeneration``; its picture goes in as Qwen2.5-VL's does."""

    coordinates = "thousand"
