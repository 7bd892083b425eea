"""Where two configs differ, for a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

TARGET = "_target_"
_NOTHING: tuple[Any, ...] = (None, "", [], (), {})


def differences(here: Mapping[str, Any], there: Mapping[str, Any], key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, value here, value there) of what differs among the keys that both have.

    Of a component of another class that class alone, by its name; of ``terms`` of other names the names, too.

    Args:
        here: a config, or a section of one.
        there: another one.
        key: of both, before the names below it.
    """
    if here.get(TARGET) != there.get(TARGET):
        mine, its = (str(side.get(TARGET)).rpartition(".")[2] for side in (here, there))
        yield key, mine, its
        return
    if key.endswith(".terms") and here.keys() != there.keys():
        yield key, "+".join(here), "+".join(there)
    for name in [name for name in here if name in there]:
        mine, its = here[name], there[name]
        where = f"{key}.{name}" if key else str(name)
        if isinstance(mine, Mapping) and isinstance(its, Mapping):
            yield from differences(mine, its, where)
        elif mine != its and not (mine in _NOTHING and its in _NOTHING):
            yield where, mine, its
