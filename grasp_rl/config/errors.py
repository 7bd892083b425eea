"""The error of a value that cannot be used, and the checks that raise it."""

from __future__ import annotations


class ConfigError(ValueError):
    """A config value that cannot be used. The message names the key, what was found and what is valid."""


def require(ok: bool, key: str, found: object, valid: str) -> None:
    """Raise a :class:`ConfigError` unless ``ok``; ``valid`` ends the sentence "must be ..."."""
    if not ok:
        raise ConfigError(f"{key}={found!r}: must be {valid}")


def one_of(key: str, found: str, choices: tuple[str, ...]) -> None:
    """Raise a :class:`ConfigError` unless ``found`` is one of ``choices``."""
    require(found in choices, key, found, "one of " + ", ".join(choices))
