"""A segmenter's weights: by hub id, from a folder of the port, or from one of Meta's original files; strictly."""

from __future__ import annotations

import hashlib
import logging
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from grasp_rl.config.errors import ConfigError
from grasp_rl.segmenters.synthetic import build as small
from grasp_rl.utils.files import foreign_weights

log = logging.getLogger(__name__)

disable_progress_bar()  # a run's log is a file

SHOWN = 10
"""Keys listed of those that do not fit."""
ORIGINAL = (".pt", ".pth")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Where the weights come from."""

    path: str
    revision: str | None = None
    architecture: str | None = None
    allow_pickle: bool = False

    @property
    def where(self) -> str:
        """The config key and its value."""
        return f"segmenter.path={self.path!r}"


def load(
    weights: Weights,
    model_class: str,
    architectures: Mapping[str, Mapping[str, Any]],
    rename: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
) -> tuple[Any, str | None]:
    """The model in float32, and the hub commit that it came from, if any.

    Args:
        weights: where from.
        model_class: name of the class in transformers.
        architectures: published architectures for original files.
        rename: original keys in the port's words.

    Raises:
        ConfigError: this transformers has no such class; there is nothing at the path; the file is damaged or a pickle
            that is not trusted; the keys or shapes do not fit; or no small architecture has that name.
    """
    if not hasattr(transformers, model_class):
        raise ConfigError(
            f"segmenter: transformers {transformers.__version__} has no {model_class}; "
            "pip install --upgrade transformers"
        )
    if weights.path.startswith(small.RANDOM):
        return small.build(weights.path.removeprefix(small.RANDOM), model_class), None
    if weights.path.startswith(small.PACKAGED):
        weights = replace(weights, path=str(small.packaged(weights.path.removeprefix(small.PACKAGED))))
    if Path(weights.path).suffix in ORIGINAL:
        return _original(weights, model_class, architectures, rename), None
    return _ported(weights, model_class)


def build(model_class: str, architecture: Mapping[str, Any]) -> Any:
    """A model of ``model_class`` with a published architecture and random weights, on torch's default device."""
    kind = getattr(transformers, model_class)
    return kind(kind.config_class(**architecture))


def _ported(weights: Weights, model_class: str) -> tuple[Any, str | None]:
    kind = "folder" if Path(weights.path).exists() else "hub id or folder"
    if problem := foreign_weights(Path(weights.path)):
        raise ConfigError(f"{weights.where}: {problem}; weights lie in the folder of their index")
    try:
        config = transformers.AutoConfig.from_pretrained(
            weights.path, revision=weights.revision, trust_remote_code=False
        )
        loader = getattr(transformers, model_class)
        _same_kind(weights, config.model_type, loader.config_class.model_type)
        model, report = loader.from_pretrained(
            weights.path,
            revision=weights.revision,
            use_safetensors=None if weights.allow_pickle else True,
            weights_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with the keys
        )
    except (SafetensorError, pickle.UnpicklingError) as error:
        raise ConfigError(f"{weights.where}: a weights file is damaged ({error}); copy it again") from error
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{weights.where}: no {model_class} in this {kind}: {error}{_hint(weights)}") from error
    commit = getattr(config, "_commit_hash", None)
    if commit:
        pinned = "" if weights.revision else ", not pinned: segmenter.revision takes it"
        log.info("%s: hub commit %s%s", weights.where, commit, pinned)
    _check(weights, report["missing_keys"], report["unexpected_keys"], report["mismatched_keys"])
    return model, commit


def _same_kind(weights: Weights, stored: str, expected: str) -> None:
    """SAM checkpoints for images and for video name their configs differently and share their weights."""
    if stored.removesuffix("_video") != expected:
        raise ConfigError(f"{weights.where}: holds a model of type {stored!r}, must hold {expected!r}")


def _hint(weights: Weights) -> str:
    folder = Path(weights.path)
    if not folder.is_dir() or weights.allow_pickle:
        return ""
    pickled = [path.name for suffix in ("bin", "pt", "pth") for path in folder.glob(f"*.{suffix}")]
    if not pickled or list(folder.glob("*.safetensors")):
        return ""
    return f"; it holds a pickle ({pickled[0]}): convert it, or trust it with segmenter.allow_pickle_weights=true"


def _original(
    weights: Weights,
    model_class: str,
    architectures: Mapping[str, Mapping[str, Any]],
    rename: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
) -> Any:
    if weights.architecture is None or weights.architecture not in architectures:
        valid = ", ".join(architectures) or "none for this segmenter"
        raise ConfigError(f"segmenter.architecture={weights.architecture!r}: must be one of {valid}")
    state = rename(read_original(weights))
    model = build(model_class, architectures[weights.architecture])
    fit(weights, model, state)
    model.load_state_dict(state)
    return model


def read_original(weights: Weights) -> dict[str, Tensor]:
    """The tensors of one of Meta's files, by their original names.

    Raises:
        ConfigError: it is not there, damaged, not trusted, or holds something else.
    """
    if not weights.allow_pickle:
        raise ConfigError(f"{weights.where}: is a pickle; trust it with segmenter.allow_pickle_weights=true")
    try:
        content = torch.load(weights.path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ConfigError(f"{weights.where}: no such file") from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ConfigError(f"{weights.where}: is damaged, or holds more than tensors: {error}") from error
    state = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ConfigError(f"{weights.where}: is no checkpoint of weights")
    return {str(name): value for name, value in state.items()}


def fit(weights: Weights, model: Any, state: Mapping[str, Tensor]) -> None:
    """Demand that ``state`` has exactly the model's keys and shapes.

    Raises:
        ConfigError: listing the first ten that differ.
    """
    expected = model.state_dict()
    shared = expected.keys() & state.keys()
    _check(
        weights,
        expected.keys() - state.keys(),
        state.keys() - expected.keys(),
        [name for name in shared if expected[name].shape != state[name].shape],
    )


def _check(weights: Weights, missing: Any, unexpected: Any, mismatched: Any) -> None:
    problems = []
    for kind, result in (("missing", missing), ("unexpected", unexpected), ("of another shape", mismatched)):
        keys = sorted(str(k[0]) if isinstance(k, tuple) else str(k) for k in result)
        if keys:
            more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
            problems.append(f"{kind}: {', '.join(keys[:SHOWN])}{more}")
    if problems:
        raise ConfigError(f"{weights.where}: the weights do not fit the model; {'; '.join(problems)}")


def fingerprint(model: Any) -> str:
    """A hash of all weights: equal weights give equal embeddings, whatever path they came from."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
