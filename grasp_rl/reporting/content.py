"""What a report shows, as plain values for a template: tables as text, figures and images as data URIs."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Sequence
from typing import Any

from grasp_rl.reporting import breakdowns, health, regret, results
from grasp_rl.reporting.axes import SEEDS, Configuration, common_values, configurations, constants, label_of
from grasp_rl.reporting.cells import headline_of, name_of
from grasp_rl.reporting.costs import cost
from grasp_rl.reporting.plots import REWARD, VALIDATION, curve, image, path_of
from grasp_rl.reporting.results import NOTHING, decimals, of
from grasp_rl.reporting.types import Scored, StudiedRun, number
from grasp_rl.runs.run_dir import SFT
from grasp_rl.types import ParseStatus
from grasp_rl.utils.files import Record

_SAMPLES_SHOWN, _GALLERIES_SHOWN = 6, 12
_FEWEST_SAMPLES, _MOST_GALLERIES, _MOST_PANELS = 2, 40, 40
"""Of more than ``_GALLERIES_SHOWN`` runs each configuration's first is shown, with fewer samples each; of more than
``_MOST_PANELS`` each configuration's first has curves of its own."""


def context(
    runs: Sequence[StudiedRun], title: str, *, over: Sequence[str] = SEEDS, baseline: str | None = None
) -> Record:
    """Everything the template names.

    Args:
        runs: of one study.
        title: of the page.
        over: keys whose values are averaged over.
        baseline: the configuration that the others are compared with, as ``key=value,...``; the best by default.

    Raises:
        ConfigError: there is no such configuration, or several.
    """
    study, known = results.study_results(runs, over, baseline), configurations(runs, over)
    best = study.best_run
    galleries = _galleries(runs, known, best)
    _link(study.groups, known, galleries)
    notes = [*(f"{run.label}: {note}" for run in runs for note in run.notes), *study.notes]
    if len(galleries) < len(runs):
        few = f"{len(galleries)} run{'s' * (len(galleries) != 1)}"
        notes.append(f"images are shown of {few}, the others' are in their eval_after/overlays")
    by_attribute = [(run.label, breakdowns.by_attribute(run)) for run in runs]
    drawn = runs if len(runs) <= _MOST_PANELS else [configuration.runs[0] for configuration in known]
    if len(drawn) < len(runs):
        notes.append(
            f"{len(drawn)} runs have curves of their own, the first of every configuration; all are on one pair of axes"
        )
    return {
        "title": title,
        "refresh": None,
        "summary": study.summary,
        "constants": label_of(constants(runs)),
        "common": label_of(common_values([c.axes for c in known])),
        "groups": study.groups,
        "regimes": [{"label": run.label, "rows": rows} for run in runs if (rows := _stages(run))],
        "curves": _curves(drawn),
        "together": health.learning(known) if len(known) > 1 or len(runs) > 1 else [],
        "health": {"labels": [c.label for c in known], "rows": health.table(known), "plots": health.plots(known)},
        "next": _next_steps(runs, best),
        "reward_iou": _reward_against_iou(runs),
        "galleries": galleries,
        "regrets": regret.most(known),
        "statuses": [{"label": run.label, "bars": _bars(run)} for run in runs if _bars(run)],
        "status_names": [str(status) for status in ParseStatus],
        "terms": [{"label": run.label, "terms": _terms(run)} for run in runs if _terms(run)],
        "protocols": [{"label": run.label, "rows": rows} for run in runs if (rows := _by_protocol(run))],
        "protocol_columns": list(breakdowns.BY_PROTOCOL),
        "attributes": [
            {"label": label, "rows": [_formatted(row) for row in rows]} for label, rows in by_attribute if rows
        ],
        "breakdowns": [{"run": label, **row} for label, rows in by_attribute for row in rows],
        "diagnoses": [{"label": run.label, "rows": rows} for run in runs if (rows := _diagnosis(run))],
        "stages": list(breakdowns.STAGES.items()),
        "costs": [cost(run) for run in runs],
        "origins": [_origin(run) for run in runs],
        "notes": notes,
    }


