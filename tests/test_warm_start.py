"""The shipped weights keep what their card says: they parse in every scheme and score where they should."""

from __future__ import annotations

import re

import pytest
from rubrics import rubric

from grasp_rl.config.schema import EvaluationConfig, ParsingConfig, PromptConfig
from grasp_rl.data.synthetic.dataset import SyntheticSource
from grasp_rl.evaluation.evaluate import evaluate
from grasp_rl.policies.tiny.policy import WARM_START, TinyPolicy
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.segmenters.grabcut import GrabCutSegmenter

SCHEMES = {
    "box": PromptConfig("box", True, 0, 0, "compact"),
    "points": PromptConfig("points", False, 2, 0, "compact"),
    "box_2points": PromptConfig("box_2points", True, 2, 0, "compact"),
    "box_4points": PromptConfig("box_4points", True, 4, 0, "compact"),
    "box_2pos_2neg": PromptConfig("box_2pos_2neg", True, 2, 2, "compact"),
}


@pytest.fixture(scope="module")
def warm() -> TinyPolicy:
    return TinyPolicy()


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_it_answers_in_every_scheme(warm: TinyPolicy, source: SyntheticSource, scheme: str) -> None:
    pipeline = RewardPipeline(
        segmenter=GrabCutSegmenter(), reward=rubric("grasp"), prompt=SCHEMES[scheme], parsing=ParsingConfig(),
        always_segment=True,
    )  # fmt: skip
    found = evaluate(warm, pipeline, source.split("val"), config=EvaluationConfig(), limit=64).metrics
    assert found["parsed"] >= 0.95
    assert 0.3 < found["giou"] < 0.85


def test_it_is_small_and_has_a_card() -> None:
    assert 1e6 < sum(p.numel() for p in TinyPolicy().parameters()) < 3e6
    assert sum(path.stat().st_size for path in WARM_START.iterdir()) < 8e6
    card = (WARM_START / "MODEL_CARD.md").read_text()
    assert all(scheme in card for scheme in SCHEMES)
    assert re.search(r"points badly on purpose", card)
