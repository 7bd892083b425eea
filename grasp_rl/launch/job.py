"""One job of a sweep, in whichever process Hydra's launcher runs it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from grasp_rl.config import messages
from grasp_rl.config.errors import ConfigError
from grasp_rl.config.modules import admit
from grasp_rl.launch import compose, process
from grasp_rl.launch.process import StopFile
from grasp_rl.runs.run_dir import ERROR, METRICS, launcher_lock, mark_ended
from grasp_rl.utils.files import write_json


def run_job(
    config: DictConfig,
    *,
    trusted: tuple[str, ...],
    said: tuple[str, ...],
    command: tuple[str, ...],
    stop: StopFile,
    driver: int,
) -> tuple[str, float | None]:
    """Run one job: how it ended, and its objective for a search. Its failure stays in its own folder."""
    if os.getpid() != driver:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver hears it and writes it down
        admit(trusted)
    if stop.ended():
        return "stopped", None
    hydra = HydraConfig.get()
    run_dir = Path(hydra.sweep.dir) / str(hydra.sweep.subdir)
    try:
        job = compose.resolve(config, run_dir, trusted, said)
        if (known := process.folder_of(job)) != run_dir:
            with contextlib.suppress(OSError):  # Hydra has made an empty folder of the new name
                run_dir.rmdir()
            job, run_dir = compose.moved(job, known), known
        with launcher_lock(run_dir):
            claim = process.claim(job, again=True)
            if claim != "done":
                process.prepare(job, command, hydra.overrides.task, resume=claim == "resume")
                process.run_worker(job, stop)
                if process.outcome(run_dir)["state"] == "failed":
                    sys.stderr.write(f"{run_dir.name} failed: {process.failure(run_dir)}\n")
    except (ConfigError, OSError) as error:
        write_json(run_dir / ERROR, {"type": type(error).__name__, "message": messages.of_system(error)})
        mark_ended(run_dir, "failed", 2 if isinstance(error, ConfigError) else 1)
        sys.stderr.write(f"{run_dir.name} failed: {messages.of_system(error)}\n")
    if process.outcome(run_dir)["state"] == "failed" and config.sweep.on_error == "stop":
        stop.halt()
    return _objective(run_dir, config)


def _objective(run_dir: Path, config: DictConfig) -> tuple[str, float | None]:
    """State of a job, and the highest validation value of what a search is for."""
    ended, search = process.outcome(run_dir), config.sweep.search
    if config.sweep.trial is None or not (run_dir / METRICS).is_file():
        return ended["state"], None
    with (run_dir / METRICS).open(encoding="utf-8") as file:
        values = [row[key] for row in map(json.loads, file) if (key := f"val/{search.metric}") in row]
    state = "pruned" if (ended["result"] or {}).get("pruned_at") else ended["state"]
    return state, max(values, default=None)
