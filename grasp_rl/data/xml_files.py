"""XML of strangers: elements alone. What declares entities is refused, since a short file can unfold to gigabytes."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree
from xml.parsers import expat

from grasp_rl.data.annotations import AnnotationError

MAX_BYTES = 16 << 20
"""Largest file that is read; an image's annotations have a few thousand bytes."""
MAX_DEPTH = 100
"""Elements within one another."""


class _Refusal(Exception):
    """Why a file is not read on."""


def read_xml(path: Path) -> ElementTree.Element:
    """The root element of an XML file; nothing outside the file is looked at.

    Raises:
        AnnotationError: it is larger than :data:`MAX_BYTES`, declares entities, or is no XML.
    """
    if path.stat().st_size > MAX_BYTES:
        raise AnnotationError(f"{path}: more than {MAX_BYTES >> 20} MiB of XML; take it out")
    builder, parser, depth = ElementTree.TreeBuilder(), expat.ParserCreate(), 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise _Refusal(f"more than {MAX_DEPTH} elements within one another")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def entity(*_: object) -> NoReturn:
        raise _Refusal("it declares entities")

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, builder.data
    parser.EntityDeclHandler = entity
    try:
        parser.Parse(path.read_bytes(), True)
        return builder.close()
    except (expat.ExpatError, ValueError, LookupError, _Refusal) as error:
        raise AnnotationError(f"{path}: not plain XML ({error}); it may be cut short, download it again") from error
