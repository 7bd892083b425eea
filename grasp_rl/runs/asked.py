"""How a saved policy is to be asked: ``grasp_rl.json`` beside its weights.

Weights alone do not say in which words a policy was trained to be asked, in which frame it answers, and how large it
sees an image; read with a family's usual ones, its answers are other boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import PromptConfig
from grasp_rl.runs.checkpoints import find_policy
from grasp_rl.utils.files import MOST_TEMPLATE, Record, read_json, read_text, write_json, write_text

FILE = "grasp_rl.json"
TEMPLATE = "question.jinja"
"""The question's template beside it, where that is not a packaged one."""
_FORMAT = 1
_POLICY_KEYS = ("coordinates", "dtype")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The question, the frame and the image size of a policy."""

    prompt: PromptConfig
    coordinates: str
    """``absolute`` pixels of the resized image, or ``thousand`` (0..1000)."""
    image: Record
    """``min_pixels``, ``max_pixels`` and ``resize`` of policy.image."""
    dtype: str

    def write(self, folder: Path) -> None:
        """Write it into ``folder``, the template's text included where it is a file of its own.

        Raises:
            OSError: it cannot be written, or the template not read.
        """
        prompt = asdict(self.prompt)
        if Path(self.prompt.template).is_file():
            write_text(folder / TEMPLATE, read_text(Path(self.prompt.template), MOST_TEMPLATE))
            prompt["template"] = TEMPLATE
        record = {"format": _FORMAT, "prompt": prompt, "coordinates": self.coordinates, "image": self.image}
        write_json(folder / FILE, record | {"dtype": self.dtype})


def adopt(config: Record, named: Sequence[str]) -> tuple[Record, list[str]]:
    """A composed config with what the folder of its weights says about their policy; what is ``named`` stays.

    The folder is ``init_from`` (a run, a checkpoint, a policy folder), else ``policy.path`` or ``policy.weights``.

    Args:
        config: resolved, as config.yaml will hold it.
        named: keys and groups that the user gave.

    Returns:
        The config, and what of it changed, as overrides.

    Raises:
        ConfigError: ``policy.path`` is a folder that a run wrote and does not say how its policy is asked, or what it
            says cannot be read.
    """
    policy = config.get("policy") or {}
    folder, record = _source(config.get("init_from"), policy, named)
    if folder is None or record is None:
        return config, []
    prompt, template = dict(config["prompt"]), record["prompt"]["template"]
    if "prompt" not in named:
        prompt |= {key: value for key, value in record["prompt"].items() if f"prompt.{key}" not in named}
    if template == TEMPLATE:
        template = str(folder / TEMPLATE)
    asked_by_name = {"prompt.template", "policy.prompt_template"} & set(named)
    prompt["template"] = config["prompt"]["template"] if asked_by_name else template
    keys = [key for key in _POLICY_KEYS if key in policy and f"policy.{key}" not in named]
    changed = {key: record[key] for key in keys if key != "dtype" or not config.get("init_from")}
    if isinstance(policy.get("image"), dict) and "policy.image" not in named:
        kept = {key: value for key, value in record["image"].items() if f"policy.image.{key}" not in named}
        changed["image"] = policy["image"] | kept
    adopted = policy | changed | {"prompt_template": prompt["template"]}
    differences = _differences("prompt", config["prompt"], prompt) + _differences("policy", policy, adopted)
    return config | {"prompt": prompt, "policy": adopted}, differences


def _differences(key: str, before: Record, after: Record) -> list[str]:
    """Overrides that turn ``before`` into ``after``."""
    lines = []
    for name, value in after.items():
        if isinstance(value, dict) and isinstance(before.get(name), dict):
            lines += _differences(f"{key}.{name}", before[name], value)
        elif before.get(name) != value:
            lines.append(f"{key}.{name}={value}")
    return lines


def _source(init_from: Any, policy: Record, overridden: Sequence[str]) -> tuple[Path | None, Record | None]:
    """The folder that the weights come from, where it says how they are asked, and what it says."""
    if init_from:
        try:
            folder = find_policy(Path(str(init_from)))
        except ConfigError:  # said where the weights are wanted
            return None, None
        return folder, _read(folder, overridden) if (folder / FILE).exists() else None
    if policy.get("path"):
        return Path(str(policy["path"])), _read(Path(str(policy["path"])), overridden)
    folder = Path(str(policy.get("weights") or "\0"))
    if "\0" in str(folder) or not (folder / FILE).exists():
        return None, None
    return folder, _read(folder, overridden)


def _read(folder: Path, overridden: Sequence[str]) -> Record | None:
    """The record in ``folder``; None for a model that was not written by a run."""
    record = read_json(folder / FILE)
    if record is None:
        if not (folder / FILE).exists() and not _was_written_by_a_run(folder):
            return None
        needed = ("policy.coordinates", "policy.prompt_template")
        if all(key in overridden for key in needed):
            return None
        raise ConfigError(
            f"policy.path={str(folder)!r}: was exported without {FILE}, which says how it is asked; export it again, "
            f"or name {', '.join(f'{key}=' for key in needed)} and policy.image.max_pixels= as they were in training"
        )
    keys = {field.name for field in fields(PromptConfig)}
    prompt, image = record.get("prompt"), record.get("image")
    whole = isinstance(prompt, Mapping) and {"scheme", "template"} <= set(prompt) <= keys and isinstance(image, Mapping)
    if record.get("format") != _FORMAT or not whole or not all(_is_text(record.get(key)) for key in _POLICY_KEYS):
        raise ConfigError(f"{folder / FILE}: is damaged or of another version of grasp_rl; export the policy again")
    if not _is_text(template := record["prompt"]["template"]) or "/" in template or "\\" in template:
        raise ConfigError(f"{folder / FILE}: prompt.template={template!r}: must be a packaged one or {TEMPLATE}")
    usual = {key: value for key, value in asdict(PromptConfig()).items() if key not in record["prompt"]}
    return record | {"prompt": record["prompt"] | usual}  # fields that its version did not have


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _was_written_by_a_run(folder: Path) -> bool:
    card = folder / "README.md"
    return card.is_file() and "\n- grasp-rl\n" in card.read_text(encoding="utf-8", errors="replace")[:2000]
