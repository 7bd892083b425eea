"""The table of docs/recipes.md: a row for each recipe, and that of a grid as it is planned now."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from grasp_rl.rehearsal import recipe as recipes

ROOT = Path(__file__).parents[1]
TABLE = [line for line in (ROOT / "docs/recipes.md").read_text(encoding="utf-8").splitlines() if line[:3] == "| ["]


def test_every_recipe_has_a_row() -> None:
    assert [re.findall(r"`([^`]+)`", line)[0] for line in TABLE] == recipes.names()


def test_a_grid_takes_what_its_row_says() -> None:
    """A stale table is written anew by ``python scripts/plan_recipes.py``."""
    row = runpy.run_path(str(ROOT / "scripts/plan_recipes.py"))["row"]
    assert row("think2seg_rs/no_target") in TABLE
