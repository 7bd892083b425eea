"""What somebody else's config says about this machine counts only where the command line says it again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import forked
import pytest
import yaml
from strangers import picture, refusal

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.targets import load_config, load_raw
from grasp_rl.launch import compose
from grasp_rl.runs import origin, received
from grasp_rl.runs.run_dir import CONFIG

OLD = Path(__file__).parents[1] / "data/run_of_aa9e728"
QUICK = ("debug=fast", "algorithm.steps=1", "evaluation.every=0", "evaluation.test_limit=1")
VLLM = {
    "_target_": "grasp_rl.rollouts.generators.vllm_server.VllmServer", "url": "http://127.0.0.1:1",
    "adapter_folder": "adapters", "adapter_folder_there": None, "api_key_env": "HF_TOKEN",
}  # fmt: skip
WANDB = {"_target_": "grasp_rl.tracking.wandb.WandbTracker", "entity": "theirs"}
DECISIONS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "server": ("generator", VLLM, {"generator.url": "http://127.0.0.1:1", "generator.adapter_folder": "adapters",
                                   "generator.api_key_env": "HF_TOKEN"}),
    "owner": ("tracker", WANDB, {"tracker.entity": "theirs"}),
    "rendezvous": ("engine.rendezvous", "evil:1", {"engine.rendezvous": "evil:1"}),
    "hostfile": ("engine.hostfile", "hosts", {"engine.hostfile": "hosts"}),
    "deepspeed": ("engine.deepspeed_config", "ds.json", {"engine.deepspeed_config": "ds.json"}),
    "template": ("prompt.template", "/private", {"prompt.template": "/private"}),
    "packaged name that is a path": ("prompt.template", "../templates/think2seg", {"prompt.template": "../templates/think2seg"}),
    "policy's template": ("policy.prompt_template", "/private", {"policy.prompt_template": "/private"}),
    "a turn's template": (
        "rollout.turns.second", {"prompt": {"template": "/private"}}, {"rollout.turns.second.prompt.template": "/private"},
    ),
    "code of a hub": ("policy.attention", "org/kernel", {"policy.attention": "org/kernel"}),
    "a folder for a cache": ("segmenter.cache_dir", "/home", {"segmenter.cache_dir": "/home"}),
    "files outside a dataset": ("data.allow_outside", True, {"data.allow_outside": True}),
    "in a nested component": ("data.sets", {"a": {"allow_outside": True}}, {"data.sets.a.allow_outside": True}),
    "in a list": ("reward.terms", [{"policy": {"attention": "org/x"}}], {"reward.terms.0.policy.attention": "org/x"}),
    "in a protocol": (
        "evaluation.protocol", {"_target_": "x", "attention": "org/x"}, {"evaluation.protocol.attention": "org/x"},
    ),
    "in an advantage": (
        "algorithm.own_advantage", {"_target_": "x", "cache_dir": "/home"}, {"algorithm.own_advantage.cache_dir": "/home"},
    ),
    "a fit": ("inference.refine.path", "/private", {"inference.refine.path": "/private"}),
    "questions": ("regime.mining.reuse", "/private", {"regime.mining.reuse": "/private"}),
}  # fmt: skip


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        config = config.setdefault(parent, {})
    config[last] = value


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of one step of a version before, unsigned."""
    shutil.copytree(OLD, tmp_path / "run")
    return tmp_path / "run"


def _deciding(run: Path, key: str, value: Any) -> Path:
    config = load_raw(run / CONFIG)
    _set(config, key, value)
    (run / CONFIG).write_text(yaml.safe_dump(config))
    return run


@pytest.mark.parametrize("name", DECISIONS)
def test_each_decision_is_asked_for_by_name(run: Path, name: str) -> None:
    key, value, expected = DECISIONS[name]
    assert received.decisions(load_raw(run / CONFIG)) == {}
    _deciding(run, key, value)
    with pytest.raises(ConfigError) as refused:
        received.read(run, (), "resume=run")
    for part, said in expected.items():
        assert f'{part}="{said}"' in str(refused.value)
    assert received.read(run, list(expected), "resume=run")
    assert received.read(run, [key.split(".")[0]], "resume=run")


def test_ones_own_is_not_asked_and_a_changed_one_is(run: Path) -> None:
    _deciding(run, "engine.rendezvous", "mine:1")
    origin.sign(run / CONFIG)
    assert received.read(run, (), "resume=run")["engine"]["rendezvous"] == "mine:1"
    _deciding(run, "engine.rendezvous", "evil:1")
    with pytest.raises(ConfigError, match=r"engine\.rendezvous"):
        received.read(run, (), "resume=run")


def test_a_section_that_is_not_acted_on_is_not_asked_about(run: Path) -> None:
    _deciding(run, "generator", VLLM)
    assert received.read(run, (), "run", ("policy", "prompt"))


