"""Packages that a plain installation lacks: the extras of pyproject.toml."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from grasp_rl.config.errors import ConfigError


def demand(what: str, packages: Sequence[str], extra: str) -> None:
    """Demand that packages are installed.

    Args:
        what: a sentence's beginning that says who needs them, such as ``the page needs``.
        packages: by the name that they are imported by.
        extra: that brings them.

    Raises:
        ConfigError: naming those that are not, and what to install.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"{what} {', '.join(missing)}: not installed; pip install 'grasp-rl[{extra}]'")
