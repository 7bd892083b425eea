"""Rehearsed recipes: each names its own command line, and what is run differs from it in size alone."""

from __future__ import annotations

import json
from pathlib import Path

import forked
import pytest

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.targets import instantiate, to_config
from grasp_rl.interfaces import CoordinateFrame
from grasp_rl.launch import compose, worker
from grasp_rl.prompts.parse import parse
from grasp_rl.prompts.render import format_answer, wrapped
from grasp_rl.rehearsal import cli as rehearse
from grasp_rl.rehearsal import recipe as recipes
from grasp_rl.rehearsal import teaching
from grasp_rl.rehearsal.recipe import Recipe
from grasp_rl.rehearsal.small import SEGMENTERS, small, taught
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.rollouts.turns import stages_of
from grasp_rl.types import Completion, FinishReason, SpatialPrompt
from grasp_rl.utils.files import Record

FRAME = CoordinateFrame(width=100, height=100, image_width=100, image_height=100)
SIX = (
    "socio_reasoner/main", "grasp/main", "resap/main", "geo_r1_cross_view/main", "think2seg_rs/main_3b",
    "baselines/sft_clicks",
)  # fmt: skip
"""What ``make rehearse-six`` runs, in CI: together every part of a run, the longest first."""
SIZE_OF_A_STEP = {"group_size": 0, "prompts_per_step": 0, "micro_batch_groups": 0, "steps": 0}
STOP = FinishReason.STOP
SIZES = {
    "algorithm.group_size", "algorithm.micro_batch_groups", "algorithm.prompts_per_step", "algorithm.steps",
    "checkpoint.every", "checkpoint.keep_last", "engine.device", "engine.nproc", "evaluation.every",
    "evaluation.max_new_tokens", "evaluation.test_limit", "evaluation.val_limit", "policy.image.max_pixels", "policy.path",
    "regime.mining.limit", "regime.rounds", "rollout.max_new_tokens", "segmenter.path", "sft.phases",
}  # fmt: skip
"""Keys of a config that a rehearsal changes; beside them the folders of datasets."""


def leaves(config: dict[str, object], prefix: str = "") -> dict[str, object]:
    result: dict[str, object] = {}
    for key, value in config.items():
        result |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return result


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_says_how_it_is_started(name: str) -> None:
    recipe = recipes.recipe(name)
    assert recipe.words[0] == f"experiment={name}"
    assert recipe.command in ("train", "sft", "evaluate")
    roots = [word for word in recipe.words[1:] if word.endswith("=FOLDER")]
    assert list(recipe.words[1:]) == roots
    assert all(word.startswith("data.") for word in roots)


@pytest.mark.parametrize("name", ["think2seg_rs/main_3b", "grasp/main", "socio_reasoner/main", "baselines/sft_clicks"])
def test_a_rehearsal_differs_in_size_alone(name: str, tmp_path: Path) -> None:
    recipe = recipes.recipe(name)
    with compose.hydra(recipe.command) as engine:
        given = compose.single(engine, [f"command={recipe.command}", *recipe.words], ()).config
    made = small(given, tmp_path)
    before, after = leaves(given), leaves(made)
    assert before.keys() == after.keys()
    changed = {key for key in before if before[key] != after[key] and not key.startswith("data.")}
    assert changed <= SIZES
    assert {"policy.path", "algorithm.prompts_per_step"} <= changed
    roots = {key for key in before if before[key] != after[key] and key.startswith("data.")}
    assert roots
    assert all(key.endswith("root") for key in roots)
    assert before["segmenter._target_"].rpartition(".")[2] in SEGMENTERS  # type: ignore[attr-defined]
    first = taught(made, tmp_path / "answers")
    assert (first["command"], first["engine"]["name"], first["prompt"]) == ("sft", "local", made["prompt"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"policy": {"path": "someone/else"}}, r"policy\.path='someone/else': no small model of its class"),
        ({"data": {"name": "mine"}}, r"data\.name='mine': no synthetic copy of that layout, and data\.root='FOLDER'"),
    ],
)
def test_what_has_no_small_counterpart_is_named(change: dict[str, dict[str, str]], told: str, tmp_path: Path) -> None:
    recipe = recipes.recipe("think2seg_rs/main_3b")
    with compose.hydra("train") as engine:
        given = compose.single(engine, ["command=train", *recipe.words], ()).config
    with pytest.raises(ConfigError, match=told):
        small(
            {key: value | change.get(key, {}) if isinstance(value, dict) else value for key, value in given.items()},
            tmp_path,
        )


