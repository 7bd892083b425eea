"""Text of strangers where it comes out, one function a format, and what must not reach a chat template.

Runs, datasets and models are exchanged, and so are their words. On a terminal and in a log they go through
:func:`printable`, in Markdown through :func:`markdown_text`, :func:`markdown_line`, :func:`markdown_code` and
:func:`markdown_block`, in LaTeX through :func:`latex_text`, in CSV through :func:`csv_cell`. HTML is escaped by Jinja.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import Any

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""C0, DEL and C1; line separators; what turns the direction of writing; halves of characters."""
_CONTROL_TOKENS = re.compile(
    r"<\|[^\s<>|]{1,64}\|>"  # Qwen, Llama 3, Phi, GLM, Yi: <|im_start|>, <|image_pad|>, <|eot_id|>
    r"|<\uff5c[^\s<>\uff5c]{1,64}\uff5c>"  # DeepSeek, with full-width bars
    r"|</?(?:s|img|quad|ref|box|pad|unk|bos|eos|image|video|audio|patch|IMG_CONTEXT|image_soft_token)>"
    r"|<(?:image|video)_?(?:pad|token|placeholder|newline)>"
    r"|<(?:start|end)_of_(?:turn|image|audio|utterance)>"  # Gemma, SmolVLM
    r"|<(?:fake_token_around_image|global-img|row_\d+_col_\d+|(?:loc|seg)\d{3,4})>"  # Idefics, PaliGemma
    r"|\[/?INST\]|<</?SYS>>|\[IMG(?:_BREAK|_END)?\]"  # Llama 2, Mistral
)


def printable(text: str) -> str:
    """``text`` with every character escaped that a terminal would obey instead of showing it."""
    return _UNPRINTABLE.sub(lambda match: ascii(match.group())[1:-1], text)


_MARKDOWN = re.compile(r"[\\`*|~$]|\](?=\s*[(\[:])|(?<![^\W_])_|_(?![^\W_])")
_BEGINS = re.compile(r"^(\d*)(?=[#>+=:.)-])")
"""What begins a heading, a quotation, a list or a rule: the digits before it, if any."""


def markdown_text(text: object) -> str:
    """``text`` on one line, without a meaning of its own in Markdown, its tables and HTML."""
    line = printable(" ".join(str(text).split())).replace("&", "&amp;").replace("<", "&lt;")
    return _MARKDOWN.sub(r"\\\g<0>", line)


def markdown_line(text: object) -> str:
    """:func:`markdown_text` where ``text`` begins a line or an item."""
    return _BEGINS.sub(r"\1\\", markdown_text(text))


def markdown_code(text: object) -> str:
    """``text`` on one line as a code span, which it cannot end."""
    line = printable(" ".join(str(text).split()))
    ticks = "`" * (_longest(line) + 1)
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{space}{line}{space}{ticks}"


def markdown_block(text: str, language: str = "") -> str:
    """``text`` as a fenced block, which it cannot end."""
    ticks = "`" * max(3, _longest(text) + 1)
    return f"{ticks}{language}\n{text}\n{ticks}"


def _longest(text: str) -> int:
    """Length of the longest run of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)


_TEX = str.maketrans({
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "|": r"$|$",
})  # fmt: skip


def latex_text(text: object) -> str:
    """``text`` as LaTeX prints it."""
    return printable(" ".join(str(text).split())).translate(_TEX)


_FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20"
"""What begins a formula in a spreadsheet, in full width, too."""
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?")


def csv_cell(value: object) -> object:
    """``value`` as a spreadsheet shows it: what would begin a formula has an apostrophe before it."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    is_formula = value.lstrip()[:1] in tuple(_FORMULA) or value[:1] in ("\t", "\r", "\n")
    return f"'{text}" if is_formula and not _NUMBER.fullmatch(text) else text


class OneLine(logging.Formatter):
    """A message is one line, whatever words of a stranger it quotes; the lines of a traceback begin with ``|``."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # logging's own name
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # logging's own name
        return "\n".join(f"| {printable(line)}" for line in super().formatException(ei).splitlines())


def control_token(text: str, reserved: Iterable[str] = ()) -> str | None:
    """The first control token of any known chat template in ``text``, or of ``reserved``; None where there is none."""
    match = _CONTROL_TOKENS.search(text)
    return match.group() if match else next((token for token in reserved if token in text), None)