def _stages(run: StudiedRun) -> list[Record]:
    """What a run of several stages did, one row a stage; nothing for a run of one."""
    if not run.earlier and run.mining is None:
        return []
    stages = [*run.earlier, run]
    rows = []
    for place, stage in enumerate(stages):
        is_last = stage is run
        following = stages[place + 1].before if not is_last else None
        name = "reward" if any("reward" in row for row in stage.rows) else "loss"
        values = [value for row in stage.rows if (value := number(row, name)) is not None]
        rows.append(
            {
                "name": "grpo" if is_last else stage.folder.name,
                "state": stage.state,
                "steps": int(stage.rows[-1]["step"]) if stage.rows else 0,
                "course": f"{name} {values[0]:.3f} to {values[-1]:.3f}" if values else NOTHING,
                "before": decimals(of(stage.before, "giou")),
                "after": decimals(of(stage.after or following, "giou")),
            }
        )
    if run.mining is not None:
        asked, kept = (run.mining.get(key, NOTHING) for key in ("asked", "kept"))
        mined = {"name": f"mining: {kept} of {asked} questions kept", "state": "done", "steps": 0}
        mined |= dict.fromkeys(("course", "before", "after"), NOTHING)
        rows.insert(int(bool(run.earlier) and run.earlier[0].folder.name == SFT), mined)
    return rows


