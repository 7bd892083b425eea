"""The worker: one run folder in, one run done. Hydra is never started here.

    python -P -m grasp_rl.launch.worker <run>/config.yaml [--trust MODULE ...] [--resume]

The file on disk is what runs. Its end is written beside it: result.json, or error.json for an error that one line
explains, and the state in status.json.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.messages import of_system
from grasp_rl.config.modules import admit
from grasp_rl.config.schema import RunConfig
from grasp_rl.config.targets import check_components, check_trusted, instantiate, load_config
from grasp_rl.interfaces import Components
from grasp_rl.runs import checkpoints, environment, heartbeat, origin, received, signals
from grasp_rl.runs.run_dir import (
    ENVIRONMENT,
    ERROR,
    LAUNCHER_LOCK,
    RESULT,
    config_hash,
    is_locked,
    mark_ended,
    mark_started,
    run_lock,
    stages_in,
)
from grasp_rl.utils.files import Record, write_json
from grasp_rl.utils.text import OneLine

_RUNNERS = {
    "train": "grasp_rl.training.regimes",
    "sft": "grasp_rl.training.sft",
    "fit-segmenter": "grasp_rl.training.fit_segmenter",
    "evaluate": "grasp_rl.evaluation.evaluate",
    "score": "grasp_rl.evaluation.stored",
    "rescore": "grasp_rl.evaluation.stored",
    "diagnose": "grasp_rl.evaluation.diagnose",
}
"""Modules with ``run(config: RunConfig, components: Components) -> dict``."""

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what a run folder says and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -P -m grasp_rl.launch.worker", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("config", type=Path, help="the run folder's config.yaml")
    parser.add_argument("--trust", nargs="+", default=[], metavar="MODULE", help="outside modules to take classes from")
    parser.add_argument(
        "--with-launcher",
        action="store_true",
        help="end at a step boundary, with a checkpoint, once the launcher is gone",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the run folder")
    arguments = parser.parse_args(argv)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    run_dir: Path = arguments.config.parent
    checked = arguments.with_launcher
    if int(os.environ.get("RANK", "0")) > 0:
        return _run(arguments.config, arguments.trust, resume=arguments.resume, checked=checked, is_main=False)
    try:
        with run_lock(run_dir):
            if arguments.with_launcher:
                signals.interrupt_when(lambda: not is_locked(run_dir, LAUNCHER_LOCK))
            return _run(arguments.config, arguments.trust, resume=arguments.resume, checked=checked, is_main=True)
    except ConfigError as error:
        log.error("%s", error)
        return 2


def _run(path: Path, trusted: Sequence[str], *, resume: bool, checked: bool, is_main: bool) -> int:
    """Run and pipeline: exit 0 done, 2 a config that cannot be used, 1 any other failure, 130 interrupted.

    ``checked`` says that the launcher has asked for what the config decides about this machine.
    """
    run_dir, rank = path.parent, int(os.environ.get("RANK", "0"))

    def leave() -> None:
        if is_main:
            mark_ended(run_dir, "interrupted", signals.EXIT_CODE)

    signals.listen(leave)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        heartbeat.beat(run_dir, rank)
    try:
        config = load_config(path)
        if not checked and not origin.is_own(path):  # by hand, and somebody else's
            received.demand_said_again(asdict(config), (), str(path), [run_dir])
            config = replace(config, trust_checkpoint=False)
        config = replace(config, run_dir=str(run_dir), resume=str(run_dir) if resume else config.resume)
        if is_main:
            with signals.held():
                mark_started(run_dir, os.getpid(), config_hash(asdict(config)))
            if signals.pending():
                raise KeyboardInterrupt
        result = _dispatch(config, check_trusted(trusted))
    except (ConfigError, OSError) as error:
        code = 2 if isinstance(error, ConfigError) else 1
        of_the_folder = isinstance(error, IsADirectoryError | NotADirectoryError)  # its line says all there is
        log.error("%s", error, exc_info=code == 1 and not of_the_folder)
        if is_main:
            write_json(run_dir / ERROR, {"type": type(error).__name__, "message": of_system(error)})
            mark_ended(run_dir, "failed", code)
        heartbeat.failed(run_dir, rank, error)
        return code
    except KeyboardInterrupt:
        log.warning("interrupted")
        leave()
        return signals.EXIT_CODE
    except BaseException as error:
        log.exception("rank %d failed", rank)
        if (run_dir / heartbeat.FOLDER).is_dir():
            lost = heartbeat.silent(run_dir)
            for other in lost:
                log.error("rank %d gives no sign of life", other)
            heartbeat.failed(run_dir, rank, error, lost)
        if is_main:
            mark_ended(run_dir, "failed", 1)
        raise
    if is_main:
        write_json(run_dir / RESULT, {"command": config.command, "run_dir": config.run_dir} | result)
        _retain(run_dir, config.checkpoint.keep)
        mark_ended(run_dir, "done", 0)
    return 0


def _retain(run_dir: Path, keep: str) -> None:
    """Leave of the checkpoints of a run that is done, and of its stages, what ``checkpoint.keep`` wants."""
    for folder in (run_dir, *stages_in(run_dir)):
        checkpoints.retain(folder, keep)


def build(config: RunConfig, trusted: Sequence[str] = ()) -> Components:
    """The components of ``config``, all checked before the first is built, the policy last.

    Raises:
        ConfigError: one of them cannot be built.
    """
    check_components(config, trusted)
    if not set(config.trusted_modules) <= set(trusted):
        raise ConfigError(f"trusted_modules={config.trusted_modules}: trust them on the command line, --trust MODULE")
    from grasp_rl.distributed.build import loading

    data = instantiate(config.data, trusted, "data")
    segmenter = instantiate(config.segmenter, trusted, "segmenter")
    reward = instantiate(config.reward, trusted, "reward")
    tracker = instantiate(config.tracker, trusted, "tracker")
    generator = instantiate(config.generator, trusted, "generator")
    protocol = instantiate(config.evaluation.protocol, trusted, "evaluation.protocol")
    policy: Any = None
    if config.predictions is None and config.command != "fit-segmenter":  # the answers are there, or not asked for
        with loading(config):
            policy = instantiate(config.policy, trusted, "policy")
    return Components(
        policy=policy,
        segmenter=segmenter,
        reward=reward,
        data=data,
        tracker=tracker,
        generator=generator,
        protocol=protocol,
        advantage=instantiate(config.algorithm.own_advantage, trusted, "algorithm.own_advantage") or None,
        surrogate=instantiate(config.algorithm.own_surrogate, trusted, "algorithm.own_surrogate") or None,
    )


def _dispatch(config: RunConfig, trusted: Sequence[str]) -> Record:
    admit(trusted)
    components = [build(config, trusted)]
    data = components[0].data
    import torch

    torch.set_num_threads(config.engine.threads)
    run: Callable[[RunConfig, Components], Record] = importlib.import_module(_RUNNERS[config.command]).run
    signals.ready()
    try:
        return run(config, components.pop())  # nothing here holds a policy that a later stage builds anew
    finally:
        if int(os.environ.get("RANK", "0")) == 0:
            conversions = getattr(data, "conversions", {})
            environment.add_conversions(Path(config.run_dir) / ENVIRONMENT, conversions)


if __name__ == "__main__":
    sys.exit(main())
