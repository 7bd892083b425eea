"""What a config that somebody else wrote may decide: numbers and choices, and nothing about this machine.

Addresses, keys of the environment, files and folders outside the run's own, meeting places of processes, owners of a
tracker's records, code from a hub: such a value takes effect where the command line says it again, or where the
config is one's own (:mod:`grasp_rl.runs.origin`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.messages import quoted_override
from grasp_rl.config.targets import COMPONENTS, load_raw
from grasp_rl.runs import origin
from grasp_rl.runs.run_dir import CONFIG, refuse_foreign
from grasp_rl.utils.files import MOST_TEMPLATE, Record, Unreadable, read_text, write_text

TEMPLATES = Path(__file__).parents[1] / "prompts/templates"
"""Folder of the packaged templates."""
OWN_TEMPLATES = "templates"
"""Folder in a run directory: the text of every template of the run that is a file."""
_ENGINE = ("rendezvous", "hostfile", "deepspeed_config")
_COMPONENT = ("url", "api_key_env", "adapter_folder", "adapter_folder_there", "entity", "cache_dir")
"""Keys of components, nested ones too."""
_USUAL = {"cache_dir": "outputs/embeddings"}
"""What this program writes there where nobody decided anything."""
_FILES = ("inference.refine.path", "regime.mining.reuse")


_INNER_COMPONENTS = ("evaluation.protocol", "algorithm.own_advantage", "algorithm.own_surrogate")
"""Components within sections that are otherwise values."""


def read(run_dir: Path, named: Collection[str], where: str, parts: Sequence[str] = ()) -> Record:
    """The config of the run in ``run_dir`` as :func:`grasp_rl.config.targets.load_raw` reads it, safe to act on.

    A template that was a file is the one that the run carries, unless the config is one's own.

    Args:
        run_dir: the folder.
        named: keys and groups that the command line gives; what it says in their place is the caller's business.
        where: what the command line calls the folder, such as ``resume=RUN``.
        parts: sections of the config that are acted on; () for all.

    Raises:
        ConfigError: there is no such config, the folder holds what is not its own, or the config decides something
            about this machine that the command line does not say again.
    """
    refuse_foreign(run_dir)
    config = load_raw(run_dir / CONFIG)
    if origin.is_own(run_dir / CONFIG):
        return config
    config = _with_own_templates(config, run_dir)
    acted_on = {key: value for key, value in config.items() if not parts or key in parts}
    demand_said_again(acted_on, named, where, [run_dir])
    return config


def demand_said_again(config: Record, named: Collection[str], where: str, own: Sequence[Path] = ()) -> None:
    """See that the command line says again what ``config``, somebody else's, decides about this machine.

    Args:
        config: resolved, or some of its sections.
        named: keys and groups that the command line gives.
        where: whose config it is, for the message.
        own: folders that came with the config.

    Raises:
        ConfigError: naming the keys and the words that allow them.
    """
    said = [key.replace("/", ".") for key in named]
    unsaid = {
        key: value
        for key, value in decisions(config, own).items()
        if not any(key == name or key.startswith(f"{name}.") for name in said)
    }
    if unsaid:
        overrides = " ".join(quoted_override(key, str(value)) for key, value in unsaid.items())
        raise ConfigError(
            f"{where}: its config, which no run of yours wrote, decides about this machine; to allow it, say it again: "
            f"{overrides}"
        )


def decisions(config: Record, own: Sequence[Path] = ()) -> Record:
    """The values of a resolved config that are about this machine, by dotted key.

    Args:
        config: resolved, or some of its sections.
        own: folders that came with the config, whose files it may name.
    """
    settings: Record = {}
    engine = config.get("engine")
    if isinstance(engine, Mapping):
        settings |= {f"engine.{key}": engine[key] for key in _ENGINE if engine.get(key) is not None}
    for name in COMPONENTS:
        settings |= dict(_of_component(config.get(name), name))
    for key in _INNER_COMPONENTS:
        settings |= dict(_of_component(_at(config, key), key))
    files = {key: str(value) for key in _FILES if (value := _at(config, key)) is not None}
    files |= {key: value for key, value in _templates(config) if not _is_packaged(value)}
    return settings | {key: value for key, value in files.items() if not any(_inside(value, folder) for folder in own)}


def _of_component(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, list):
        for place, item in enumerate(node):
            yield from _of_component(item, f"{key}.{place}")
    if not isinstance(node, Mapping):
        return
    for name, value in node.items():
        from_hub = name == "attention" and isinstance(value, str) and "/" in value
        outside = name == "allow_outside" and value is True
        decides = name in _COMPONENT and value is not None and value != _USUAL.get(name)
        if decides or from_hub or outside:
            yield f"{key}.{name}", value
        else:
            yield from _of_component(value, f"{key}.{name}")


def _templates(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every template that a config names, by dotted key."""
    if not isinstance(node, Mapping):
        return
    for name, value in node.items():
        where = f"{key}.{name}" if key else str(name)
        of_prompt = name == "template" and key.rpartition(".")[2] == "prompt"
        if (of_prompt or name == "prompt_template") and isinstance(value, str):
            yield where, value
        else:
            yield from _templates(value, where)


def _is_packaged(template: str) -> bool:
    return bool(re.fullmatch(r"\w+", template)) and (TEMPLATES / f"{template}.jinja").is_file()


def _inside(path: str, folder: Path) -> bool:
    """Whether ``path`` lies in ``folder``."""
    return os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep)


def _at(config: Record, key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def carry_templates(config: Record, run_dir: Path) -> None:
    """Write the text of every template of ``config`` that is a file into its run directory.

    Raises:
        ConfigError: one is no text of at most :data:`MOST_TEMPLATE` bytes.
        OSError: one cannot be read or written.
    """
    for key, template in _templates(config):
        if not _is_packaged(template) and not _inside(template, run_dir) and Path(template).is_file():
            try:
                write_text(_carried(run_dir, template), read_text(Path(template), MOST_TEMPLATE))
            except Unreadable as error:
                raise ConfigError(f"{key}={template!r}: is no template ({error})") from error


def _carried(run_dir: Path, template: str) -> Path:
    return run_dir / OWN_TEMPLATES / f"{sha256(template.encode()).hexdigest()[:16]}.jinja"


def _with_own_templates(config: Record, run_dir: Path) -> Record:
    """``config`` with the templates that the run carries in place of the files that they were read from."""
    copies = {key: _carried(run_dir, template) for key, template in _templates(config)}
    return _replaced(config, {key: str(path) for key, path in copies.items() if path.is_file()}, "")


def _replaced(node: Record, values: Mapping[str, str], key: str) -> Record:
    result = {}
    for name, value in node.items():
        where = f"{key}{name}"
        result[name] = values.get(where, _replaced(value, values, f"{where}.") if isinstance(value, dict) else value)
    return result
