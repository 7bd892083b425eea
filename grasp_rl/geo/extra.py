"""The packages of the extra ``geo``, which a plain installation lacks."""

from __future__ import annotations

import importlib.util

from grasp_rl.config.errors import ConfigError

PACKAGES = ("pyproj", "geopandas", "pyogrio", "rio_cogeo")


def demand_geo() -> None:
    """Demand that the extra is installed.

    Raises:
        ConfigError: a package of it is missing.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"map layers need {', '.join(missing)}: not installed; pip install 'grasp-rl[geo]'")
