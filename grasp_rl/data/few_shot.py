"""Few-shot subsets: a number of samples of each category, drawn by id, the same on every rank and machine."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Any, TypeVar

from grasp_rl.config.errors import ConfigError

log = logging.getLogger(__name__)

CATEGORY = "category"
"""The attribute that classes are told by."""
T = TypeVar("T")


def few_shot(records: Sequence[T], shots: int, seed: int, name: str) -> list[T]:
    """The records of :func:`numbers_of`."""
    return [records[index] for index in numbers_of(records, shots, seed, name)]


def numbers_of(records: Sequence[Any], shots: int, seed: int, name: str, key: str = "data.shots") -> list[int]:
    """The places of ``shots`` of ``records`` a category, in their order; of a category that has fewer, of all.

    The draw depends on the seed, the category and the records' ids alone, so the records drawn with fewer shots are
    among those drawn with more.

    Args:
        records: each a row with ``sample_id`` and the attribute ``category``.
        shots: >= 1.
        seed: of the draw.
        name: of the dataset, for messages.
        key: of the config that asks for it, for messages.

    Raises:
        ConfigError: a record has no category.
    """
    classes: dict[str, list[tuple[bytes, int]]] = {}
    for index in range(len(records)):
        record = records[index]
        category = getattr(record, "attributes", {}).get(CATEGORY)
        if category is None:
            place = getattr(record, "location", f"record {index}")
            raise ConfigError(
                f"{key}={shots}: needs the attribute {CATEGORY} of every record, {name} has none at {place}; "
                "use another dataset, or data.limit"
            )
        drawn = "\x1f".join((str(seed), str(category), str(getattr(record, "sample_id", index))))
        classes.setdefault(str(category), []).append((hashlib.sha256(drawn.encode()).digest(), index))
    small = sorted(category for category, members in classes.items() if len(members) < shots)
    if small:
        log.warning("%s=%d: %s has fewer samples of %s", key, shots, name, ", ".join(small))
    return sorted(index for members in classes.values() for _, index in sorted(members)[:shots])
