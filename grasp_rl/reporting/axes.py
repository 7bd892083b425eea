"""What sets runs apart: overrides and resolved values, and which runs are one configuration under several seeds."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from grasp_rl.reporting.types import StudiedRun
from grasp_rl.runs.environment import overrides_of
from grasp_rl.utils.files import Record

SEEDS = ("seed",)
"""Keys over which runs of one configuration are averaged, unless others are named."""
MISSING = "not set"
"""Stands for a value that a configuration does not have."""
_NOT_AXES = ("experiment", "debug", "launcher", "command", "name", "run_dir", "trusted_modules", "trust_checkpoint")
_NOT_CONFIGURED = ("run_dir", "name", "resume", "trusted_modules", "trust_checkpoint", "tracker", "sweep", "version")
"""Sections of config.yaml that decide no number."""
_PLACES = ("engine.node_rank", "engine.rendezvous", "engine.hostfile", "engine.timeout_s")
_MOST_LEAVES = 4
_Leaves = dict[int, dict[str, str]]
""":func:`leaves` of runs, by their id in memory."""
MOST_AXES = 5
"""Axes up to which each has a column and stands in labels; of more, labels say what differs from common values."""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """Runs that differ in nothing but the keys they are averaged over."""

    axes: Mapping[str, str]
    """What sets it apart from the study's other configurations, by key."""
    label: str
    """The axes as ``key=value, ...``."""
    runs: tuple[StudiedRun, ...]
    notes: tuple[str, ...] = ()


def labelled(runs: Sequence[StudiedRun]) -> list[StudiedRun]:
    """The runs, each with the overrides that differ between them as its axes, and a label of its own."""
    overrides = [overrides_of(run.environment) for run in runs]
    keys = [key for key in dict.fromkeys(k for o in overrides for k in o) if key not in _NOT_AXES]
    keys.sort(key=lambda key: key in SEEDS)  # seeds last
    values = {key: resolved(key, runs) for key in keys}
    keys = [key for key in keys if len(set(values[key])) > 1]
    axes = [{key: values[key][place] for key in keys} for place in range(len(runs))]
    names = [run.folder.name for run in runs]
    folders = [run.folder.name if names.count(run.folder.name) == 1 else str(run.folder) for run in runs]
    labels = _labels(axes)
    return [
        replace(run, axes=own, label=name if not label else label if labels.count(label) == 1 else f"{label}, {name}")
        for run, own, label, name in zip(runs, axes, labels, folders, strict=True)
    ]


def label_of(axes: Mapping[str, str]) -> str:
    """``key=value, ...``"""
    return ", ".join(f"{key}={value}" for key, value in axes.items())


