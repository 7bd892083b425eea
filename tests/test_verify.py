"""Rewards without labels: what is cropped, what a verifier says of it, and how a policy verifies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rubrics import rubric

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import ParsingConfig, PromptConfig
from grasp_rl.config.targets import instantiate
from grasp_rl.interfaces import CoordinateFrame, WeakLabels
from grasp_rl.launch.compose import option
from grasp_rl.policies.tiny.policy import TinyPolicy
from grasp_rl.policies.verifier import PolicyVerifier
from grasp_rl.prompts.parse import parse
from grasp_rl.rewards.rubric import Rubric
from grasp_rl.rewards.terms.verify import CropArea, CropVerify, crop
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.rollouts.reward_worker import RewardWorker
from grasp_rl.segmenters.box_fill import BoxFillSegmenter
from grasp_rl.training.regimes import with_verifier
from grasp_rl.types import Answer, Completion, FinishReason, ParseStatus, Sample, SpatialPrompt


class Scripted:
    """Is as sure as the crop is green, and remembers what it was shown."""

    def __init__(self) -> None:
        self.seen: list[tuple[tuple[int, ...], str]] = []

    def verify(self, image: np.ndarray, query: str) -> float:
        self.seen.append((image.shape, query))
        return float(image[..., 1].mean()) / 255


def answer(*boxes: tuple[float, float, float, float], status: ParseStatus = ParseStatus.OK) -> Answer:
    return Answer(prompts=tuple(SpatialPrompt(box=box) for box in boxes), status=status, text="", think_layout=True)


def picture() -> np.ndarray:
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    image[10:20, 20:40, 1] = 255
    return image


def test_crops_by_hand() -> None:
    image = picture()
    assert crop(image, [(20, 10, 40, 20)], 0.0).shape == (10, 20, 3)
    assert crop(image, [(20, 10, 40, 20)], 0.25).shape == (20, 30, 3)  # 5 pixels on every side
    assert crop(image, [(20, 10, 40, 20)], 10.0).shape == (40, 60, 3)  # not beyond the image
    assert crop(image, [(20, 10, 30, 20), (30, 12, 40, 18)], 0.0).shape == (10, 20, 3)  # one crop around all
    assert crop(image, [(59.9, 39.9, 60, 40)], 0.0).shape == (1, 1, 3)
    assert crop(image, [(0.2, 0.2, 0.6, 0.6)], 0.0).shape == (1, 1, 3)


def test_a_label_free_reward_pays_what_the_verifier_says() -> None:
    verifier = Scripted()
    reward = Rubric(
        {
            "crop": CropVerify(verifier=verifier, margin=0.0, weight=2.0),
            "area": CropArea(weight=0.5, gate={"crop": 0.5}),
        }
    )
    labels = WeakLabels(instances=(), image_size=(40, 60), image=picture(), query="the green field")
    exact, half, none, unread = reward.score_group(
        [
            answer((20, 10, 40, 20)),
            answer((0, 10, 40, 20)),
            answer(),
            answer((20, 10, 40, 20), status=ParseStatus.BAD_JSON),
        ],
        labels,
        [None] * 4,
    )
    assert reward.needs == {"image"}
    assert exact.reward == pytest.approx(2.0 + 0.5 * (1 - 200 / 2400))
    assert half.reward == pytest.approx(2.0 * 0.5 + 0.5 * (1 - 400 / 2400))
    assert none.reward == unread.reward == 0.0
    assert [query for _, query in verifier.seen] == ["the green field"] * 2
    target = replace(labels, instances=(SpatialPrompt(box=(0, 0, 5, 5)),))  # a label changes nothing
    assert reward(answer((20, 10, 40, 20)), target).reward == exact.reward


INNER = "[25,12,35,18]"  # a crop of 16 x 12 with 16 x 10 green; 60 of 2400 pixels
GOLDEN = {  # 0.5 thought + share of green in the crop + 0.2 (1 - area), the last from a share of 0.5 on
    "exact": (["[20,10,40,20]"], 0.5 + 200 / 600),  # the margin makes the crop three times as large
    "inside": ([INNER], 0.5 + 160 / 192 + 0.2 * (1 - 60 / 2400)),
    "the smallest box inside earns most": (["[29,14,31,16]"], 0.5 + 1 + 0.2 * (1 - 4 / 2400)),
    "whole image": (["[0,0,60,40]"], 0.5 + 200 / 2400),
    "far": (["[0,0,10,5]"], 0.5),
    "too wide": (["[0,10,40,20]"], 0.5 + 200 / 1500),
    "shifted": (["[30,10,50,20]"], 0.5 + 150 / 600),
    "in two": (["[25,12,30,18]", "[30,12,35,18]"], 0.5 + 160 / 192 + 0.2 * (1 - 60 / 2400)),
    "twice": ([INNER, INNER], 0.5 + 160 / 192 + 0.2 * (1 - 60 / 2400)),
    "superfluous": ([INNER, "[0,0,5,5]"], 0.5 + 200 / 1188),
    "empty": ([], 0.5),
    "unreadable": (["[1,2"], 0.5),
    "wrong layout": ([INNER, "no thought"], 160 / 192 + 0.2 * (1 - 60 / 2400)),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_remote_zero(name: str) -> None:
    node = option("reward/remote_zero")
    node["terms"]["crop_verify"]["verifier"] = Scripted()
    reward = Rubric({key: _built(value) for key, value in node["terms"].items()})
    boxes, expected = GOLDEN[name]
    bare = "no thought" in boxes
    items = ",".join(f'{{"bbox_2d":{box}}}' for box in boxes if box != "no thought")
    text = f"<answer>[{items}]</answer>"
    frame = CoordinateFrame(width=60, height=40, image_width=60, image_height=40)
    scheme = PromptConfig(positive_points=0)
    read = parse(text if bare else f"<think>so</think>{text}", scheme, frame, ParsingConfig())
    labels = WeakLabels(instances=(), image_size=(40, 60), image=picture(), query="the green field")
    assert reward(read, labels).reward == pytest.approx(expected)


def _built(node: dict[str, Any]) -> Any:
    plain = {key: value for key, value in node.items() if key != "verifier"}
    term = instantiate(plain, key="term")
    return replace(term, verifier=node["verifier"]) if "verifier" in node else term


def test_a_term_without_a_verifier_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"reward\.terms\.crop\.verifier=None: must be an option with .*PolicyVerifier"
    ):
        Rubric({"crop": CropVerify()})
    with pytest.raises(ConfigError, match=r"reward\.terms\.crop\.margin=-1: must be"):
        Rubric({"crop": CropVerify(verifier=Scripted(), margin=-1)})


def test_the_score_is_the_probability_of_yes(samples: list[Sample]) -> None:
    verifier = PolicyVerifier(TinyPolicy(), device="cpu")
    policy: Any = verifier.policy
    encoded = policy.encode(samples[0].image, "the roof", verifier.prompt)
    logp = {
        token: policy.forward([encoded], [[(token,)]], entropy=False)[0].item() for token in verifier.yes + verifier.no
    }
    yes, no = (sum(np.exp(logp[token]) for token in tokens) for tokens in (verifier.yes, verifier.no))
    assert verifier.verify(samples[0].image, "the roof") == pytest.approx(yes / (yes + no), rel=1e-4)
    assert not any(p.requires_grad for p in policy.parameters())
    assert 'Question: "the roof"' in policy.tokenizer.decode(encoded.input_ids)


@pytest.mark.parametrize(
    ("said", "score"), [("0.8", 0.8), ("I say 1", 1.0), ("yes", 0.0), ("90", 0.0), ("0", 0.0), ("", 0.0)]
)
def test_a_number_is_read(said: str, score: float, samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = PolicyVerifier(shared_policy(), score="number", device="cpu")
    told = Completion(token_ids=(1,), logprobs=(0.0,), text=said, finish_reason=FinishReason.STOP)
    monkeypatch.setattr(verifier.policy, "generate", lambda *_, **__: [[told]], raising=False)
    assert verifier.verify(samples[0].image, "the roof") == score


def shared_policy() -> TinyPolicy:
    return TinyPolicy(weights="random")


def test_a_verifier_takes_the_weights_of_a_run(tmp_path: Path) -> None:
    trained = TinyPolicy(weights="random", seed=3)
    trained.save(tmp_path / "checkpoints" / "step_000002" / "policy")
    verifier = PolicyVerifier(TinyPolicy(weights="random"), weights=str(tmp_path), device="cpu")
    ours, theirs = (torch.cat([p.flatten() for p in policy.parameters()]) for policy in (verifier.policy, trained))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"score": "maybe"}, r"verifier\.score='maybe': must be one of yes_no, number"),
        ({"device": "tpu"}, r"verifier\.device='tpu'"),
        ({"weights": "/nowhere"}, r"verifier\.weights='/nowhere': no such folder"),
        ({"policy": 3}, r"verifier\.policy=3: must be an option of conf/policy"),
    ],
)
def test_verifiers_that_cannot_be(words: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        PolicyVerifier(**({"policy": shared_policy()} | words))


def test_the_preset_verifies_with_the_runs_own_policy_beside_the_main_work(samples: list[Sample]) -> None:
    reward = rubric("remote_zero")
    assert isinstance(reward.terms["crop_verify"].verifier.policy, TinyPolicy)  # type: ignore[attr-defined]
    pipeline = RewardPipeline(
        segmenter=BoxFillSegmenter(), reward=reward, prompt=PromptConfig(template="compact"), parsing=ParsingConfig()
    )
    worker = RewardWorker(pipeline, "auto")  # a second process would get a copy of the model through a pipe
    worker.close()
    assert worker.where == "thread"
    labels = pipeline.labels(replace(samples[0], weak_labels=None, target_mask=None))
    assert labels.image is samples[0].image


def test_weights_are_set_wherever_a_verifier_stands() -> None:
    target = "grasp_rl.policies.verifier.PolicyVerifier"
    node = {
        "terms": {"a": {"verifier": {"_target_": target, "weights": None}}, "b": {"weight": 1.0}},
        "others": [{"_target_": target, "weights": "given"}],
    }
    made, count = with_verifier(node, "round_1", always=False)
    assert count == 2
    assert made["terms"]["a"]["verifier"]["weights"] == "round_1"
    assert made["others"][0]["weights"] == "given"
    assert with_verifier(node, "round_1", always=True)[0]["others"][0]["weights"] == "round_1"
    assert node["terms"]["a"]["verifier"]["weights"] is None  # type: ignore[index,call-overload]
    assert instantiate(node["terms"]["b"]) == {"weight": 1.0}  # type: ignore[index,call-overload]
