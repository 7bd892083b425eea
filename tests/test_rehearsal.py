"""Rehearsed recipes: each names its own command line, and what is run differs from it in size alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grasp_rl.cli import rehearse
from grasp_rl.config.errors import ConfigError
from grasp_rl.config.targets import to_config
from grasp_rl.interfaces import CoordinateFrame
from grasp_rl.launch import compose
from grasp_rl.prompts.parse import parse
from grasp_rl.prompts.render import format_answer, wrapped
from grasp_rl.rehearsal import recipe as recipes
from grasp_rl.rehearsal.small import SEGMENTERS, small, taught
from grasp_rl.types import SpatialPrompt

FRAME = CoordinateFrame(width=100, height=100, image_width=100, image_height=100)
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
        ({"data": {"name": "mine"}}, r"data\.name='mine': no synthetic copy"),
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


@pytest.mark.parametrize("name", ["geo_r1_cross_view/main", "think2seg_rs/main_3b"])
def test_a_recipe_goes_through(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fine-tuning, then GRPO; GRPO under ZeRO-3 in two processes through SAM 2. Answers are read, the policy changes."""
    pytest.importorskip("deepspeed", reason="needs DeepSpeed: pip install 'grasp-rl[train]'")
    assert rehearse.main([name, "--out", str(tmp_path), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["state"], row["steps"], row["learned"]) == ("done", 2, True)
    assert row["parsed"] > 0.5
    assert f"| {name} |" in (tmp_path / "rehearsals.md").read_text()
    assert rehearse.main([name, "--out", str(tmp_path), "--json"]) == 0  # read, not run
    assert json.loads(capsys.readouterr().out) == [row]
