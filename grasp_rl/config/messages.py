"""Errors of OmegaConf and Hydra as one line: the key, what was found, what is valid.

Hydra's errors are known by their attributes, so that the worker's side needs no Hydra.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import shlex
from collections.abc import Sequence
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from grasp_rl.config import other_trainers
from grasp_rl.config.schema import RunConfig
from grasp_rl.config.signatures import definitions, source_of
from grasp_rl.utils.text import printable

_KINDS = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false", "string": "text"}


TERMS = "grasp_rl.rewards.terms"
"""The package of reward terms, read as source."""


def closest(found: str, choices: Sequence[str], cutoff: float = 0.7) -> str:
    """``; did you mean X?`` where a choice is close to ``found``, otherwise nothing.

    Dotted names are compared by their last part.

    Args:
        found: what was given.
        choices: what there is.
        cutoff: the least likeness of the two, in [0, 1].
    """
    leaves: dict[str, list[str]] = {}
    for choice in choices:
        if not found.startswith(choice + "."):
            alike = leaves.setdefault(choice.rsplit(".", 1)[-1], [])
            alike += [] if choice in alike else [choice]
    near = difflib.get_close_matches(found.rsplit(".", 1)[-1], leaves, n=1, cutoff=cutoff)
    return f"; did you mean {' or '.join(leaves[near[0]][:3])}?" if near else ""


def tunables() -> list[str]:
    """Dotted names of all values of the dataclass tree."""
    return _leaves(RunConfig, "")


def one_line(error: Exception) -> str:
    """What went wrong, for a person, without a line break."""
    chain = [error]
    while isinstance(cause := chain[-1].__cause__, Exception):
        chain.append(cause)
    for link in chain:
        if hasattr(link, "missing_cfg_file"):
            return _missing_option(
                link,
                link.missing_cfg_file or "",
                sorted(o for o in getattr(link, "options", None) or () if not o.startswith("_")),
            )
        if hasattr(link, "override"):
            return _unreadable(str(link.override), _first_line(link))
        if isinstance(link, ConfigAttributeError | ConfigKeyError):
            return _unknown_key(link, _overridden(error))
        if isinstance(link, MissingMandatoryValue):
            return f"{link.full_key}: has no default; give {link.full_key}=VALUE"
        if isinstance(link, OmegaConfBaseException):
            return _wrong_value(link, _assigned(error))
    return _flat(_plain_hydra(error))


def of_system(error: Exception) -> str:
    """The words of a ConfigError or OSError on one line that a terminal can be shown, without error numbers."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return printable(f"{error.filename}: {error.strerror}")
    return printable(_flat(str(error))) or type(error).__name__


def _missing_option(error: Exception, requested: str, options: list[str]) -> str:
    group, _, option = requested.rpartition("/")
    if not group:
        return _flat(str(error))
    if requested.startswith("experiment/"):
        return _missing_experiment(requested.removeprefix("experiment/"), options)
    valid = "must be one of " + ", ".join(options) if options else f"there is none in {group}"
    more = "; pip install 'grasp-rl[launch]' adds some" if group == "hydra/launcher" else ""
    return f"{group}={option}: no such option; {valid}{closest(option, options)}{more}"


def _missing_experiment(name: str, options: list[str]) -> str:
    """``options`` are the names of all experiments, ``FOLDER/NAME`` those in a folder."""
    inside = [option for option in options if option.startswith(f"{name}/")]
    if inside:
        return f"experiment={name}: is a folder of experiments; must be one of {', '.join(inside)}"
    folder, _, leaf = name.rpartition("/")
    beside = [option for option in options if option.rpartition("/")[0] == folder]
    leaves = {option.rpartition("/")[2]: option for option in beside}
    near = [leaves[found] for found in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.7)]
    near = near or [option for option in options if option.rpartition("/")[2] == leaf]
    if not folder or not beside:
        near = near or difflib.get_close_matches(name, options, n=1, cutoff=0.7)
        beside = [option for option in options if "/" not in option]
        beside += sorted({f"{option.partition('/')[0]}/..." for option in options if "/" in option})
    valid = f"one of {', '.join(beside)}"
    hint = f"did you mean {' or '.join(near[:3])}? It must be" if near else "must be"
    return f"experiment={name}: no such option; {hint} {valid}"


def _unreadable(override: str, why: str) -> str:
    """An override outside Hydra's grammar: where it is a key and its value, with the value in quotes, ready to copy."""
    key, equals, value = override.partition("=")
    if not equals or not re.fullmatch(r"[+~]{0,2}[\w./@-]+", key):
        return f"{override}: cannot be read ({why}); write key=value"
    return f"{override}: has characters outside Hydra's grammar; quote the value: {quoted_override(key, value)}"


def quoted_override(key: str, value: str) -> str:
    """``key=value`` for a shell, the value as one text of Hydra's grammar."""
    return shlex.quote(f"{key}={quoted(value)}")


def quoted(value: str) -> str:
    """``value`` as one text of Hydra's grammar, where a backslash counts only in front of a quotation mark."""
    escaped = re.sub(r'(\\*)"', r"\1\1\"", value)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f'"{escaped}{chr(92) * trailing}"'


