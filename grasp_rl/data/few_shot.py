"""Few-shot subsets: a number of samples of each category, drawn by id, the same on every rank and machine."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import TypeVar

from grasp_rl.config.errors import ConfigError

log = logging.getLogger(__name__)

CATEGORY = "category"
"""The attribute that classes are told by."""
T = TypeVar("T")


def few_shot(records: Sequence[T], shots: int, seed: int, name: str) -> list[T]:
    """``shots`` of ``records`` a category, in the order of ``records``; all of a category that has fewer.

    The draw depends on the seed, the category and the records' ids alone, so the records drawn with fewer shots are
    among those drawn with more.

    Args:
        records: each a row with ``sample_id`` and the attribute ``category``.
        shots: >= 1.
        seed: of the draw.
        name: of the dataset, for messages.

    Raises:
        ConfigError: a record has no category.
    """
    classes: dict[str, list[tuple[bytes, int]]] = {}
    for index, record in enumerate(records):
        category = getattr(record, "attributes", {}).get(CATEGORY)
        if category is None:
            place = getattr(record, "location", f"record {index}")
            raise ConfigError(
                f"data.shots={shots}: needs the attribute {CATEGORY} of every record, {name} has none at {place}; "
                "use another dataset, or data.limit"
            )
        key = "\x1f".join((str(seed), str(category), str(getattr(record, "sample_id", index))))
        classes.setdefault(str(category), []).append((hashlib.sha256(key.encode()).digest(), index))
    small = sorted(category for category, found in classes.items() if len(found) < shots)
    if small:
        log.warning("data.shots=%d: %s has fewer samples of %s", shots, name, ", ".join(small))
    return [records[index] for index in sorted(i for found in classes.values() for _, i in sorted(found)[:shots])]
