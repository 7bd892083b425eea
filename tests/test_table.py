"""`grasp-rl table`: pivots, effects and formats worked out by hand, and published figures beside one's own."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from test_report_cells import scored, studied

from grasp_rl.cli import main as command_line
from grasp_rl.config.errors import ConfigError
from grasp_rl.evaluation import predictions
from grasp_rl.reporting import published
from grasp_rl.reporting.axes import labelled
from grasp_rl.reporting.cells import Benchmark
from grasp_rl.reporting.formats import FORMATS, Line, Table, as_latex, as_markdown
from grasp_rl.reporting.table import tables_of
from grasp_rl.reporting.types import StudiedRun
from grasp_rl.runs.run_dir import CONFIG, ENVIRONMENT, STATUS
from grasp_rl.utils.files import write_json

BASE = np.linspace(0.2, 0.5, 40)
SHIFT = {("a", "x"): 0.0, ("b", "x"): 0.1, ("a", "y"): 0.02, ("b", "y"): 0.16}
"""Added to every sample, so that all differences are free of chance."""


def grid(shift: Mapping[tuple[str, str], float] = SHIFT, seeds: int = 1, **axes: str) -> list[StudiedRun]:
    more = " ".join(f"{key}={value}" for key, value in axes.items())
    return [
        studied(f"reward={reward} prompt={prompt} {more} seed={seed}", scored(BASE + value + seed / 100))
        for (reward, prompt), value in shift.items()
        for seed in range(seeds)
    ]


def records(runs: Sequence[StudiedRun], **options: Any) -> list[dict[str, Any]]:
    return list(tables_of(labelled(runs), **options)[0].records)


def test_a_pivot_by_hand() -> None:
    (table,) = tables_of(labelled(grid()), rows="reward", columns="prompt")
    assert table.head == ("reward", "prompt=x", "prompt=y")
    means = [[line.cells[place].split()[0] for place in (1, 2)] for line in table.lines]
    assert means == [["0.350", "0.370"], ["0.450", "0.510"]]
    assert [line.bold for line in table.lines] == [frozenset(), frozenset({2})]
    assert table.title == "giou on d test, 40 samples, protocol ours"
    assert "one seed was run" in table.notes[0]
    found = {(row["reward"], row["prompt"]): row for row in table.records}
    assert found["b", "y"]["mean"] == pytest.approx(0.51)
    assert found["b", "y"]["low"] < 0.51 < found["b", "y"]["high"]


def test_a_pivot_averages_over_axes_that_are_crossed() -> None:
    raised = {place: value + 0.2 for place, value in SHIFT.items()}
    runs = [*grid(lr="1"), *grid(raised, lr="2")]
    (table,) = tables_of(labelled(runs), rows="reward")
    assert [row["mean"] for row in table.records] == pytest.approx([0.35 + 0.01 + 0.1, 0.35 + 0.13 + 0.1])
    assert "Averaged over prompt, lr." in table.notes
    (table,) = tables_of(labelled(runs), rows="reward", where=["lr=1", "prompt=y"])
    assert [row["mean"] for row in table.records] == pytest.approx([0.37, 0.51])
    lacking = [run for run in labelled(runs) if run.label != "reward=b, prompt=y, lr=2"]
    with pytest.raises(ConfigError, match=r"--rows reward: reward=b, prompt=y lacks lr=2.*--where lr=VALUE"):
        tables_of(lacking, rows="reward", columns="prompt")


def test_an_empty_place_of_a_pivot_is_a_dash() -> None:
    (table,) = tables_of(labelled(grid()[:3]), rows="reward", columns="prompt")
    assert table.lines[1].cells[2] == "-"


def test_effects_by_hand() -> None:
    """Mean of b over a: (0.1 + 0.14) / 2; of y over x: (0.02 + 0.06) / 2; how much they change together: 0.06 - 0.02."""
    table = tables_of(labelled(grid()), effects=True)[1]
    assert [(row["kind"], row["effect"]) for row in table.records] == [
        ("main effect", "reward=b"), ("main effect", "prompt=y"), ("interaction", "reward=b x prompt=y")
    ]  # fmt: skip
    for row, value in zip(table.records, (0.12, 0.04, 0.04), strict=True):
        assert (row["difference"], row["low"], row["high"]) == pytest.approx((value, value, value))
        assert row["p_holm"] == pytest.approx(3 * 2 / 2001)
    assert table.records[2]["reference"] == "reward=a, prompt=x"


def test_effects_of_three_levels_and_seeds() -> None:
    shift = {place: value for place, value in SHIFT.items() if place[1] == "x"} | {("c", "x"): -0.05}
    table = tables_of(labelled(grid(shift, seeds=2)), effects=True)[1]
    assert [row["effect"] for row in table.records] == ["reward=b", "reward=c"]
    b, c = table.records
    assert (b["difference"], c["difference"]) == pytest.approx((0.1, -0.05))
    assert (b["low"], b["high"]) == pytest.approx((0.09, 0.11))  # seeds differ by 0.01, drawn on both sides
    assert "Intervals are over seeds (2) and samples" in table.notes[0]


def test_a_row_a_configuration_with_its_difference_to_a_baseline() -> None:
    runs = grid(seeds=2)
    rows = {row["configuration"]: row for row in records(runs)}
    assert rows["reward=a, prompt=x"]["difference"] == pytest.approx(-0.16)
    assert rows["reward=b, prompt=y"]["difference"] is None
    assert [row["leading"] for row in rows.values()] == [False, False, False, True]
    assert {row["seeds"] for row in rows.values()} == {2}
    rows = {row["configuration"]: row for row in records(runs, baseline="reward=a,prompt=x")}
    assert rows["reward=b, prompt=y"]["difference"] == pytest.approx(0.16)
    assert rows["reward=b, prompt=y"]["difference_low"] == pytest.approx(0.15)
    assert rows["reward=b, prompt=y"]["p_holm"] == pytest.approx(3 * 2 / 2001)


def test_another_metric_and_a_table_for_each_benchmark() -> None:
    two = [*grid(), studied("reward=a prompt=z seed=0", scored(BASE, query="other"))]
    assert [len(table.records) for table in tables_of(labelled(two))] == [4, 1]
    assert records(grid(), metric="ciou")[1]["mean"] == pytest.approx(0.45)
    for row in records([studied("reward=a", scored([0.4, 0.6], **{"think2seg/scored": 2, "think2seg/giou": 0.3}))],
                       protocol="think2seg"):  # fmt: skip
        assert (row["mean"], row["low"], row["protocol"]) == (0.3, None, "think2seg")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"rows": "rewrad"},
            r"--rows rewrad: no axis of these runs; did you mean reward\?; the axes are reward, prompt",
        ),
        ({"rows": "reward", "columns": "reward"}, "name two different axes"),
        ({"columns": "reward"}, "--columns reward: name --rows, too"),
        ({"where": ["reward=c"]}, "--where reward=c: no configuration has that; reward is one of: a, b"),
        ({"metric": "gIoU"}, "--metric gIoU: no run has it.*there are: giou, ciou, samples"),
        ({"protocol": "lisa"}, "--protocol lisa: no run was scored by it; by: ours"),
        ({"baseline": "reward=a"}, "baseline=reward=a: 2 configurations are that"),
    ],
)
def test_what_there_is_not(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tables_of(labelled(grid()), **options)


def test_effects_need_a_grid() -> None:
    with pytest.raises(
        ConfigError, match=r"1 of the 4 configurations of the grid have no score, first reward=b, prompt=y"
    ):
        tables_of(labelled(grid()[:3]), effects=True)
    with pytest.raises(ConfigError, match="the configurations differ in no axis"):
        tables_of(labelled(grid()[:1]), effects=True)
    with pytest.raises(ConfigError, match="none of these runs has been scored"):
        tables_of(labelled([studied("reward=a", None)]))


SMALL = Table(
    title="a_b & 95 %",
    head=("x", "n"),
    lines=(Line(cells=("p|q", "1"), bold=frozenset({1})), Line(cells=("<i>", "2"), grey=True)),
    records=({"x": "p|q", "n": 1.5}, {"x": "<i>", "n": None, "m": 2}),
    notes=("note",),
)


def test_formats() -> None:
    assert as_markdown([SMALL]) == (
        "### a_b &amp; 95 %\n\n| x | n |\n| --- | --- |\n| p\\|q | **1** |\n| *&lt;i>* | *2* |\n\nnote\n"
    )
    latex = as_latex([SMALL])
    assert r"\caption{a\_b \& 95 \%. note}" in latex
    assert "\\toprule\nx & n \\\\\n\\midrule\n" in latex
    assert r"p$|$q & \textbf{1} \\" in latex
    assert r"\textcolor{gray}{$<$i$>$} & \textcolor{gray}{2} \\" in latex
    assert r"\begin{tabular}{lr}" in latex
    rows = list(csv.DictReader(io.StringIO(FORMATS["csv"]([SMALL]))))
    assert rows[0] == {"table": "a_b & 95 %", "x": "p|q", "n": "1.5", "m": ""}
    told = json.loads(FORMATS["json"]([SMALL]))
    assert told["tables"][0]["rows"][1] == {"x": "<i>", "n": None, "m": 2}


def written(folder: Path, words: str, ious: Sequence[float]) -> None:
    """A run directory that an evaluation left."""
    made = scored(ious)
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(yaml.safe_dump({"policy": "p", **dict(word.split("=") for word in words.split())}))
    write_json(folder / ENVIRONMENT, {"overrides": words.split()})
    times = {"started": "2026-01-01T10:00:00+00:00", "ended": "2026-01-01T10:30:00+00:00"}
    write_json(folder / STATUS, {"state": "done", "config_hash": words} | times)
    lines = [r | {"predicted": None, "status": "ok", "target": r["target"] | {"size": [1, 1]}} for r in made.records]
    predictions.write_folder(folder / "eval", lines, made.metrics, {})


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for (reward, seed), more in zip(product("ab", "01"), (0.0, 0.0, 0.1, 0.2), strict=True):
        written(tmp_path / f"s/{reward}{seed}", f"reward={reward} seed={seed}", BASE + more)
    assert command_line.main(["table", str(tmp_path / "s"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["tables"][0]
    assert [(row["reward"], row["seeds"], round(row["mean"], 3)) for row in told["rows"]] == [
        ("a", 2, 0.35),
        ("b", 2, 0.5),
    ]
    assert told["rows"][0]["cost"] == "1.00 process-h"
    out = tmp_path / "table.tex"
    assert command_line.main(["table", str(tmp_path / "s"), "--rows", "reward", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert r"\textbf{0.500 [" in out.read_text()
    assert command_line.main(["table", str(tmp_path / "s"), "--rows", "reward"]) == 0
    assert "| a | 0.350 [" in capsys.readouterr().out
    assert command_line.main(["table", str(tmp_path / "s"), "--out", "x.docx"]) == 2
    assert "must be one of .md, .tex, .csv, .json" in capsys.readouterr().err
    assert command_line.main(["table", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert command_line.main(["report", str(tmp_path / "s/a0"), str(tmp_path / "s/b0"), "--out", str(tmp_path)]) == 0
    assert "<h1>a0, b0</h1>" in (tmp_path / "report.html").read_text()


def benchmark(protocol: str, samples: int = 1928, dataset: str = "earthreason") -> Benchmark:
    return Benchmark(dataset, "test", samples, protocol, "d")


def test_published_figures_stand_beside_ones_own_by_the_same_rules_alone() -> None:
    ours = {"giou": ("reward=a", 0.7)}
    rows = published.beside(benchmark("think2seg"), ("giou",), ours)
    same = {(row["system"], row["note"]): (row["value"], row["ours"], row["confidence"]) for row in rows if row["same"]}
    assert same["Think2Seg-RS", ""] == ("73.36", "70.00", "P")
    other = next(row for row in rows if row["system"] == "SegEarth-R1")
    assert (other["same"], other["ours"], other["protocol"]) == (False, "", "segearth_r1")
    assert other["why"] == "another protocol"
    assert [row["same"] for row in rows] == sorted((row["same"] for row in rows), reverse=True)
    rows = published.beside(benchmark("segearth_r1"), ("giou",), ours)
    assert [row["system"] for row in rows if row["same"]] == ["SegEarth-R1"]
    fewer = published.beside(benchmark("think2seg", samples=500), ("giou",), ours)
    assert not any(row["same"] or row["ours"] for row in fewer)
    assert {row["why"] for row in fewer if row["protocol"] == "think2seg"} == {"500 of 1928 samples here"}
    changed = published.beside(benchmark("think2seg with strict=False"), ("giou",), ours)
    assert not any(row["same"] for row in changed)
    assert published.beside(benchmark("ours", dataset="synthetic"), ("giou",), ours) == []


def test_the_published_file_is_whole() -> None:
    found = published.read(published.path())
    assert len(found.figures) > 100
    keys = [(f.system, f.dataset, f.split, f.metric, f.note) for f in found.figures]
    assert len(set(keys)) == len(keys)
    by_own_rules = {f.protocol for f in found.figures if f.confidence == "P" and f.protocol}
    assert by_own_rules == {"think2seg", "geo_r1_rec", "geo_r1_gres"}


ENTRY = {"system": "s", "dataset": "d", "split": "t", "metric": "giou", "value": 5, "source": "x", "confidence": "P"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": 101}, r"figure 1: value=101; must be a number of percent"),
        ({"value": True}, r"value=True"),
        ({"confidence": "X"}, r"confidence='X'; must be one of P, S, NC"),
        ({"protocol": "think2sag"}, r"protocol='think2sag' \(did you mean think2seg\?\)"),
        ({"source": None}, r"lacks source"),
        ({"colour": 1}, r"colour is no field"),
    ],
)
def test_a_wrong_figure_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "published.yaml"
    path.write_text(yaml.safe_dump({"figures": [ENTRY]}))
    assert published.read(path).figures[0].value == 5
    path.write_text(yaml.safe_dump({"figures": [ENTRY | change]}))
    with pytest.raises(ConfigError, match=message):
        published.read(path)
    path.write_text("figures: {")
    with pytest.raises(ConfigError, match="cannot be read"):
        published.read(path)


def test_a_report_and_a_table_show_published_figures_greyed(tmp_path: Path) -> None:
    from grasp_rl.reporting.content import context
    from grasp_rl.reporting.render import markdown, render

    made = scored(np.full(1928, 0.5))
    for record in made.records:
        record["dataset"] = "earthreason"  # type: ignore[index]
    runs = labelled([studied("reward=a", made, evaluation={"protocol": {"name": "think2seg"}})])
    content = context(runs, "study")
    page = render(content)
    assert '<tr><td class="t">Think2Seg-RS</td>' in page
    assert '<tr class="other"><td class="t">SegEarth-R1<br><small>Phi-1.5' in page
    assert "another protocol" in markdown(content)
    table = tables_of(runs)[1]
    assert table.title == "Published: giou on earthreason test"
    assert {line.cells[0]: line.grey for line in table.lines}["SegEarth-R1"]
    assert not {line.cells[0]: line.grey for line in table.lines}["Think2Seg-RS"]