def _curves(runs: Sequence[StudiedRun]) -> list[Record]:
    """Per run the mean reward of its rollouts and its validation score, on axes that compare."""
    rewards, metrics = [_points(run.rows, "reward") for run in runs], [headline_of(run) for run in runs]
    scores = [_points(run.validations, f"val/{metric}") for run, metric in zip(runs, metrics, strict=True)]
    steps = [point[0] for points in [*rewards, *scores] for point in points]
    if not steps:
        return []
    xlim = (0.0, max(steps) * 1.03)
    panels = []
    for run, reward, score, metric in zip(runs, rewards, scores, metrics, strict=True):
        alike = [rewards[i] for i, other in enumerate(runs) if _reward(other) == _reward(run)]
        panel: Record = {"label": run.label, "reward": None, "score": None, "metric": name_of(metric)}
        if reward:
            smooth = max(2, len(reward) // 15)
            label, limits = "mean reward (points)", _limits(alike)
            panel["reward"] = curve(reward, ylabel=label, color=REWARD, xlim=xlim, ylim=limits, smooth=smooth)
        if score:
            limits = _limits([points for points, other in zip(scores, metrics, strict=True) if other == metric])
            label = f"validation {name_of(metric)} (0 to 1)"
            panel["score"] = curve(score, ylabel=label, color=VALIDATION, xlim=xlim, ylim=limits)
        panels += [panel] if reward or score else []
    return panels


def _reward_against_iou(runs: Sequence[StudiedRun]) -> list[Record]:
    """Per run with two validations or more: mean validation reward against gIoU, joined in the order of the steps."""
    panels = []
    for run in runs:
        points = [
            (float(row["step"]), reward, giou)
            for row in run.validations
            if (reward := number(row, "val/reward")) is not None and (giou := number(row, "val/giou")) is not None
        ]
        if len(points) < 2:
            continue
        last = number(run.validations[-1], "val/reward_iou_correlation")
        panels.append(
            {
                "label": run.label,
                "image": path_of(points, xlabel="validation reward (points)", ylabel="validation gIoU (0 to 1)"),
                "correlation": decimals(last),
                "warning": reward_warning(points),
            }
        )
    return panels


def reward_warning(points: Sequence[tuple[float, float, float]]) -> str:
    """What to say where a reward rose while the gIoU fell by more than 0.01; empty where it did not.

    Args:
        points: (step, validation reward, validation gIoU), by step.
    """
    best = max(points, key=lambda point: point[2])
    last = points[-1]
    if not (last[0] > best[0] and last[1] > best[1] and last[2] < best[2] - 0.01):
        return ""
    return (
        f"From step {best[0]:g} to {last[0]:g} the reward rose from {best[1]:.3f} to {last[1]:.3f} while the gIoU fell "
        f"from {best[2]:.3f} to {last[2]:.3f}: the reward pays for something else than the mask."
    )


def _points(rows: Sequence[Record], name: str) -> list[tuple[float, float]]:
    return [(float(row["step"]), value) for row in rows if (value := number(row, name)) is not None]


def _limits(curves: Sequence[Sequence[tuple[float, float]]]) -> tuple[float, float]:
    """A range that holds all values of all ``curves``, with a margin."""
    values = [value for points in curves for _, value in points]
    margin = 0.06 * (max(values) - min(values)) or 0.05
    return min(values) - margin, max(values) + margin


def _reward(run: StudiedRun) -> str:
    """Runs with the same one are measured in the same points."""
    return repr(run.config.get("reward"))


def _galleries(runs: Sequence[StudiedRun], known: Sequence[Configuration], best: StudiedRun | None) -> list[Record]:
    """The first samples of each run, or where there are many runs of each configuration's first."""
    shown = list(runs)
    if len(runs) > _GALLERIES_SHOWN:
        firsts = [configuration.runs[0] for configuration in known][:_MOST_GALLERIES]
        shown = [run for run in runs if run is best or any(run is first for first in firsts)]
    few = max(_FEWEST_SAMPLES, min(_SAMPLES_SHOWN, _SAMPLES_SHOWN * _GALLERIES_SHOWN // max(1, len(shown))))
    return [
        {"id": f"samples-{place}", "label": run.label, "open": run is best, "samples": _gallery(run, few)}
        for place, run in enumerate(shown)
    ]


def _link(groups: Sequence[Record], known: Sequence[Configuration], galleries: Sequence[Record]) -> None:
    """Give every row of the results the id of its samples below, of a configuration those of its first run shown."""
    ids = {gallery["label"]: gallery["id"] for gallery in galleries if gallery["samples"]}
    firsts = {c.label: next((ids[run.label] for run in c.runs if run.label in ids), "") for c in known}
    for group in groups:
        for row in group["rows"]:
            row["samples"] = firsts.get(row["label"], "")
        for row in group["runs"]:
            row["samples"] = ids.get(row["label"], "")


def _gallery(run: StudiedRun, count: int) -> list[Record]:
    """The first samples with an image, before and after training."""
    names = sorted({name for scored in (run.before, run.after) if scored for name in scored.overlays})
    samples = []
    for name in names[:count]:
        sides = [_side(when, scored, name) for when, scored in (("before", run.before), ("after", run.after)) if scored]
        query = next((side["query"] for side in sides if side["query"]), "")
        nothing = any(side["target"] is False for side in sides)
        samples.append({"query": query, "nothing": nothing, "sides": sides})
    return samples


def _side(when: str, scored: Scored, name: str) -> Record:
    """One image and what was answered."""
    index = name.partition("_")[0]
    known = index.isdigit() and int(index) < len(scored.records)
    record: Record = scored.records[int(index)] if known else {}
    return {
        "when": when,
        "image": image(scored.overlays[name], record.get("size")) if name in scored.overlays else None,
        "query": record.get("query", ""),
        "iou": decimals(number(record, "iou")),
        "status": record.get("status", ""),
        "target": record.get("has_target"),
        "silent": record.get("has_target") is False and record.get("empty") is True,
        "text": record.get("text", ""),
    }


def _bars(run: StudiedRun) -> list[Record]:
    """Shares of the parse statuses in percent, before and after."""
    bars = []
    for when, scored in (("before", run.before), ("after", run.after)):
        shares = [(str(status), 100 * (of(scored, f"parse/{status}") or 0.0)) for status in ParseStatus]
        if any(share for _, share in shares):
            bars.append({"when": when, "shares": [(name, share) for name, share in shares if share > 0]})
    return bars


def _by_protocol(run: StudiedRun) -> list[Record]:
    rows = breakdowns.by_protocol(run)
    return [
        {"protocol": row["protocol"], "cells": [_count(row[k]) if k == "scored" else decimals(row[k]) for k in keys]}
        for row in rows
        if (keys := breakdowns.BY_PROTOCOL)
    ]


def _count(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0f}"


def _formatted(row: Record) -> Record:
    """A row of :func:`breakdowns.by_attribute` as the page shows it."""
    return row | {"giou": decimals(row["giou"]), "interval": f"{row['low']:.3f} to {row['high']:.3f}"}


def _diagnosis(run: StudiedRun) -> list[Record]:
    """Losses in numbers, and as widths in percent of the bar from 0 to 1; a stage that gains has no width."""
    return [
        {
            "of": row["of"],
            "samples": str(row["samples"]),
            "giou": decimals(row["giou"]),
            "cells": [decimals(value) for _, value in row["shares"]],
            "widths": [(stage, 100 * max(0.0, value)) for stage, value in row["shares"]],
        }
        for row in breakdowns.diagnosis(run)
    ]


def _terms(run: StudiedRun) -> list[Record]:
    """The reward's terms as the first step found them, and their share of the advantages' variance in all steps."""
    first: Record = run.rows[0] if run.rows else {}
    names = [key.split("/")[1] for key in first if key.startswith("term/") and key.endswith("/mean")]
    terms = []
    for name in names:
        spread = number(first, f"term/{name}/group_std")
        mean = decimals(number(first, f"term/{name}/mean"))
        share, weight = _mean(run.rows, f"term/{name}/advantage_share"), _weight(run, name)
        terms.append(
            {
                "name": name,
                "weight": decimals(weight),
                "unpaid": weight == 0,
                "mean": mean,
                "std": decimals(spread),
                "share": decimals(share),
                "idle": _mean(run.rows, f"term/{name}/group_std") == 0 and weight != 0,
            }
        )
    return terms


def _weight(run: StudiedRun, name: str) -> float | None:
    """What the config says that a term weighs; None where the reward says it in another way."""
    terms = (run.config.get("reward") or {}).get("terms")
    term = terms.get(name) if isinstance(terms, dict) else None
    return number(term, "weight") if isinstance(term, dict) else None


def _next_steps(runs: Sequence[StudiedRun], best: StudiedRun | None) -> list[Record]:
    """Commands that go on from here, with what each is for."""
    steps = []
    if best is not None:
        folder = shlex.quote(str(best.folder))
        if best.diagnosis is None:
            steps.append(("where the best run loses its IoU", f"grasp-rl diagnose {folder}"))
        steps.append(("its answer to a question of your own", f'grasp-rl predict IMAGE --run {folder} --query "..."'))
        if best.config.get("command") == "train":
            steps.append(("its weights, for others to load", f"grasp-rl export {folder} --out FOLDER --merge"))
    if len(runs) > 1 and len({run.config.get("seed") for run in runs}) == 1:
        steps.append(("whether a difference outlives the seed", "the same sweep with seed=0,1,2"))
    return [{"what": what, "command": command} for what, command in steps]


def _mean(rows: Sequence[Record], name: str) -> float | None:
    values = [value for row in rows if (value := number(row, name)) is not None]
    return statistics.fmean(values) if values else None


def _origin(run: StudiedRun) -> Record:
    """How to do it again."""
    about: dict[str, Any] = run.environment
    git = (about.get("git") or {}).get("package") or {}
    packages = about.get("packages") or {}
    versions = [f"{name} {packages[name]}" for name in ("torch", "transformers", "numpy") if name in packages]
    command = about.get("command")
    return {
        "label": run.label,
        "folder": str(run.folder),
        "command": shlex.join(map(str, command)) if isinstance(command, list) else "not recorded",
        "commit": git.get("commit") or "not recorded",
        "dirty": bool(git.get("dirty")),
        "seed": run.config.get("seed"),
        "versions": ", ".join([f"Python {about['python']}", *versions] if "python" in about else versions),
        "machine": about.get("platform", ""),
    }
