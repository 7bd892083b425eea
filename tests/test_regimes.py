"""Stages of a training run: what follows what, what goes on where, and which questions are left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from scripted import Paying, Scripted, said

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import (
    AlgorithmConfig,
    CheckpointConfig,
    EvaluationConfig,
    MiningConfig,
    OptimizerConfig,
    PromptConfig,
    RegimeConfig,
    RolloutConfig,
    RunConfig,
    SftConfig,
    SftPhase,
)
from grasp_rl.data.synthetic.dataset import SyntheticSource
from grasp_rl.evaluation.protocols.masks import OURS
from grasp_rl.interfaces import Components
from grasp_rl.launch import compose
from grasp_rl.launch.paths import check_paths
from grasp_rl.policies.tiny.policy import TinyPolicy
from grasp_rl.reporting.content import context
from grasp_rl.reporting.load import read_study
from grasp_rl.rewards.rubric import Rubric
from grasp_rl.rewards.terms.format import ThinkFormat
from grasp_rl.rollouts.generators.in_process import InProcess
from grasp_rl.runs.run_dir import STATUS, stages_in
from grasp_rl.segmenters.box_fill import BoxFillSegmenter
from grasp_rl.tracking.null import NullTracker
from grasp_rl.training import mining, regimes, sft, train
from grasp_rl.training.questions import chosen
from grasp_rl.utils.files import read_json

VERIFIER = "grasp_rl.policies.verifier.PolicyVerifier"
DATA = SyntheticSource(train_size=8, test_size=4)


def config_for(folder: Path, **changes: Any) -> RunConfig:
    parts: dict[str, Any] = {
        "run_dir": str(folder),
        "prompt": PromptConfig(template="compact"),
        "algorithm": AlgorithmConfig(steps=1, prompts_per_step=2, group_size=3),
        "optimizer": OptimizerConfig(lr=1e-3),
        "rollout": RolloutConfig(max_new_tokens=8, reward_worker="inline"),
        "evaluation": EvaluationConfig(every=0, test_limit=2, overlays=0, bootstrap_samples=5, max_new_tokens=4),
        "checkpoint": CheckpointConfig(every=0),
        "sft": SftConfig(
            phases=[SftPhase(steps=2, batch_size=1, warmup_steps=0), SftPhase(steps=1, batch_size=1, warmup_steps=0)],
            log_every=1,
            save_every=1,
        ),
        "generator": {"_target_": "grasp_rl.rollouts.generators.in_process.InProcess"},
        "tracker": {"_target_": "grasp_rl.tracking.null.NullTracker"},
    }
    return RunConfig(**(parts | changes))


def components(**changes: Any) -> Components:
    parts: dict[str, Any] = {
        "policy": TinyPolicy(weights="random"), "segmenter": BoxFillSegmenter(),
        "reward": Rubric({"think": ThinkFormat()}), "data": DATA, "tracker": NullTracker(), "generator": InProcess(),
        "protocol": OURS,
    }  # fmt: skip
    return Components(**(parts | changes))


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    (folder,) = (run_dir / "checkpoints").glob("step_*")
    return load_file(folder / "policy" / "model.safetensors")


# --- which stages


def test_stages_follow_one_another() -> None:
    reward = {"terms": {"crop": {"verifier": {"_target_": VERIFIER, "weights": None}}}}
    regime = RegimeConfig(name="all", sft=True, shots=2, mining=MiningConfig(before=True), rounds=3)
    config = RunConfig(run_dir="r", init_from="begun", seed=7, reward=reward, regime=regime)
    stages = list(regimes.stages_of(config))
    assert [stage.name for stage in stages] == ["sft", "mine", "round_1", "round_2", "grpo"]
    assert [stage.config.run_dir for stage in stages] == ["r/sft", "r", "r/round_1", "r/round_2", "r"]
    assert [stage.config.init_from for stage in stages] == ["begun", "r/sft", "r/sft", "r/round_1", "r/round_2"]
    verified = [stage.config.reward["terms"]["crop"]["verifier"]["weights"] for stage in stages]
    assert verified == [None, None, "r/sft", "r/round_1", "r/round_2"]
    assert [stage.config.regime.mining.reuse for stage in stages] == [None, None, "r", "r", "r"]
    assert {stage.config.regime.shots for stage in stages} == {2}
    assert all(stage.config.regime.plain for stage in stages if stage.name != "mine")
    assert len({stage.config.seed for stage in stages[2:]}) == 3
    assert [stage.result and str(stage.result) for stage in stages] == [
        "r/sft/result.json", "r/mining.json", "r/round_1/result.json", "r/round_2/result.json", None,
    ]  # fmt: skip


def test_a_verifier_that_is_given_stays_in_the_first_round() -> None:
    reward = {"verifier": {"_target_": VERIFIER, "weights": "external"}}
    config = RunConfig(run_dir="r", init_from="begun", reward=reward, regime=RegimeConfig(rounds=2))
    used = [stage.config.reward["verifier"]["weights"] for stage in regimes.stages_of(config)]
    assert used == ["external", "r/round_1"]


def test_rounds_without_a_verifier_are_refused() -> None:
    config = RunConfig(reward={"terms": {}}, regime=RegimeConfig(rounds=2))
    with pytest.raises(ConfigError, match=r"regime\.rounds=2: .* no term with a verifier .*reward=remote_zero"):
        list(regimes.stages_of(config))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: RegimeConfig(rounds=0), r"regime\.rounds=0: must be in 1\.\.100"),
        (lambda: RegimeConfig(shots=0), r"regime\.shots=0: must be >= 1, or null"),
        (lambda: MiningConfig(limit=0), r"regime\.mining\.limit=0"),
        (lambda: MiningConfig(min_range=-1.0), r"regime\.mining\.min_range=-1\.0"),
        (lambda: MiningConfig(min_mean=2.0, max_mean=1.0), r"regime\.mining\.min_mean=2\.0: must be <= regime"),
        (lambda: RunConfig(command="sft", regime=RegimeConfig(sft=True)), r"regime='grpo': must be grpo with sft"),
    ],
)
def test_values_that_cannot_be(make: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make()


def test_a_list_is_looked_for_before_a_run_begins(tmp_path: Path) -> None:
    with compose.hydra("train") as engine:
        words = ["command=train", "regime=mined", f"regime.mining.reuse={tmp_path}"]
        made = compose.single(engine, words, ()).config
    assert not RegimeConfig(mining=MiningConfig(before=True, reuse="x")).mines
    config = RunConfig(regime=RegimeConfig(mining=MiningConfig(**made["regime"]["mining"])))
    with pytest.raises(ConfigError, match=r"regime\.mining\.reuse=.*: no mined\.jsonl there"):
        check_paths(config)


# --- sft, then grpo


def test_grpo_begins_with_the_weights_of_sft_and_the_report_shows_both(tmp_path: Path) -> None:
    algorithm = AlgorithmConfig(steps=1, prompts_per_step=2, group_size=3, loss="none")
    config, parts = config_for(tmp_path, regime=RegimeConfig(sft=True), algorithm=algorithm), components()
    begun = torch.cat([p.detach().flatten().clone() for p in parts.policy.parameters()])
    result = regimes.run(config, parts)
    learned = weights(tmp_path / "sft")
    state = parts.policy.stock.state_dict()  # type: ignore[attr-defined]
    assert all(torch.equal(tensor, state[name]) for name, tensor in learned.items())
    assert not torch.equal(begun, torch.cat([p.detach().flatten() for p in parts.policy.parameters()]))
    assert (result["steps"], read_json(tmp_path / "sft/result.json")["steps"]) == (0, 3)  # type: ignore[index]
    assert [path.name for path in stages_in(tmp_path)] == ["sft"]
    (tmp_path / STATUS).write_text(json.dumps({"state": "done", "started": None, "ended": None}))
    (run,) = read_study(tmp_path)
    (block,) = context([run], "a")["regimes"]
    first, last = block["rows"]
    assert (first["name"], first["steps"], first["state"], last["name"]) == ("sft", 3, "done", "grpo")
    assert first["course"].startswith("loss ")
    assert first["after"] == last["before"] != "-"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Supervised fine-tuning that nothing interrupted."""
    folder = tmp_path_factory.mktemp("tuned")
    sft.run(config_for(folder), components())
    return folder


