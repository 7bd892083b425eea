"""The images of the page: examples that come with the package, drawn scenes, and what a person uploads."""

from __future__ import annotations

import base64
import binascii
import math
import random
import re
import tempfile
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.image_io import MAX_PIXELS, ImageReading, open_source
from grasp_rl.data.readers.jsonl import JsonlSource
from grasp_rl.data.synthetic.dataset import SyntheticSource
from grasp_rl.geo.grid import Grid
from grasp_rl.geo.scene import open_scene, overview, pixel_text
from grasp_rl.types import Sample
from grasp_rl.utils.text import printable

MAX_BYTES = 20_000_000
"""Largest file that is taken."""
MAX_NAME = 200
"""Most characters of a file's name."""
SIDE = 1024
"""Longer side in pixels to which a larger upload is reduced, so that every answer is a matter of seconds."""
_BEGINNINGS = {
    b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF",
}  # fmt: skip
"""How a file of each kind begins; the two with + are BigTIFF."""
_DRAWN = {"vessel": 13, "landing": 10, "roofs": 16, "nothing": 6}
"""Examples of the easy drawn scenes by their place in the split ``test``."""


@dataclass(frozen=True, kw_only=True)
class PageImage:
    """An image, a question about it, and what is known of both."""

    sample: Sample
    """Image and question; the true mask and weak labels of that question where they are known."""
    grid: Grid
    """Where its pixels lie on the earth; without a CRS where that is not known."""
    name: str
    """For a person, and in the files that are downloaded."""
    note: str
    """What was done to the stored values, and what is known of the place; may be empty."""
    file: str = ""
    """Name of the file that was uploaded, where the browser says it."""

    @property
    def source(self) -> str:
        """What the attribute ``source`` of a layer says."""
        return self.file or self.name

    def knows(self, query: str) -> bool:
        """Whether the truth about ``query`` is known: it is of the sample's own question alone."""
        return self.sample.target_mask is not None and query.strip() == self.sample.query


def example(name: str) -> PageImage:
    """One of :data:`EXAMPLES`.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in EXAMPLES:
        raise ConfigError(f"example {name!r}: must be one of {', '.join(EXAMPLES)}")
    if name == "meadow":
        sample = JsonlSource(root=str(files("grasp_rl.demo") / "scenes")).split("test")[0]
        return _known(sample, "meadow, an airborne photograph")
    return _known(_drawn("easy").split("test")[_DRAWN[name]], f"drawn scene, example {name}")


EXAMPLES = {
    "vessel": "A boat on a lake",
    "landing": "A place to land",
    "roofs": "Several roofs",
    "nothing": "Something that is not there",
    "meadow": "A real photograph",
}
"""Names of the examples, and what stands on their buttons."""


def draw(level: str) -> PageImage:
    """A drawn scene by chance, with its question and the truth.

    Args:
        level: ``easy`` or ``hard``; see docs/datasets.md.

    Raises:
        ConfigError: there is no such level.
    """
    split = _drawn(level).split("test")
    index = random.randrange(len(split))
    return _known(split[index], f"drawn scene, {level}, number {index}")


def read_upload(text: str, file: str = "", *, max_bytes: int = MAX_BYTES, side: int = SIDE) -> PageImage:
    """The image that a browser sent, its kind told by its content. No file of it stays.

    Args:
        text: the file in base64.
        file: its name; only the last part of a path is kept.
        max_bytes: largest file.
        side: longer side of the result in pixels, at most; a larger image is reduced.

    Raises:
        ConfigError: it is no PNG, JPEG or TIFF, too large, damaged, or cannot be shown as RGB.
    """
    if len(text) > (max_bytes + 2) // 3 * 4:
        raise ConfigError(f"the file is larger than {max_bytes / 1e6:g} MB; reduce it, or cut a part out of it")
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError("the file arrived damaged; choose it again") from None
    kind = next((kind for beginning, kind in _BEGINNINGS.items() if content.startswith(beginning)), None)
    if kind is None:
        raise ConfigError("the file is no PNG, JPEG or TIFF, whatever its name says; save it as one of these")
    with tempfile.TemporaryDirectory(prefix="grasp_rl_demo_") as folder:
        path = Path(folder) / "upload"
        path.write_bytes(content)
        try:
            return replace(_read(path, kind, side), file=printable(re.split(r"[\\/]", file)[-1])[:MAX_NAME])
        except ConfigError as error:
            raise ConfigError(str(error).replace(str(path), f"the {kind} file")) from None


def _read(path: Path, kind: str, side: int) -> PageImage:
    with open_source(path, MAX_PIXELS):
        pass  # refuses an image of too many pixels by its header
    with open_scene(str(path), ImageReading()) as scene:
        grid, image = overview(scene, side)
        description, own = scene.description, scene.grid
        if grid.ground_size is not None and own.ground_size is not None:  # the page shows pixels of this size
            description = description.replace(pixel_text(own.ground_size), pixel_text(grid.ground_size))
        notes = [description] if description else []
        if grid.size != own.size:
            said = "" if own.ground_size is None else f", {pixel_text(own.ground_size)}"
            how = "reduced" if math.prod(grid.size) < math.prod(own.size) else "resampled"
            notes.append(f"{how} from {own.width} x {own.height} pixels{said}")
    sample = Sample(
        sample_id="upload", image=image, query="", target_mask=None, weak_labels=None, dataset="upload", split=""
    )
    return PageImage(sample=sample, grid=grid, name=f"your {kind}", note="; ".join(notes))


def _known(sample: Sample, name: str) -> PageImage:
    height, width = sample.size
    return PageImage(sample=sample, grid=Grid(width, height), name=name, note="")


@cache
def _drawn(level: str) -> SyntheticSource:
    if level not in ("easy", "hard"):
        raise ConfigError(f"level {level!r}: must be easy or hard")
    return SyntheticSource(level=level)
