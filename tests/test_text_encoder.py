"""A text encoder of the real classes, at a tiny size."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3Model

from grasp_rl.config.errors import ConfigError
from grasp_rl.policies.text_encoder import HubTextEncoder
from grasp_rl.policies.tiny.policy import TinyPolicy
from grasp_rl.rewards.terms.text import Novelty
from grasp_rl.types import Answer, ParseStatus

TEXTS = ["two fields on the left", "one roof", "two fields on the left"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path, words = tmp_path_factory.mktemp("encoder"), TinyPolicy(weights="random").tokenizer
    config = Qwen3Config(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, initializer_range=0.3,
    )  # fmt: skip
    Qwen3Model(config).save_pretrained(path)
    words.save_pretrained(path)
    return path


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_vectors_are_those_of_each_text_alone(folder: Path, pooling: str) -> None:
    encoder = HubTextEncoder(str(folder), pooling=pooling)
    together = encoder(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(encoder([text])[0], vector, atol=1e-5)  # padding counts for nothing
    np.testing.assert_allclose(together[0], together[2], atol=1e-6)
    assert together[0] @ together[1] < 0.999
    again = pickle.loads(pickle.dumps(encoder))
    np.testing.assert_allclose(again(TEXTS), together, atol=1e-6)


def test_novelty_by_a_model(folder: Path) -> None:
    answers = [Answer(prompts=(), status=ParseStatus.OK, thinking=text) for text in [*TEXTS, "no roof"]]
    values = Novelty(encoder=HubTextEncoder(str(folder)), min_characters=3).values(answers, [True] * 4)
    vectors = HubTextEncoder(str(folder))([a.thinking or "" for a in answers])
    for number, value in enumerate(values):
        others = [float(vectors[number] @ vectors[other]) for other in range(4) if other != number]
        assert value == pytest.approx(min(1.0, 1 - 0.5 * np.mean(others)), abs=1e-6)


def test_a_pooling_that_is_none_is_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"encoder\.pooling='max'"):
        HubTextEncoder(str(folder), pooling="max")
