"""Files that a config names, looked for before a queue is waited for. Hub ids and options' names pass."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.messages import closest
from grasp_rl.config.schema import RunConfig
from grasp_rl.runs.checkpoints import find_policy
from grasp_rl.runs.run_dir import CONFIG, MINED
from grasp_rl.utils.files import Record

_TEMPLATES = Path(__file__).parents[1] / "prompts/templates"
_FILES = (".pt", ".pth", ".ckpt", ".safetensors", ".bin")
"""Endings of weights that are one file."""
_HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?", re.ASCII)


def check_paths(config: RunConfig) -> None:
    """Demand that every file and folder that ``config`` names is there, as far as this package knows what it names.

    Raises:
        ConfigError: naming the key, the path and what it has to be.
    """
    for key, problem in _problems(config):
        raise ConfigError(f"{key}: {problem}")


def _problems(config: RunConfig) -> Iterator[tuple[str, str]]:
    template, packaged = config.prompt.template, sorted(path.stem for path in _TEMPLATES.glob("*.jinja"))
    if template not in packaged and not Path(template).is_file():
        yield (
            f"prompt.template={template!r}",
            f"must be one of {', '.join(packaged)} or a template file; there is none{closest(template, packaged)}",
        )
    for key in ("hostfile", "deepspeed_config"):
        value = getattr(config.engine, key)
        if value is not None and not Path(value).is_file():
            yield f"engine.{key}={value!r}", "no such file"
    fit = config.inference.refine.path
    if fit is not None and not Path(fit).exists():
        yield f"inference.refine.path={fit!r}", "no such run directory or file"
    mined = config.regime.mining.reuse
    if mined is not None and not (Path(mined) / MINED if Path(mined).is_dir() else Path(mined)).is_file():
        yield f"regime.mining.reuse={mined!r}", f"no {MINED} there; name a run of regime=mined, or such a file"
    if config.init_from is not None:
        yield from _of_weights(config.init_from)
    yield from _of_components(config)


def _of_weights(source: str) -> Iterator[tuple[str, str]]:
    if not source or not Path(source).is_dir():
        yield f"init_from={source!r}", "no such folder; name a run, a checkpoint or a policy folder"
        return
    try:
        find_policy(Path(source))
    except ConfigError as error:
        yield f"init_from={source!r}", str(error).partition(": ")[2]


def _of_components(config: RunConfig) -> Iterator[tuple[str, str]]:
    data, policy, segmenter = (_own(getattr(config, name)) for name in ("data", "policy", "segmenter"))
    root, annotations = data.get("root"), data.get("annotations")
    if isinstance(root, str) and not (root and Path(root).exists()):
        yield f"data.root={root!r}", "no such folder or file"
    elif annotations and Path(str(root)).is_dir() and not (Path(str(root)) / annotations).is_file():
        yield f"data.root={root!r}", f"holds no {annotations}; name that folder, the file, or data.annotations"
    weights = str(policy.get("weights", "random"))
    if weights not in ("warm_start", "random") and not (Path(weights) / "config.json").is_file():
        said = f"must be warm_start, random or a folder that a run wrote, with config.json{_hint(weights)}"
        yield f"policy.weights={weights!r}", said
    for name, component in (("policy", policy), ("segmenter", segmenter)):
        path = component.get("path")
        own = name == "segmenter" and str(path).startswith(("packaged:", "random:"))  # its loader knows the names
        if isinstance(path, str) and not own and not (path and Path(path).exists()) and not _is_hub_id(path):
            yield f"{name}.path={path!r}", "no such folder or file, and not a hub id (ORGANISATION/NAME)"
    path = policy.get("path")
    if isinstance(path, str) and (Path(path) / CONFIG).is_file():
        yield f"policy.path={path!r}", f"is a run folder, not a model{_hint(path)}"


def _is_hub_id(path: str) -> bool:
    return bool(_HUB_ID.fullmatch(path)) and not path.endswith(_FILES)


def _hint(folder: str) -> str:
    """Where in a run folder the policy lies."""
    try:
        return f"; its policy is {find_policy(Path(folder))}"
    except ConfigError:
        return ""


def _own(component: Record | None) -> Record:
    """A component of this package; of others nobody here knows what their keys mean."""
    component = component or {}
    return component if str(component.get("_target_", "")).startswith("grasp_rl.") else {}