def common_values(axes: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Of more than ``MOST_AXES`` axes the commonest value of each, which labels leave out; of fewer nothing.

    What differs in seed or experiment alone counts once, so that runs and their configurations have the same ones.
    """
    keys = [key for key in (axes[0] if axes else ()) if key not in SEEDS]
    if len(keys) <= MOST_AXES:
        return {}
    points: dict[tuple[str, ...], Mapping[str, str]] = {}
    for own in axes:
        points.setdefault(tuple(own[key] for key in keys if key != "experiment"), own)
    return {key: Counter(own[key] for own in points.values()).most_common(1)[0][0] for key in keys}


def columns(axes: Mapping[str, str], label: str, heading: str = "configuration") -> dict[str, str]:
    """What a table's row begins with: a column an axis, or of more than ``MOST_AXES`` the label under ``heading``."""
    return dict(axes) if sum(key not in SEEDS for key in axes) <= MOST_AXES else {heading: label}


def _labels(axes: Sequence[Mapping[str, str]]) -> list[str]:
    """What to call what has these axes; an experiment's name is left out where the rest tells it apart."""
    common = common_values(axes)
    full = [{key: value for key, value in own.items() if common.get(key) != value} for own in axes]
    labels = [label_of(own) for own in full]
    if not common:
        return labels
    brief = [label_of({key: value for key, value in own.items() if key != "experiment"}) for own in full]
    labels = [name if name and brief.count(name) == 1 else label for name, label in zip(brief, labels, strict=True)]
    return [label or "common values" for label in labels]


def resolved(key: str, runs: Sequence[StudiedRun]) -> list[str]:
    """The value of an override's key in each run, also in those that left it at its default.

    A scalar is what stands in config.yaml. A group is the option that was named; where none was, the one that another
    run named for the same settings, else the name in the settings, else ``default``.
    """
    options = [overrides_of(run.environment).get(key) for run in runs]
    nodes = [_at(run.config, key) for run in runs]
    pairs = [(node, option) for node, option in zip(nodes, options, strict=True) if option is not None]
    changed = dict.fromkeys(k for run in runs for k in overrides_of(run.environment))
    below = [other.removeprefix(f"{key}.") for other in changed if other.startswith(f"{key}.")]
    result = []
    for node, option in zip(nodes, options, strict=True):
        if not isinstance(node, dict | list) and node is not _ABSENT:
            result.append(_text(node))
        elif option is not None:
            result.append(option)
        elif node is _ABSENT:
            result.append("default")
        else:
            same = next((name for other, name in pairs if other == node), None)
            result.append(same or _but_for(below, node, pairs) or name_of(node) or "default")
    return result


def _but_for(keys: Sequence[str], node: object, named: Sequence[tuple[object, str]]) -> str | None:
    """The one option of ``named`` whose settings are those of ``node`` but for ``keys``, if there is one."""
    options = {name for other, name in named if _without(other, keys) == _without(node, keys)} if keys else set()
    return options.pop() if len(options) == 1 else None


def _without(node: Any, keys: Sequence[str]) -> Any:
    """A copy of a section without dotted ``keys``."""
    if not isinstance(node, dict):
        return node
    return {
        name: _without(value, [key.removeprefix(f"{name}.") for key in keys if key.startswith(f"{name}.")])
        for name, value in node.items()
        if name not in keys
    }


def name_of(node: object) -> str | None:
    """What a section of a configuration calls itself."""
    if not isinstance(node, dict):
        return None
    name = node.get("name") or node.get("scheme") or node.get("path")
    return str(name) if name else None


def constants(runs: Sequence[StudiedRun]) -> dict[str, str]:
    """Overrides that all runs have in common, and what some sections are called where that is the same for all."""
    overrides = [overrides_of(run.environment) for run in runs]
    hidden = (*SEEDS, *(key for key in _NOT_AXES if key not in ("experiment", "debug")))
    result = {}
    for key in dict.fromkeys(k for o in overrides for k in o):
        values = set(resolved(key, runs))
        if key not in hidden and len(values) == 1 and all(key in o for o in overrides):
            result[key] = values.pop()
    for key in ("policy", "segmenter", "data", "prompt", "algorithm", "algorithm.steps"):
        nodes = [_at(run.config, key) for run in runs]
        overridden = any(key in o for o in overrides)
        if overridden or nodes[0] is _ABSENT or any(node != nodes[0] for node in nodes):
            continue
        target = str(nodes[0].get("_target_", "")).rpartition(".")[2] if isinstance(nodes[0], dict) else nodes[0]
        result[key] = name_of(nodes[0]) or _text(target)
    return {key: value for key, value in result.items() if value}


def configurations(runs: Sequence[StudiedRun], over: Sequence[str] = SEEDS) -> list[Configuration]:
    """The runs by configuration, in the order of their first ones.

    Two runs are of one configuration if their config.yaml differ in the keys ``over`` alone, and do differ in them: the
    same seed twice is two configurations, not two seeds. Runs of two versions with the same overrides are of one, too,
    where one version only knows more keys than the other and they share no seed; a note says so.

    Args:
        runs: of one study.
        over: keys to average over, with all that is below them.
    """
    groups: list[list[StudiedRun]] = []
    known = {id(run): leaves(run.config, over) for run in runs}
    for run in runs:
        fits = (g for g in groups if _commit(g[0]) == _commit(run) and _same(g[0], run, over, known, versions=False))
        group = next((g for g in fits if _values(run, over) not in [_values(other, over) for other in g]), None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    groups, notes = _merged(groups, over, known)
    axes = _axes([group[0] for group in groups], over)
    labels = [label or _shared_name(group) for label, group in zip(_labels(axes), groups, strict=True)]
    return [
        Configuration(axes=own, label=label, runs=tuple(group), notes=tuple(f"{label}: {note}" for note in own_notes))
        for own, label, group, own_notes in zip(axes, labels, groups, notes, strict=True)
    ]


def _merged(
    groups: Sequence[list[StudiedRun]], over: Sequence[str], known: _Leaves
) -> tuple[list[list[StudiedRun]], list[list[str]]]:
    """Groups of one version each, together where they are seeds of one configuration; with what to say of each."""
    result: list[list[StudiedRun]] = []
    notes: list[list[str]] = []
    for group in groups:
        seeds = {_values(run, over) for run in group}
        for place, kept in enumerate(result):
            commits = {_commit(run) for run in kept} - {None}
            if (
                seeds.isdisjoint(_values(run, over) for run in kept)
                and _commit(group[0]) not in commits
                and _same(kept[0], group[0], over, known, versions=True)
            ):
                only = sorted(known[id(kept[0])].keys() ^ known[id(group[0])].keys())
                if only and kept[0].config and group[0].config:
                    keys = ", ".join(only[:_MOST_LEAVES]) + (", ..." if len(only) > _MOST_LEAVES else "")
                    notes[place].append(f"its runs are of two versions, of which one does not know {keys}")
                kept.extend(group)
                break
        else:
            result.append(list(group))
            notes.append([])
    return result, [list(dict.fromkeys(texts)) for texts in notes]


def _values(run: StudiedRun, over: Sequence[str]) -> tuple[str, ...]:
    """The values that a run has of the keys averaged over."""
    overrides = overrides_of(run.environment)
    nodes = {key: _at(run.config, key) for key in over}
    return tuple(overrides.get(key, MISSING) if node is _ABSENT else _text(node) for key, node in nodes.items())


def leaves(config: Mapping[str, Any], over: Sequence[str] = SEEDS) -> dict[str, str]:
    """What decides a run's numbers: the values of its configuration by dotted key, as text."""
    result: dict[str, str] = {}

    def add(node: Mapping[str, Any], prefix: str) -> None:
        for name, value in node.items():
            key = f"{prefix}{name}"
            if key in over or key in _NOT_CONFIGURED or key in _PLACES:
                continue
            if isinstance(value, dict) and value:
                add(value, f"{key}.")
            else:
                result[key] = _text(value)

    add(config, "")
    return result


class _Absent:
    """No value; None is one."""


_ABSENT = _Absent()


def _at(config: Record, key: str) -> Any:
    """The value under a dotted key, or ``_ABSENT``."""
    node: Any = config
    for part in key.replace("/", ".").split("."):
        if not isinstance(node, dict) or part not in node:
            return _ABSENT
        node = node[part]
    return node


def _text(value: object) -> str:
    """A value as YAML writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else str(value)


def _distinguishing(run: StudiedRun, over: Sequence[str]) -> dict[str, str]:
    """The overrides of a run that can set it apart."""
    overrides = overrides_of(run.environment)
    return {
        k: v for k, v in overrides.items() if k not in over and (k not in _NOT_AXES or k in ("experiment", "debug"))
    }


def _commit(run: StudiedRun) -> object:
    return ((run.environment.get("git") or {}).get("package") or {}).get("commit")


def _same(one: StudiedRun, other: StudiedRun, over: Sequence[str], known: _Leaves, *, versions: bool) -> bool:
    """Whether two runs are of one configuration, whatever their seeds.

    Args:
        one: a run.
        other: another.
        over: keys that do not count.
        known: what decides their numbers.
        versions: whether the two are of two versions, so that keys of one alone do not count.
    """
    first, second = known[id(one)], known[id(other)]
    alike = _distinguishing(one, over) == _distinguishing(other, over)
    if not first or not second:  # config.yaml cannot be read: the overrides are all there is
        return alike
    if first == second:
        return alike or bool(one.config.get("policy"))  # a whole configuration says it all
    return alike and versions and all(first[key] == second[key] for key in first.keys() & second.keys())


def _axes(firsts: Sequence[StudiedRun], over: Sequence[str]) -> list[dict[str, str]]:
    """What sets configurations apart: their runs' axes, then experiments, then single values, as far as needed."""
    keys = list(dict.fromkeys(k for run in firsts for k in overrides_of(run.environment)))
    keys = [key for key in keys if key not in over and key not in _NOT_AXES]
    result: list[dict[str, str]] = [{} for _ in firsts]

    def add(key: str, values: Sequence[str]) -> None:
        if len(set(values)) > 1:
            for own, value in zip(result, values, strict=True):
                own[key] = value

    for key in keys:
        add(key, resolved(key, firsts))
    for key in ("experiment", "debug"):
        if _alike(result):
            add(key, [overrides_of(run.environment).get(key, MISSING) for run in firsts])
    if _alike(result):
        add("commit", [str(_commit(run) or MISSING)[:8] for run in firsts])
    if _alike(result):
        tables = [leaves(run.config, over) for run in firsts]
        places = _alike(result)
        known = list(dict.fromkeys(k for place in places for k in tables[place]))
        differing = [key for key in known if len({tables[place].get(key, MISSING) for place in places}) > 1]
        for key in differing[:_MOST_LEAVES]:
            add(key, [table.get(key, MISSING) for table in tables])
        if _alike(result):
            texts = [json.dumps(table, sort_keys=True) for table in tables]
            add("configuration", [hashlib.sha256(text.encode()).hexdigest()[:8] for text in texts])
    if _alike(result):  # the same seed twice
        add("run", [str(run.folder) for run in firsts])
    return result


def _alike(axes: Sequence[Mapping[str, str]]) -> list[int]:
    """Places of those that another one equals."""
    texts = [label_of(own) for own in axes]
    return [place for place, text in enumerate(texts) if texts.count(text) > 1]


def _shared_name(group: Sequence[StudiedRun]) -> str:
    """What to call a configuration without axes, the study's only one."""
    return group[0].label if len(group) == 1 else "all runs"
