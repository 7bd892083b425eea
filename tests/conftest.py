"""Shared by all tests: one thread, no network, and the small real things that many of them need."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import importlib.util
import tempfile
from pathlib import Path

import pytest
import torch

if "XDG_STATE_HOME" not in os.environ:  # the key that marks runs as one's own; no test touches the user's
    _state = tempfile.TemporaryDirectory(prefix="grasp_rl_state_")
    os.environ["XDG_STATE_HOME"] = _state.name

if importlib.util.find_spec("torchvision") is not None:
    import torchvision_operators

    torchvision_operators.declare_missing()  # before transformers looks for it

from transformers import Sam2Config, Sam2Model

from grasp_rl.config.schema import ParsingConfig, PromptConfig
from grasp_rl.data.synthetic.dataset import SyntheticSource
from grasp_rl.policies.tiny.policy import TinyPolicy
from grasp_rl.rehearsal import models as tiny_models
from grasp_rl.types import Sample

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def source() -> SyntheticSource:
    return SyntheticSource()


@pytest.fixture(scope="session")
def samples(source: SyntheticSource) -> list[Sample]:
    """Eight drawn training samples."""
    split = source.split("train")
    return [split[index] for index in range(8)]


@pytest.fixture
def random_policy() -> TinyPolicy:
    """A fresh random policy of the tiny shape."""
    return TinyPolicy(weights="random")


@pytest.fixture
def compact() -> PromptConfig:
    return PromptConfig(template="compact")


@pytest.fixture
def strict() -> ParsingConfig:
    return ParsingConfig()


@pytest.fixture(scope="session")
def tiny_sam2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Sam2Model of the real class, small enough for a test."""
    torch.manual_seed(0)
    backbone = {
        "model_type": "sam2_hiera_det_model", "hidden_size": 16, "num_attention_heads": 1,
        "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [16, 32, 64, 128],
        "num_attention_heads_per_stage": [1, 2, 4, 8], "global_attention_blocks": [3], "image_size": [256, 256],
        "window_positional_embedding_background_size": [7, 7],
    }  # fmt: skip
    config = Sam2Config(
        vision_config={
            "backbone_config": backbone, "backbone_channel_list": [128, 64, 32, 16],
            "backbone_feature_sizes": [[64, 64], [32, 32], [16, 16]], "fpn_hidden_size": 64,
        },
        prompt_encoder_config={"hidden_size": 64, "image_size": 256, "mask_input_channels": 16},
        mask_decoder_config={
            "hidden_size": 64, "mlp_dim": 128, "num_attention_heads": 4, "iou_head_hidden_dim": 64,
        },
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("sam2")
    tiny_models.loud(Sam2Model(config)).save_pretrained(folder)
    return folder
