"""The shipped weights keep what their card says: they parse in every scheme and score where they should."""

from __future__ import annotations

import re

import pytest
from rubrics import rubric

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import EvaluationConfig, ParsingConfig, PromptConfig
from grasp_rl.data.synthetic.dataset import SyntheticSource
from grasp_rl.evaluation.evaluate import evaluate
from grasp_rl.policies.tiny.policy import TinyPolicy, warm_start
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.segmenters.grabcut import GrabCutSegmenter

SCHEMES = {
    "box": PromptConfig("box", True, 0, 0, "compact"),
    "points": PromptConfig("points", False, 2, 0, "compact"),
    "box_2points": PromptConfig("box_2points", True, 2, 0, "compact"),
    "box_4points": PromptConfig("box_4points", True, 4, 0, "compact"),
    "box_2pos_2neg": PromptConfig("box_2pos_2neg", True, 2, 2, "compact"),
}


@pytest.fixture(scope="module", params=["base", "small", "large"])
def warm(request: pytest.FixtureRequest) -> TinyPolicy:
    return TinyPolicy(size=request.param)


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_it_answers_in_every_scheme(warm: TinyPolicy, source: SyntheticSource, scheme: str) -> None:
    pipeline = RewardPipeline(
        segmenter=GrabCutSegmenter(), reward=rubric("grasp"), prompt=SCHEMES[scheme], parsing=ParsingConfig(),
        always_segment=True,
    )  # fmt: skip
    found = evaluate(warm, pipeline, source.split("val"), config=EvaluationConfig(), limit=48).metrics
    assert found["parsed"] >= 0.95
    assert 0.3 < found["giou"] < 0.85


@pytest.mark.parametrize(("size", "millions"), [("small", 0.57), ("base", 1.26), ("large", 3.58)])
def test_it_is_small_and_has_a_card(size: str, millions: float) -> None:
    parameters = sum(p.numel() for p in TinyPolicy(size=size).parameters())
    assert parameters / 1e6 == pytest.approx(millions, abs=0.005)
    folder = warm_start(size)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8e6
    card = (folder / "MODEL_CARD.md").read_text()
    assert all(scheme in card for scheme in SCHEMES)
    assert f"{parameters:,}" in card
    assert re.search(r"points badly on purpose", card)


def test_an_unknown_size_is_named() -> None:
    with pytest.raises(ConfigError, match=r"policy.size='huge': must be one of small, base, large"):
        TinyPolicy(size="huge")
