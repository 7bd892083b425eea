"""Which files are opened: local ones that refer to nothing else, unless the user trusts them.

A VRT or a KMZ names further files and addresses, and GDAL's ``/vsi`` paths reach into archives and networks: what
somebody else wrote into a file would decide what this machine reads.
"""

from __future__ import annotations

import re
from pathlib import Path

from grasp_rl.config.errors import ConfigError

_ADDRESS = re.compile(r"(?i:/vsi|[a-z][a-z0-9+.-]*:/|//|\\\\)|[A-Z][A-Z0-9_]+:")
_DRIVE = re.compile(r"[a-z]:[\\/]", re.IGNORECASE)
_REFERRING = (".vrt", ".kmz", ".kml", ".ovrt", ".xml")
_TRUST = "if you know where it comes from, --trust-paths"
_VECTORS = (b"SQLite format 3\0", b"\0\0\x27\x0a", b"PAR1", b"fgb\x03")
"""How a GeoPackage, a Shapefile, a GeoParquet and a FlatGeobuf begin."""


def is_address(text: str) -> bool:
    """Whether ``text`` is no plain path on this machine: ``/vsi...``, an address, a share, or ``NETCDF:FILE:NAME``."""
    return _ADDRESS.match(text) is not None and _DRIVE.match(text) is None


def refers(path: Path) -> bool:
    """Whether the file in ``path`` may name other files or addresses: a VRT, KML, an archive, by ending or content."""
    if path.suffix.lower() in _REFERRING:
        return True
    head = _head(path).lstrip()
    return head.startswith((b"<", b"PK\x03\x04", b"\xef\xbb\xbf<"))


def check_raster(text: str, *, trust: bool) -> None:
    """Demand a raster that refers to nothing else.

    Raises:
        ConfigError: ``text`` is an address, or the file may refer to others, and ``trust`` does not say that it may.
    """
    if trust:
        return
    if is_address(text):
        raise ConfigError(f"{text}: not a plain path; give the file itself, or, {_TRUST}")
    if refers(Path(text)):
        raise ConfigError(
            f"{text}: a file that may name other files or addresses (VRT, KML, KMZ, an archive); make a GeoTIFF of it "
            f"(gdal_translate IN OUT.tif), or, {_TRUST}"
        )


def check_vector(text: str, *, trust: bool) -> None:
    """Demand a GeoPackage, GeoJSON, Shapefile, GeoParquet or FlatGeobuf.

    Raises:
        ConfigError: it is none, or no plain path, and ``trust`` does not say that it may be.
    """
    if trust:
        return
    path = Path(text)
    if is_address(text):
        raise ConfigError(f"{text}: not a plain path; give the file itself, or, {_TRUST}")
    if not path.is_file():
        raise ConfigError(f"{text}: {'not a file' if path.exists() else 'no such file'}; name a layer of polygons")
    head = _head(path).lstrip(b"\xef\xbb\xbf \t\r\n")
    if not (head.startswith((b"{", b"\0\0\x27\x0a")) or _head(path).startswith(_VECTORS)):
        raise ConfigError(
            f"{text}: is no GeoPackage, GeoJSON, Shapefile (.shp), GeoParquet or FlatGeobuf; convert it (ogr2ogr "
            f"OUT.gpkg IN), or, {_TRUST}"
        )


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(256)
    except OSError:
        return b""  # whoever opens it says what is wrong
