"""Experiments that can be rehearsed, and the command line that each states for itself.

They are those of conf/experiment that have a folder, and all of a search path.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.messages import closest
from grasp_rl.launch import experiments

FOLDER = Path(str(files("grasp_rl.conf") / "experiment"))
TOLD = ("hydra.searchpath=", "trusted_modules=")
"""Overrides that a rehearsal takes, from the command line alone."""


@dataclass(frozen=True)
class Recipe:
    """An experiment and how it is started."""

    name: str
    """Such as think2seg_rs/main_3b."""
    command: str
    """train, sft or evaluate."""
    words: tuple[str, ...]
    """The overrides of the usage line, ``experiment=NAME`` first; a folder of one's own stands there as FOLDER."""
    own: bool = False
    """Whether it lies on a search path, and not in this package."""


def names() -> list[str]:
    """All recipes and grids, in alphabetical order, but for the grids of ``tiny``, which run here as they are."""
    return sorted(
        path.relative_to(FOLDER).with_suffix("").as_posix()
        for path in FOLDER.glob("*/*.yaml")
        if not path.name.startswith("_") and path.parent.name != "tiny"
    )


def own(places: Sequence[str]) -> dict[str, Path]:
    """The files of the experiments of a search path that this package does not have, by name."""
    return {name: path for name, path in experiments.paths(places).items() if not path.is_relative_to(FOLDER)}


def recipe(name: str, places: Sequence[str] = ()) -> Recipe:
    """The recipe ``name``, read from the usage line in its file's header, ``# grasp-rl COMMAND experiment=NAME ...``.

    An experiment of the search path ``places`` may lack that line: it is then trained as it stands.

    Raises:
        ConfigError: there is no such recipe, its header has no such line, or the line of an experiment of a search
            path says more than where datasets lie: what is said on a command line is not for files to say.
    """
    found = own(places)
    known = [*names(), *found]
    if name not in known:
        raise ConfigError(
            f"rehearse {name}: no such recipe{closest(name, known)}; --list names them; one of your own is found by "
            "hydra.searchpath=[file://FOLDER], as FOLDER/experiment/NAME.yaml"
        )
    is_own = name in found
    path = found[name] if is_own else FOLDER / f"{name}.yaml"
    header = re.sub(r"\\\n#\s*", "", "".join(re.findall(r"^#.*\n", path.read_text(encoding="utf-8"), re.M)))
    match = re.search(
        rf"^# grasp-rl (train|sft|evaluate)( -m)? (.*\bexperiment={re.escape(name)}(?!\S).*)$", header, re.M
    )
    if match is None:
        if is_own:
            return Recipe(name, "train", (f"experiment={name}",), own=True)
        raise ConfigError(
            f"conf/experiment/{name}.yaml: no line '# grasp-rl COMMAND experiment={name} ...' in its header"
        )
    words = shlex.split(match[3], comments=True)
    if not is_own:
        return Recipe(name, match[1], tuple(words))
    rest = [word for word in words if not word.startswith(("experiment=", *TOLD))]
    for word in rest:
        if not re.match(r"data\.([\w.]+\.)?root=", word):
            raise ConfigError(
                f"{path}: {word}: the line in its header says where datasets lie (data.root=FOLDER), and no more; "
                "write it in the experiment itself"
            )
    return Recipe(name, match[1], (f"experiment={name}", *rest), own=True)