def _unknown_key(error: OmegaConfBaseException, overridden: str) -> str:
    key = str(error.full_key or error.key)
    if overridden and not overridden.startswith(key.split(".", maxsplit=1)[0]):
        key = f"{overridden}[].{key}"  # inside a list, which OmegaConf leaves out of the name
    parent = error.parent_node
    siblings = [str(k) for k in parent] if isinstance(parent, DictConfig) else []
    prefix = key.rpartition(".")[0] + "." if "." in key else ""
    known = [prefix + name for name in siblings if name != "hydra"]
    valid = ", ".join(sorted(name.removeprefix(prefix) for name in known))
    typed = overridden if overridden.startswith(f"{key}.") else key
    if key.startswith("reward.") and prefix.endswith(".terms."):
        return _unknown_term(key, closest(key, known), valid)
    hint = _suggestion(typed, key, known, _names(parent, prefix.rstrip(".")))
    more = f"; +{key}=VALUE passes a further constructor argument" if error.object_type is dict else ""
    return f"{typed}: no such key{hint} Valid: {valid}" if hint else f"{typed}: no such key; valid: {valid}{more}"


def _suggestion(typed: str, key: str, siblings: Sequence[str], below: Sequence[str]) -> str:
    """What may be meant by a key that there is not; empty where nothing is close.

    First a name below the group that was typed or spelt alike beside the key, then the name of another trainer, then
    what is spelt alike below its group, or in another group if it is really close.

    Args:
        typed: the whole key.
        key: the part of it up to the first name that there is not.
        siblings: keys that there are in its place.
        below: all dotted names below the same group, groups included.
    """
    last, rest = key.rpartition(".")[2], typed.removeprefix(key)
    exact = [name for name in below if name.rpartition(".")[2] == last and "." in key]
    if exact:
        whole = [name + rest for name in exact if name + rest in below] or exact
        return f"; did you mean {' or '.join(whole[:3])}?"
    if "." in key and (near := closest(key, siblings, cutoff=0.85)):
        return near
    if "[" not in key and (theirs := other_trainers.ours(typed)):
        return f"; here it is {theirs}."
    if near := closest(key, siblings):
        return near
    return ("." in key and closest(key, below)) or closest(typed, [*below, *tunables()], cutoff=0.85)


def _names(node: Any, prefix: str) -> list[str]:
    """Dotted names of everything below ``node``, whose own name is ``prefix``; lists are not entered."""
    if isinstance(node, DictConfig):
        node = OmegaConf.to_container(node, resolve=False)
    result = []
    for name, value in node.items() if isinstance(node, dict) else ():
        if prefix or name != "hydra":
            dotted = f"{prefix}.{name}" if prefix else str(name)
            result += [dotted, *_names(value, dotted)]
    return result


def _unknown_term(key: str, near: str, valid: str) -> str:
    """A term that the reward does not have: those it has, and how this one is added."""
    name = key.rpartition(".")[2]
    kind = "".join(part.capitalize() for part in name.split("_"))
    base = source_of(TERMS)
    modules = [f"{TERMS}.{path.stem}" for path in sorted(base.parent.glob("*.py"))] if base else []
    known = next((f"{module}.{kind}" for module in modules if kind in definitions(module)), "")
    if near and not known:
        return f"{key}: this reward has no such term{near} It has {valid}"
    added = shlex.quote(f"+{key}={{_target_: {known or 'CLASS'}, weight: 1}}")
    return f"{key}: this reward has no such term; it has {valid}; to add one: {added}"


def _wrong_value(error: OmegaConfBaseException, assigned: str | None) -> str:
    key, text = error.full_key or "config", _first_line(error)
    if match := re.match(r"Value (.*) of type .* could not be converted to (\w+)", text):
        result, kind = match.groups()
        return f"{key}={result}: must be {_KINDS.get(kind, kind)}{_or_null(error)}"
    if "is not Optional" in text or "assign None" in text:
        return f"{key}=null: must have a value"
    text = re.sub(r"^\w+ raised while resolving interpolation: ", "", text)
    if key == "hydra.sweep.subdir":  # a job is named by what it runs, and what is said is about that
        return _flat(text)
    return _flat(f"{assigned or key}: {text}")


def _or_null(error: OmegaConfBaseException) -> str:
    if not dataclasses.is_dataclass(error.object_type):
        return ""
    hint = get_type_hints(error.object_type).get(str(error.key))
    return " or null" if type(None) in getattr(hint, "__args__", ()) else ""


def _overridden(error: Exception) -> str:
    match = re.match(r"Could not override '(.*)'", str(error))
    return match.group(1) if match else ""


def _assigned(error: Exception) -> str | None:
    match = re.match(r"Error merging override (.*)", str(error))
    return match.group(1) if match else None


def _plain_hydra(error: Exception) -> str:
    text = str(error)
    if match := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(.*?)'", text):
        override = match.group(1)
        more = f", one text is quoted: {quoted_override(*override.split('=', 1))}" if "=" in override else ""
        return f"{override}: several values need -m (a sweep); a list is key=[a,b]{more}"
    if match := re.search(r"path=(\S+) is not\s+available", text):
        return f"hydra.searchpath={match.group(1)}: no such folder or package"
    return text


def _leaves(kind: type[Any], prefix: str) -> list[str]:
    names: list[str] = []
    for name, hint in get_type_hints(kind).items():
        names += _leaves(hint, f"{prefix}{name}.") if dataclasses.is_dataclass(hint) else [prefix + name]  # type: ignore[arg-type]
    return names


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith("Error parsing override")), type(error).__name__)


def _flat(text: str) -> str:
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())
