"""What somebody else's file may not do through Hydra: have anything instantiated, decide about this machine."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.plugin import Plugin
from omegaconf import OmegaConf

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.messages import quoted_override
from grasp_rl.runs import received
from grasp_rl.utils.files import Record

CONF = Path(str(importlib.import_module("grasp_rl.conf").__file__)).parent
"""Folder of the packaged options."""
_PLAIN_LAUNCHER = ("_target_", "name", "partition", "qos", "account", "constraint", "gres", "comment", "backend")
"""Values of a launcher that are words, not paths, lines of a script or addresses."""


def check_plugin(key: str, node: Any, kind: type[Plugin]) -> None:
    """Demand that what Hydra is to instantiate is one of its installed plugins, and plain values below it.

    Raises:
        ConfigError: it is something else, or has keys that Hydra obeys.
    """
    known = {f"{plugin.__module__}.{plugin.__name__}" for plugin in Plugins.instance().discover(kind)}
    target = node.get("_target_") if isinstance(node, dict) else None
    if target not in known:
        raise ConfigError(
            f"{key}._target_={target!r}: must be an installed plugin of Hydra: {', '.join(sorted(known))}"
        )
    _refuse_obeyed({name: value for name, value in node.items() if name != "_target_"}, key)


def _refuse_obeyed(node: Any, key: str) -> None:
    """Refuse ``_target_``, ``_args_``, ``_partial_`` and the like anywhere in ``node``."""
    if isinstance(node, dict):
        for name, value in node.items():
            if str(name).startswith("_"):
                raise ConfigError(f"{key}.{name}: not allowed; a launcher or sweeper has plain values")
            _refuse_obeyed(value, f"{key}.{name}")
    elif isinstance(node, list):
        for place, value in enumerate(node):
            _refuse_obeyed(value, f"{key}[{place}]")


def demand_said(hydra: Any, raw: Record, said: Sequence[str]) -> None:
    """See that no file of a search path decides about this machine: the command line has to say that again.

    Raises:
        ConfigError: naming the keys and the words that allow them.
    """
    places = [str(place) for place in hydra.searchpath]
    if not places:
        return
    config = {name: _unlike_packaged(name, raw.get(name), hydra.runtime.choices.get(name)) for name in raw}
    folders = [Path(place.removeprefix("file://")) for place in places if place.startswith("file://")]
    said = [key for key in said if "." in key]  # the name of an option says nothing about what its file decides
    received.demand_said_again(config, said, f"hydra.searchpath=[{','.join(places)}]", folders)
    chosen = ConfigStore.instance().load(f"hydra/launcher/{hydra.runtime.choices['hydra/launcher']}.yaml").node
    usual = _flat(OmegaConf.to_container(chosen, resolve=False), "hydra.launcher")
    resolved = _flat(OmegaConf.to_container(hydra.launcher, resolve=True), "hydra.launcher")
    for key, value in _flat(OmegaConf.to_container(hydra.launcher, resolve=False), "hydra.launcher").items():
        plain = isinstance(resolved[key], int | float | None) or (
            key.rpartition(".")[2] in _PLAIN_LAUNCHER and re.fullmatch(r"[\w.:,+@%=-]*", str(resolved[key]))
        )
        given = any(key == name or key.startswith(f"{name}.") for name in said)
        if value != usual.get(key) and not plain and not given:
            raise ConfigError(
                f"{key}: a file of hydra.searchpath decides about this machine; to allow it, say it again: "
                f"{quoted_override(key, str(resolved[key]))}"
            )


def _unlike_packaged(group: str, node: Any, choice: str | None) -> Any:
    """``node`` without the values that the packaged option of that name has, too."""
    option = CONF / group / f"{choice}.yaml"
    if not isinstance(node, dict) or not option.is_file():
        return node
    usual: Any = OmegaConf.to_container(OmegaConf.create(yaml.safe_load(option.read_text())), resolve=False)
    return {key: value for key, value in node.items() if key not in usual or usual[key] != value}


def _flat(node: Any, key: str) -> Record:
    """The values in nested mappings by dotted key; lists are values."""
    if not isinstance(node, dict):
        return {key: node}
    return {name: value for part, below in node.items() for name, value in _flat(below, f"{key}.{part}").items()}
