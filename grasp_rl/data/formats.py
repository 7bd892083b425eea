"""What a file or folder is that is no annotations.jsonl: one sentence, and the command that converts it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

_HEAD = 1 << 16
"""Bytes of a file that are looked at."""
_BINARY = (
    (b"\xff\xfe", "UTF-16 text; save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text; save it as UTF-8"),
    (b"\x1f\x8b", "compressed by gzip; unpack it: gunzip FILE"),
    (b"PK\x03\x04", "a zip archive; unpack it: unzip FILE"),
    (b"PAR1", "a Parquet table; write one JSON object a line, as docs/datasets.md shows"),
)
_IMPORT = "convert it: grasp-rl data import"


def of_file(path: Path) -> str | None:
    """What ``path`` is in place of JSON lines and the remedy, told by its first 64 KiB; None where it may be those.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
        rest = file.read(1)
    kind = next((said for magic, said in _BINARY if head.startswith(magic)), None)
    if kind is not None:
        return kind
    text = head.decode("utf-8-sig", "replace").lstrip()
    first, _, following = text.partition("\n")
    following = following.strip() or rest.decode("latin-1")
    if text[:1] in ("{", "["):
        return _of_json(path, text, first, following)
    return _of_text(path, first.strip())


def of_folder(folder: Path) -> str | None:
    """What ``folder`` holds in place of annotations.jsonl, and the command that converts it; None where not known."""
    if any((folder / name).is_file() for name in ("data.yaml", "data.yml", "dataset.yaml", "classes.txt")):
        return f"a YOLO dataset; {_IMPORT} yolo {_quoted(folder)} --out DIR"
    if (folder / "images").is_dir() and (folder / "masks").is_dir():
        return f"a folder of images and masks; {_IMPORT} folder {_quoted(folder)} --out DIR"
    for path in islice(sorted([*folder.glob("*.json"), *folder.glob("annotations/*.json")]), 8):
        kind = of_file(path)
        if kind is not None and "LabelMe" in kind:
            return f"a folder of LabelMe files; {_IMPORT} labelme {_quoted(folder)} --out DIR"
        if kind is not None and "COCO" in kind:
            return f"one with a COCO file; {_IMPORT} coco {_quoted(path)} --out DIR"
    return None


def _of_json(path: Path, text: str, first: str, following: str) -> str | None:
    """A file that begins like JSON: in one line, or in several."""
    try:
        value: Any = json.loads(first)
    except (ValueError, RecursionError):
        last = first.rstrip()[-1:]
        array = last in ("[", "{", ",") and following[:1] in ("{", "[", '"')
        mapping = (last in ("[", ":") and following[:1] in ("{", "[", '"')) or last + following[:1] in ('{"', ',"')
        if following and not (array if text.startswith("[") else mapping):
            return None  # a torn line among others
        return _document(path, text, array=text.startswith("["))
    if isinstance(value, dict):
        return _by_keys(path, json.dumps(value)[:_HEAD]) if not {"query", "image"} & value.keys() else None
    return None if following else _document(path, text, array=True)


def _document(path: Path, text: str, *, array: bool) -> str | None:
    """One JSON document over the whole file; None for a long first line of JSON lines."""
    known = _by_keys(path, text)
    if known is not None:
        return known
    if array:
        remedy = f"write its elements as lines: jq -c '.[]' {_quoted(path)} > annotations.jsonl"
        return f"one JSON array, not one object a line; {remedy}"
    if "\n" in text.strip():
        remedy = f"write each object on one line: jq -c . {_quoted(path)} > annotations.jsonl"
        return f"JSON written over several lines; {remedy}"
    return None


def _by_keys(path: Path, text: str) -> str | None:
    """A format that the keys in ``text``, the beginning of a JSON document, give away."""

    def has(*keys: str, opens: str = r"[\[{\"\d]") -> bool:
        return all(re.search(rf'"{key}"\s*:\s*{opens}', text) for key in keys)

    if has("shapes", opens=r"\["):
        return f"a LabelMe file, one JSON document for one image; {_IMPORT} labelme {_quoted(path.parent)} --out DIR"
    if has("type") and '"FeatureCollection"' in text:
        return "GeoJSON, in map coordinates; write its shapes in pixels of an image, as docs/datasets.md shows"
    label_studio = has("result", opens=r"\[") or has("from_name", "to_name") or has("original_width")
    if label_studio or (text.startswith("[") and has("data", opens=r"\{")):
        return f"an export of Label Studio in its own JSON; export it there as COCO and {_IMPORT} coco FILE --out DIR"
    if any(has(key, opens=r"\[") for key in ("images", "annotations", "categories")):
        return f"a COCO file, one JSON document for all images; {_IMPORT} coco {_quoted(path)} --out DIR"
    if "_via_" in text or (has("regions") and has("filename")):
        return f"a file of the VGG Image Annotator; export it there as COCO and {_IMPORT} coco FILE --out DIR"
    return None


def _of_text(path: Path, first: str) -> str | None:
    """A file that does not begin like JSON."""
    if first.startswith("<"):
        what = "XML (Pascal VOC, CVAT)" if not first.lower().startswith(("<!doctype html", "<html")) else "a web page"
        return f"{what}; write one JSON object a line, as docs/datasets.md shows"
    if re.fullmatch(r"\d+(?:\s+-?\d*\.?\d+(?:[eE][-+]?\d+)?){4,}", first):
        return f"a label file of YOLO; {_IMPORT} yolo {_quoted(_dataset_of(path))} --out DIR"
    columns: Sequence[str] = [name.strip().strip("\"'").lower() for name in re.split(r"[,;\t]", first)]
    if len(columns) > 1 and {"image", "question", "query", "filename", "file_name"} & set(columns):
        return f"a table (CSV); with images/ beside it, {_IMPORT} folder {_quoted(path.parent)} --out DIR"
    return None


def _dataset_of(path: Path) -> Path:
    """The folder of a YOLO dataset that a label file is in."""
    inner = next((parent for parent in path.parents if parent.name == "labels"), None)
    return path.parent if inner is None else inner.parent


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
