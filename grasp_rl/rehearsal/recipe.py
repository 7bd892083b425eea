"""The experiments of conf/experiment that have a folder, and the command line that each states for itself."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.messages import closest

FOLDER = Path(str(files("grasp_rl.conf") / "experiment"))


@dataclass(frozen=True)
class Recipe:
    """An experiment and how it is started."""

    name: str
    """Such as think2seg_rs/main_3b."""
    command: str
    """train, sft or evaluate."""
    words: tuple[str, ...]
    """The overrides of the usage line, ``experiment=NAME`` first; a folder of one's own stands there as FOLDER."""


def names() -> list[str]:
    """All recipes and grids, in alphabetical order, but for the grids of ``tiny``, which run here as they are."""
    return sorted(
        path.relative_to(FOLDER).with_suffix("").as_posix()
        for path in FOLDER.glob("*/*.yaml")
        if not path.name.startswith("_") and path.parent.name != "tiny"
    )


def recipe(name: str) -> Recipe:
    """The recipe ``name``, read from the usage line in its file's header, ``# grasp-rl COMMAND experiment=NAME ...``.

    Raises:
        ConfigError: there is no such recipe, or its header has no such line.
    """
    if name not in names():
        raise ConfigError(f"rehearse {name}: no such recipe{closest(name, names())}; --list names them")
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    header = re.sub(r"\\\n#\s*", "", "".join(re.findall(r"^#.*\n", text, re.M)))
    match = re.search(rf"^# grasp-rl (\S+)( -m)? (experiment={re.escape(name)}\b.*)$", header, re.M)
    if match is None:
        raise ConfigError(
            f"conf/experiment/{name}.yaml: no line '# grasp-rl COMMAND experiment={name} ...' in its header"
        )
    return Recipe(name, match[1], tuple(shlex.split(match[3])))
