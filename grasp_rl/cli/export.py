"""`grasp-rl export`: a trained policy as a folder that plain transformers or PEFT reads, with its model card."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.messages import of_system
from grasp_rl.config.modules import admit
from grasp_rl.config.targets import check, check_trusted, instantiate, to_config
from grasp_rl.policies.describe import describe
from grasp_rl.runs import checkpoints, received
from grasp_rl.runs.run_dir import RESULT
from grasp_rl.utils.files import Record, read_json


def export(
    run: Path,
    out: Path,
    *,
    merge: bool = False,
    step: int | None = None,
    trusted: Sequence[str] = (),
    said: Sequence[str] = (),
) -> Record:
    """Write the policy of ``run`` into ``out``; returns what was written.

    Args:
        run: a run folder.
        out: a folder that does not exist yet, or is empty.
        merge: fold a LoRA adapter into the base weights.
        step: the checkpoint to take; None takes the best, else the newest.
        trusted: outside modules whose classes the run's config may name.
        said: ``KEY=VALUE`` that the config of somebody else's run decides about this machine, said again.

    Raises:
        ConfigError: there is no such run or checkpoint, ``out`` holds something, or what has to be said was not.
        OSError: ``out`` cannot be written.
    """
    overrides = {key: value for key, _, value in (word.partition("=") for word in said)}
    raw = received.read(run, overrides, str(run), ("policy", "prompt", "rollout"))
    theirs = received.decisions(raw, [run])
    if unlike := [key for key, value in overrides.items() if str(theirs.get(key)) != value]:
        raise ConfigError(f"{unlike[0]}: is not what the run says, {theirs.get(unlike[0])!r}; export changes nothing")
    config = to_config(raw)
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"--out {out}: is not empty; name a new folder")
    source = checkpoints.folder_of(run, step) if step is not None else run
    checkpoint = checkpoints.find_policy(source)
    check(config.policy, trusted, "policy")
    policy: Any = instantiate(config.policy, trusted, "policy")
    policy.load_weights(checkpoint)
    if merge:
        policy.merge()
    out.mkdir(parents=True, exist_ok=True)
    policy.save(out)
    done = int(checkpoint.parent.name.removeprefix("step_")) if checkpoint.parent.name.startswith("step_") else 0
    result, split = read_json(run / RESULT) or {}, config.evaluation.test_split
    scores = {f"{split}, before": result.get("before") or {}}
    if done == (result.get("best_step") or result.get("steps")):  # the one that was scored when the run ended
        scores[f"{split}, after"] = result.get("after") or {}
    describe(out, policy, config, step=done, scores=scores)
    return {"run": str(run), "checkpoint": str(checkpoint), "step": done, "merged": merge, "out": str(out)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``grasp-rl export <argv>`` and return its exit code."""
    parser = argparse.ArgumentParser(prog="grasp-rl export", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("said", nargs="*", metavar="KEY=VALUE", help="what somebody else's run asks to be said again")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--merge", action="store_true", help="fold a LoRA adapter into the base weights")
    parser.add_argument("--step", type=int, help="the checkpoint to take (default: the best, else the newest)")
    parser.add_argument("--trust", nargs="+", default=[], metavar="MODULE", help="outside modules to take classes from")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_intermixed_args(argv)
    try:
        trusted = check_trusted(arguments.trust)
        admit(trusted)
        written = export(
            arguments.run,
            arguments.out,
            merge=arguments.merge,
            step=arguments.step,
            trusted=trusted,
            said=arguments.said,
        )
    except (ConfigError, OSError) as error:
        sys.stderr.write(f"grasp-rl export: {of_system(error)}\n")
        return 2 if isinstance(error, ConfigError) else 1
    sys.stdout.write(json.dumps(written) + "\n" if arguments.json else f"{written['out']}: step {written['step']}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
