"""What is in a hard scene: themes with their categories, sizes, heights; which categories are parts of others."""

from __future__ import annotations

Count = tuple[int, int]
"""Fewest and most, both included."""

THEMES: dict[str, dict[str, tuple[float, Count]]] = {
    "farm": {
        "road": (0.6, (1, 1)), "path": (0.5, (1, 1)), "water": (0.3, (1, 1)), "field": (1.0, (2, 4)),
        "wood": (0.6, (1, 2)), "roof": (0.9, (2, 4)), "tank": (0.5, (1, 3)), "vehicle": (0.7, (1, 3)),
        "fence": (0.6, (1, 2)),
    },
    "suburb": {
        "road": (0.9, (1, 1)), "path": (0.5, (1, 1)), "wood": (0.5, (1, 2)), "court": (0.3, (1, 2)),
        "lot": (0.4, (1, 1)), "water": (0.2, (1, 1)), "roof": (1.0, (4, 8)), "vehicle": (0.8, (2, 5)),
        "fence": (0.5, (1, 2)),
    },
    "harbour": {
        "water": (1.0, (1, 1)), "road": (0.6, (1, 1)), "jetty": (0.9, (1, 3)), "vessel": (0.9, (2, 5)),
        "lot": (0.4, (1, 1)), "tank": (0.5, (1, 4)), "roof": (0.8, (1, 4)), "vehicle": (0.6, (1, 4)),
        "wood": (0.3, (1, 1)),
    },
    "industry": {
        "road": (0.8, (1, 1)), "lot": (0.7, (1, 2)), "water": (0.3, (1, 1)), "tank": (0.9, (3, 6)),
        "roof": (0.9, (2, 5)), "vehicle": (0.9, (2, 5)), "path": (0.2, (1, 1)), "vessel": (0.3, (1, 2)),
        "fence": (0.6, (1, 2)),
    },
    "airfield": {
        "runway": (1.0, (1, 1)), "path": (0.4, (1, 1)), "field": (0.4, (1, 2)), "lot": (0.5, (1, 1)),
        "wood": (0.5, (1, 1)), "roof": (0.9, (2, 4)), "tank": (0.5, (1, 4)), "vehicle": (0.9, (2, 5)),
        "fence": (0.6, (1, 1)),
    },
    "park": {
        "path": (0.9, (1, 2)), "road": (0.4, (1, 1)), "water": (0.6, (1, 2)), "wood": (0.9, (1, 3)),
        "court": (0.9, (1, 3)), "lot": (0.4, (1, 1)), "roof": (0.6, (1, 3)), "vehicle": (0.6, (1, 4)),
        "vessel": (0.4, (1, 2)), "fence": (0.4, (1, 1)),
    },
}  # fmt: skip
"""For each theme: categories in the order they are placed in, each with its chance and how many there are."""

SIZES: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "roof": ((10, 30), (0.55, 0.95)), "water": ((30, 56), (0.6, 0.95)), "tank": ((9, 22), (1.0, 1.0)),
    "court": ((20, 32), (0.5, 0.65)), "field": ((30, 60), (0.6, 0.95)), "lot": ((26, 44), (0.6, 0.9)),
    "vessel": ((13, 28), (0.3, 0.4)), "vehicle": ((9, 17), (0.42, 0.55)), "wood": ((22, 46), (0.6, 1.0)),
}  # fmt: skip
"""Length in units (a hundred-and-twelfth of the image's side), and width as a share of it."""

HEIGHTS = {"roof": 3.5, "tank": 4.0, "wood": 4.5, "vehicle": 1.4, "vessel": 1.4, "fence": 1.3}
"""Of what casts a shadow, its length in units."""
PART_OF = {"marking": "runway"}
"""Categories whose pixels belong to another one's object as well: the only masks that overlap."""
