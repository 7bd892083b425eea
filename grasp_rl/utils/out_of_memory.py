"""Memory that runs out: how it is told from other errors, and going on with half as much at once."""

from __future__ import annotations

import logging

import torch

log = logging.getLogger(__name__)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out: Python's, torch's on a GPU, or that of torch's CPU allocator."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or "can't allocate memory" in str(error) or "out of memory" in str(error)


def halved(error: Exception, size: int, *, unit: str, key: str, remedy: str) -> int:
    """Half of ``size``, after memory did not suffice for so many at once; what the GPU's cache holds is given back.

    Args:
        error: that said so.
        size: how many were tried together.
        unit: what was counted, in the plural.
        key: config key of the number, for the log.
        remedy: what to do where one at a time is too much.

    Raises:
        RuntimeError: ``size`` was 1.
    """
    if size == 1:
        raise RuntimeError(f"out of memory with one at a time of: {unit}; {remedy}") from error
    log.warning("out of memory with %d %s at once; going on with %s=%d", size, unit, key, size // 2)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return size // 2
