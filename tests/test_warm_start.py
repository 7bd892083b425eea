"""The shipped weights keep what their card says: they parse in every scheme and score where they should."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from rubrics import rubric

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import EvaluationConfig, ParsingConfig, PromptConfig
from grasp_rl.data.synthetic.dataset import SyntheticSource
from grasp_rl.evaluation.evaluate import evaluate
from grasp_rl.policies.tiny.policy import TinyPolicy, name_of, warm_start
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.segmenters.grabcut import GrabCutSegmenter

CONF = Path(__file__).parents[1] / "conf"
SCHEMES = {
    "box": PromptConfig("box", True, 0, 0, "compact"),
    "points": PromptConfig("points", False, 2, 0, "compact"),
    "box_2points": PromptConfig("box_2points", True, 2, 0, "compact"),
    "box_4points": PromptConfig("box_4points", True, 4, 0, "compact"),
    "box_2pos_2neg": PromptConfig("box_2pos_2neg", True, 2, 2, "compact"),
}


NAMES = {
    "tiny_small": ("small", "qwen3_vl", 0.57),
    "tiny": ("base", "qwen3_vl", 1.26),
    "tiny_large": ("large", "qwen3_vl", 3.58),
    "tiny_qwen2_5": ("base", "qwen2_5_vl", 1.28),
}
"""Size, family and millions of parameters of what ``policy=`` calls so."""


@pytest.fixture(scope="module", params=list(NAMES))
def warm(request: pytest.FixtureRequest) -> TinyPolicy:
    size, family, _ = NAMES[request.param]
    return TinyPolicy(size=size, family=family)


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_it_answers_in_every_scheme(warm: TinyPolicy, source: SyntheticSource, scheme: str) -> None:
    pipeline = RewardPipeline(
        segmenter=GrabCutSegmenter(), reward=rubric("grasp"), prompt=SCHEMES[scheme], parsing=ParsingConfig(),
        always_segment=True,
    )  # fmt: skip
    found = evaluate(warm, pipeline, source.split("val"), config=EvaluationConfig(), limit=48).metrics
    assert found["parsed"] >= 0.95
    assert 0.3 < found["giou"] < 0.85


@pytest.mark.parametrize("name", list(NAMES))
def test_it_is_small_and_has_a_card(name: str) -> None:
    size, family, millions = NAMES[name]
    policy = TinyPolicy(size=size, family=family)
    assert name_of(size, family) == name
    assert policy.model.config.model_type == family
    parameters = sum(p.numel() for p in policy.parameters())
    assert parameters / 1e6 == pytest.approx(millions, abs=0.005)
    folder = warm_start(size, family)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8e6
    card = (folder / "MODEL_CARD.md").read_text()
    assert all(scheme in card for scheme in SCHEMES)
    assert f"{parameters:,}" in card
    assert f"experiment={name}_warmstart" in card
    assert type(policy.model).__name__ in card
    assert re.search(r"points badly on purpose", card)


@pytest.mark.parametrize("name", list(NAMES))
def test_the_name_in_the_config_is_its_own(name: str) -> None:
    size, family, _ = NAMES[name]
    written = yaml.safe_load((CONF / "policy" / f"{name}.yaml").read_text())
    assert (written.get("size", "base"), written.get("family", "qwen3_vl")) == (size, family)


def test_an_unknown_size_is_named() -> None:
    with pytest.raises(ConfigError, match=r"policy.size='huge': must be one of small, base, large"):
        TinyPolicy(size="huge")


def test_an_unknown_family_is_named() -> None:
    with pytest.raises(ConfigError, match=r"policy.family='llava': must be one of qwen3_vl, qwen2_5_vl"):
        TinyPolicy(family="llava")


def test_weights_of_another_family_are_refused() -> None:
    """Transformers would read them with a warning and leave what does not fit random."""
    message = r"model_type 'qwen2_5_vl', but policy.family=qwen3_vl; .*policy.family=qwen2_5_vl"
    with pytest.raises(ConfigError, match=message):
        TinyPolicy(weights=str(warm_start("base", "qwen2_5_vl")))
