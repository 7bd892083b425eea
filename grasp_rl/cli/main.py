"""`grasp-rl`: one console script, a few commands.

Nothing heavy is imported before a command is known: help answers at once. train, sft, fit-segmenter and evaluate speak
Hydra's syntax and start a worker; the others read their own flags.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence

from grasp_rl import __version__
from grasp_rl.utils import memory

_COMPOSED = ("train", "sft", "fit-segmenter", "evaluate", "score", "rescore", "diagnose")
_MODULES = {
    "plan": "grasp_rl.cli.plan",
    "predict": "grasp_rl.cli.predict",
    "export": "grasp_rl.cli.export",
    "rehearse": "grasp_rl.rehearsal",
    "dashboard": "grasp_rl.cli.dashboard",
    "wandb-sweep": "grasp_rl.cli.wandb_sweep",
    "demo": "grasp_rl.demo",
    "bench": "grasp_rl.bench",
}
"""Commands that import torch from their first line on, each in a process of its own."""

_HELP = f"""grasp-rl {__version__}: teach a vision-language policy to point, with GRPO and a frozen promptable segmenter

Usage: grasp-rl COMMAND [arguments]

  train      train the policy by GRPO               grasp-rl train algorithm.steps=50
  sft        supervised fine-tuning on weak labels         grasp-rl sft
  fit-segmenter  train a promptable segmenter      grasp-rl fit-segmenter segmenter=synthetic_sam2_small
  evaluate   score a policy on a split              grasp-rl evaluate init_from=RUN_FOLDER
  score      score another system's answers         grasp-rl score FILE data=jsonl data.root=FOLDER
  rescore    a run's answers, another segmenter     grasp-rl rescore RUN_FOLDER segmenter=sam2_1_hiera_large
  diagnose   where a run's answers lose their IoU   grasp-rl diagnose RUN_FOLDER
  plan       what a run will take, beforehand       grasp-rl plan policy=qwen2_5_vl_3b --gpu a100_80
  rehearse   a recipe in small, on this machine     grasp-rl rehearse think2seg_rs/main_3b
  predict    answer questions about your images   grasp-rl predict --help
  demo       a page in the browser to try it by hand  grasp-rl demo --run RUN_FOLDER
  report     tables and figures of finished runs    grasp-rl report FOLDER ...
  table      scores by configuration or axes       grasp-rl table FOLDER --rows reward --columns prompt
  export     write a policy for others to load      grasp-rl export RUN_FOLDER --out FOLDER --merge
  data       check, look at or convert a dataset    grasp-rl data --help
  bench      what a step costs, here and in TRL     grasp-rl bench step
  dashboard  a W&B workspace, a report of a grid   grasp-rl dashboard --project grasp_rl
  wandb-sweep    a grid as W&B sweep files         grasp-rl wandb-sweep tiny/reward
  doctor     what is installed, what is missing     grasp-rl doctor

  grasp-rl COMMAND --help     the arguments of a command; for train, sft, fit-segmenter, evaluate every option and value
  grasp-rl COMMAND --json     one JSON object on stdout, everything else on stderr
  grasp-rl --version       the version

Tab completion: eval "$(grasp-rl -sc install=bash)" (zsh alike; fish: grasp-rl -sc install=fish | source)
"""

COMMANDS = (
    *_COMPOSED,
    "plan",
    "rehearse",
    "predict",
    "demo",
    "report",
    "table",
    "export",
    "data",
    "bench",
    "dashboard",
    "wandb-sweep",
    "doctor",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("--help", "-h", "help"):
        sys.stdout.write(_HELP)
        return 0
    if args[0] in ("--version", "-V"):
        sys.stdout.write(f"grasp-rl {__version__}\n")
        return 0
    if args[0] in ("-sc", "--shell-completion"):
        return _complete(args)
    command, rest = args[0], args[1:]
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        sys.stderr.write(f"grasp-rl: {command}: no such command{hint} Commands: {', '.join(COMMANDS)}\n")
        return 2
    return _run(command, rest)


def _run(command: str, rest: list[str]) -> int:
    if command in _COMPOSED:
        from grasp_rl.launch import main as launcher

        return launcher.main(command, rest)
    if command in _MODULES:
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, "-P", "-m", _MODULES[command], *rest], memory.environment())
    if command == "report":
        from grasp_rl.reporting import render

        return render.main(rest)
    if command == "table":
        from grasp_rl.reporting import table

        return table.main(rest)
    if command == "data":
        from grasp_rl.cli import data as data_cli

        return data_cli.main(rest)
    from grasp_rl.cli import doctor

    return doctor.main(rest)


def _complete(args: list[str]) -> int:
    """Answer the shell: the commands for the first word, what Hydra knows for those after it."""
    from grasp_rl.launch import main as launcher

    if not any(word.startswith("query=") for word in args):
        return launcher.main("train", args)
    line = os.environ.get("COMP_LINE", "")
    parts = line.split()
    if len(parts) < 2 or (len(parts) == 2 and not line.endswith(" ")):
        typed = parts[1] if len(parts) == 2 else ""
        sys.stdout.write("\n".join(command for command in COMMANDS if command.startswith(typed)) + "\n")
        return 0
    if parts[1] not in _COMPOSED:
        return 0
    kept = [part for part in parts[2:] if part not in ("--json", "--report")]
    os.environ["COMP_LINE"] = " ".join([parts[0], *kept]) + (" " if line.endswith(" ") or not kept else "")
    return launcher.main(parts[1], args)


if __name__ == "__main__":
    sys.exit(main())