@pytest.mark.parametrize("left_at", [1, 2])
def test_sft_that_was_left_ends_at_the_same_weights(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_at: int
) -> None:
    """Within a phase the optimizer's state is read again, between two phases there is none to read."""
    left, regime = tmp_path, RegimeConfig(sft=True)
    step, calls = sft.sft_step, []

    def counted(*words: Any, **options: Any) -> Any:
        if len(calls) == left_at:
            raise KeyboardInterrupt
        calls.append(0)
        return step(*words, **options)

    monkeypatch.setattr(train, "run", lambda *_: {"steps": 1})
    monkeypatch.setattr(sft, "sft_step", counted)
    with pytest.raises(KeyboardInterrupt):
        regimes.run(config_for(left, regime=regime), components())
    monkeypatch.setattr(sft, "sft_step", step)
    assert not (left / "sft/result.json").exists()
    regimes.run(config_for(left, regime=regime, resume=str(left)), components())
    assert (left / "sft/metrics.jsonl").read_text() == (tuned / "metrics.jsonl").read_text()
    ours = weights(left / "sft")
    assert all(torch.equal(tensor, ours[name]) for name, tensor in weights(tuned).items())


def test_a_run_that_was_left_between_stages_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock, regime = train.run, RegimeConfig(sft=True)

    def left(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "run", left)
    with pytest.raises(KeyboardInterrupt):
        regimes.run(config_for(tmp_path, regime=regime), components())
    monkeypatch.setattr(train, "run", stock)
    monkeypatch.setattr(sft, "run", left)  # which is not asked again
    result = regimes.run(config_for(tmp_path, regime=regime, resume=str(tmp_path)), components())
    assert result["steps"] == 1
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1]


