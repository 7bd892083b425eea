"""Weights & Biases as a mirror of metrics.jsonl, evaluations and what describes checkpoints.

The key comes from `wandb login` and is never read here.

What wandb collects on its own is turned off: console output, source code, the git remote, machine and command line; the
run's own environment.json, whose command is masked, goes along with the config instead. Everything it writes stays in
the run folder, so that `wandb sync <run>/wandb/offline-*` can send an offline run later.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil

from grasp_rl.config.errors import ConfigError
from grasp_rl.runs.environment import overrides_of
from grasp_rl.runs.run_dir import ENVIRONMENT, STATUS
from grasp_rl.tracking.dashboard import STEP
from grasp_rl.tracking.mirror import Mirror
from grasp_rl.utils.files import Record, Unreadable, read_json, read_text, sha256_of, to_json, write_text

log = logging.getLogger(__name__)

_MODES = ("online", "offline", "disabled")
_ID_FILE = "wandb_id.txt"
_COLUMNS = ("sample_id", "query", "completion", "status", "iou", "reward", "image")
_FINISH_S = 8.0
_PROJECT_CHARACTERS = r"[/\\#?%:]"
_LARGEST_FILE = 8 * 2**20
"""Bytes of a file that goes along in an artifact; of a larger one its digest alone."""
_LONGEST, _LONGEST_TAG = 128, 64
"""Characters of a project, group or name, and of a tag (wandb 0.31)."""


class WandbTracker(Mirror):
    """What ``tracker=wandb`` instantiates.

    Args:
        project: W&B project.
        entity: user or team, None for the account's default.
        mode: online; offline, to be sent later by `wandb sync`; or disabled. None for what the environment variable
            WANDB_MODE says, online where it says nothing.
        tags: of the run.
        group: None for the name of the folder that holds the run folder, which for a sweep is the sweep's.

    Raises:
        ConfigError: there is no such mode.
    """

    name = "wandb"

    def __init__(
        self,
        project: str = "grasp_rl",
        entity: str | None = None,
        mode: str | None = None,
        tags: Sequence[str] = (),
        group: str | None = None,
    ) -> None:
        if mode is None:
            said = os.environ.get("WANDB_MODE") or "online"
            mode = {"dryrun": "offline", "run": "online"}.get(said, said)
            if mode not in _MODES:
                log.warning("WANDB_MODE=%r: is none of %s; recording offline", said, ", ".join(_MODES))
                mode = "offline"
        if mode not in _MODES:
            raise ConfigError(f"tracker.mode={mode!r}: must be one of {', '.join(_MODES)}")
        super().__init__(finish_s=_FINISH_S)
        self.entity, self.mode = entity, mode
        self.project = self._accepted("project", project, _PROJECT_CHARACTERS, _LONGEST) or "grasp_rl"
        self.tags = [self._accepted("tag", tag, None, _LONGEST_TAG) for tag in dict.fromkeys(tags) if tag.strip()]
        self.group = None if group is None else self._accepted("group", group, None, _LONGEST)
        self._quiet = mode == "disabled"
        self._wandb: Any = None
        self._run: Any = None

    def _accepted(self, kind: str, name: str, characters: str | None, longest: int) -> str:
        """``name`` as W&B takes it: without ``characters``, cut to ``longest``, the end of a cut one being its hash."""
        mended = re.sub(characters, "-", name) if characters else name
        if len(mended) > longest:
            mended = f"{mended[: longest - 9]}-{sha256(name.encode()).hexdigest()[:8]}"
        if mended != name:
            self._warn(f"does not take the {kind} {name!r}; the run is tracked under {mended!r}")
        return mended

    def _failures(self) -> tuple[type[BaseException], ...]:
        """RuntimeError, ValueError and TypeError are what wandb raises for a service that died or refused a value.

        Those of its mailbox, to that service, have no common class.
        """
        mailbox = vars(getattr(getattr(self._wandb, "sdk", None), "mailbox", object)).values()
        private = [kind for kind in mailbox if isinstance(kind, type) and issubclass(kind, Exception)]
        errors = [] if self._wandb is None else [self._wandb.errors.Error]
        return (*super()._failures(), RuntimeError, ValueError, TypeError, *errors, *private)

    def _open(self, run_dir: Path, config: Mapping[str, Any], resume: bool) -> None:
        for variable in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):  # staged tables and wandb's log; no setting moves them
            os.environ[variable] = str(run_dir.absolute() / "wandb")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self._wandb = importlib.import_module("wandb")
        about = read_json(run_dir / ENVIRONMENT) or {}
        kept = {key: about[key] for key in ("command", "overrides", "packages", "python", "git") if key in about}
        axes = {
            key.replace(".", "/"): value for key, value in overrides_of(about).items()
        }  # tracking.dashboard.config_key
        described = to_json(config) | {"environment": to_json(kept), "overrides": axes}
        try:
            self._run = self._begin(run_dir, described, self.mode, resume)
        except self._failures() as error:
            if self.mode == "offline" or self._quiet:
                raise
            where = run_dir / "wandb" / "offline-*"
            self._warn(f"{type(error).__name__}: {error}; recording offline, send it later by `wandb sync {where}`")
            self._run = self._begin(run_dir, described, "offline", resume)
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)

    def _begin(self, run_dir: Path, config: Record, mode: str, resume: bool) -> Any:
        """The W&B run. One that was recorded offline cannot be joined, so it goes on as a new one of the same name."""
        joined = resume and mode == "online"
        return self._wandb.init(
            project=self.project,
            entity=self.entity,
            mode=mode,
            tags=self.tags,
            group=self.group or self._accepted("group", run_dir.absolute().parent.name, None, _LONGEST),
            job_type=config.get("command"),
            name=self._accepted("name", run_dir.name, None, _LONGEST),
            id=_run_id(run_dir, joined, mode),
            resume="allow" if joined else None,
            dir=str(run_dir),
            config=config,
            settings=self._settings(),
        )

    def _settings(self) -> Any:
        """Settings of wandb, as quiet, as private and as short-tempered as the installed release can be."""
        wanted = {
            "silent": True,
            "console": "off",
            "disable_code": True,
            "disable_git": True,
            "x_disable_meta": True,
            "x_disable_stats": True,
            "x_disable_machine_info": True,
            "x_save_requirements": False,
            "login_timeout": 1.0,
            "init_timeout": 20.0,
            "finish_timeout": _FINISH_S / 2,
        }
        known = self._wandb.Settings.model_fields
        return self._wandb.Settings(**{key: value for key, value in wanted.items() if key in known})

    def _log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log({STEP: step, **metrics})

    def _images(self, name: str, paths: Sequence[Path], step: int) -> None:
        images = {path: self._wandb.Image(str(path), caption=path.stem) for path in paths}
        self._run.log({STEP: step, name: list(images.values())})
        if rows := _completions(paths):
            table = self._wandb.Table(columns=list(_COLUMNS))
            for path, row in rows:
                values = (row.get(key) for key in ("sample_id", "query", "text", "status", "iou", "reward"))
                table.add_data(*values, self._wandb.Image(str(path)))
            self._run.log({STEP: step, f"{name}_completions": table})

    def _artifact(self, kind: str, files: Sequence[Path], about: Mapping[str, Any]) -> None:
        """A version of the artifact ``KIND-ID``: every file's SHA-256, and the files that are small."""
        digests = {path.name: sha256_of(path) for path in files}
        name = f"{kind}-{self._run.id}"
        artifact = self._wandb.Artifact(name, type=kind, metadata=to_json({**about, "sha256": digests}))
        for path in files:
            if path.stat().st_size <= _LARGEST_FILE:
                artifact.add_file(str(path), name=path.name)
        self._run.log_artifact(artifact, aliases=["latest", *([f"step-{about['step']}"] if "step" in about else [])])

    def _close(self, exit_code: int) -> None:
        self._run.finish(exit_code=exit_code)

    def _abandon(self) -> None:
        """End wandb's own process: the interpreter would wait for it at its exit until the server answers."""
        for process in psutil.process_iter(["name", "ppid"]):
            if process.info["name"] == "wandb-core" and process.info["ppid"] == os.getpid():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        if self._wandb is not None:  # it finds its process gone, takes it for a reason to exit, and waits no more
            with contextlib.suppress(SystemExit, *self._failures()):
                self._wandb.teardown()


