"""Text of strangers: what may be shown on a terminal, and what must not reach a chat template."""

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