# --- which questions


class FourTokens(Scripted):
    """Three completions for any question."""

    def __init__(self) -> None:
        super().__init__([said(1), said(2), said(3)])


def mine(folder: Path, rewards: Sequence[float], **changes: Any) -> dict[str, Any]:
    settings = MiningConfig(before=True, **{"limit": 4} | changes)
    config = config_for(folder, regime=RegimeConfig(mining=settings))
    parts = components(generator=FourTokens(), reward=Paying(*rewards))
    folder.mkdir(exist_ok=True)
    return mining.run(config, parts, DATA.split("train"))


RIGHT, MIXED, WRONG, CLOSE = (1.0, 1.0, 1.0), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0), (0.5, 0.505, 0.5)


def test_neither_all_right_nor_all_wrong(tmp_path: Path) -> None:
    result = mine(tmp_path, [*RIGHT, *MIXED, *WRONG, *CLOSE])
    assert result == {"asked": 4, "kept": 1, "reward": pytest.approx((1 + 1 / 3 + 0 + 0.505 - 0.005 * 2 / 3) / 4)}
    (row,) = (json.loads(line) for line in (tmp_path / "mined.jsonl").read_text().splitlines())
    assert (row["number"], row["sample_id"], row["range"]) == (1, DATA.split("train")[1].sample_id, 1.0)
    assert mine(tmp_path / "all", [*MIXED], min_range=0.0)["kept"] == 4
    assert mine(tmp_path / "easy", [*MIXED, 1.0, 0.0, 1.0], min_mean=0.5)["kept"] == 2
    with pytest.raises(
        ConfigError, match=r"regime\.mining: of 4 questions none is kept, .* is 0\.005; lower .*min_range"
    ):
        mine(tmp_path / "none", [*CLOSE])


def test_a_pass_that_was_left_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine(tmp_path / "whole", [*RIGHT, *MIXED, *WRONG, *MIXED])
    lines = (tmp_path / "whole/asked.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "left").mkdir()
    (tmp_path / "left/asked.jsonl").write_text("".join(lines[:3]) + lines[3][:9])  # two of them a step
    mine(tmp_path / "left", [*WRONG, *MIXED])
    for name in ("asked.jsonl", "mined.jsonl"):
        assert (tmp_path / "left" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_training_takes_the_listed_questions_alone(tmp_path: Path) -> None:
    mine(tmp_path, [*RIGHT, *MIXED, *WRONG, *MIXED])
    regime = RegimeConfig(mining=MiningConfig(reuse=str(tmp_path)))
    trainer = train.make_trainer(config_for(tmp_path / "run", regime=regime), components())
    seen = {sample.sample_id for step in range(6) for sample in trainer.sampler(step)}
    trainer.close()
    assert seen == {DATA.split("train")[number].sample_id for number in (1, 3)}
    other = SyntheticSource(train_size=8, seed=5).split("train")
    with pytest.raises(ConfigError, match=r"mined\.jsonl: says that sample 1 of synthetic/train is 'train-0-1', it is"):
        chosen(config_for(tmp_path, regime=regime), other)[0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "names no sample"),
        ('{"number": 1}\n', r"list\.jsonl:1: must be a JSON object with number and sample_id"),
        ('{"number": 1, "sample_id": "a"}\nnothing\n', r"list\.jsonl:2: must be a JSON object"),
        ('{"number": 8, "sample_id": "a"}\n', r"list\.jsonl:1: number=8: synthetic/train has 8 samples"),
        ('{"number": true, "sample_id": "a"}\n', r"list\.jsonl:1: must be"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told):
        mining.listed(str(path), DATA.split("train"))


@dataclass
class Named:
    """A split whose records have categories."""

    name: str = "named"
    split: str = "train"
    records: list[Any] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Any:
        return self.records[index]


@dataclass
class Row:
    sample_id: str
    attributes: dict[str, str]


def test_few_shots_of_each_category() -> None:
    split = Named(records=[Row(f"r{i}", {"category": "ship" if i % 3 else "dock"}) for i in range(30)])
    config = RunConfig(regime=RegimeConfig(shots=2))
    drawn: Any = chosen(config, split)
    assert [drawn[i].attributes["category"] for i in range(len(drawn))].count("ship") == 2
    assert len(drawn) == 4
    assert drawn.numbers != chosen(replace(config, seed=1), split).numbers  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"regime\.shots=2: needs the attribute category of every record, synthetic"):
        chosen(config, DATA.split("train"))
