"""Supervised fine-tuning: what a row holds, that packing questions changes nothing, and that it learns."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import OptimizerConfig, ParsingConfig, PromptConfig, RunConfig, SftConfig, SftPhase
from grasp_rl.data.image_io import write_image
from grasp_rl.data.readers.jsonl import JsonlSource
from grasp_rl.data.synthetic.cross_view import SyntheticCrossView
from grasp_rl.data.synthetic.dataset import SyntheticSource
from grasp_rl.distributed.local import LocalEngine
from grasp_rl.interfaces import Components
from grasp_rl.policies.tiny.policy import TinyPolicy
from grasp_rl.prompts.parse import parse
from grasp_rl.segmenters.box_fill import BoxFillSegmenter
from grasp_rl.training.demonstrations import distort
from grasp_rl.training.sft import run, sft_step
from grasp_rl.training.sft_rows import RowStream
from grasp_rl.types import Sample, SpatialPrompt

PHASE = SftPhase(steps=40, batch_size=4, questions_per_image=3, attention_weight=0.15)


def stream(policy: TinyPolicy, source: SyntheticSource, phase: SftPhase = PHASE) -> RowStream:
    schemes = {"box_2points": (PromptConfig(template="compact"), 1.0)}
    return RowStream(policy, source.split("train"), schemes, phase, seed=0, phase_number=0)


def test_rows_are_a_function_of_their_index(random_policy: TinyPolicy, source: SyntheticSource) -> None:
    first, again = stream(random_policy, source)[3], stream(random_policy, source)[3]
    assert [r.completions for r in first] == [r.completions for r in again]
    assert [r.completions for r in first] != [r.completions for r in stream(random_policy, source)[4]]


def test_a_row_asks_and_answers(random_policy: TinyPolicy, source: SyntheticSource) -> None:
    row = stream(random_policy, source)[0][0]
    assert len(row.completions) == len(row.unscored) == 3
    decode = random_policy.tokenizer.decode
    for tokens, question in zip(row.completions, row.unscored, strict=True):
        assert decode(tokens[question:], skip_special_tokens=True).startswith("<think>")
        assert tokens[-1] == random_policy.tokenizer.eos_token_id
        assert "bbox_2d positive_points:2" in decode(tokens[:question])
    assert row.prompt.input_ids[-1] == random_policy.stock.config.image_token_id
    for place, token, wanted in row.looks:
        assert decode([row.completions[place][token]]).isdigit()
        assert 0 < wanted.sum() < 64


def test_covered_by_hand(random_policy: TinyPolicy, samples: list[Sample]) -> None:
    """A box over columns 1-2 and row 3 of the 8 x 8 image tokens of 14 pixels."""
    prompt = random_policy.encode(samples[0].image, "a", PromptConfig(template="compact"))
    covered = random_policy.covered((14.0, 42.0, 42.0, 56.0), prompt)
    assert np.flatnonzero(covered).tolist() == [25, 26]
    assert random_policy.covered((15.0, 43.0, 16.0, 44.0), prompt).sum() == 1


def test_distorted_demonstrations_by_hand() -> None:
    weak_label = SpatialPrompt(box=(20.0, 20.0, 40.0, 60.0), point_coords=((30.0, 40.0),), point_labels=(1,))
    (shifted,) = distort([weak_label], np.random.default_rng(0), (112, 112), scale=0.0, shift=0.1, noise=0.0)
    assert shifted.box == (22.0, 24.0, 42.0, 64.0)
    assert shifted.point_coords == ((32.0, 44.0),)
    (grown,) = distort([weak_label], np.random.default_rng(0), (112, 112), scale=0.25, shift=0.0, noise=0.0)
    assert grown.box == (15.0, 10.0, 45.0, 70.0)
    (clipped,) = distort([weak_label], np.random.default_rng(0), (50, 30), scale=0.0, shift=1.0, noise=0.0)
    assert clipped.box is not None
    assert clipped.box[0] < clipped.box[2] <= 30
    assert clipped.box[1] < clipped.box[3] <= 50
    assert distort([weak_label], np.random.default_rng(0), (112, 112), scale=0, shift=0, noise=0) == (weak_label,)


def test_it_learns_to_say_and_to_look(random_policy: TinyPolicy, source: SyntheticSource) -> None:
    rows = stream(random_policy, source)[0]
    engine = LocalEngine(random_policy, OptimizerConfig(lr=1.5e-3), 40)
    losses = [sft_step(random_policy, engine, rows, PHASE, bf16=False) for _ in range(25)]
    assert losses[-1]["loss"] < 0.4 * losses[0]["loss"]
    assert losses[-1]["look_loss"] < 0.8 * losses[0]["look_loss"]


def test_attention_to_the_image_is_a_share(random_policy: TinyPolicy, source: SyntheticSource) -> None:
    row = stream(random_policy, source)[0][0]
    prompt = random_policy.encode(source.split("train")[0].image, "a", PromptConfig(template="compact"))
    scores = random_policy.logprobs(random_policy.embed([prompt]), [row.completions], attention_layers=(1, 2))
    assert scores.image_attention is not None
    assert scores.image_attention.shape == (*scores.logp.shape, 64)
    total = scores.image_attention.sum(-1)[scores.valid]
    assert ((total > 0) & (total < 1)).all()
    assert torch.isfinite(scores.logp).all()


def test_a_policy_of_another_kind_is_named(source: SyntheticSource) -> None:
    class Outside(torch.nn.Module): ...

    components = Components(
        policy=Outside(), segmenter=None, reward=None, protocol=None, data=source, tracker=None, generator=None
    )  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"policy: Outside cannot be fine-tuned .*VlmPolicy"):
        run(RunConfig(), components)


def test_a_layer_that_the_policy_lacks_is_named(random_policy: TinyPolicy, source: SyntheticSource) -> None:
    components = Components(
        policy=random_policy, segmenter=None, reward=None, protocol=None, data=source, tracker=None, generator=None
    )  # type: ignore[arg-type]
    phases = [SftPhase(steps=1), SftPhase(steps=1, attention_weight=0.1, attention_layers=[1, 4])]
    with pytest.raises(ConfigError, match=r"sft\.phases\[1\]\.attention_layers: 4: .* decoder layers 0 to 3"):
        run(RunConfig(sft=SftConfig(phases=phases)), components)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_question_that_is_too_long_is_named_before_the_first_row(
    random_policy: TinyPolicy, tmp_path: Path, split: str
) -> None:
    write_image(tmp_path / "a.png", np.zeros((20, 30, 3), dtype=np.uint8))
    rows = [{"id": name, "image": "a.png", "query": "a?", "split": name, "boxes": []} for name in ("train", "test")]
    rows.append(rows[0] | {"id": "long", "query": "the roof and " * 600, "split": split})
    (tmp_path / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = JsonlSource(str(tmp_path))
    components = Components(
        policy=random_policy, segmenter=None, reward=None, protocol=None, data=data, tracker=None, generator=None
    )  # type: ignore[arg-type]
    sft = SftConfig(phases=[SftPhase(steps=1, batch_size=1)])
    config = RunConfig(run_dir=str(tmp_path), prompt=PromptConfig(template="compact"), sft=sft)
    with pytest.raises(ConfigError, match=r"annotations\.jsonl:3: query: the question 'the roof"):
        run(config, components)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_choice_among_images_is_demonstrated(random_policy: TinyPolicy) -> None:
    """All images stand in front of the question, and the answer is the letter; the loss falls."""
    training = SyntheticCrossView(train_size=4).split("train")
    scheme = PromptConfig(
        scheme="choice", answer="choice", box=False, positive_points=0, fence=False, template="compact"
    )
    phase = SftPhase(steps=20, batch_size=2)
    rows = RowStream(random_policy, training, {"choice": (scheme, 1.0)}, phase, seed=0, phase_number=0)[0]
    for row in rows:
        assert len(row.prompt.images) == 1 + len(training[0].more_images)
        (completion,), (asked,) = row.completions, row.unscored
        text = random_policy.tokenizer.decode(completion[asked:], skip_special_tokens=True)
        parsed = parse(text, scheme, row.prompt.frame, ParsingConfig())
        assert parsed.choice in {training[index].choice for index in range(4)}
    engine = LocalEngine(random_policy, OptimizerConfig(lr=1.5e-3), 20)
    losses = [sft_step(random_policy, engine, rows, phase, bf16=False)["loss"] for _ in range(8)]
    assert losses[-1] < 0.6 * losses[0]
    bare = [replace(training[index], choice=None) for index in range(4)]
    with pytest.raises(ConfigError, match="says of no image that it answers"):
        RowStream(random_policy, bare, {"choice": (scheme, 1.0)}, phase, seed=0, phase_number=0)[0]  # type: ignore[arg-type]


def test_rows_ahead_need_no_pickle_of_the_policy(random_policy: TinyPolicy, source: SyntheticSource) -> None:
    """Whatever Python starts processes with (from 3.14 on a forkserver): an engine's hooks cannot be pickled."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("forkserver", force=True)
    hook = random_policy.model.register_forward_hook(lambda *_: None)
    try:
        rows = stream(random_policy, source)
        ahead = list(rows.batches(len(rows) - 2))
    finally:
        hook.remove()
        multiprocessing.set_start_method(before, force=True)
    assert [row.completions for batch in ahead for row in batch] == [
        row.completions for index in (len(rows) - 2, len(rows) - 1) for row in rows[index]
    ]


def test_an_error_of_a_loader_comes_without_its_traceback(random_policy: TinyPolicy, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", np.zeros((20, 30, 3), dtype=np.uint8))
    rows = [
        {"id": f"{split}-{number}", "image": "a.png", "query": "a?", "split": split, "boxes": [[1, 2, 9, 9]]}
        for split in ("train", "test")
        for number in range(2)
    ]
    (tmp_path / "annotations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    components = Components(
        policy=random_policy, segmenter=BoxFillSegmenter(), reward=None, protocol=None,
        data=JsonlSource(str(tmp_path)), tracker=None, generator=None,
    )  # type: ignore[arg-type]  # fmt: skip
    sft = SftConfig(phases=[SftPhase(steps=1, batch_size=1)])
    config = RunConfig(run_dir=str(tmp_path), prompt=PromptConfig(template="compact"), sft=sft)
    with pytest.raises(ConfigError, match=r"^sft: sample train-\d of \S+: .* needs 2 ") as told:
        run(config, components)
    assert "\n" not in str(told.value)
