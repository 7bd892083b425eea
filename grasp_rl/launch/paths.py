"""Files that a config names, looked for before a queue is waited for. Hub ids and options' names pass."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.messages import closest
from grasp_rl.config.schema import RunConfig
from grasp_rl.utils.files import Record

_TEMPLATES = Path(__file__).parents[1] / "prompts/templates"
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
    if config.init_from is not None and not Path(config.init_from).is_dir():
        yield f"init_from={config.init_from!r}", "no such folder; name a run, a checkpoint or a policy folder"
    yield from _of_components(config)


def _of_components(config: RunConfig) -> Iterator[tuple[str, str]]:
    data, policy, segmenter = (_own(getattr(config, name)) for name in ("data", "policy", "segmenter"))
    root = data.get("root")
    if isinstance(root, str) and not Path(root).exists():
        yield f"data.root={root!r}", "no such folder or file"
    weights = policy.get("weights")
    if isinstance(weights, str) and weights not in ("warm_start", "random") and not Path(weights).is_dir():
        yield f"policy.weights={weights!r}", "must be warm_start, random or a folder that a run wrote; there is none"
    for name, component in (("policy", policy), ("segmenter", segmenter)):
        path = component.get("path")
        if isinstance(path, str) and not Path(path).exists() and not _HUB_ID.fullmatch(path):
            yield f"{name}.path={path!r}", "no such folder or file, and not a hub id (ORGANISATION/NAME)"


def _own(component: Record | None) -> Record:
    """A component of this package; of others nobody here knows what their keys mean."""
    component = component or {}
    return component if str(component.get("_target_", "")).startswith("grasp_rl.") else {}
