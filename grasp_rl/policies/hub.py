"""Weights, tokenizer and config by hub id or local folder, strictly: no remote code, no pickle, no missing key."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer
from transformers.utils import cached_file

from grasp_rl.config.errors import ConfigError
from grasp_rl.utils.files import foreign_weights

SHOWN = 10
"""Keys listed of those that do not fit."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a model comes from."""

    path: str
    """Hub id or local folder."""
    revision: str | None = None
    """Hub branch, tag or commit."""
    allow_pickle: bool = False
    """Take ``pytorch_model.bin`` where there are no safetensors, by torch's ``weights_only`` unpickler."""

    @property
    def keywords(self) -> dict[str, Any]:
        """What every ``from_pretrained`` is told."""
        return {"revision": self.revision, "trust_remote_code": False}


def load_config(source: Source) -> Any:
    """The checkpoint's config. ``_commit_hash`` is the hub commit that ``revision`` meant.

    Raises:
        ConfigError: there is no such model here, or its class is not in transformers.
    """
    try:
        return AutoConfig.from_pretrained(source.path, **source.keywords)
    except (OSError, ValueError) as error:
        raise _unavailable(source, error) from error


def load_tokenizer(source: Source) -> Any:
    """The checkpoint's tokenizer with its chat template, wherever the checkpoint keeps that.

    Raises:
        ConfigError: there is none here, or it has no chat template.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.path, **source.keywords)
        legacy = cached_file(
            source.path, "chat_template.json", revision=source.revision, _raise_exceptions_for_missing_entries=False
        )
    except (OSError, ValueError) as error:
        raise _unavailable(source, error) from error
    if legacy:  # where processors kept the template that knows about images
        tokenizer.chat_template = json.loads(Path(legacy).read_text(encoding="utf-8"))["chat_template"]
    if not tokenizer.chat_template:
        raise ConfigError(
            f"policy.path={source.path!r}: its tokenizer has no chat template; put chat_template.jinja beside it"
        )
    return tokenizer


def load_model(source: Source, *, dtype: Any, attention: str | dict[str, str]) -> Any:
    """The checkpoint's ``...ForConditionalGeneration``, every weight from the file and every key used.

    Raises:
        ConfigError: the weights are not there, damaged, pickled, elsewhere, or do not fit the config beside them.
    """
    if problem := foreign_weights(Path(source.path)):
        raise ConfigError(f"policy.path={source.path!r}: {problem}; weights lie in the folder of their index")
    weights = {"use_safetensors": None if source.allow_pickle else True, "weights_only": True}
    try:
        model, report = AutoModelForImageTextToText.from_pretrained(
            source.path,
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with the keys
            **weights,
            **source.keywords,
        )
    except SafetensorError as error:
        raise ConfigError(f"policy.path={source.path!r}: a weights file is damaged ({error}); copy it again") from error
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"policy.path={source.path!r}: its pickle is damaged or holds more than weights; refused"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise _unavailable(source, error) from error
    check_keys(f"policy.path={source.path!r}", report)
    return model


def check_keys(where: str, report: Any) -> None:
    """Demand that ``from_pretrained`` found each weight and used each key.

    Raises:
        ConfigError: naming the first ten that it did not.
    """
    problems = []
    for kind in ("missing", "unexpected", "mismatched"):
        keys = sorted(str(k[0]) if isinstance(k, tuple) else str(k) for k in report[f"{kind}_keys"])
        if keys:
            more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
            problems.append(f"{kind}: {', '.join(keys[:SHOWN])}{more}")
    if problems:
        raise ConfigError(f"{where}: the weights do not fit the config beside them; {'; '.join(problems)}")


def _unavailable(source: Source, error: Exception) -> ConfigError:
    where = f"policy.path={source.path!r}"
    folder = Path(source.path)
    if folder.is_dir():
        if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
            return ConfigError(
                f"{where}: holds a LoRA adapter, not a model; export the run with --merge, or name the adapter's base "
                "here, its policy.lora_rank, and the adapter as init_from"
            )
        pickled = [p.name for p in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth"))]
        if pickled and not list(folder.glob("*.safetensors")) and not source.allow_pickle:
            return ConfigError(
                f"{where}: holds pickled weights only ({pickled[0]}); convert them to safetensors, or trust the file "
                "with policy.allow_pickle_weights=true"
            )
        return ConfigError(f"{where}: cannot be loaded: {first_line(error)}")
    return ConfigError(
        f"{where}: is no folder here, and the hub does not give it: {first_line(error)}; check the id and "
        "policy.revision, or download it first and give the folder"
    )


def first_line(error: Exception) -> str:
    """What an error of a library says first."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
