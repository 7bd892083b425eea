"""The table of docs/recipes.md: every recipe and grid, and what `grasp-rl plan` expects of it on its own number of H100s.

python scripts/plan_recipes.py [NAME ...]
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys

from grasp_rl.cli import plan
from grasp_rl.rehearsal import recipe as recipes


def planned(words: tuple[str, ...]) -> list[dict[str, object]]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        plan.main([*words, "--json"])
    jobs: list[dict[str, object]] = json.loads(said.getvalue())["jobs"]
    return jobs


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


def row(name: str) -> str:
    """The table's row of the recipe ``name``."""
    recipe = recipes.recipe(name)
    text = (recipes.FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    what = re.sub(r"\s+", " ", " ".join(line.lstrip("# ") for line in text.splitlines()[1:3] if line[0] == "#"))
    what = what.split("# grasp-rl")[0].split("grasp-rl ")[0].split(". ")[0].rstrip(". ")
    link = f"[`{name}`](../conf/experiment/{name}.yaml)"
    if recipe.command != "train":
        return f"| {link} | {what} | 1 | `{recipe.command}` | - | - | - | - |"
    jobs: list[dict] = planned(recipe.words)  # type: ignore[type-arg]
    peaks, steps = [j["memory"]["peak"] for j in jobs], [j["seconds"]["step"] for j in jobs]
    devices = sorted({j["devices"] for j in jobs})
    spans = [f"{min(v):.0f}" if max(v) - min(v) < 0.5 else f"{min(v):.0f} to {max(v):.0f}" for v in (peaks, steps)]
    hours, left = sum(j["device_hours"] for j in jobs), sum(j["disk"]["left"] for j in jobs)
    disk = left + max(j["disk"]["total"] - j["disk"]["left"] for j in jobs)
    fits = "" if all(j["fits"] for j in jobs) else " (does not fit)"
    return (
        f"| {link} | {what} | {len(jobs)} | {', '.join(map(str, devices))} | {spans[0]}{fits} | {spans[1]} | {hours:.0f} |"
        f" {disk:.0f} |"
    )


def main() -> None:
    say("| recipe | what | jobs | GPUs | peak GiB | s a step | GPU-hours | disk GiB |")
    say("|---|---|---|---|---|---|---|---|")
    for name in sys.argv[1:] or recipes.names():
        say(row(name))


if __name__ == "__main__":
    main()
