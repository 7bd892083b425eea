"""`grasp-rl dashboard`: a workspace on Weights & Biases for the runs of a project, and a report for a grid."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from grasp_rl.config import messages
from grasp_rl.config.errors import ConfigError
from grasp_rl.reporting.load import read_study
from grasp_rl.tracking import dashboard


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``grasp-rl dashboard <argv>``: exit 0, 1 where W&B did not take it, 2 for a wrong line."""
    arguments = _parser().parse_args(argv)
    try:
        return _run(arguments)
    except (ConfigError, OSError) as error:
        sys.stderr.write(f"grasp-rl dashboard: {messages.of_system(error)}\n")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="grasp-rl dashboard", description=(__doc__ or "").split(": ", 1)[1])
    add = parser.add_argument
    add("--project", default="grasp_rl", help="W&B project, as tracker.project (default: %(default)s)")
    add("--entity", help="user or team (default: the account's own)")
    add("--grid", type=Path, metavar="FOLDER", help="of a sweep whose runs were tracked: its report, too")
    add("--dry-run", action="store_true", help="write what would be sent, as JSON; nothing is asked of a server")
    add("--out", type=Path, metavar="FILE", help="of --dry-run (default: stdout)")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    if arguments.out and not arguments.dry_run:
        raise ConfigError("--out: goes with --dry-run")
    entity = arguments.entity or ("ENTITY" if arguments.dry_run else _own_entity())
    made = [dashboard.workspace(entity, arguments.project)]
    if arguments.grid:
        runs = read_study(arguments.grid)
        axes = list(dict.fromkeys(axis for run in runs for axis in run.axes))
        commands = {" ".join(map(str, run.environment.get("command") or ())) for run in runs} - {""}
        examples = "; ".join(sorted(commands)[:3])
        made.append(dashboard.report(entity, arguments.project, arguments.grid.absolute().name, axes, examples))
    if arguments.dry_run:
        text = json.dumps([dashboard.spec(part) for part in made], indent=1) + "\n"
        if arguments.out:
            arguments.out.write_text(text, encoding="utf-8")
        else:
            sys.stdout.write(text)
        return 0
    try:
        sys.stdout.write(f"workspace: {dashboard.save_workspace(made[0])}\n")
        for report in made[1:]:
            sys.stdout.write(f"report: {dashboard.save_report(report)}\n")
    except dashboard.failures() as error:
        sys.stderr.write(f"grasp-rl dashboard: {type(error).__name__}: {messages.one_line(error)}\n")
        return 1
    return 0


def _own_entity() -> str:
    """The account's default.

    Raises:
        ConfigError: nobody is logged in.
    """
    try:
        entity = dashboard.load("wandb").Api().default_entity
    except dashboard.failures() as error:
        raise ConfigError(f"W&B: {messages.one_line(error)}; `wandb login`, or --dry-run") from error
    if not entity:
        raise ConfigError("--entity: the account has no default; name the user or team")
    return str(entity)


if __name__ == "__main__":
    sys.exit(main())
