"""No config runs code: what `_target_` may name, and what its arguments may be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from grasp_rl.config import targets
from grasp_rl.config.errors import ConfigError
from grasp_rl.launch.worker import build

CANARY = "canary"
TOUCH = f"touch {CANARY}"
GOOD = {"_target_": "grasp_rl.data.synthetic.dataset.SyntheticSource"}

TARGETS: list[Any] = [
    "os.system",
    "posix.system",
    "subprocess.run",
    "subprocess.Popen",
    "builtins.exec",
    "builtins.eval",
    "builtins.open",
    "builtins.__import__",
    "functools.partial",
    "pickle.loads",
    "logging.os.system",
    "logging.FileHandler",
    "importlib.import_module",
    "runpy.run_path",
    "ctypes.CDLL",
    "shutil.rmtree",
    "pathlib.Path.touch",
    "yaml.unsafe_load",
    "torch.load",
    "torch.hub.load",
    "numpy.load",
    "hydra.utils.instantiate",
    "omegaconf.OmegaConf.register_new_resolver",
    "grasp_rl.launch.main.subprocess.run",
    "grasp_rl.launch.main.main",
    "grasp_rl.launch.process.Job",
    "grasp_rl.cli.main.os.system",
    "grasp_rl.data.synthetic.dataset.np.load",
    "grasp_rl.data.synthetic.dataset.ConfigError",
    "grasp_rl.data.synthetic.dataset.SyntheticSource.split",
    "grasp_rl.data.weak_labels.weak_labels_from_masks",
    "grasp_rl.data.synthetic.dataset._private",
    "grasp_rl.data.synthetic.dataset.__builtins__",
    "grasp_rl.data.synthetic.dataset",
    "grasp_rl.data..synthetic.SyntheticSource",
    "grasp_rl.data.synthetic.dataset.SyntheticSource ",
    "grasp_rl.data/synthetic.SyntheticSource",
    "grasp_rl.datasets.Evil",
    "grasp_rl.data.nowhere.Evil",
    "os",
    "..os.system",
    "",
    None,
    3,
    ["os.system"],
    {"_target_": "os.system"},
]

SHAPES: list[Any] = [
    {"_target_": "os.system", "command": TOUCH},
    {"_target_": "os.system", "_args_": [TOUCH]},
    GOOD | {"_args_": [TOUCH]},
    GOOD | {"_partial_": True},
    GOOD | {"_convert_": "all"},
    GOOD | {"_recursive_": False},
    GOOD | {"seed": {"_target_": "os.system", "command": TOUCH}},
    GOOD | {"seed": [{"_target_": "os.system", "command": TOUCH}]},
    [[[{"_target_": "os.system", "command": TOUCH}]]],
    {"a": {"b": [{"c": {"_target_": "builtins.exec", "_args_": ["import os"]}}]}},
    {"_target_": "functools.partial", "_args_": ["os.system", TOUCH]},
    {"_target_": "pickle.loads", "data": "cos\nsystem\n(S'touch canary'\ntR."},
]


@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_targets_are_refused(target: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"policy\._target_"):
        targets.check({"_target_": target}, (), "policy")
    with pytest.raises(ConfigError):
        targets.instantiate({"_target_": target, "command": TOUCH})
    assert not (tmp_path / CANARY).exists()


@pytest.mark.parametrize("node", SHAPES, ids=range(len(SHAPES)))
def test_shapes_are_refused(node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError):
        targets.instantiate(node)
    assert not (tmp_path / CANARY).exists()


@pytest.mark.parametrize(
    "name", ["os", "builtins", "subprocess", "importlib.util", "grasp_rl", "", "a b", "../x", 3, None]
)
def test_modules_that_cannot_be_trusted(name: Any) -> None:
    with pytest.raises(ConfigError, match="trusted_modules"):
        targets.check_trusted([name])


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"train_sise": 3}, r"data\.train_sise: SyntheticSource has no such argument; did you mean train_size\?"),
        ({"train_size": "many"}, r"data\.train_size='many': must be int"),
        ({"train_size": 2.5}, r"data\.train_size=2\.5: must be int"),
        ({"train_size": True}, r"data\.train_size=True: must be int"),
        ({"train_size": None}, r"data\.train_size=None: must be int"),
    ],
)
def test_arguments_are_checked(extra: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        targets.check(GOOD | extra, (), "data")


def test_the_whole_is_built() -> None:
    source = targets.instantiate(GOOD | {"train_size": 5})
    assert len(source.split("train")) == 5


LAB = ("outside_lab",)


def _reward(**extra: Any) -> dict[str, Any]:
    return {"_target_": "outside_lab.parts.AreaReward", "threshold": 1} | extra


def test_outside_classes_need_trust(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(lab))
    with pytest.raises(ConfigError, match="trusted_modules"):
        targets.check(_reward())
    targets.check(_reward(), LAB)
    targets.check(_reward(), ("outside_lab.parts",))
    targets.check({"_target_": "outside_lab.parts.make_reward"}, LAB)
    for near in (("outside",), ("outside_la",), ("outside_lab.part",)):
        with pytest.raises(ConfigError, match="trusted_modules"):
            targets.check(_reward(), near)
    assert "outside_lab.parts" not in sys.modules


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"_target_": "outside_lab.parts.AreaReward"}, r"threshold: missing"),
        (_reward(threshold="high"), r"threshold='high': must be float"),
        (_reward(names=["a", 3]), r"names=\['a', 3\]: must be list\[str\]"),
        (_reward(nams=[]), r"did you mean names\?"),
        (_reward(inner={"_target_": "outside_lab.parts.os.system"}), r"inner\._target_"),
        (
            _reward(inner={"_target_": "outside_lab.parts.ConfigError"}),
            r"must be a class that outside_lab\.parts itself",
        ),
        ({"_target_": "outside_lab.parts.Policy", "trouble": "yes"}, r"must be Literal"),
        ({"_target_": "outside_lab.parts.Part", "x": 1}, r"Part has no such argument; valid: none"),
    ],
)
def test_outside_arguments(lab: Path, monkeypatch: pytest.MonkeyPatch, node: dict[str, Any], said: str) -> None:
    monkeypatch.syspath_prepend(str(lab))
    with pytest.raises(ConfigError, match=said):
        targets.check(node, LAB)


def test_inner_components_are_built_first(lab: Path) -> None:
    code = (
        "from grasp_rl.config.targets import instantiate\n"
        "r = instantiate({'_target_': 'outside_lab.parts.AreaReward', 'threshold': 1, 'names': ['a'],"
        " 'inner': {'_target_': 'outside_lab.parts.Part'}}, ['outside_lab'])\n"
        "assert type(r.inner).__name__ == 'Part' and r.names == ['a'], r\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=lab, check=True, timeout=60)


def test_worker_takes_trust_from_its_command_line_only(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(lab))
    part = {"_target_": "outside_lab.parts.Part"}
    raw = dict.fromkeys(targets.COMPONENTS, part) | {"trusted_modules": ["outside_lab"]}
    with pytest.raises(ConfigError, match="trusted_modules"):
        build(targets.to_config(raw))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version: 99\n", "version=99"),
        ("command: train\n", "version=None"),
        ("version: 1\nalgoritm: {}\n", "algoritm: no such key; did you mean algorithm"),
        ("version: 1\nseed: ${oc.env:HOME}\n", "seed=.*a resolved config holds no"),
        ("version: 1\nsft: {phases: [{lr: '${oc.env:HOME}'}]}\n", r"sft\.phases\[0\]\.lr"),
        ("version: 1\nseed: -1\n", "seed=-1"),
        ("- a\n", "no mapping"),
        ("a: [\n", "not a config"),
        ("a: !!python/object/apply:os.system ['touch canary']\n", "not a config"),
    ],
)
def test_resolved_configs_are_checked(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        targets.load_config(path)
    assert not (tmp_path / CANARY).exists()
