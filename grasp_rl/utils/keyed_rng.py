"""Keyed randomness: a draw is a function of what it is for, never of when or where it is made."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def keyed_generator(*key: object) -> np.random.Generator:
    """A counter-based generator (Philox) for this key; equal keys give equal streams on any machine and layout."""
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def token_uniforms(seed: int, step: int, sample_id: str, rollout: int, count: int) -> NDArray[np.float64]:
    """[count] uniforms in [0, 1), one per token, of one rollout of one sample at one optimizer step."""
    return keyed_generator("token", seed, step, sample_id, rollout).random(count)


def sample_order(seed: int, size: int, start: int, count: int) -> list[int]:
    """Positions start .. start + count - 1 of an endless stream of epochs, each its own permutation of ``size``.

    A function of its arguments alone: a resumed run reads the same samples without any iterator state.
    """
    indices: list[int] = []
    position = start
    while len(indices) < count:
        epoch, offset = divmod(position, size)
        order = keyed_generator("order", seed, epoch).permutation(size)
        taken = order[offset : offset + count - len(indices)]
        indices += taken.tolist()
        position += len(taken)
    return indices
