"""The packages of the extra ``geo``, which a plain installation lacks."""

from __future__ import annotations

from grasp_rl.config.extras import demand

PACKAGES = ("pyproj", "geopandas", "pyogrio", "rio_cogeo")


def demand_geo() -> None:
    """Demand that the extra is installed.

    Raises:
        ConfigError: a package of it is missing.
    """
    demand("map layers need", PACKAGES, "geo")
