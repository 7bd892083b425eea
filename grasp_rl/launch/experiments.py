"""The experiments that a command line can name: packaged ones, and those of its search path."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException

from grasp_rl.launch.untrusted import CONF

GROUP = "experiment"


def paths(places: Sequence[str] = ()) -> dict[str, Path]:
    """The file of every experiment by its name, such as ``think2seg_rs/main_3b``; that of a first place wins.

    Args:
        places: of ``hydra.searchpath``; the packaged options come before them.
    """
    found: dict[str, Path] = {}
    for folder in (CONF, *filter(None, map(_folder, places))):
        top = folder / GROUP
        for path in sorted(top.rglob("*.yaml")):
            if not path.name.startswith("_"):
                found.setdefault(path.relative_to(top).with_suffix("").as_posix(), path)
    return found


def _folder(place: str) -> Path | None:
    """The folder that ``file://FOLDER`` or ``pkg://PACKAGE`` means, if there is one."""
    if not place.startswith("pkg://"):
        return Path(place.removeprefix("file://"))
    spec = importlib.util.find_spec(place.removeprefix("pkg://").replace("/", "."))
    locations = list(spec.submodule_search_locations or ()) if spec else []
    return Path(locations[0]) if locations else None


@contextmanager
def named(places: Sequence[str]) -> Iterator[None]:
    """Give Hydra's error about an experiment that is not there the names of all; Hydra names those of one folder."""
    try:
        yield
    except HydraException as error:
        link: BaseException | None = error
        while link is not None and not isinstance(link, MissingConfigException):
            link = link.__cause__
        if link is not None and str(link.missing_cfg_file).startswith(f"{GROUP}/"):
            link.options = sorted(paths(places))
        raise
