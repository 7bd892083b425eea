"""How QGIS draws a layer: each question in its own colour, see-through, with an outline."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.sax.saxutils import quoteattr, unescape

from grasp_rl.utils.text import printable

_COLOURS = (
    (230, 57, 70),
    (42, 157, 143),
    (244, 162, 97),
    (69, 123, 157),
    (131, 56, 236),
    (255, 190, 11),
    (106, 153, 78),
)

_DOCUMENT = """<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>
<qgis version="3.22" styleCategories="Symbology">
 <renderer-v2 type="categorizedSymbol" attr="query" symbollevels="0" enableorderby="0" forceraster="0">
  <categories>
{categories}
  </categories>
  <symbols>
{symbols}
  </symbols>
 </renderer-v2>
 <layerGeometryType>2</layerGeometryType>
</qgis>
"""
_SYMBOL = """   <symbol type="fill" name="{number}" alpha="1" clip_to_extent="1" force_rhr="0">
    <layer class="SimpleFill" enabled="1" locked="0" pass="0">
     <prop k="color" v="{red},{green},{blue},90"/>
     <prop k="outline_color" v="{red},{green},{blue},255"/>
     <prop k="outline_style" v="solid"/>
     <prop k="outline_width" v="0.5"/>
     <prop k="outline_width_unit" v="MM"/>
     <prop k="style" v="solid"/>
    </layer>
   </symbol>"""


def style(queries: Sequence[str]) -> str:
    """A QML document with one category for each of ``queries`` (the attribute ``query``)."""
    names = [printable(query) for query in queries]
    categories = [
        f'   <category render="true" symbol="{number}" value={quoteattr(name)} label={quoteattr(name)} type="string"/>'
        for number, name in enumerate(names)
    ]
    symbols = []
    for number in range(len(names)):
        red, green, blue = _COLOURS[number % len(_COLOURS)]
        symbols.append(_SYMBOL.format(number=number, red=red, green=green, blue=blue))
    return _DOCUMENT.format(categories="\n".join(categories), symbols="\n".join(symbols))


def is_untouched(text: str) -> bool:
    """Whether ``text`` is a document of :func:`style` for some questions, as it was written."""
    values = re.findall(r"""<category [^\n]*? value=("[^"]*"|'[^']*') label=""", text)
    known = {"&quot;": '"', "&#10;": "\n", "&#13;": "\r", "&#9;": "\t"}
    return bool(values) and style([unescape(value[1:-1], known) for value in values]) == text