@pytest.mark.parametrize(
    "words",
    [
        ("train", "resume=run"),
        ("rescore", "run"),
        ("diagnose", "run"),
        ("predict", "a.png", "--query", "where?", "--run", "run"),
        ("export", "run", "--out", "out"),
    ],
    ids=lambda words: words[0],
)
def test_every_command_asks(run: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "private").write_text("dear diary")
    _deciding(run, "prompt.template", "private")
    picture(tmp_path / "a.png")
    ended = forked.grasp_rl(*words, cwd=tmp_path)
    said = refusal(ended)
    assert "to allow it, say it again: 'prompt.template=\"private\"'" in said


def test_a_worker_by_hand_asks_too(run: Path, tmp_path: Path) -> None:
    _deciding(run, "engine.hostfile", "hosts")
    ended = forked.worker("run/config.yaml", cwd=tmp_path)
    assert ended.returncode == 2
    assert "engine.hostfile" in json.loads((run / "error.json").read_text())["message"]


def test_a_run_carries_its_templates_text(tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("Where is {{ query }}?")
    begun = forked.grasp_rl(
        "train", *QUICK, f"prompt.template={template}", "policy.weights=random", "run_dir=run", cwd=tmp_path
    )
    assert begun.returncode == 0, begun.stderr
    assert load_config(tmp_path / "run/config.yaml").prompt.template == str(template)
    assert origin.is_own(tmp_path / "run/config.yaml")
    origin.mark_of(tmp_path / "run/config.yaml").unlink()  # as it looks to somebody else
    template.write_text("another question")
    read = received.read(tmp_path / "run", (), "run")
    assert Path(read["prompt"]["template"]).read_text() == "Where is {{ query }}?"
    assert Path(read["prompt"]["template"]).is_relative_to(tmp_path / "run")
    template.write_text("x" * 70_000)
    refused = forked.grasp_rl("train", *QUICK, f"prompt.template={template}", "run_dir=r2", cwd=tmp_path)
    assert refused.returncode == 2
    assert "prompt.template" in refused.stderr


FILES = {
    "generator": ("experiment", "generator: {url: 'http://evil'}\n", "generator.url", ["generator=vllm_server"]),
    "template": ("experiment", "prompt: {template: /etc/hostname}\n", "prompt.template", []),
    "hostfile": ("experiment", "engine: {hostfile: hosts}\n", "engine.hostfile", []),
    "owner": ("experiment", "tracker: {entity: theirs}\n", "tracker.entity", ["tracker=wandb"]),
    "lines of a job": (
        "experiment", "hydra: {launcher: {setup: ['touch canary']}}\n", "hydra.launcher.setup", ["launcher=slurm", "-m"],
    ),
    "a line in a word": (
        "experiment", 'hydra: {launcher: {partition: "a\\ntouch canary"}}\n', "hydra.launcher.partition", ["launcher=slurm", "-m"],
    ),
    "a folder for jobs": (
        "experiment", "hydra: {launcher: {submitit_folder: /home}}\n", "hydra.launcher.submitit_folder", ["launcher=slurm", "-m"],
    ),
    "by a sweep of its own": (
        "experiment", "hydra: {mode: MULTIRUN, sweeper: {params: {engine.hostfile: hosts}}}\n", "engine.hostfile", ["-m"],
    ),
    "trust": ("experiment", "trust_checkpoint: true\n", "trust_checkpoint", []),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_folder_of_configs_is_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    folder, text, key, words = FILES[name]
    if "slurm" in str(words):
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs pip install 'grasp-rl[launch]'")
    monkeypatch.chdir(tmp_path)
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "theirs.yaml").write_text(f"# @package _global_\n{text}")
    line = ["command=train", f"hydra.searchpath=[file://{tmp_path}]", "experiment=theirs"]
    composed = compose.sweep if "-m" in words else compose.single
    line += [word for word in words if word != "-m"]
    with compose.hydra("train") as engine, pytest.raises(ConfigError, match=key):
        composed(engine, line, ())


def test_a_folder_of_configs_may_name_its_own_files_and_what_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiment").mkdir()
    (tmp_path / "q.jinja").write_text("{{ query }}")
    (tmp_path / "experiment/mine.yaml").write_text(
        f"# @package _global_\nprompt: {{template: {tmp_path}/q.jinja}}\nengine: {{hostfile: hosts}}\n"
    )
    words = ["command=train", f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine", "engine.hostfile=hosts"]
    with compose.hydra("train") as engine:
        job = compose.single(engine, [*words, "generator=vllm_server"], ())
    assert job.config["engine"]["hostfile"] == "hosts"
    assert job.config["generator"]["url"] == "http://localhost:8000"


def test_what_every_run_has_is_no_decision() -> None:
    """The usual folder of embeddings, which every config of a SAM holds; another one is a decision."""
    usual = {"segmenter": {"_target_": "x", "cache_dir": "outputs/embeddings"}}
    assert received.decisions(usual) == {}
    usual["segmenter"]["cache_dir"] = "/somewhere"
    assert received.decisions(usual) == {"segmenter.cache_dir": "/somewhere"}