@pytest.mark.parametrize("name", [name for name in recipes.names() if not name.startswith("baselines/")])
def test_a_recipe_reads_the_answer_that_it_asks_for(name: str) -> None:
    recipe = recipes.recipe(name)
    with compose.hydra(recipe.command) as engine:
        words = [f"command={recipe.command}", *recipe.words, "hydra.mode=RUN"]
        config = to_config(compose.single(engine, words, ()).config)
    if config.prompt.answer == "choice":
        said = wrapped("B", "I look.", config.prompt)
    else:
        inside = ((30.0, 40.0), (32.0, 44.0), (34.0, 48.0), (36.0, 50.0), (5.0, 5.0), (90.0, 90.0))
        label = SpatialPrompt(
            box=(20.0, 30.0, 60.0, 80.0), point_coords=inside, point_labels=(1, 1, 1, 1, 0, 0), category="ship"
        )
        said = format_answer([label], "I look.", FRAME, config.prompt)
    answer = parse(said, config.prompt, FRAME, config.parsing)
    assert answer.ok, (said, answer.status)
    assert answer.choice == "B" if config.prompt.answer == "choice" else len(answer.prompts) == 1


def test_a_name_that_is_none_is_answered(capsys: pytest.CaptureFixture[str]) -> None:
    assert rehearse.main(["think2seg_rs/main_3"]) == 2
    assert "rehearse think2seg_rs/main_3: no such recipe; did you mean think2seg_rs/main_3b?" in capsys.readouterr().err
    assert rehearse.main([]) == 2


