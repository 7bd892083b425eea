"""Components and resolved configs, checked without importing what they name.

A component is a mapping with ``_target_``, the dotted name of a class, and its keyword arguments. A config file must
not be able to run code, so the name has to be a public class that one of the packages below defines in its own
source, or a class or function defined in a module that the user trusted by name on the command line. Nothing else is
looked up: no attribute of a module, no re-export, nothing imported by it.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.messages import closest, one_line
from grasp_rl.config.modules import lies_here
from grasp_rl.config.other_trainers import ours
from grasp_rl.config.renamed import completed, upgrade
from grasp_rl.config.schema import CONFIG_VERSION, RunConfig
from grasp_rl.config.signatures import Definition, definitions, fits, signature, source_of
from grasp_rl.utils.files import Record, read_yaml_text

PACKAGES = tuple(
    f"grasp_rl.{package}"
    for package in (
        "policies",
        "segmenters",
        "rewards",
        "data",
        "tracking",
        "rollouts.generators",
        "evaluation.protocols",
    )
)
_PROTOCOLS = ("grasp_rl.evaluation.protocols",)
COMPONENTS = ("policy", "segmenter", "reward", "data", "tracker", "generator")


def load_config(path: str | Path) -> RunConfig:
    """Read a resolved ``config.yaml``. Components stay mappings; see :func:`instantiate`.

    Raises:
        ConfigError: it is not a config of this version, or a value in it cannot be used.
    """
    return to_config(load_raw(path))


def load_raw(path: str | Path) -> Record:
    """The mapping in a resolved ``config.yaml``, its version checked; the version before is brought to this one."""
    try:
        raw = OmegaConf.load(io.StringIO(read_yaml_text(Path(path))))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{path}: no such file") from None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, OverflowError) as error:
        raise ConfigError(f"{path}: not a config ({one_line(error)})") from error
    if not isinstance(raw, DictConfig):
        raise ConfigError(f"{path}: not a config (no mapping)")
    container: Record = OmegaConf.to_container(raw, resolve=False)  # type: ignore[assignment]
    _refuse_references(container, "")
    version = container.get("version")
    if version == CONFIG_VERSION - 1:
        return dict(completed(upgrade(container)))
    if version != CONFIG_VERSION:
        raise ConfigError(f"{path}: version={version!r}: must be {CONFIG_VERSION}; compose the run anew")
    return dict(completed(container))


def to_config(raw: Record) -> RunConfig:
    """The dataclass tree of ``raw``, every key known and every value in range.

    Raises:
        ConfigError: naming the key, what was found and what is valid.
    """
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), raw))
    except OmegaConfBaseException as error:
        raise ConfigError(one_line(error)) from error
    assert isinstance(config, RunConfig)
    return config


def check_components(config: RunConfig, trusted: Sequence[str] = ()) -> None:
    """Check every component of ``config``, nested ones too.

    Raises:
        ConfigError: naming the key, what was found and what is valid.
    """
    for name in COMPONENTS:
        node = getattr(config, name)
        if not isinstance(node, dict) or "_target_" not in node:
            raise ConfigError(f"{name}={node!r}: must be an option with a _target_")
        check(node, trusted, name)
    check(config.evaluation.protocol, trusted, "evaluation.protocol", _PROTOCOLS)
    for name in ("own_advantage", "own_surrogate"):
        node = getattr(config.algorithm, name)
        if node and "_target_" not in node:
            raise ConfigError(f"algorithm.{name}={node!r}: must have a _target_")
        check(node, trusted, f"algorithm.{name}", ())


def check(node: Any, trusted: Sequence[str] = (), key: str = "component", packages: Sequence[str] = PACKAGES) -> None:
    """Check every ``_target_`` in ``node`` and the arguments given to it, importing nothing.

    Args:
        node: a component, or what holds some.
        trusted: modules that the command line trusts.
        key: of ``node``, for messages.
        packages: of this package, whose classes may be named.

    Raises:
        ConfigError: naming the key, what was found and what is valid.
    """
    if isinstance(node, list | tuple):
        for index, item in enumerate(node):
            check(item, trusted, f"{key}[{index}]", packages)
    if not isinstance(node, dict):
        return
    if "_target_" in node:
        module, definition = _find(node["_target_"], trusted, key, packages)
        _bind({name: value for name, value in node.items() if name != "_target_"}, module, definition, key)
    for name, value in node.items():
        if name != "_target_" and str(name).startswith("_"):
            raise ConfigError(f"{key}.{name}: not allowed; a component has _target_ and its constructor's keywords")
        check(value, trusted, f"{key}.{name}", packages)


def check_trusted(modules: Sequence[Any]) -> tuple[str, ...]:
    """The names given as ``trusted_modules=`` on the command line, refused where they cannot be meant.

    Raises:
        ConfigError: a name is no module's, or opens the standard library or this whole package.
    """
    for name in modules:
        valid = isinstance(name, str) and all(part.isidentifier() for part in name.split("."))
        if not valid or name == "grasp_rl" or name.split(".")[0] in sys.stdlib_module_names:
            raise ConfigError(f"trusted_modules={name!r}: must be the dotted name of a module of your own")
    return tuple(modules)


def instantiate(node: Any, trusted: Sequence[str] = (), key: str = "component") -> Any:
    """Build the component ``node`` describes, inner ones first; other values are returned as they are.

    Raises:
        ConfigError: :func:`check` refuses it.
    """
    check(node, trusted, key)
    return _build(node)


def _build(node: Any) -> Any:
    if isinstance(node, list | tuple):
        return [_build(item) for item in node]
    if not isinstance(node, dict):
        return node
    values = {name: _build(value) for name, value in node.items() if name != "_target_"}
    if "_target_" not in node:
        return values
    module, _, name = node["_target_"].rpartition(".")
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not lies_here(error.name):
            raise
        raise ConfigError(
            f"trusted_modules: {module} imports {error.name}, which lies in the working directory and was not named; "
            "name it, too"
        ) from error
    kind = vars(imported)[name]
    if inspect.isabstract(kind) or getattr(kind, "_is_protocol", False):
        raise ConfigError(f"_target_={node['_target_']!r}: is abstract; name one of the classes that are made of it")
    return kind(**values)


def _find(target: Any, trusted: Sequence[str], key: str, packages: Sequence[str]) -> tuple[str, Definition]:
    """The module and source of the class that ``target`` names."""
    where = f"{key}._target_={target!r}"
    parts = target.split(".") if isinstance(target, str) else []
    module, name = ".".join(parts[:-1]), parts[-1] if parts else ""
    own, foreign = _inside(module, packages), _inside(module, trusted)
    if not all(part.isidentifier() for part in parts) or not (own or foreign):
        ours = ", ".join(package.removeprefix("grasp_rl.") for package in packages)
        inside = f"defined in grasp_rl.{{{ours}}}, or " if ours else ""
        raise ConfigError(
            f"{where}: must be a class {inside}in a module that the command line trusts by trusted_modules=[NAME]"
        )
    if source_of(module) is None:
        raise ConfigError(f"{where}: there is no source of a module {module}")
    result = {n: d for n, d in definitions(module).items() if foreign or isinstance(d, ast.ClassDef)}
    if name not in result:
        defined = ", ".join(sorted(result)) or "none"
        raise ConfigError(
            f"{where}: must be a class that {module} itself defines: {defined}{closest(name, list(result))}"
        )
    return module, result[name]


def _inside(module: str, parents: Sequence[str]) -> bool:
    return any(module == parent or module.startswith(parent + ".") for parent in parents)


def _bind(values: Record, module: str, definition: Definition, key: str) -> None:
    accepted = signature(module, definition)
    valid = ", ".join(accepted.names) or "none"
    for name in values:
        if name not in accepted.names and not accepted.takes_any:
            theirs = ours(f"{key}.{name}")
            hint = closest(str(name), accepted.names) or (f"; here it is {theirs}" if theirs else "")
            raise ConfigError(f"{key}.{name}: {definition.name} has no such argument{hint}; valid: {valid}")
    for parameter in accepted.parameters:
        if parameter.name not in values:
            if parameter.required:
                raise ConfigError(
                    f"{key}.{parameter.name}: missing; {definition.name} needs it; give +{key}.{parameter.name}=VALUE"
                )
        elif not fits(parameter.annotation, values[parameter.name]):
            kind = ast.unparse(parameter.annotation) if parameter.annotation else "anything"
            raise ConfigError(f"{key}.{parameter.name}={values[parameter.name]!r}: must be {kind}")


def _refuse_references(node: Any, key: str) -> None:
    """A resolved config holds no ``${...}``: reading one must not read anything else."""
    if isinstance(node, dict):
        for name, value in node.items():
            _refuse_references(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            _refuse_references(value, f"{key}[{index}]")
    elif isinstance(node, str) and "${" in node:
        raise ConfigError(f"{key}={node!r}: a resolved config holds no ${{...}}; compose the run anew")
