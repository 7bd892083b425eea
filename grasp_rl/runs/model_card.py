"""The model card beside saved weights: what they are, how they were made, how to load them."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from grasp_rl.config.schema import RunConfig
from grasp_rl.runs.run_dir import ENVIRONMENT
from grasp_rl.utils.files import Record, read_json, write_text
from grasp_rl.utils.text import markdown_block, markdown_code, markdown_line, markdown_text, printable

CARD = "README.md"
_SHOWN = ("giou", "ciou", "box_iou", "no_target_accuracy", "parsed", "reward", "samples")
"""Metrics of an evaluation that a reader looks for first."""
_PACKAGES = ("grasp-rl", "torch", "transformers", "peft")


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How the card says to ask."""

    turns: tuple[tuple[str, str], ...]
    """Role and text of each chat turn; the image stands before the text of the user turn."""
    canvas: str
    """Width x height that the coordinates of the answer mean, for an image of 512 x 512 pixels."""
    coordinates: str


def write_card(
    folder: Path,
    config: RunConfig,
    *,
    step: int,
    scores: Mapping[str, Mapping[str, float]],
    commit: str | None = None,
    asking: Asking | None = None,
    terms: Sequence[str] = (),
) -> None:
    """Write ``README.md`` into a policy folder.

    Args:
        folder: holds ``config.json`` or ``adapter_config.json``.
        config: the run's.
        step: optimizer steps done.
        scores: metrics by the name of what was scored; {} where nothing was yet.
        commit: hub commit of the base model, where it has one.
        asking: how the policy is asked; None where that is not known.
        terms: a sentence for each dataset about its licence.

    Raises:
        OSError: it cannot be written.
    """
    adapter = (folder / "adapter_config.json").is_file()
    policy = config.policy or {}
    base, loader = _base(policy)
    head = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["grasp-rl", "reasoning-segmentation", "remote-sensing", "grpo"],
    }
    if base:
        head["base_model"] = base
    environment = read_json(Path(config.run_dir) / ENVIRONMENT) or {}
    loading = _ADAPTER.format(loader=loader) if adapter else _FULL
    if adapter and loader.startswith("warm_start("):
        loading = f"from grasp_rl.policies.tiny.policy import warm_start\n{loading}"
    text = _CARD.format(
        head=yaml.safe_dump(head, sort_keys=False).strip(),
        name=markdown_text(config.name),
        kind="A LoRA adapter" if adapter else "The weights",
        command="GRPO" if config.command == "train" else config.command,
        step=step,
        base=markdown_text(base) if base else _class_of(policy),
        commit=f" (hub commit {markdown_code(commit)})" if commit else "",
        reward=_class_of(config.reward),
        scheme=markdown_code(config.prompt.scheme),
        data=_class_of(config.data),
        code=_code(environment),
        terms="".join(f"- {markdown_line(text)}\n" for text in terms) or "No dataset with a licence of its own.\n",
        scores=_table(scores),
        protocol=markdown_code(_protocol(config)),
        loading=markdown_block(loading, "python"),
        asking="" if asking is None else _ask(asking, policy, adapter=adapter),
        config=markdown_block(yaml.safe_dump(without_local_paths(asdict(config)), sort_keys=False).strip(), "yaml"),
    )
    write_text(folder / CARD, text)


def _ask(asking: Asking, policy: Record, *, adapter: bool) -> str:
    overrides = _words(policy) if adapter else "policy=hf_vlm policy.path=THIS_FOLDER"
    turns = "\n\n".join(f"[{role}]\n{text}" for role, text in asking.turns)
    unit = "pixels of the resized image" if asking.coordinates == "absolute" else "thousandths of its width and height"
    line = f'grasp-rl predict IMAGE.png --query "QUESTION" {overrides}'
    return _ASK.format(line=markdown_block(line, "sh"), turns=markdown_block(turns, "text"), unit=unit,
                       canvas=asking.canvas)  # fmt: skip


def _words(policy: Record) -> str:
    """Overrides that put an adapter on its base; how it is asked stands beside it."""
    keys = ("lora_rank", "lora_alpha", "lora_targets", "train_vision_encoder")
    lora = " ".join(f"policy.{key}={_word(policy[key])}" for key in keys if policy.get(key) is not None)
    if "path" not in policy:
        chosen = "".join(f" policy.{key}={_word(policy[key])}" for key in _TINY if policy.get(key))
        return f"policy=tiny{chosen} {lora} init_from=THIS_FOLDER"
    path = policy["path"] if not Path(policy["path"]).is_dir() else "BASE_MODEL"
    return f"policy=hf_vlm policy.path={_word(path)} {lora} init_from=THIS_FOLDER"


