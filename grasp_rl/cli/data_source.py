"""The dataset that a command line means: a folder with annotations.jsonl, or Hydra's words as for a run.

Hydra is imported only for words such as ``data=rrsis_d``.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.targets import instantiate
from grasp_rl.data.base import RecordDataset
from grasp_rl.data.readers.jsonl import JsonlSource
from grasp_rl.data.synthetic.dataset import SyntheticSource
from grasp_rl.runs import received
from grasp_rl.utils.files import Record

OPTIONS = ("bands", "stretch", "mask_foreground", "ignore_value", "allow_outside")
"""Keys of ``data`` that change how files are read."""
_JSONL = f"{JsonlSource.__module__}.{JsonlSource.__name__}"
_MISSING = "???"


def composed(words: Sequence[str]) -> bool:
    """Whether ``words`` are Hydra's: one of them selects an option of ``data``."""
    return any(word.startswith("data=") for word in words)


def has_option(name: str) -> bool:
    """Whether the package has the option ``data=name``."""
    return resources.files("grasp_rl.conf").joinpath("data", f"{name}.yaml").is_file()


def node_of(words: Sequence[str]) -> tuple[Record, tuple[str, ...]]:
    """The component that Hydra's words describe and the modules that they trust.

    Args:
        words: ``data=OPTION`` and any of ``[+]data.KEY=VALUE``, ``+data@data.KEY=OPTION``, ``trusted_modules=[NAME]``
            and ``hydra.searchpath=[FOLDER]``.

    Raises:
        ConfigError: there is no such option, a word does not fit it, or a value is missing.
    """
    from grasp_rl.launch import compose

    chosen = [word.partition("=")[2] for word in words if word.startswith("data=")]
    rest = [compose.as_it_stands(word) for word in words if not word.startswith("data=")]
    if len(chosen) != 1:
        raise ConfigError(f"data={', data='.join(chosen)}: name one option")
    for word in rest:
        if "=" not in word or not word.lstrip("+~").startswith(("data.", "data@", "trusted_modules=", "hydra.search")):
            raise ConfigError(f"{word}: must be data.KEY=VALUE, trusted_modules=[NAME] or hydra.searchpath=[FOLDER]")
    trusted = compose.trusted_on(rest)
    node = compose.option(f"data/{chosen[0]}", *rest)
    if places := [word for word in rest if word.lstrip("+~").startswith("hydra.search")]:
        received.demand_said_again({"data": node}, compose.keys_of(rest), places[0])
    _demand_values(node, "data")
    return node, trusted


def dataset_of(words: Sequence[str]) -> RecordDataset:
    """The dataset that ``words`` mean.

    Args:
        words: Hydra's; or ``synthetic``; or the root, a folder or an annotations file, and ``data.KEY=VALUE`` of
            :data:`OPTIONS`.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    if composed(words):
        node, trusted = node_of(words)
        dataset = instantiate(node, trusted, "data")
        if not isinstance(dataset, RecordDataset):
            raise ConfigError(f"data._target_={node['_target_']}: must be a RecordDataset for this command")
        return dataset
    if words[0] == "synthetic":
        if len(words) > 1:
            raise ConfigError(f"synthetic {words[1]}: the word alone takes no keys; write data=synthetic {words[1]}")
        return SyntheticSource()
    return JsonlSource(words[0], **options_of(words[1:]))


def annotations_of(words: Sequence[str]) -> tuple[Path, Record] | None:
    """(root, options) where ``words`` mean an annotations file; None where another reader reads the dataset.

    Raises:
        ConfigError: a word does not fit.
    """
    if not composed(words):
        return Path(words[0]), options_of(words[1:])
    node, _ = node_of(words)
    if node.get("_target_") != _JSONL:
        return None
    root = Path(node["root"])
    return root / node["annotations"] if root.is_dir() else root, node


def options_of(words: Sequence[str]) -> dict[str, Any]:
    """The values of ``data.KEY=VALUE``, read as YAML.

    Raises:
        ConfigError: a word is none of :data:`OPTIONS`, or its value is not YAML.
    """
    options = {}
    for word in words:
        key, equals, value = word.partition("=")
        name = key.removeprefix("data.")
        if not equals or key == name or name not in OPTIONS:
            raise ConfigError(f"{word}: must be data.KEY=VALUE, with KEY one of {', '.join(OPTIONS)}")
        try:
            options[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"{word}: the value is not YAML; write a number, a word or [a, list]") from error
    return options


def _demand_values(node: Any, key: str) -> None:
    if node == _MISSING:
        raise ConfigError(f"{key}: has no default; give {key}=VALUE")
    if isinstance(node, dict):
        for name, value in node.items():
            _demand_values(value, f"{key}.{name}")
