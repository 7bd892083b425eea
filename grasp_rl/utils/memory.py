"""How the C library hands out large blocks in the processes that compute on a CPU.

By default glibc maps every block over 32 MiB anew and gives it back at once, and the kernel fills each page with zeros
on first touch. A step that allocates the same hundreds of mebibytes over and over spends most of its time there:
experiments/LOG.md has the numbers. With these settings, memory that was used once stays with the process.
"""

from __future__ import annotations

import os

SETTINGS = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256",  # of 1024: each new length of a row in bfloat16 adds some, of megabytes
}
"""Environment variables of glibc and of oneDNN; other libraries ignore them."""


def environment() -> dict[str, str]:
    """The process's own environment, with the settings added where it has none."""
    return SETTINGS | dict(os.environ)
