"""What a config is asked about before it runs, and what a run says when most answers are lost."""

from __future__ import annotations

import json
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from grasp_rl.config.schema import RunConfig
from grasp_rl.config.targets import to_config
from grasp_rl.launch import compose
from grasp_rl.planning.plausibility import doubts, example_tokens
from grasp_rl.rollouts.metrics import lost_answers
from grasp_rl.runs.progress import ProgressWatcher, ProgressWriter
from grasp_rl.tracking.null import NullTracker
from grasp_rl.training.hooks import RunLog
from grasp_rl.types import ParseStatus

REAL = ("policy=qwen2_5_vl_3b", "data=jsonl", "data.root=x")
QWEN_TOKENS = {
    "box": 81,
    "points": 80,
    "seg_zero": 71,
    "visionreasoner": 107,
    "box_2points": 121,
    "box_4points": 153,
    "box_2pos_2neg": 163,
}
"""Tokens of the worked example in Qwen's vocabulary, counted with its tokenizer on a frame of 840 x 840."""


def test_more_processes_than_questions() -> None:
    (doubt,) = (d for d in doubts(composed("engine=zero2", "engine.nproc=8", "algorithm.prompts_per_step=3")))
    assert "8 processes share the algorithm.prompts_per_step=3 questions" in doubt
    assert "5 have nothing to learn from" in doubt
    assert not list(doubts(composed("engine=zero2", "engine.nproc=8", "algorithm.prompts_per_step=8")))


def composed(*words: str) -> RunConfig:
    with compose.hydra("train") as engine:
        return to_config(compose.single(engine, ["command=train", *words], ()).config)


def test_a_pretrained_policy_brings_defaults_that_suit_it() -> None:
    config = composed(*REAL)
    assert (config.optimizer.lr, config.optimizer.schedule) == (1e-6, "linear")
    assert (config.rollout.max_new_tokens, config.evaluation.max_new_tokens) == (1024, 1024)
    assert config.policy["train_vision_encoder"]
    lora = composed(*REAL, "policy.lora_rank=16")
    assert (lora.optimizer.lr, lora.policy["train_vision_encoder"]) == (1e-5, False)


def test_what_the_user_names_wins_over_what_a_policy_brings() -> None:
    words = ("optimizer.lr=3e-6", "rollout.max_new_tokens=77", "policy.train_vision_encoder=false", "algorithm=grpo")
    config = composed(*REAL, "optimizer.schedule=cosine", "evaluation=quick", *words)
    assert (config.optimizer.lr, config.optimizer.schedule) == (3e-6, "cosine")
    assert (config.rollout.max_new_tokens, config.evaluation.max_new_tokens) == (77, 1024)
    assert not config.policy["train_vision_encoder"]
    assert composed(*REAL, "training_defaults=tiny").optimizer.lr == 1e-4


def test_the_tiny_policy_keeps_its_defaults() -> None:
    config, default = composed(), RunConfig()
    assert (config.optimizer, config.rollout) == (default.optimizer, default.rollout)
    assert config.evaluation.max_new_tokens == default.evaluation.max_new_tokens


def test_every_pretrained_option_leaves_room_for_an_answer() -> None:
    with compose.hydra("train") as engine:
        options = [name for name in engine.config_loader.get_group_options("policy") if not name.startswith("_")]
    assert len(options) > 8
    for name in options:
        if not name.startswith("tiny"):
            config = composed(*REAL[1:], f"policy={name}", "prompt=box_2pos_2neg", "policy.path=x")
            assert not list(doubts(config)), name


@pytest.mark.parametrize(("scheme", "tokens"), QWEN_TOKENS.items())
def test_the_worked_examples_length_is_estimated(scheme: str, tokens: int) -> None:
    assert example_tokens(composed(*REAL, f"prompt={scheme}").prompt) == pytest.approx(tokens, rel=0.05)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*REAL, "optimizer.lr=1e-4"), "optimizer.lr=0.0001 with every parameter trained"),
        ((*REAL, "rollout.max_new_tokens=96"), "rollout.max_new_tokens=96: the worked example"),
        ((*REAL, "evaluation.max_new_tokens=200"), "evaluation.max_new_tokens=200: the worked example"),
        (("policy=qwen2_5_vl_3b",), "data=synthetic are drawn scenes"),
        (("data=jsonl", "data.root=x"), "policy=tiny is a toy"),
    ],
)
def test_what_is_unlikely_to_be_meant_is_said(words: tuple[str, ...], said: str) -> None:
    sentences = list(doubts(composed(*words)))
    assert len(sentences) == 1
    assert said in sentences[0]


@pytest.mark.parametrize(
    "words",
    [(), REAL, (*REAL, "optimizer.lr=1e-5"), (*REAL, "policy.lora_rank=8", "optimizer.lr=1e-4"), ("prompt=box",)],
)
def test_usual_configs_are_not_doubted(words: tuple[str, ...]) -> None:
    assert not list(doubts(composed(*words)))


