"""Every option of every group and every experiment composes, and every component in it binds to its constructor."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

import grasp_rl.conf
import pytest
import yaml
from hydra.types import RunMode
from omegaconf import OmegaConf

from grasp_rl.config.signatures import definitions, signature
from grasp_rl.launch import compose

CONF = Path(next(iter(grasp_rl.conf.__path__)))
OPTIONS = sorted(
    str(path.relative_to(CONF).with_suffix(""))
    for path in CONF.rglob("*.yaml")
    if path.parent != CONF and not path.name.startswith("_")
)


NEEDS = {
    "hardware": ["experiment=think2seg_rs/main_3b"],  # a pretrained policy
    "hardware/2x8x80g": ["engine.rendezvous=node0:29500", "engine.node_rank=0"],
}
"""What the options of a group, or one of them, need beside themselves."""


def _given(engine: Any, overrides: list[str]) -> list[str]:
    """``overrides`` and a value for everything that has no default."""
    with compose.explained():
        config = engine.compose_config(compose.CONFIG_NAME, overrides, RunMode.MULTIRUN)
    missing = OmegaConf.missing_keys(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]))
    return [*overrides, *(f"{key}=given" for key in sorted(missing))]


def _targets(node: Any) -> list[str]:
    if isinstance(node, list):
        return [target for item in node for target in _targets(item)]
    if not isinstance(node, dict):
        return []
    own = [node["_target_"]] if "_target_" in node else []
    return own + [target for item in node.values() for target in _targets(item)]


@pytest.mark.parametrize("option", [o for o in OPTIONS if not o.startswith("experiment/")])
def test_option_composes_and_binds(option: str) -> None:
    if option == "launcher/ray":
        pytest.importorskip("ray", reason="needs Ray, in an environment of its own: pip install 'grasp-rl[ray]'")
    group, _, name = option.rpartition("/")
    command = "evaluate" if group == "inference" else "train"  # which training refuses
    words = [f"command={command}", "run_dir=outputs/x", *NEEDS.get(group, []), *NEEDS.get(option, [])]
    with compose.hydra("train") as engine:
        if group == "launcher":
            jobs = compose.sweep(engine, ["command=train", f"{group}={name}", "seed=1,2"], ())[1]
        else:
            jobs = [compose.single(engine, _given(engine, [*words, f"{group}={name}"]), ())]
    assert {job.config["command"] for job in jobs} == {command}


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.startswith("experiment/")])
def test_experiment_composes(option: str) -> None:
    with compose.hydra("train") as engine:
        overrides = ["command=train", f"experiment={option.removeprefix('experiment/')}"]
        overrides = _given(engine, overrides)
        if compose.is_sweep(engine, overrides):
            _, jobs, _ = compose.sweep(engine, overrides, ())
            assert len(jobs) > 1
        else:
            assert compose.single(engine, overrides, ()).config["command"] == "train"


@pytest.mark.parametrize("command", ["train", "sft", "fit-segmenter", "evaluate"])
def test_defaults_compose_for_every_verb(command: str) -> None:
    with compose.hydra(command) as engine:
        job = compose.single(engine, [f"command={command}"], ())
    assert job.config["command"] == command
    assert job.run_dir.parts[:2] == ("outputs", command)
    assert job.config["run_dir"] == str(job.run_dir)


def _named_targets() -> list[str]:
    texts = [yaml.safe_load(path.read_text()) for path in CONF.rglob("*.yaml")]
    return sorted({target for text in texts for target in _targets(text)})


@pytest.mark.parametrize("target", [t for t in _named_targets() if t.startswith("grasp_rl.")])
def test_signature_read_from_source_is_the_real_one(target: str) -> None:
    module, _, name = target.rpartition(".")
    found = signature(module, definitions(module)[name])
    try:
        real = inspect.signature(getattr(importlib.import_module(module), name))
    except ImportError as error:
        pytest.skip(f"{target} needs {error.name}")
    keywords = [p for p in real.parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    assert found.names == [p.name for p in keywords]
    assert [p.required for p in found.parameters] == [p.default is p.empty for p in keywords]
    assert found.takes_any == any(p.kind is p.VAR_KEYWORD for p in real.parameters.values())


@pytest.mark.parametrize("path", sorted((CONF / "algorithm").glob("*.yaml")), ids=lambda path: path.stem)
def test_algorithms_are_named_like_their_file(path: Path) -> None:
    assert yaml.safe_load(path.read_text())["name"] == path.stem


def test_published_settings() -> None:
    found = {path.stem: yaml.safe_load(path.read_text()) for path in (CONF / "algorithm").glob("*.yaml")}
    assert found.pop("none") == {"name": "none", "loss": "none"}
    shape = {name: (a["baseline"], a["scale_advantages"], a["loss"], a["importance"]) for name, a in found.items()}
    assert shape["grpo"] == ("mean", True, "sequence_mean", "token")
    assert shape["dapo"] == ("mean", True, "token_mean", "token")
    assert shape["dr_grpo"] == ("mean", False, "constant", "token")
    assert shape["rloo"] == ("leave_one_out", False, "constant", "token")
    assert shape["gspo"] == ("mean", True, "sequence_mean", "sequence")
    clips = {name: (a["clip_low"], a["clip_high"], a["beta"]) for name, a in found.items()}
    assert clips["grpo"] == (0.2, 0.2, 0.001)
    assert clips["dapo"] == (0.2, 0.28, 0.0)
    assert clips["gspo"] == (3e-4, 4e-4, 0.0)
    assert shape["cispo"] == shape["sam_r1"] == shape["dapo"]
    assert (clips["cispo"], found["cispo"]["surrogate"]) == ((1.0, 4.0, 0.0), "cispo")
    assert clips["sam_r1"][1] == 0.3
    assert clips["resap"] == (0.1, 0.1, 0.04)
    assert (found["resap"]["min_reward_range"], found["resap"]["scale_epsilon"]) == (0.01, 0.0)


def test_job_folders_are_safe_and_say_what_is_special() -> None:
    assert compose._job_folder("algorithm=grpo,seed=1", 3) == "algorithm=grpo,seed=1"
    assert compose._job_folder("", 3) == "3"
    odd = compose._job_folder("data.path=/a/b c", 0)
    assert "/" not in odd
    assert odd != compose._job_folder("data.path=/a_b/c", 0)
    assert len(compose._job_folder("x=" + "y" * 500, 0)) <= 100
    assert compose._job_folder("a=..", 0) not in ("..", ".")


def test_sweep_is_planned_before_it_starts() -> None:
    with compose.hydra("train") as engine:
        overrides = ["command=train", "seed=1,2", "algorithm=grpo,dapo", "rollout.temperature=0.9"]
        folder, jobs, _ = compose.sweep(engine, overrides, ())
    names = [job.run_dir.name.rpartition("-")[0] for job in jobs]
    assert len({job.run_dir.name.rpartition("-")[2] for job in jobs}) == len(jobs)  # the hash of what each runs
    assert sorted(names) == [f"algorithm={a},seed={s}" for a in ("dapo", "grpo") for s in (1, 2)]
    assert {job.run_dir.parent for job in jobs} == {folder}
    assert {job.config["rollout"]["temperature"] for job in jobs} == {0.9}


def test_no_option_names_a_function_of_this_package() -> None:
    """Only classes are components; a function could do anything when a config calls it."""
    for target in _named_targets():
        module, _, name = target.rpartition(".")
        if target.startswith("grasp_rl."):
            assert isinstance(definitions(module)[name], ast.ClassDef), target
