"""What a class takes, read from its source: nothing is imported, nothing is run, no heavy module is paid for."""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

Definition = ast.ClassDef | ast.FunctionDef

_SCALARS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}
_LISTS = ("list", "tuple", "Sequence", "Iterable", "Collection")
_MAPPINGS = ("dict", "Mapping")


@dataclass(frozen=True)
class Parameter:
    """One keyword of a constructor or function."""

    name: str
    annotation: ast.expr | None
    required: bool


@dataclass(frozen=True)
class Signature:
    """What may be passed by keyword."""

    parameters: tuple[Parameter, ...]
    takes_any: bool = False
    """Whether other keywords are taken too, or cannot be known."""

    @property
    def names(self) -> list[str]:
        """Names of the keywords, in order."""
        return [parameter.name for parameter in self.parameters]


def source_of(module: str) -> Path | None:
    """The source file of ``module``, None where there is none. Finds its top package without importing it."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:
        return None
    if spec is None:
        return None
    if not rest and spec.submodule_search_locations is None:
        return Path(spec.origin) if spec.has_location and spec.origin else None
    for location in spec.submodule_search_locations or ():
        base = Path(location, *rest)
        for file in (base / "__init__.py", base.parent / f"{base.name}.py"):
            if file.is_file() and (rest or file.name == "__init__.py"):
                return file
    return None


def definitions(module: str) -> dict[str, Definition]:
    """The public classes and functions that the source of ``module`` itself defines, by name."""
    body = _body(module)
    result = {node.name: node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    return {name: node for name, node in result.items() if not name.startswith("_")}


def signature(module: str, node: Definition) -> Signature:
    """What ``node``, defined in ``module``, takes by keyword."""
    if isinstance(node, ast.FunctionDef):
        return _of_arguments(node.args, skip=0)
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return _of_arguments(item.args, skip=1)
    if _is_dataclass(node):
        return _of_fields(module, node)
    inherited = [signature(*base) if base else Signature((), takes_any=True) for base in _bases(module, node)]
    return inherited[0] if inherited else Signature(())


def fits(annotation: ast.expr | None, value: Any) -> bool:
    """Whether ``value`` from YAML can be meant by ``annotation``. What is not a simple type fits everything."""
    fitting = True
    match annotation:
        case ast.Constant(value=None):
            fitting = value is None
        case ast.Constant(value=str() as text):
            fitting = fits(ast.parse(text, mode="eval").body, value)
        case ast.Name(id=name) if name in _SCALARS:
            fitting = isinstance(value, _SCALARS[name]) and (name == "bool" or not isinstance(value, bool))
        case ast.Name(id=name) if name in _LISTS:
            fitting = isinstance(value, list)
        case ast.Name(id=name) if name in _MAPPINGS:
            fitting = isinstance(value, dict)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            fitting = fits(left, value) or fits(right, value)
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            fitting = value is None or fits(inner, value)
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=options)):
            fitting = any(fits(option, value) for option in options)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            choices = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            fitting = value in [ast.literal_eval(choice) for choice in choices]
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=items)):
            fitting = isinstance(value, list) and _fits_tuple(items, value)
        case ast.Subscript(value=ast.Name(id=name), slice=inner) if name in _LISTS:
            fitting = isinstance(value, list) and all(fits(inner, item) for item in value)
        case ast.Subscript(value=ast.Name(id=name)) if name in _MAPPINGS:
            fitting = isinstance(value, dict)
    return fitting


def _fits_tuple(items: list[ast.expr], value: list[Any]) -> bool:
    if items and isinstance(items[-1], ast.Constant) and items[-1].value is ...:
        return all(fits(items[0], item) for item in value)
    return len(items) == len(value) and all(fits(kind, item) for kind, item in zip(items, value, strict=True))


def _body(module: str) -> list[ast.stmt]:
    path = source_of(module)
    return _parsed(path, path.stat().st_mtime_ns).body if path else []


@lru_cache(maxsize=256)
def _parsed(path: Path, _changed: int) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _bases(module: str, node: ast.ClassDef) -> list[tuple[str, Definition] | None]:
    """Where the bases of a class are defined; None for one that is not known."""
    bases = [base for base in node.bases if ast.unparse(base).split("[")[0] not in ("Protocol", "object")]
    return [_base(module, base) for base in bases]


def _of_fields(module: str, node: Definition) -> Signature:
    """The fields of a dataclass; of its bases those that are dataclasses, or have one as base, add theirs."""
    if isinstance(node, ast.FunctionDef):
        return Signature((), takes_any=True)
    inherited = [_of_fields(*base) if base else Signature((), takes_any=True) for base in _bases(module, node)]
    fields = {parameter.name: parameter for base in reversed(inherited) for parameter in base.parameters}
    fields |= {parameter.name: parameter for parameter in (_fields(node) if _is_dataclass(node) else ())}
    return Signature(tuple(fields.values()), takes_any=any(base.takes_any for base in inherited))


def _of_arguments(arguments: ast.arguments, skip: int) -> Signature:
    positional = [*arguments.posonlyargs, *arguments.args]
    free = len(positional) - len(arguments.defaults)
    parameters = [Parameter(a.arg, a.annotation, i < free) for i, a in enumerate(positional)][skip:]
    keywords = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    parameters += [Parameter(a.arg, a.annotation, default is None) for a, default in keywords]
    return Signature(tuple(parameters), takes_any=arguments.kwarg is not None)


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any(ast.unparse(item).split("(")[0].split(".")[-1] == "dataclass" for item in node.decorator_list)


def _fields(node: ast.ClassDef) -> list[Parameter]:
    parameters = []
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        if ast.unparse(item.annotation).split("[")[0].split(".")[-1] in ("ClassVar", "KW_ONLY"):
            continue
        options: dict[str | None, ast.expr] = {}
        is_field = isinstance(item.value, ast.Call) and ast.unparse(item.value.func).split(".")[-1] == "field"
        if isinstance(item.value, ast.Call) and is_field:
            options = {keyword.arg: keyword.value for keyword in item.value.keywords}
        if "init" in options and not ast.literal_eval(options["init"]):
            continue
        has_default = bool({"default", "default_factory"} & set(options)) if is_field else item.value is not None
        parameters.append(Parameter(item.target.id, item.annotation, not has_default))
    return parameters


def _base(module: str, base: ast.expr) -> tuple[str, Definition] | None:
    """Where a base class is defined: here, or in a module that this one imports it from."""
    if not isinstance(base, ast.Name):
        return None
    for node in _body(module):
        if isinstance(node, ast.ClassDef) and node.name == base.id:
            return module, node
        if isinstance(node, ast.ImportFrom):
            names = {alias.asname or alias.name: alias.name for alias in node.names}
            if base.id in names:
                origin = _absolute(module, node)
                result = {n.name: n for n in _body(origin) if isinstance(n, ast.ClassDef)}.get(names[base.id])
                return (origin, result) if result else None
    return None


def _absolute(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    source = source_of(module)
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + (source is not None and source.name == "__init__.py")]
    return ".".join([*parts, *([node.module] if node.module else [])])