def test_a_recipe_goes_through(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """GRPO under ZeRO-3 in two processes through SAM 2: answers are read, the policy changes."""
    pytest.importorskip("deepspeed", reason="needs DeepSpeed: pip install 'grasp-rl[train]'")
    name = "think2seg_rs/main_3b"
    assert rehearse.main([name, "--out", str(tmp_path), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["state"], row["steps"], row["learned"]) == ("done", 2, True)
    assert row["parsed"] >= 0.3
    assert f"| {name} |" in (tmp_path / "rehearsals.md").read_text()
    assert rehearse.main([name, "--out", str(tmp_path), "--json"]) == 0  # read, not run
    assert json.loads(capsys.readouterr().out) == [row]


TERM = '''
from dataclasses import dataclass
from typing import ClassVar

from grasp_rl.rewards.terms.base import AnswerTerm


@dataclass(frozen=True, kw_only=True)
class Brief(AnswerTerm):
    """1 for a thought of at most ``most`` words."""

    most: int = 50
    accuracy: ClassVar[bool] = False

    def __call__(self, answer, labels, prediction):
        return float(len((answer.thinking or "").split()) <= self.most)
'''
OWN = {
    "my_lab/brief.py": TERM,
    "conf/reward/brief.yaml": "defaults: [grasp, _self_]\nterms: {brief: {_target_: my_lab.brief.Brief, weight: 0.5}}\n",
    "conf/experiment/abl.yaml": "# @package _global_\n# Mine.\ndefaults:\n  - override /reward: brief\n",
    "conf/experiment/grids/weight.yaml": (
        "# @package _global_\n"
        "# grasp-rl train -m 'trusted_modules=[my_lab]' 'hydra.searchpath=[file://conf]' \\\n"
        "#   experiment=grids/weight data.root=FOLDER\n"
        "defaults:\n  - override /reward: brief\n  - override /data: rrsis_d\n"
        "hydra: {mode: MULTIRUN, sweeper: {params: {reward.terms.brief.weight: '1,2'}}}\n"
    ),
    "conf/experiment/sly.yaml": "# @package _global_\n# grasp-rl train experiment=sly trust_checkpoint=true\n",
}
SAID = ("trusted_modules=[my_lab]", "hydra.searchpath=[file://conf]")


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a reward term and experiments of one's own."""
    for name, text in OWN.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_experiment_of_ones_own_goes_through(lab: Path) -> None:
    """With drawn scenes; it is run again each time, since no commit says whether it is still the same."""
    ended = forked.grasp_rl("rehearse", "abl", *SAID, "--json", cwd=lab)
    assert ended.returncode == 0, ended.stderr
    (row,) = json.loads(ended.stdout)
    assert (row["recipe"], row["state"], row["steps"], row["data"]) == ("abl", "done", 2, "SyntheticSource")
    assert "brief" in row["reward"].split(", ")
    path = lab / "conf/experiment/abl.yaml"
    path.write_text(path.read_text() + "algorithm: {steps: 1}\n")
    again = forked.grasp_rl("rehearse", "abl", *SAID, "--json", cwd=lab)
    assert [row["steps"] for row in json.loads(again.stdout)] == [1]
    assert "'hydra.searchpath=[file://conf]'" in (lab / "outputs/rehearsals/rehearsals.md").read_text()


def test_a_grid_of_ones_own_needs_no_folder(lab: Path) -> None:
    recipe = recipes.recipe("grids/weight", ["file://conf"])
    assert recipe == Recipe("grids/weight", "train", ("experiment=grids/weight", "data.root=FOLDER"), own=True)
    points = rehearse._points(recipe, list(SAID), compose.trusted_on(SAID))
    assert [job.config["reward"]["terms"]["brief"]["weight"] for _, job in points] == [1, 2]
    assert [job.trusted for _, job in points] == [("my_lab",)] * 2
    assert recipes.recipe("abl", ["file://conf"]) == Recipe("abl", "train", ("experiment=abl",), own=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("abl",), "rehearse abl: no such recipe; --list names them; one of your own is found by hydra.searchpath="),
        (("abl", SAID[1]), "reward.terms.brief._target_='my_lab.brief.Brief': must be a class"),
        (("abl", *SAID, "seed=1"), "rehearse seed=1: takes hydra.searchpath=... and trusted_modules=... alone"),
        (("sly", *SAID), "sly.yaml: trust_checkpoint=true: the line in its header says where datasets lie"),
    ],
)
def test_what_a_rehearsal_of_ones_own_refuses(
    words: tuple[str, ...], said: str, lab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rehearse.main(words) == 2
    assert said in capsys.readouterr().err
    assert not (lab / "outputs").exists()


def test_experiments_of_ones_own_are_listed(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rehearse.main(["--list", SAID[1]]) == 0
    assert capsys.readouterr().out.split()[-3:] == ["abl", "grids/weight", "sly"]


def test_data_of_a_layout_that_is_not_drawn_stay_where_they_lie(tmp_path: Path) -> None:
    given = composed("think2seg_rs/main_3b")
    for data in ({"_target_": "my_lab.Reader", "root": str(tmp_path)}, given["data"] | {"name": "mine", "root": "."}):
        assert small(given | {"data": data}, tmp_path)["data"] == data


@pytest.mark.rehearsal
@pytest.mark.parametrize("name", SIX)
def test_one_of_six_goes_through(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In training every turn's and task's answers are read and the policy changes; fine-tuning takes its steps."""
    pytest.importorskip("deepspeed", reason="needs DeepSpeed: pip install 'grasp-rl[train]'")
    assert rehearse.main([name, "--out", str(tmp_path), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["state"] == "done"
    if row["command"] == "sft":
        assert row["steps"] == 1  # two, of which the last is recorded
    else:
        assert (row["steps"], row["learned"]) == (2, True)
        assert row["parsed"] >= 0.3


def test_the_six_cover_every_part() -> None:
    """Commands, turns, tasks, rewards, protocols, ZeRO stages, algorithms, regimes, answers, segmenters, backbones."""
    configs = {name: composed(name) for name in SIX}
    assert {config["command"] for config in configs.values()} == {"train", "sft"}
    trained = [config for config in configs.values() if config["command"] == "train"]
    assert {len(config["rollout"]["turns"]) for config in trained} == {0, 1}
    assert any(config["rollout"]["tasks"] for config in trained)
    needs = [pipeline_needs(config) for config in trained]
    assert any("mask" in need for need in needs)
    assert any("mask" not in need for need in needs)
    assert {"mixture", "earthreason", "rrsis_d", "cross_view"} <= {config["data"]["name"] for config in trained}
    protocols = {config["evaluation"]["protocol"]["name"] for config in configs.values()}
    assert {"ours", "think2seg", "resap"} <= protocols
    engines = {(config["engine"]["name"], min(2, config["engine"]["nproc"])) for config in configs.values()}
    assert engines == {("zero2", 2), ("zero3", 2)}
    assert len({json.dumps(config["algorithm"] | SIZE_OF_A_STEP, sort_keys=True) for config in trained}) >= 3
    assert {config["regime"]["name"] for config in trained} == {"grpo", "sft_grpo"}
    prompts = [config["prompt"] for config in configs.values()]
    prompts += [part["prompt"] for config in trained for part in later(config)]
    assert {prompt["answer"] for prompt in prompts} == {"instances", "boxes", "labels", "choice"}
    assert any(prompt["clicks"] for prompt in prompts)
    kinds = {str(config["segmenter"]["_target_"]).rpartition(".")[2] for config in configs.values()}
    assert kinds >= {"Sam2Segmenter", "SamSegmenter"}
    assert len({config["policy"]["path"] for config in configs.values()}) >= 3


def composed(name: str) -> Record:
    recipe = recipes.recipe(name)
    with compose.hydra(recipe.command) as engine:
        return compose.single(engine, [f"command={recipe.command}", *recipe.words], ()).config


def later(config: Record) -> list[Record]:
    return [*config["rollout"]["turns"].values(), *config["rollout"]["tasks"].values()]


def pipeline_needs(config: Record) -> frozenset[str]:
    return frozenset(instantiate(config["reward"], (), "reward").needs)


@pytest.mark.parametrize("name", ["seg_zero/main", "socio_reasoner/main", "resap/main"])
def test_every_turn_and_task_is_demonstrated(name: str, tmp_path: Path) -> None:
    """One object with named points; boxes, then points over their mask; boxes, and labels of candidate points."""
    config = to_config(taught(small(composed(name), tmp_path), tmp_path / "answers"))
    components = worker.build(config)
    rows = list(teaching.demonstrations(config, components))
    stages = stages_of(config, RewardPipeline(
        segmenter=components.segmenter, reward=components.reward, prompt=config.prompt, parsing=config.parsing,
    ))  # fmt: skip
    assert {len(row.said) for row in rows} == {1 + len(config.rollout.turns)}
    names = ["first", *config.rollout.turns]
    for row in rows:
        tasks = [row.task] if row.task else names
        for place, (stage, tokens) in enumerate(zip(tasks, row.said, strict=True)):
            asked = row.continuations[place] or row.prompt
            text = components.policy.tokenizer.decode(tokens, skip_special_tokens=True)
            completion = Completion(token_ids=tokens, logprobs=(0.0,) * len(tokens), text=text, finish_reason=STOP)
            assert stages[stage].read(asked.frame, [completion], [None])[0].ok, text
    assert {row.task for row in rows} == {"", *config.rollout.tasks}
    assert len(rows) == {"seg_zero/main": 3, "socio_reasoner/main": 4, "resap/main": 8}[name]  # null is not read there
    if name == "resap/main":
        before = teaching.teach(config, components, steps=1)
        assert teaching.teach(config, components, steps=12) < before / 2


@pytest.mark.parametrize(
    ("rows", "parsed"),
    [
        ([{"loss": 0.0, "parse/ok": 0.5, "parse/repaired": 0.25}, {"loss": 0.0, "parse/ok": 1.0}], 0.875),
        ([{"loss": 0.0, "parse/ok": 1.0, "turn1/parse/ok": 0.5}], 0.5),
        ([{"loss": 0.0, "parse/ok": 0.5, "task/labels/parse/ok": 0.0}, {"loss": 0.0, "parse/ok": 0.5}], 0.0),
        ([{"loss": 0.0}, {"val/parse/ok": 1.0}], None),
    ],
)
def test_parsed_is_the_lowest_of_turns_and_tasks(
    rows: list[dict[str, float]], parsed: float | None, tmp_path: Path
) -> None:
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert rehearse._steps(tmp_path)["parsed"] == parsed