def _word(value: Any) -> str:
    if isinstance(value, list):
        return f"'[{','.join(map(_word, value))}]'"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return shlex.quote(text)


def without_local_paths(value: Any) -> Any:
    """``value`` with every absolute path cut to its last part: a machine's folders are nobody else's business."""
    if isinstance(value, dict):
        return {key: without_local_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_local_paths(item) for item in value]
    if isinstance(value, str) and (PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()):
        return f".../{PurePosixPath(value.replace(chr(92), '/')).name}"
    return value


_TINY = ("size", "family")
"""Arguments of a tiny policy that say which shipped weights it starts from."""


def _base(policy: Record) -> tuple[str | None, str]:
    """Name of the base model, None where it has none of its own, and the Python expression that stands for it."""
    path = policy.get("path")
    if path is None:
        shipped = policy.get("weights", "warm_start") == "warm_start"
        which = ", ".join(f"{key}={_literal(policy[key])}" for key in _TINY if policy.get(key)) or 'size="base"'
        return None, f"warm_start({which})" if shipped else '"BASE_MODEL"'
    if Path(path).is_dir() or Path(path).is_absolute():
        return Path(path).name, f'"BASE_MODEL"  # the folder called {printable(Path(path).name)}'
    return path, _literal(path)


def _literal(value: object) -> str:
    """A Python literal of ``value`` as text."""
    return json.dumps(str(value))


def _class_of(component: Record | None) -> str:
    return markdown_code(str((component or {}).get("_target_", "unknown")).rpartition(".")[2])


def _code(environment: Record) -> str:
    git = (environment.get("git") or {}).get("package") or {}
    changed = ", with uncommitted changes" if git.get("dirty") else ""
    packages = environment.get("packages") or {}
    versions = ", ".join(f"{name} {packages[name]}" for name in _PACKAGES if name in packages)
    commit = markdown_code(git.get("commit", "unknown"))
    return f"commit {commit}{changed}; {markdown_text(versions) or 'versions not recorded'}"


def _table(scores: Mapping[str, Mapping[str, float]]) -> str:
    rows = {name: result for name, result in scores.items() if result}
    if not rows:
        return "Nothing was scored yet."
    known = {key for result in rows.values() for key in result}
    keys = [key for key in _SHOWN if key in known] or sorted(known)  # a protocol of one's own may have other names
    lines = ["| scored | " + " | ".join(map(markdown_text, keys)) + " |", "|---" * (len(keys) + 1) + "|"]
    for name, result in rows.items():
        numbers = " | ".join(f"{result[k]:.4g}" if _is_finite(result.get(k)) else "-" for k in keys)
        lines.append(f"| {markdown_text(name)} | {numbers} |")
    return "\n".join(lines)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _protocol(config: RunConfig) -> str:
    protocol = config.evaluation.protocol
    return str(protocol.get("name") or protocol.get("leader") or str(protocol.get("_target_")).rpartition(".")[2])


_FULL = """from transformers import AutoModelForImageTextToText, AutoTokenizer

model = AutoModelForImageTextToText.from_pretrained("THIS_FOLDER")
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")"""

_ADAPTER = """from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoTokenizer

BASE = {loader}
base = AutoModelForImageTextToText.from_pretrained(BASE)
model = PeftModel.from_pretrained(base, "THIS_FOLDER")
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")"""

_ASK = """
## Ask

{line}

That asks as in training: the turns below, the image before the text of the user turn, in the words of the tokenizer's
chat template. Coordinates of an answer are {unit}; an image of 512 x 512 is one of {canvas} to it. A box edge is a
line between pixels, a point the centre of its cell.

{turns}
"""

_CARD = """---
{head}
---

# {name}

{kind} of a vision-language policy that answers a question about an aerial image with boxes and points for a
promptable segmenter. Trained with grasp_rl: {command}, {step} optimizer steps from {base}{commit}, reward {reward},
prompt scheme {scheme}, data {data}.

Code: {code}.

## Data

{terms}
## Scores

{scores}

By the protocol {protocol}. IoU between the union of the segmenter's masks and the true mask; gIoU is the mean over
samples, cIoU the ratio of summed intersections to summed unions. The segmenter and the data are those of the config
below.

## Load

{loading}
{asking}
## Config

{config}
"""
