"""Names that transformers changed between supported versions: each asked for of the installed class, in one place."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

CACHE_KEYWORDS = ("cache", "past_key_values")
"""The key-value cache of a language model: ``cache`` from transformers 5.24 on, whose older name goes away in 5.40."""


@lru_cache(maxsize=64)
def _cache_keyword(forward: Callable[..., Any]) -> str:
    accepted = inspect.signature(forward).parameters
    for name in CACHE_KEYWORDS:
        if name in accepted:
            return name
    raise TypeError(
        f"{forward.__qualname__} takes none of {', '.join(CACHE_KEYWORDS)}: this version of transformers is not "
        "supported"
    )


def cache_keyword(language_model: Any) -> str:
    """The keyword by which a stock language model takes its key-value cache.

    Raises:
        TypeError: it takes none of the known ones.
    """
    return _cache_keyword(type(language_model).forward)


def cache_in(fields: Mapping[str, Any]) -> Any:
    """The key-value cache among the keywords or output fields of a stock model, under either name; None if absent."""
    return next((fields[name] for name in CACHE_KEYWORDS if fields.get(name) is not None), None)


def enable_activation_checkpointing(stock: Any, settings: Mapping[str, Any]) -> None:
    """Let the layers of a stock model make their activations again in the backward pass.

    The method is called ``activation_checkpointing_enable`` from transformers 5.24 on.
    """
    enable = getattr(stock, "activation_checkpointing_enable", None) or stock.gradient_checkpointing_enable
    enable(dict(settings))


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """Without the warning about an attribute of transformers that PEFT (seen in 0.21.2) reads by its old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield
