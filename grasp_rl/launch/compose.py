"""Hydra, and nothing but Hydra: command line in, plain mappings out. No torch, no component is imported.

What a config file may not do is refused here: run code through Hydra's callbacks, loggers, launcher or sweeper, set or
read the environment, name the modules that are trusted.
"""

from __future__ import annotations

import argparse
import copy
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Sweep
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.messages import one_line, quoted
from grasp_rl.config.modules import admit
from grasp_rl.config.renamed import current_key
from grasp_rl.config.schema import PromptConfig, RunConfig
from grasp_rl.config.targets import COMPONENTS, check_components, check_trusted, to_config
from grasp_rl.launch import experiments
from grasp_rl.launch.compat import Hydra, get_args_parser
from grasp_rl.launch.process import Job, folder_of
from grasp_rl.launch.sweeper import is_search, split_points, swept
from grasp_rl.launch.untrusted import CONF, check_plugin, demand_said
from grasp_rl.launch.usage import HELP
from grasp_rl.runs import started
from grasp_rl.runs.asked import adopt
from grasp_rl.runs.environment import refuse_secrets
from grasp_rl.runs.run_dir import config_hash
from grasp_rl.utils.files import Record

CONFIG_NAME = "config"
_QUIET = {"version": 1, "root": {"level": "ERROR"}, "disable_existing_loggers": True}
_UNNAMED = ("command", "experiment", "debug", "hparams_search", "launcher", "sweep.trial", "trusted_modules")
"""Keys that never name a job's folder."""


def _job_folder(overrides: str, number: int, *, _root_: DictConfig | None = None) -> str:
    """A folder name that says what is special about a job, safe on any file system, and the hash of what it runs."""
    name = re.sub(r"[^\w.,=+-]+", "_", overrides).strip("_.")
    if len(name) > 90 or (name and name != overrides):
        name = f"{name[:80]}_{sha256(overrides.encode()).hexdigest()[:6]}"
    name = name or str(number)
    if _root_ is None:
        return name
    raw: dict[str, Any] = OmegaConf.to_container(_without_hydra(_root_), resolve=True)  # type: ignore[assignment]
    config = to_config(adopt(raw, _named(_root_.hydra, raw))[0] | {"run_dir": ""})
    return f"{name}-{config_hash(asdict(config))[:8]}"


def _no_environment(*_: Any) -> str:
    raise ConfigError("a config does not read the environment; write the value")


def _full_or_lora(rank: Any, full: Any, lora: Any) -> Any:
    """``full`` where a policy trains every parameter, ``lora`` where it trains an adapter of ``rank`` > 0."""
    return lora if rank else full


ConfigStore.instance().store(name="schema", node=RunConfig)
OmegaConf.register_new_resolver("grasp_rl.full_or_lora", _full_or_lora, replace=True)
OmegaConf.register_new_resolver("grasp_rl.job_folder", _job_folder, replace=True)


@contextmanager
def hydra(command: str) -> Iterator[Hydra]:
    """Hydra over the packaged conf, for one command line."""
    OmegaConf.register_new_resolver("oc.env", _no_environment, replace=True)
    with initialize_config_module("grasp_rl.conf", job_name=command, version_base="1.3"):
        engine = GlobalHydra.instance().hydra
        assert engine is not None
        yield engine


@contextmanager
def explained() -> Iterator[None]:
    """Turn what Hydra and OmegaConf raise about a config into a ConfigError of one line."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=r"provider=.* is not\s+available", category=UserWarning)
            yield
    except ConfigError:
        raise
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, UserWarning) as error:
        raise ConfigError(one_line(error)) from error


def option(name: str, *overrides: str) -> Record:
    """A packaged option from Python, such as ``option("reward/grasp", "reward.terms.count.weight=1")``.

    :func:`grasp_rl.config.targets.instantiate` builds the component that it describes.

    Raises:
        ConfigError: there is no such option, or an override does not fit it.
    """
    group, _, chosen = name.rpartition("/")
    with explained(), initialize_config_module("grasp_rl.conf", version_base="1.3"):
        config = hydra_compose(CONFIG_NAME, [f"{group}={chosen}", *overrides])
        made = OmegaConf.to_container(OmegaConf.select(config, group.replace("/", ".")), resolve=True)
    assert isinstance(made, dict)
    return {str(key): value for key, value in made.items()}


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    """Hydra's own flags and the overrides, in any order.

    Raises:
        ConfigError: a flag is unknown, or one that this program does not offer.
    """
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        flags, unknown = parser.parse_known_intermixed_args(list(argv))
    except argparse.ArgumentError as error:
        raise ConfigError(str(error)) from error
    if unknown:
        raise ConfigError(f"{unknown[0]}: no such flag; --help lists them")
    if flags.config_path or flags.config_name or flags.experimental_rerun:
        raise ConfigError(
            "--config-path, --config-name and --experimental-rerun: not offered; --config-dir adds a folder"
        )
    if flags.config_dir and any(word.startswith("hydra.searchpath=") for word in flags.overrides):
        raise ConfigError("--config-dir: is hydra.searchpath=[FOLDER] in other words; give one of them")
    if flags.config_dir:
        flags.overrides.append(f"hydra.searchpath=[{quoted(f'file://{Path(flags.config_dir).absolute()}')}]")
    flags.overrides = [as_it_stands(_by_current_name(override)) for override in flags.overrides]
    if any(word.lstrip("+~").startswith("hydra.sweeper.params") for word in flags.overrides):
        raise ConfigError(
            "hydra.sweeper.params: is for experiment files; on the command line the sweep is -m KEY=A,B KEY2=C,D"
        )
    flags.parser = parser
    return flags


NESTED = ("evaluation.protocol",)
"""Keys whose value names an option of a nested group, which Hydra itself writes with a slash."""


def _by_current_name(override: str) -> str:
    """``override`` with the present name of its key; one of the version before is read, and reported on stderr."""
    sign, key, rest = re.match(r"([+~]*)([\w./\[\]-]*)(.*)", override, re.S).groups()  # type: ignore[union-attr]
    renamed = current_key(key)
    if renamed != key:
        sys.stderr.write(f"grasp-rl: {key} is now called {renamed}; the old name is read for one more version\n")
    if renamed in NESTED and not rest.startswith("={"):
        renamed = renamed.replace(".", "/")
    return f"{sign}{renamed}{rest}"


PATHS = (
    "init_from",
    "predictions",
    "resume",
    "run_dir",
    "hydra.sweep.dir",
    "data.root",
    "policy.path",
    "policy.weights",
    "segmenter.path",
    "prompt.template",
    "policy.prompt_template",
    "inference.refine.path",
    "regime.mining.reuse",
    "engine.hostfile",
    "engine.deepspeed_config",
)
"""Keys whose values are paths."""


def as_it_stands(override: str) -> str:
    """``override`` with its value in quotes where that is a path on disk that Hydra would read otherwise.

    The folders of a sweep have ``=`` and ``,`` in their names; a folder may be called 2024. ``~`` is the home folder.
    """
    key, _, value = override.partition("=")
    is_path = key.lstrip("+~") in PATHS
    if is_path and value.startswith("~"):
        value = os.path.expanduser(value)  # as it stands, where there is no such user
        override = f"{key}={value}"
    if not is_path and (value[:1] in ("'", '"', "[", "{") or re.fullmatch(r"[\w./:-]*", value, re.ASCII)):
        return override
    if not _exists(value):
        return override
    try:
        (read,) = OverridesParser.create().parse_overrides([override])
        as_read = None if read.is_sweep_override() else read.value()
    except HydraException:
        as_read = None
    return override if as_read == value else f"{key}={quoted(value)}"


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # too long, or a null byte: no path
        return False


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Overrides read by Hydra's grammar."""
    with explained():
        return OverridesParser.create().parse_overrides(list(overrides))


def trusted_on(overrides: Sequence[str]) -> tuple[str, ...]:
    """The modules that the command line itself trusts; they and packages of ``pkg://`` search paths can be imported.

    Raises:
        ConfigError: a name cannot be meant.
    """
    parsed = parse_overrides(overrides)
    trusted = check_trusted(_listed(parsed, "trusted_modules"))
    places = places_on(overrides)
    admit([*trusted, *(place.removeprefix("pkg://") for place in places if place.startswith("pkg://"))])
    return trusted


def places_on(overrides: Sequence[str]) -> list[str]:
    """The search path that the command line itself names."""
    return [str(place) for place in _listed(parse_overrides(overrides), "hydra.searchpath")]


def _listed(overrides: Sequence[Override], key: str) -> list[Any]:
    """The values that the last override of ``key`` gives."""
    values = [override.value() for override in overrides if override.key_or_group == key]
    value = values[-1] if values else []
    return value if isinstance(value, list) else [value]


def is_sweep(engine: Hydra, overrides: list[str]) -> bool:
    """Whether the composed config asks for a sweep by itself (``hydra.mode: MULTIRUN`` in an experiment)."""
    with explained():
        mode = _compose(engine, overrides, RunMode.MULTIRUN).hydra.mode
    return bool(mode == RunMode.MULTIRUN)


def launcher(engine: Hydra, overrides: list[str]) -> str:
    """Hydra's own name of what starts the jobs of a sweep."""
    with explained():
        return str(_compose(engine, overrides, RunMode.MULTIRUN).hydra.runtime.choices["hydra/launcher"])


def usage(engine: Hydra, command: str, overrides: list[str]) -> str:
    """The help of a command: every option, and every value of the composed config."""
    with explained():
        values = OmegaConf.to_yaml(_without_hydra(_compose(engine, overrides, RunMode.RUN)))
    options: dict[str, set[str]] = {}
    for source in engine.config_loader.get_sources():
        if source.provider not in ("hydra", "schema"):
            for group in source.list("", ObjectType.GROUP):
                options.setdefault(group, set()).update(source.list(group, ObjectType.CONFIG))
    shown = {group: sorted(n for n in names if not n.startswith("_")) for group, names in options.items()}
    listed = [f"{group}: {', '.join(names)}" for group, names in sorted(shown.items()) if names]
    return HELP.format(command=command, options="\n".join(listed), values=values)


def single(engine: Hydra, overrides: list[str], trusted: tuple[str, ...], unread: Sequence[str] = ()) -> Job:
    """The one run that a command line without a sweep asks for.

    Args:
        engine: from :func:`hydra`.
        overrides: the words of the command line.
        trusted: modules that the command line trusts.
        unread: groups whose values the caller does not read; one without a default is then :data:`PLACEHOLDER`.
    """
    with explained():
        config = _with_placeholders(_compose(engine, overrides, RunMode.RUN), unread)
        HydraConfig.instance().set_config(config)
        launcher = config.hydra.runtime.choices["hydra/launcher"]
        if launcher != "basic":
            raise ConfigError(f"hydra/launcher={launcher}: starts the jobs of a sweep; write -m too, or no launcher")
        return resolve(config, Path(config.hydra.run.dir), trusted, keys_of(overrides))


def sweep(
    engine: Hydra, overrides: list[str], trusted: tuple[str, ...], unread: Sequence[str] = ()
) -> tuple[Path, list[Job], list[str]]:
    """The folder and jobs of a sweep, all of them checked, and the overrides that fix its folder names.

    A sweeper other than Hydra's own decides its jobs while it runs; the list is then empty. ``unread`` as for
    :func:`single`.
    """
    if any(override.startswith("run_dir=") for override in overrides):
        raise ConfigError("run_dir: a sweep's folders are hydra.sweep.dir=FOLDER, one below it for each job")
    with explained():
        config = _compose(engine, overrides, RunMode.MULTIRUN)
        folder = Path(config.hydra.sweep.dir)
        parsed = swept(engine, config)
        fixed = [f"hydra.sweep.dir={quoted(str(folder))}", _naming(parsed)]
        if is_search(config) or not config.hydra.sweeper._target_.endswith(".BasicSweeper"):
            return folder, [], fixed
        config = _compose(engine, [*overrides, *fixed], RunMode.MULTIRUN)
        points = split_points(parsed, config.sweep.zip)
        said = keys_of(overrides)
        jobs = [_planned(engine, config, point, number, trusted, said, unread) for number, point in enumerate(points)]
    if len({job.run_dir for job in jobs}) < len(jobs):
        raise ConfigError("hydra.sweep.subdir: must give every job of the sweep a folder of its own")
    return folder, jobs, fixed


def resolve(config: DictConfig, run_dir: Path, trusted: tuple[str, ...], said: Sequence[str]) -> Job:
    """The job that a composed config describes: every value in range, every component checked.

    Args:
        config: composed.
        run_dir: where it shall run.
        trusted: modules that the command line trusts.
        said: keys and groups that the command line gives.

    Raises:
        ConfigError: naming the key, what was found and what is valid.
    """
    with explained():
        raw: dict[str, Any] = OmegaConf.to_container(_without_hydra(config), resolve=True, throw_on_missing=True)  # type: ignore[assignment]
        refuse_secrets(raw)
        overridden = _named(HydraConfig.get(), raw)
        demand_said(HydraConfig.get(), raw, said)
        if raw["command"] in ("rescore", "diagnose") and raw["predictions"] is not None:
            raw = _as_in_run(raw, overridden)
        adopted, differences = adopt(raw, overridden)
        checked = to_config(adopted | {"run_dir": str(run_dir)})
    if tuple(checked.trusted_modules) != trusted:
        raise ConfigError(f"trusted_modules={checked.trusted_modules}: only the command line can trust a module")
    if checked.trust_checkpoint and "trust_checkpoint" not in said:
        raise ConfigError("trust_checkpoint=true: only the command line can trust a checkpoint")
    check_components(checked, trusted)
    return Job(run_dir=run_dir, config=asdict(checked), trusted=trusted, adopted=tuple(differences))


def keys_of(overrides: Sequence[str]) -> tuple[str, ...]:
    """The keys and groups that a command line gives."""
    return tuple(override.key_or_group for override in parse_overrides(overrides))


_RUNS_OWN = ("data", "prompt", "parsing", "reward", "policy", "segmenter", "inference")
"""Components that decide a run's answers, their masks and their truth."""


def _as_in_run(raw: Record, overridden: Sequence[str]) -> Record:
    """``raw`` with what decides the answers of the run ``predictions`` and their truth, but for what was named."""
    keys = [key.replace("/", ".") for key in overridden]
    theirs = started.config_of(Path(raw["predictions"]), overridden, (*_RUNS_OWN, "rollout"))

    def free(prefix: str) -> bool:
        return not any(key == prefix or key.startswith(f"{prefix}.") for key in keys)

    if free("data"):
        started.demand_same_data(Path(raw["predictions"]))
    result = raw | {key: _with_named(theirs[key], raw[key], key, keys) for key in _RUNS_OWN if key in theirs}
    ours, evaluation, rollout = raw["evaluation"], theirs["evaluation"], theirs.get("rollout") or {}
    turns = {key: rollout[key] for key in ("turns", "tasks") if key in rollout and free("rollout")}
    return result | {
        "rollout": raw["rollout"] | turns,
        "evaluation": ours | {key: evaluation[key] for key in ours if key in evaluation and free(f"evaluation.{key}")},
    }


def _with_named(theirs: Any, ours: Any, group: str, keys: Sequence[str]) -> Any:
    """The run's value of ``group``, with those of its keys that were named; ours where the group itself was."""
    below = [key.removeprefix(f"{group}.").split(".") for key in keys if key.startswith(f"{group}.")]
    if group in keys or (below and not isinstance(theirs, dict)):
        return ours
    result = copy.deepcopy(theirs)
    for path in below:
        source, target = ours, result
        for part in path[:-1]:
            source = source.get(part) if isinstance(source, dict) else None
            target = target.setdefault(part, {}) if isinstance(target, dict) else {}
        if isinstance(source, dict) and path[-1] in source and isinstance(target, dict):
            target[path[-1]] = source[path[-1]]
    return result


