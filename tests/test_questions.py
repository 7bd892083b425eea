"""Questions that a policy cannot take are bad records: named before the first is asked, cheaply, or left out."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import PromptConfig
from grasp_rl.data.base import RecordDataset
from grasp_rl.data.image_io import write_image
from grasp_rl.data.readers.jsonl import JsonlSource
from grasp_rl.data.synthetic.dataset import SyntheticSource
from grasp_rl.policies.questions import check_questions
from grasp_rl.policies.tiny.policy import TinyPolicy
from grasp_rl.types import Image, Sample

PROMPT = PromptConfig(template="compact")
IMAGE = np.zeros((20, 30, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def policy() -> TinyPolicy:
    return TinyPolicy(weights="random")


@dataclass(frozen=True)
class Question:
    query: str
    number: int


class Questions(RecordDataset):
    """Another reader, whose lines nobody has looked at."""

    def __init__(self, queries: Sequence[str], **options: Any) -> None:
        super().__init__(name="questions", **options)
        self.items = [Question(query, number) for number, query in enumerate(queries)]
        self.read = 0

    def splits(self) -> Sequence[str]:
        return ["train"]

    def records(self, split: str) -> Sequence[Question]:
        return self.items

    def decode(self, record: Question, split: str, image: Image | None = None) -> Sample:
        self.read += 1
        return Sample(
            sample_id=str(record.number), image=IMAGE, query=record.query, target_mask=None, weak_labels=(),
            dataset="questions", split=split,
        )  # fmt: skip

    def place_of(self, record: Question) -> str:
        return f"questions.txt:{record.number}"


def of_tokens(policy: TinyPolicy, count: int) -> str:
    """A question that, with its prompt, has ``count`` tokens besides the image's."""

    def tokens(text: str) -> int:
        return len(policy.tokenizer(policy.prompt_text(text, PROMPT))["input_ids"]) - 1

    query = next(
        q for q in ("7," * (count // 2 - n) + "x" * m for n in range(400) for m in (1, 0)) if tokens(q) <= count
    )
    assert tokens(query) == count
    return query


def test_a_control_token_of_the_policy_is_named(policy: TinyPolicy) -> None:
    for query in (
        "where is <|image_pad|>?",
        "a <|vision_end|>",
        "b <image>",
        "<|eot_id|>",
        "[INST] c",
        "<start_of_turn>",
    ):
        with pytest.raises(ConfigError, match=r"questions\.txt:1: query: holds '.*', a control token"):
            check_questions(policy, Questions(["where?", query]).split("train"), [PROMPT])
    innocent = "Is the area < 3 | > 4 [m2], or <b>large</b>? a<b|c>d"
    check_questions(policy, Questions(["where?", innocent]).split("train"), [PROMPT])


def test_a_token_that_only_this_policy_has_is_named(policy: TinyPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    check_questions(policy, Questions(["where~is~it"]).split("train"), [PROMPT])
    monkeypatch.setattr(type(policy.tokenizer), "all_special_tokens", ["~is~"], raising=False)
    with pytest.raises(ConfigError, match=r"questions\.txt:0: query: holds '~is~', a control token"):
        check_questions(policy, Questions(["where~is~it"]).split("train"), [PROMPT])


def test_the_room_beside_the_image_is_exact(policy: TinyPolicy) -> None:
    room = policy.context - 64  # 8 x 8 image tokens
    split = Questions([of_tokens(policy, room - 1)]).split("train")
    check_questions(policy, split, [PROMPT])
    policy.encode(IMAGE, split[0].query, PROMPT)
    with pytest.raises(
        ConfigError, match=r"questions\.txt:1: query: .* take 2048 tokens, the model's context has 2048"
    ):
        check_questions(policy, Questions(["where?", of_tokens(policy, room)]).split("train"), [PROMPT])


def test_skip_leaves_it_out(policy: TinyPolicy, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    split = Questions(["one", "<|im_end|>", "three"], on_bad="skip").split("train")
    check_questions(policy, split, [PROMPT, PromptConfig(template="compact", scheme="other")])
    assert split.skipped == {1}
    assert caplog.text.count("questions.txt:1: query: holds '<|im_end|>'") == 1
    assert [split[index].query for index in range(3)] == ["one", "three", "three"]
    with pytest.raises(ConfigError, match="one more than the 1 of 3 rows"):
        check_questions(policy, Questions(["<|im_end|>"] * 3, on_bad="skip").split("train"), [PROMPT])


def test_many_short_questions_are_cheap(policy: TinyPolicy) -> None:
    """The million of a large dataset takes ten times as long."""
    source = Questions([f"Where could boat number {number} land at low tide?" for number in range(100_000)])
    began = time.process_time()
    check_questions(policy, source.split("train"), [PROMPT])
    assert time.process_time() - began < 3
    assert source.read == 0
    long = Questions(["Where could a boat land? " * 40] * 20)
    check_questions(policy, long.split("train"), [PROMPT])
    assert long.read == 0
    check_questions(policy, SyntheticSource().split("train"), [PROMPT])


def test_an_image_that_cannot_be_read_is_said_as_it_is(policy: TinyPolicy, tmp_path: Path) -> None:
    row = {"id": "a", "image": "gone.png", "query": "a? " * 1500, "split": "train", "boxes": []}
    (tmp_path / "annotations.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ConfigError, match=r"annotations\.jsonl:1: image: .*gone.png: no such file"):
        check_questions(policy, JsonlSource(str(tmp_path)).split("train"), [PROMPT])
    write_image(tmp_path / "gone.png", IMAGE)
    with pytest.raises(ConfigError, match=r"annotations\.jsonl:1: query: the question .* tokens"):
        check_questions(policy, JsonlSource(str(tmp_path)).split("train"), [PROMPT])
