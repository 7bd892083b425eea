"""What a wrong command line says: one line that names the key, what was found and what is valid; exit code 2."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

CASES: list[tuple[str, list[str]]] = [
    ("algorithm.stepz=3", ["algorithm.stepz", "did you mean algorithm.steps?", "group_size"]),
    ("algoritm.steps=3", ["algoritm", "did you mean algorithm?"]),
    ("steps=3", ["steps: no such key; did you mean algorithm.steps or fit.steps?"]),
    ("lr=3", ["lr", "did you mean optimizer.lr?"]),
    ("+foo=3", ["foo", "no such key", "optimizer"]),
    ("learning_rate=3", ["learning_rate: no such key; here it is optimizer.lr. Valid: algorithm, "]),
    ("+algorithm.foo=3", ["algorithm.foo", "no such key", "clip_low"]),
    ("algorithm.steps=abc", ["algorithm.steps='abc'", "a whole number"]),
    ("evaluation.val_limit=x", ["evaluation.val_limit='x'", "a whole number or null"]),
    ("algorithm.steps=null", ["algorithm.steps=null", "must have a value"]),
    ("algorithm.steps=0", ["algorithm.steps=0", ">= 1"]),
    (
        "+algorithm.own_advantage={_target_: grasp_rl.policies.tiny.policy.TinyPolicy}",
        ["algorithm.own_advantage._target_=", "must be a class in a module that the command line trusts"],
    ),
    (
        "evaluation.protocol._target_=grasp_rl.policies.tiny.policy.TinyPolicy",
        ["evaluation.protocol._target_=", "defined in grasp_rl.{evaluation.protocols}"],
    ),
    ("algorithm.loss=sum", ["algorithm.loss='sum'", "sequence_mean, token_mean, constant"]),
    ("engine.nproc=2", ["engine.nproc=2", "must be 1"]),
    ("sft.phases=[{steps: 0}]", ["sft.phases[].steps=0", ">= 1"]),
    ("sft.phases=[{stps: 1}]", ["sft.phases[].stps", "did you mean sft.phases[].steps?"]),
    (
        "algorithm=grop",
        ["algorithm=grop", "cispo, dapo, dr_grpo, grpo, gspo, none, resap, rloo, sam_r1", "did you mean grpo?"],
    ),
    ("launcher=slurn", ["launcher=slurn", "joblib, ray, serial, slurm", "did you mean slurm?"]),
    ("launcher=joblib", ["launcher=joblib", "jobs of a sweep", "-m"]),
    ("policy=null", ["policy=null", "the name of an option"]),
    ("segmenter=[]", ["segmenter=None", "an option with a _target_"]),
    ("data.train_sise=3", ["data.train_sise", "did you mean data.train_size?"]),
    ("+data.colour=red", ["data.colour", "SyntheticSource has no such argument", "train_size"]),
    ("data.train_size=many", ["data.train_size='many'", "must be int"]),
    ("data.train_size=???", ["data.train_size", "has no default"]),
    ("data._target_=os.system", ["data._target_='os.system'", "trusted_modules"]),
    ("data._target_=grasp_rl.data.synthetic.dataset.Nothing", ["itself defines", "SyntheticSource"]),
    ("+data._partial_=true", ["data._partial_", "no such argument"]),
    ("seed=${oc.env:HOME}", ["seed", "does not read the environment"]),
    ("seed=${nowhere}", ["seed", "nowhere"]),
    ("seed=1,2", ["seed=1,2", "-m"]),
    ("seed", ["seed", "write key=value"]),
    ("command=sft", ["command", "the word after grasp-rl"]),
    ("trusted_modules=[os]", ["trusted_modules='os'", "a module of your own"]),
    ("hydra.searchpath=[file:///nowhere]", ["hydra.searchpath=/nowhere", "no such folder"]),
    ("+hydra.callbacks.x._target_=os.system", ["hydra.callbacks", "must be empty"]),
    ("hydra/job_logging=default", ["hydra/job_logging", "disabled"]),
    ("--cfgg", ["--cfgg", "no such flag"]),
    ("--config-name=other", ["--config-name", "not offered"]),
    ("resume=nowhere", ["nowhere/config.yaml", "no such file"]),
]


def _only_line(text: str) -> str:
    assert text.endswith("\n")
    assert text.count("\n") == 1, text
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize(("word", "said"), CASES, ids=[word for word, _ in CASES])
def test_one_line_and_exit_code_2(door: Run, tmp_path: Path, word: str, said: list[str]) -> None:
    ended = door("train", word)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    line = _only_line(ended.stderr)
    assert [part for part in said if part not in line] == [], line
    assert not (tmp_path / "outputs").exists()


@pytest.mark.skipif(shutil.which("srun") is not None, reason="this machine has SLURM")
def test_a_cluster_that_is_not_there(door: Run, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs pip install 'grasp-rl[launch]'")
    ended = door("train", "-m", "launcher=slurm", "seed=1,2")
    assert ended.returncode == 2
    assert "launcher=slurm: no srun on this machine" in _only_line(ended.stderr)
    assert not (tmp_path / "outputs").exists()


def test_json_carries_the_error_too(door: Run) -> None:
    ended = door("train", "algorithm.steps=0", "--json")
    assert ended.returncode == 2
    _only_line(ended.stderr)
    answer = json.loads(ended.stdout)
    assert answer["state"] == "refused"
    assert answer["error"] == {"type": "ConfigError", "message": "algorithm.steps=0: must be >= 1"}


def test_a_sweep_is_refused_whole(door: Run, tmp_path: Path) -> None:
    ended = door("train", "-m", "algorithm.steps=5,0")
    assert ended.returncode == 2
    assert "algorithm.steps=0" in _only_line(ended.stderr)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["policy=outside"], "trusted_modules"),
        (["experiment=sly_trust"], "only the command line can trust a module"),
        (["experiment=sly_sweep"], "only the command line can trust a module"),
        (["experiment=sly_path"], "hydra.job.env_set: must be empty"),
        (["experiment=sly_callback"], "hydra.callbacks: must be empty"),
        (["reward=sly"], "reward._target_='os.system'"),
        (["reward=sly", "trusted_modules=[outside_lab]"], "reward._target_='os.system'"),
    ],
)
def test_a_file_from_elsewhere_runs_nothing(door: Run, lab: Path, words: list[str], said: str) -> None:
    ended = door("train", f"hydra.searchpath=[file://{lab}/options]", *words)
    assert ended.returncode == 2
    assert said in _only_line(ended.stderr)
    assert not (lab / "canary").exists()
    assert not (lab / "outputs").exists()


def test_unknown_verb(door: Run) -> None:
    ended = door("trian")
    assert ended.returncode == 2
    assert "did you mean train?" in _only_line(ended.stderr)