def _named(hydra: Any, raw: Record) -> list[str]:
    """Keys and groups that this composition was given: on the command line, or by a file beside the option's own."""
    keys = [re.split(r"[=@]", word.lstrip("+~"), maxsplit=1)[0] for word in hydra.overrides.task]
    plain = asdict(PromptConfig()) | {"template": raw["prompt"]["template"]}
    keys += ["prompt"] if raw["prompt"] != plain else []
    option = CONF / "policy" / f"{hydra.runtime.choices.get('policy')}.yaml"
    policy = raw.get("policy") or {}
    if option.is_file():
        own = OmegaConf.merge(*(OmegaConf.load(path) for path in (option.with_name("_base.yaml"), option)))
        usual: dict[str, Any] = OmegaConf.to_container(own, resolve=False)  # type: ignore[assignment]
        keys += [
            f"policy.{key}" for key in ("coordinates", "dtype", "prompt_template") if policy.get(key) != usual.get(key)
        ]
        sizes, usual_sizes = policy.get("image") or {}, usual.get("image") or {}
        keys += [f"policy.image.{key}" for key, value in sizes.items() if value != usual_sizes.get(key)]
    return keys


def _compose(engine: Hydra, overrides: list[str], mode: RunMode) -> DictConfig:
    for override in parse_overrides(overrides):
        if override.key_or_group in COMPONENTS and not isinstance(override.value(), str | list | Sweep):
            raise ConfigError(f"{override.input_line}: must be the name of an option")
    try:
        with experiments.named(places_on(overrides)):
            config = engine.compose_config(CONFIG_NAME, list(overrides), mode)
    except (AttributeError, TypeError, KeyError, IndexError, AssertionError, RecursionError) as error:
        said = f"{type(error).__name__}: {one_line(error)}"
        raise ConfigError(f"an option has a value that Hydra cannot compose ({said})") from error
    for key in ("callbacks", "job.env_set", "job.env_copy"):
        if OmegaConf.select(config.hydra, key):
            raise ConfigError(f"hydra.{key}: must be empty; a config neither runs code nor sets the environment")
    for key in ("job_logging", "hydra_logging"):
        if config.hydra[key] != _QUIET:
            raise ConfigError(f"hydra/{key}: must be disabled; the run's log is log.txt in its folder")
    for key, kind in (("launcher", Launcher), ("sweeper", Sweeper)):
        check_plugin(f"hydra.{key}", OmegaConf.to_container(config.hydra[key], resolve=True), kind)
    return config


def _planned(
    engine: Hydra,
    master: DictConfig,
    point: list[str],
    number: int,
    trusted: tuple[str, ...],
    said: Sequence[str],
    unread: Sequence[str],
) -> Job:
    with experiments.named(list(master.hydra.searchpath)):
        config = _with_placeholders(engine.config_loader.load_sweep_config(master, list(point)), unread)
    with open_dict(config):
        config.hydra.job.id, config.hydra.job.num = str(number), number
    HydraConfig.instance().set_config(config)
    job = resolve(config, Path(config.hydra.sweep.dir) / str(config.hydra.sweep.subdir), trusted, said)
    return replace(moved(job, folder_of(job)), point=tuple(point))


PLACEHOLDER = "FOLDER"
"""What stands for a value without a default that nobody reads."""


def _with_placeholders(config: DictConfig, groups: Sequence[str]) -> DictConfig:
    """``config`` itself, its missing values below ``groups`` filled in."""
    for group in groups:
        if isinstance(config[group], DictConfig):
            for key in OmegaConf.missing_keys(config[group]):
                OmegaConf.update(config, key, PLACEHOLDER)
    return config


def moved(job: Job, run_dir: Path) -> Job:
    """``job`` in another folder."""
    return replace(job, run_dir=run_dir, config=job.config | {"run_dir": str(run_dir)})


def _naming(overrides: Sequence[Override]) -> str:
    """The override that leaves out of the folders' names whatever is the same for all jobs."""
    last = {override.key_or_group: override for override in overrides}
    constant = {key for key, override in last.items() if not override.is_sweep_override()}
    keys = ",".join(quoted(key) for key in sorted({*constant, *_UNNAMED}))
    return f"hydra.job.config.override_dirname.exclude_keys=[{keys}]"


def _without_hydra(config: DictConfig) -> DictConfig:
    copy = config.copy()
    with open_dict(copy):
        copy.pop("hydra", None)
    return copy
