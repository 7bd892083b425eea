"""Datasets in other formats, written anew as annotations.jsonl with their images: one file a format."""

from __future__ import annotations

from collections.abc import Callable

from grasp_rl.data.importers import coco, folder, labelme, yolo
from grasp_rl.data.importers.base import Source

IMPORTERS: dict[str, Callable[..., Source]] = {
    "coco": coco.read,
    "folder": folder.read,
    "labelme": labelme.read,
    "yolo": yolo.read,
}
"""By format: ``read(path, images=..., question=...)``."""
