"""Values that Hydra's grammar does not take as they stand, and files that a command line names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.messages import quoted_override
from grasp_rl.config.schema import RunConfig
from grasp_rl.launch import compose
from grasp_rl.launch.main import main
from grasp_rl.launch.paths import check_paths

AWKWARD = ("港口/data", "runs/epoch=3", "tiles (1)", "a[1]", "it's", "week#3", "~me/data", 'a"b', 'a\\"b', "{a", "x=[1")


@pytest.mark.parametrize("value", AWKWARD)
def test_the_refusal_shows_the_value_quoted_ready_to_copy(value: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        compose.parse_overrides(compose.parse_flags([f"data.root={value}"]).overrides)
    said = str(refusal.value)
    copied = shlex.split(said.partition("quote the value: ")[2])
    assert [override.value() for override in compose.parse_overrides(copied)] == [value]


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1))
@example("\\")
@example('\\"')
@example('a\\\\"\\')
@example("a,b")
def test_any_text_can_be_quoted(value: str) -> None:
    (word,) = shlex.split(quoted_override("name", value))
    (override,) = compose.parse_overrides([word])
    assert not override.is_sweep_override()
    assert override.value() == value


def test_several_values_show_the_quoted_text_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("train", ["data=jsonl", "data.root=north,south"]) == 2
    said = capsys.readouterr().err
    assert "several values need -m (a sweep)" in said
    assert """'data.root="north,south"'""" in said


def test_a_folder_on_disk_is_taken_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("s/reward=grasp,algorithm.group_size=4-1a2b3c4d", "港口 (1)", "it's"):
        Path(name).mkdir(parents=True)
        for key in ("init_from", "resume", "data.root", "+x.y"):
            flags = compose.parse_flags([f"{key}={name}"])
            (override,) = compose.parse_overrides(flags.overrides)
            assert override.value() == name
    for name in ("2024", "1e5", "[brackets]", "back\\slash", "true", "a\\"):
        Path(name).mkdir()
        (override,) = compose.parse_overrides(compose.parse_flags([f"data.root={name}"]).overrides)
        assert override.value() == name
    assert compose.parse_flags(["seed=2024"]).overrides == ["seed=2024"]
    monkeypatch.setenv("HOME", str(tmp_path))
    (override,) = compose.parse_overrides(compose.parse_flags(["policy.path=~/2024"]).overrides)
    assert override.value() == str(tmp_path / "2024")
    (tmp_path / "1,2").mkdir()
    assert compose.parse_flags(["seed=3,4", "a=[1,2]", "b='1,2'"]).overrides == ["seed=3,4", "a=[1,2]", "b='1,2'"]


@pytest.mark.parametrize(
    "word", ["hydra.sweeper.params={seed: '0,1'}", "+hydra.sweeper.params.seed='0,1'", "hydra.sweeper.params=x"]
)
def test_the_sweepers_parameters_are_for_files(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("train", ["-m", word]) == 2
    assert capsys.readouterr().err == (
        "grasp-rl train: hydra.sweeper.params: is for experiment files; on the command line the sweep is -m KEY=A,B "
        "KEY2=C,D\n"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data=jsonl", "data.root=nowhere"], "data.root='nowhere': no such folder or file"),
        (
            ["policy=hf_vlm", "policy.path=./nowhere"],
            "policy.path='./nowhere': no such folder or file, and not a hub id",
        ),
        (["policy=hf_vlm", "policy.path=a/b/c"], "policy.path='a/b/c': no such folder or file, and not a hub id"),
        (["policy.weights=nowhere"], "policy.weights='nowhere': must be warm_start, random or a folder"),
        (["segmenter=sam2", "segmenter.path=a/b/c.pt"], "segmenter.path='a/b/c.pt': no such folder or file"),
        (
            ["prompt.template=think2se"],
            "prompt.template='think2se': must be one of compact, think2seg or a template file",
        ),
        (["init_from=nowhere"], "init_from='nowhere': no such folder"),
        (["init_from="], "init_from='': no such folder"),
        (["init_from=/"], "init_from='/': no policy there"),
        (["data=jsonl", "data.root="], "data.root='': no such folder or file"),
        (["data=jsonl", "data.root=/"], "data.root='/': holds no annotations.jsonl"),
        (["policy.weights=/"], "policy.weights='/': must be warm_start, random or a folder that a run wrote"),
        (["segmenter=sam2", "segmenter.path=weights.pt"], "segmenter.path='weights.pt': no such folder or file"),
        (["engine=zero2", "engine.deepspeed_config=x.json"], "engine.deepspeed_config='x.json': no such file"),
        (["-m", "data=jsonl", "data.root=nowhere", "seed=1,2"], "data.root='nowhere': no such folder or file"),
        (["run_dir=r", "resume=auto", "init_from=nowhere"], "init_from='nowhere': no such folder"),
    ],
)
def test_paths_are_looked_for_before_anything_is_started(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main("train", words) == 2
    assert re.fullmatch(rf"grasp-rl train: {re.escape(said)}.*\n", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_the_components_of_others_are_not_judged() -> None:
    check_paths(RunConfig(policy={"_target_": "lab.Policy", "path": "no/such/thing", "weights": "none"}))
