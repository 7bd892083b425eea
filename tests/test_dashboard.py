"""W&B: the specs of workspace and report by the package's own model, and sweep files whose every point composes."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from grasp_rl.cli import dashboard as command
from grasp_rl.cli import wandb_sweep
from grasp_rl.config.errors import ConfigError
from grasp_rl.launch import compose
from grasp_rl.tracking import dashboard
from grasp_rl.utils.files import write_json, write_text

pytest.importorskip("wandb_workspaces", reason="pip install 'grasp-rl[track]'")
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style:DeprecationWarning")  # of wandb-workspaces' own code

LOGGED = (
    "reward", "val/reward", "val/giou", "val/ciou", "val/box_iou", "val/no_target_accuracy", "term/box_iou/mean",
    "term/box_iou/group_std", "term/box_iou/advantage_share", "val/reward_iou_correlation", "parse/ok", "val/parsed", "length",
    "val/length", "truncated", "val/truncated", "kl", "entropy", "clip_fraction", "grad_norm", "zero_variance", "skipped",
    "groups_missing", "groups_not_finite", "segmenter_failed",
)  # fmt: skip
"""Keys of metrics.jsonl of a run with a validation."""


def plots(node: Any) -> list[dict[str, Any]]:
    """Configs of the line plots in a spec."""
    if isinstance(node, dict):
        own = [node["config"]] if node.get("viewType") == "Run History Line Plot" else []
        return own + [found for value in node.values() for found in plots(value)]
    return [found for item in node for found in plots(item)] if isinstance(node, list) else []


def test_the_workspace_shows_what_is_logged_by_optimizer_step() -> None:
    spec = dashboard.spec(dashboard.workspace("me", "grasp_rl"))
    sections = spec["section"]["panelBankConfig"]["sections"]
    names = [section["name"] for section in sections]
    assert names == [*dashboard.SECTIONS, "Overlays", "System"]
    found = plots(spec)
    assert {plot["xAxis"] for plot in found} == {dashboard.STEP}
    assert {metric for plot in found for metric in plot.get("metrics", ())} <= set(LOGGED)
    media = [key for panel in sections[-2]["panels"] for key in panel["config"]["mediaKeys"]]
    assert media == list(dashboard.OVERLAYS)


def test_regular_expressions_find_something_that_is_logged() -> None:
    for panel in (panel for panels in dashboard.SECTIONS.values() for panel in panels):
        assert panel.metrics or any(re.search(str(panel.regex), key) for key in LOGGED)


def test_the_same_title_is_the_same_workspace() -> None:
    one, two = dashboard.workspace("me", "a"), dashboard.workspace("me", "a")
    assert one._internal_name == two._internal_name
    assert one._internal_name.startswith("nw-")
    assert one._internal_name.endswith("-v")
    assert dashboard.workspace("me", "a", "other")._internal_name != one._internal_name
    assert dashboard.spec(one) == dashboard.spec(two)


def sweep(folder: Path) -> Path:
    for reward in ("grasp", "think2seg"):
        run = folder / f"reward={reward}"
        write_text(run / "config.yaml", yaml.safe_dump({"reward": {"_target_": reward}}))
        write_json(run / "status.json", {"state": "done", "config_hash": reward})
        write_json(run / "environment.json", {"command": ["grasp-rl", "train"], "overrides": [f"reward={reward}"]})
    return folder


def test_the_report_of_a_grid_is_about_its_group_and_its_axes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep(tmp_path / "my_grid")
    assert command.main(["--grid", str(folder), "--dry-run"]) == 0
    workspace, report = json.loads(capsys.readouterr().out)
    assert workspace == dashboard.spec(dashboard.workspace("ENTITY", "grasp_rl"))
    text = json.dumps(report)
    assert '"name": "group"}, "op": "=", "value": "my_grid"' in text
    assert "config:overrides.value.reward" in text or "overrides.reward" in text
    assert {plot["xAxis"] for plot in plots(report)} == {dashboard.STEP}


def test_a_workspace_that_is_there_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's own calls, with a server that keeps what it is sent."""
    internal = dashboard.load("wandb_workspaces.workspaces.internal")
    kept: dict[str, dict[str, Any]] = {}

    def asked(api: object, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "mutation" not in query:
            view = kept.get(variables["viewName"])
            return {"project": {"allViews": {"edges": [{"node": view}] if view else []}}}
        known = kept.get(variables["name"])
        assert variables.get("id") == (known["id"] if known else None)
        kept[variables["name"]] = {"id": "7", "displayName": variables["displayName"], "spec": variables["spec"]}
        return {"upsertView": {"view": {"id": "7", "name": variables["name"]}}}

    monkeypatch.setattr(internal, "execute_graphql", asked)
    monkeypatch.setattr(internal.wandb, "Api", SimpleNamespace)
    monkeypatch.setattr("wandb_workspaces.workspaces.interface.get_app_url", lambda api: "https://wandb.ai")
    first = dashboard.save_workspace(dashboard.workspace("me", "p"))
    second = dashboard.save_workspace(dashboard.workspace("me", "p"))
    assert first == second
    assert len(kept) == 1


@pytest.mark.parametrize("grid", [
    "tiny/tiers", "tiny/group_size", "geo_r1/rl_vs_sft",
])  # fmt: skip
def test_every_point_of_a_sweep_file_is_a_job_of_the_grid(grid: str, tmp_path: Path) -> None:
    words = [] if grid.startswith("tiny") else ["data.root=x"]
    with compose.hydra("train") as engine:
        jobs = compose.sweep(
            engine, ["command=train", f"experiment={grid}", f"hydra.sweep.dir={tmp_path}", *words], ()
        )[1]
    assert wandb_sweep.main([grid, *words, "--out", str(tmp_path)]) == 0
    written = [yaml.safe_load(path.read_text()) for path in sorted(tmp_path.glob("*.yaml"))]
    lines = []
    for sweep_file in written:
        keys = list(sweep_file["parameters"])
        for values in itertools.product(*(sweep_file["parameters"][key]["values"] for key in keys)):
            arguments = [f"{key}={value}" for key, value in zip(keys, values, strict=True)]  # ${args_no_hyphens}
            lines.append(shlex.split(shlex.join([*sweep_file["command"][2:-1], *arguments])))
    with compose.hydra("train") as engine:
        found = [compose.single(engine, ["command=train", *line], ()).config for line in lines]
    assert len(found) == len(jobs)
    for config in found:
        assert config["tracker"]["_target_"].endswith("WandbTracker")
    comparable = {"run_dir", "tracker"}
    wanted = [json.dumps({k: v for k, v in job.config.items() if k not in comparable}, sort_keys=True) for job in jobs]
    got = [json.dumps({k: v for k, v in config.items() if k not in comparable}, sort_keys=True) for config in found]
    assert sorted(wanted) == sorted(got)


def test_what_is_no_grid_is_named() -> None:
    with pytest.raises(ConfigError, match="think2seg_rs/main_3b: sweeps nothing; a run is started by grasp-rl train"):
        wandb_sweep.sweeps("think2seg_rs/main_3b", ["data.root=x"])
    with pytest.raises(ConfigError, match="no product of lists"):
        wandb_sweep._rows(
            [
                {"a": "1", "b": "1"},
                {"a": "1", "b": "2"},
                {"a": "1", "b": "2"},
                {"a": "2", "b": "1"},
                {"a": "2", "b": "2"},
            ],
            ["a", "b"],
        )