def _run_id(run_dir: Path, joined: bool, mode: str) -> str:
    """The W&B id of the run: the noted one of a run that goes on, else made of its folder's name, config and start.

    One that was recorded offline is noted as such, and only where no other is: no online run joins it.
    """
    path, online = run_dir / _ID_FILE, None
    with contextlib.suppress(FileNotFoundError, Unreadable):
        online = re.fullmatch("[0-9a-f]{12}", read_text(path, 100).strip())
    if joined and online:
        return online[0]
    status = read_json(run_dir / STATUS) or {}
    start = [run_dir.name, mode, *(status.get(key) for key in ("config_hash", "started", "pid"))]
    new = sha256(json.dumps(start).encode()).hexdigest()[:12]
    if mode == "online":
        write_text(path, f"{new}\n")
    elif not online:
        write_text(path, f"{new} {mode}\n")
    return new


def _completions(paths: Sequence[Path]) -> list[tuple[Path, Record]]:
    """Images that are an evaluation's overlays, each with its line of the predictions.jsonl beside their folder."""
    result = []
    for path in paths:
        number, predictions = path.name.partition("_")[0], path.parent.parent / "predictions.jsonl"
        if number.isdigit() and predictions.is_file():
            with predictions.open(encoding="utf-8") as file:
                lines = [line for index, line in enumerate(file) if index == int(number)]
            result += [(path, json.loads(line)) for line in lines]
    return result
