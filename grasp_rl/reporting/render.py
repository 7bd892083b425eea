"""`grasp-rl report`: tables, curves and images of finished runs on one page that needs nothing else.

From a run folder, or a folder of runs, it writes ``report.html`` (self-contained, no script), ``report.md``,
``results.csv``, and the scores by attribute as ``breakdowns.csv`` and ``breakdowns.tex``. A run that failed is listed
with its error; what is missing is a note.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.messages import of_system
from grasp_rl.reporting import breakdowns
from grasp_rl.reporting.axes import SEEDS
from grasp_rl.reporting.content import context
from grasp_rl.reporting.formats import as_csv, markdown_table
from grasp_rl.reporting.load import read_study
from grasp_rl.reporting.results import NOTHING
from grasp_rl.reporting.types import StudiedRun
from grasp_rl.utils.files import Record, to_json, write_text
from grasp_rl.utils.text import markdown_code, markdown_line, printable
from grasp_rl.utils.text import markdown_text as _md

PARTS = ("rollout", "reward", "update")
_TEMPLATES = Path(__file__).parent / "templates"


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``grasp-rl report <argv>`` and return its exit code."""
    parser = argparse.ArgumentParser(prog="grasp-rl report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "folder", type=Path, nargs="+", help="run folders, or folders of runs such as a sweep's, nested or not"
    )
    parser.add_argument("--out", type=Path, help="where to write the report (default: into the first FOLDER)")
    parser.add_argument("--over", default="seed", help="keys to average over, with commas between (default: seed)")
    parser.add_argument("--baseline", help="KEY=VALUE,... of the configuration to compare with (default: the best)")
    parser.add_argument(
        "--watch", nargs="?", type=float, const=30.0, metavar="SECONDS",
        help="write it anew every so many seconds (default: 30) until all runs have ended; an open page follows",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args(argv)
    try:
        out = arguments.out or arguments.folder[0]
        over = tuple(key.strip() for key in arguments.over.split(",") if key.strip())
        if arguments.watch is not None and arguments.watch < 1:
            raise ConfigError(f"--watch {arguments.watch:g}: must be >= 1 second")
        written = _written(arguments, out, over)
    except (ConfigError, OSError) as error:
        sys.stderr.write(printable(f"grasp-rl report: {of_system(error)}") + "\n")
        return 2 if isinstance(error, ConfigError) else 1
    sys.stdout.write(json.dumps(to_json(written)) + "\n" if arguments.json else printable(written["report"]) + "\n")
    return 0


def _written(arguments: argparse.Namespace, out: Path, over: Sequence[str]) -> Record:
    """The report; with ``--watch`` again and again until nothing is running."""
    while True:
        going_on = arguments.watch is not None and any(run.state == "running" for run in read_study(*arguments.folder))
        refresh = round(arguments.watch) if going_on else None
        written = write_report(*arguments.folder, out=out, over=over, baseline=arguments.baseline, refresh=refresh)
        if not going_on:
            return written
        sys.stderr.write(f"{written['report']}: {written['summary']}\n")
        time.sleep(arguments.watch)


def write_report(
    *folders: Path, out: Path, over: Sequence[str] = SEEDS, baseline: str | None = None, refresh: int | None = None
) -> Record:
    """Write one report on the runs in ``folders`` into ``out`` and say what it found.

    Args:
        folders: of runs, nested or not.
        out: the folder to write into.
        over: keys whose values are averaged over.
        baseline: ``key=value,...`` of the configuration to compare with; the best by default.
        refresh: seconds after which a browser is to read the page again.

    Raises:
        ConfigError: one of the folders holds no run, or there is no such baseline.
        OSError: ``out`` cannot be written.
    """
    study = read_study(*folders)
    title = ", ".join(folder.absolute().name for folder in folders)
    content = context(study, title, over=over, baseline=baseline) | {"refresh": refresh}
    table = results(study)
    write_text(out / "report.html", render(content))
    write_text(out / "report.md", markdown(content))
    write_text(out / "results.csv", as_csv(table))
    write_text(out / "breakdowns.csv", as_csv(content["breakdowns"]))
    write_text(out / "breakdowns.tex", breakdowns.as_latex(content["breakdowns"]))
    return {
        "report": str(out / "report.html"),
        "markdown": str(out / "report.md"),
        "csv": str(out / "results.csv"),
        "breakdowns": str(out / "breakdowns.csv"),
        "summary": content["summary"],
        "runs": table,
    }


def _remark(term: Record) -> str:
    return "not paid" if term["unpaid"] else "teaches nothing here" if term["idle"] else ""


def render(content: Record, template: str = "report.html.jinja") -> str:
    """The page. Every value is escaped where it is put in: what a model or a dataset says is shown, never obeyed."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = lambda text: Markup("<wbr>").join(re.split(r"(?<=[._/=])", str(text)))
    return environment.get_template(template).render(content)


def results(study: Sequence[StudiedRun]) -> list[Record]:
    """One flat record per run: its overrides, state, error, every metric before and after, and the gain."""
    table = []
    for run in study:
        row: Record = {"run": run.folder.name, **run.axes, "state": run.state, "error": run.error}
        if run.difference is not None:
            row |= {"giou_gain": run.difference.mean, "giou_gain_low": run.difference.low}
            row |= {"giou_gain_high": run.difference.high, "giou_gain_samples": run.difference.samples}
        for when, scored in (("before", run.before), ("after", run.after)):
            row |= {f"{when}/{name}": value for name, value in (scored.metrics if scored else {}).items()}
        table.append(row | {"seconds": run.seconds})
    return table


def markdown(content: Record) -> str:
    """The tables as Markdown; curves and images are on the page."""
    lines = [f"# {_md(content['title'])}", "", markdown_line(content["summary"]), ""]
    lines += [f"All runs: {_md(content['constants'])}", ""] if content["constants"] else []
    lines += [f"Common values: {_md(content['common'])}", ""] if content["common"] else []
    for group in content["groups"]:
        lines += _group(group)
    terms = [
        [block["label"], t["name"], t["weight"], t["mean"], t["std"], t["share"], _remark(t)]
        for block in content["terms"]
        for t in block["terms"]
    ]
    if terms:
        lines += ["", "## Reward terms at the first step", ""]
        lines += _md_table(["run", "term", "weight", "mean", "within-group std", "share of the variance", ""], terms)
    warned = [f"- {markdown_line(p['label'])}: {_md(p['warning'])}" for p in content["reward_iou"] if p["warning"]]
    lines += ["", "## Reward against mask", "", *warned] if warned else []
    for block in content["regimes"]:
        lines += ["", f"## Stages: {_md(block['label'])}", ""]
        body = [
            [r["name"], r["state"], str(r["steps"] or NOTHING), r["course"], r["before"], r["after"]]
            for r in block["rows"]
        ]
        lines += _md_table(["stage", "state", "steps", "first to last step", "gIoU before", "after"], body)
    for block in content["protocols"]:
        lines += ["", f"## The same answers by other protocols: {_md(block['label'])}", ""]
        body = [[row["protocol"], *row["cells"]] for row in block["rows"]]
        lines += _md_table(["protocol", *content["protocol_columns"]], body)
    for block in content["diagnoses"]:
        lines += ["", f"## Where the IoU is lost: {_md(block['label'])}", ""]
        body = [[row["of"], row["samples"], row["giou"], *row["cells"]] for row in block["rows"]]
        lines += _md_table(["of", "samples", "gIoU", *(heading for _, heading in content["stages"])], body)
    for block in content["attributes"]:
        lines += ["", f"## By attribute: {_md(block['label'])}", ""]
        body = [[r["attribute"], r["value"], str(r["samples"]), r["giou"], r["interval"]] for r in block["rows"]]
        lines += _md_table(["attribute", "value", "samples", "gIoU", "95 % interval"], body)
    costs = [
        [c["label"], str(c["steps"] or NOTHING), ", ".join(filter(None, (c["checkpoint"], c["chosen"]))), c["wall"],
         c["hours"], c["tokens"], c["step"], *c["parts"]]
        for c in content["costs"]
    ]  # fmt: skip
    lines += ["", "## Time", ""]
    lines += _md_table(["run", "steps", "checkpoint", "wall clock", "cost", "tokens", "s per step", *PARTS], costs)
    lines += ["", "## Again", ""]
    for origin in content["origins"]:
        label, commit = markdown_line(origin["label"]), _md(origin["commit"])
        changed = ", with changes" if origin["dirty"] else ""
        lines += [f"- {label} (commit {commit}{changed}): {markdown_code(origin['command'])}"]
    notes = [f"- {markdown_line(note)}" for note in content["notes"]]
    lines += ["", "## Notes", "", *notes] if notes else []
    return "\n".join([*lines, "", "Curves and images: report.html.", ""])


def _group(group: Record) -> list[str]:
    """The tables of one test set."""
    metric, columns = group["metric"], group["columns"]
    head = [*(group["axes"] or ["run"]), "state", f"{metric} before", f"{metric} after", "95 % interval"]
    head.append("gain, 95 % interval")
    body = [
        [*(row["axes"] or [row["label"]]), row["state"], row["before"], row["after"],
         " ".join(part for part in (row["range"], row["seeds"] and f"({row['seeds']})") if part) or NOTHING,
         f"{row['difference']} ({row['interval']})" if row["interval"] else row["difference"],
         *(f"{before} → {after}" for before, after in row["cells"])]
        for row in group["rows"]
    ]  # fmt: skip
    lines = [f"{markdown_line(group['title'])}. {group['chance']}".strip(), "", *_md_table([*head, *columns], body), ""]
    failed = [f"- {markdown_line(row['label'])}: {_md(row['error'])}" for row in group["rows"] if row["error"]]
    lines += ["## Failed", "", *failed, ""] if failed else []
    if group["compared"]:
        lines += [f"## Compared with {_md(group['reference'])}, on the same samples", ""]
        body = [[r["label"], r["verdict"], r["difference"], r["interval"], r["p"]] for r in group["compared"]]
        lines += [*_md_table(["configuration", "", "difference", "95 % interval", "p (Holm)"], body), ""]
    if group["published"]:
        lines += ["## Published figures on the same split, in percent", ""]
        keys = ("system", "note", "backbone", "metric", "value", "ours", "protocol", "why", "source", "confidence")
        body = [[str(row[key]) for key in keys] for row in group["published"]]
        lines += [
            *_md_table([*keys[:7], "", *keys[8:]], body),
            "",
        ]
    if group["runs"]:
        lines += ["## Each run", ""]
        body = [[*(r["axes"] or [r["label"]]), r["state"], r["before"], r["after"], r["difference"], r["interval"]]
                for r in group["runs"]]  # fmt: skip
        head = [*(group["run_axes"] or ["run"]), "state", f"{metric} before", "after", "gain", "95 % interval"]
        lines += [*_md_table(head, body), ""]
    return lines


def _md_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return markdown_table(head, [[_md(cell) for cell in row] for row in body])


if __name__ == "__main__":
    sys.exit(main())