def test_most_answers_lost_names_the_key() -> None:
    none, schema = ParseStatus.NO_ANSWER, ParseStatus.BAD_SCHEMA
    assert lost_answers(0.5, {none: 0.3, schema: 0.2}, "cap") is None
    cut_off = lost_answers(0.51, {none: 0.9}, "cap")
    assert cut_off is not None
    assert (cut_off.short, cut_off.sentence) == ("cut off: cap", "51% of the answers were cut off; raise cap")
    collapsed = lost_answers(0.51, {none: 0.9}, "cap", were_read=True)
    assert collapsed is not None
    assert "90% of the answers" in collapsed.sentence
    assert "lower optimizer.lr" in collapsed.sentence
    assert "raise cap" in collapsed.sentence
    assert lost_answers(0.5, {none: 0.3}, "cap", were_read=True) is None
    unread = lost_answers(0.1, {none: 0.4, schema: 0.2}, "cap")
    assert unread is not None
    assert "60% of the answers could not be read (most: no_answer)" in unread.sentence


def test_a_run_says_it_once_and_its_progress_line_as_long_as_it_lasts(tmp_path: Path) -> None:
    log = RunLog(tmp_path, NullTracker(), steps=9, first_step=0, is_main=True)
    shown = []
    for step, share in enumerate((0.9, 0.9, 0.1, 0.9), 1):
        log.step(step, {"reward": 0.0, "truncated": share, "parse/ok": 1 - share}, {})
        shown.append(json.loads((tmp_path / "progress.json").read_text()))
    assert [bool(row["message"]) for row in shown] == [True, True, False, True]
    assert shown[0]["message"] == "cut off: rollout.max_new_tokens"
    first, collapsed = shown[-1]["notes"]
    assert first == "optimizer step 1: 90% of the answers were cut off; raise rollout.max_new_tokens"
    assert collapsed.startswith("optimizer step 4: 90% of the answers are cut off or cannot be read, where nearly all")
    assert shown[-1]["message"] == "collapsed? optimizer.lr"


def test_answers_that_grow_past_the_limit_are_no_collapse(tmp_path: Path) -> None:
    log = RunLog(tmp_path, NullTracker(), steps=9, first_step=0, is_main=True)
    log.step(1, {"reward": 0.0}, {})  # nothing came in time
    for step, share in enumerate((0.48, 0.52), 2):
        log.step(step, {"reward": 0.0, "truncated": share, "parse/ok": 1 - share}, {})
    (note,) = json.loads((tmp_path / "progress.json").read_text())["notes"]
    assert note == "optimizer step 3: 52% of the answers were cut off; raise rollout.max_new_tokens"


def test_notes_are_printed_once_even_when_the_run_is_already_over(tmp_path: Path) -> None:
    out = StringIO()
    writer = ProgressWriter(tmp_path, 2)
    with ProgressWatcher(Console(file=out), lambda: [tmp_path]):
        writer.note("first")
        writer.note("first")
        writer.note("second")
    assert out.getvalue() == f"{tmp_path.name}: first\n{tmp_path.name}: second\n"


def test_the_time_left_is_that_of_a_steady_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the fifth step on, and without what came before the first: the test before training, compilers, caches."""
    seconds = iter([100.0, 102.0, 104.0, 106.0, 108.0, 120.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    writer, left = ProgressWriter(tmp_path, 20, interval_s=0.0), []
    for step in range(1, 7):
        writer.update("train", step)
        left.append(json.loads((tmp_path / "progress.json").read_text())["eta_s"])
    assert left == [None, None, None, None, 30.0, 56.0]


def test_the_reward_shown_is_smoothed_and_the_tests_stand_beside(tmp_path: Path) -> None:
    log = RunLog(tmp_path, NullTracker(), steps=2, first_step=0, is_main=True)
    log.test("before", 0, {"giou": 0.4}, tmp_path)
    log.step(1, {"reward": 1.0}, {})
    log.validation(1, {"giou": 0.5})
    log.step(2, {"reward": 2.0}, {})
    log.test("after", 2, {"giou": 0.6}, tmp_path)
    shown = json.loads((tmp_path / "progress.json").read_text())
    assert shown["reward"] == pytest.approx((0.09 * 1 + 0.1 * 2) / (1 - 0.9**2))
    assert (shown["before"], shown["giou"], shown["after"]) == (0.4, 0.5, 0.6)
    out = StringIO()
    Console(file=out, width=120).print(ProgressWatcher(Console(file=out), lambda: [tmp_path]).table())
    assert "test before → after" in out.getvalue()
    assert "0.400 → 0.600" in out.getvalue()
