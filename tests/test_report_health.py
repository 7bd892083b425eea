"""Training health, curves on one pair of axes, and a report that follows a sweep while it runs."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from grasp_rl.reporting import content, health, render
from grasp_rl.reporting.axes import configurations
from grasp_rl.reporting.load import read_study
from grasp_rl.runs.run_dir import CONFIG, ENVIRONMENT, STATUS
from grasp_rl.tracking.metrics_log import MetricsLog
from grasp_rl.utils.files import read_json, write_json


def run(folder: Path, beta: float, seed: int, *, state: str = "done") -> Path:
    """Twenty steps whose KL grows by ``beta`` a step and whose other numbers depend on the seed alone."""
    folder.mkdir(parents=True)
    terms = {"box_iou": {"_target_": "x", "weight": 1.0}, "count": {"_target_": "x", "weight": 0.0}}
    config = {"command": "train", "seed": seed, "algorithm": {"beta": beta}, "reward": {"terms": terms}}
    (folder / CONFIG).write_text(yaml.safe_dump(config))
    write_json(folder / ENVIRONMENT, {"overrides": [f"algorithm.beta={beta}", f"seed={seed}"]})
    write_json(
        folder / STATUS,
        {"state": state, "config_hash": f"{beta}{seed}", "pid": 1}
        | dict.fromkeys(("started", "ended"), "2026-01-01T10:00:00+00:00"),
    )
    log = MetricsLog(folder)
    for step in range(1, 21):
        row = {
            "step": step,
            "reward": 1.0,
            "kl": beta * step,
            "grad_norm": 9.0 if step == 7 else 1.0,
            "length": 20.0 + seed,
            "skipped": float(step == 3),
        }
        row |= {f"term/{name}/{part}": 0.0 for name in terms for part in ("mean", "group_std")}
        log.log(step, row)
        if step % 10 == 0:
            log.log(step, {"val/giou": 0.1 * seed + step / 100, "val/reward": 1.0 + seed})
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for beta in (0.0, 0.5):
        for seed in (0, 1):
            run(tmp_path / f"{beta}-{seed}", beta, seed)
    return tmp_path


def test_every_quantity_is_over_the_seeds_of_a_configuration(sweep: Path) -> None:
    rows = {row["name"]: row["cells"] for row in health.table(configurations(read_study(sweep)))}
    assert rows["KL to the reference"] == ["0 → 0", "0.75 → 9.75"]  # of steps 1 and 2, and 19 and 20
    assert rows["gradient norm"] == ["1, at most 9"] * 2
    assert rows["completion tokens"] == ["20.5 → 20.5"] * 2
    assert rows["steps lost"] == ["2"] * 2  # one in each seed
    assert "entropy" not in rows  # was not logged


def test_a_line_a_configuration_with_a_band_over_its_seeds(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(health, "overlay", lambda lines, ylabel: drawn.append((ylabel, lines)) or "data:")
    panels = health.learning(configurations(read_study(sweep)))
    assert [panel["name"] for panel in panels] == ["validation gIoU (0 to 1)", "validation reward (points)"]
    ylabel, lines = drawn[0]
    assert ylabel == "validation gIoU (0 to 1)"
    assert [line.label for line in lines] == ["algorithm.beta=0.0", "algorithm.beta=0.5"]
    assert lines[0].steps == [10.0, 20.0]
    assert lines[0].spread == [pytest.approx((0.1, 0.15, 0.2)), pytest.approx((0.2, 0.25, 0.3))]


def test_rewards_of_different_terms_share_no_axes(sweep: Path) -> None:
    path = sweep / "0.5-1" / CONFIG
    path.write_text(path.read_text().replace("weight: 1.0", "weight: 2.0"))
    assert [panel["name"] for panel in health.learning(configurations(read_study(sweep)))] == [
        "validation gIoU (0 to 1)"
    ]


def test_terms_that_are_not_paid_say_so(sweep: Path) -> None:
    (block, *_) = content.context(read_study(sweep), "x")["terms"]
    assert [(t["name"], t["weight"], t["unpaid"], t["idle"]) for t in block["terms"]] == [
        ("box_iou", "1.000", False, True), ("count", "0.000", True, False),
    ]  # fmt: skip
    render.write_report(sweep, out=sweep)
    page = (sweep / "report.html").read_text()
    assert page.count("not paid") == 4
    assert "Training health" in page
    assert 'http-equiv="refresh"' not in page


def test_it_follows_a_sweep_until_all_have_ended(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    running = run(sweep / "late", 0.9, 0, state="running")
    waited: list[float] = []
    began = {"pid": os.getpid(), "started": datetime.now(UTC).isoformat()}  # it has not come to holding its lock yet
    write_json(running / STATUS, (read_json(running / STATUS) or {}) | began)

    def end(seconds: float) -> None:
        waited.append(seconds)
        assert re.search(r'http-equiv="refresh" content="5"', (sweep / "report.html").read_text())
        write_json(running / STATUS, (read_json(running / STATUS) or {}) | {"state": "done"})

    monkeypatch.setattr(render.time, "sleep", end)
    assert render.main([str(sweep), "--watch", "5"]) == 0
    assert waited == [5.0]
    assert 'http-equiv="refresh"' not in (sweep / "report.html").read_text()
    assert "1 running" in capsys.readouterr().err
    assert render.main([str(sweep), "--watch", "0"]) == 2
