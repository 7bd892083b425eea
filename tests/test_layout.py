"""What is to stay small and without cycles, and what tests may replace."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "grasp_rl"
if not PACKAGE.is_dir():
    pytest.skip("installed without its source tree", allow_module_level=True)

REPLACERS = ("setattr", "delattr", "patch", "object")
"""Last part of what is called to replace an attribute by its name."""
OF_OTHERS = {"_lazy_init", "_attn_implementation"}
"""Names of torch and transformers: their own programs reach these by no public one."""


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    result = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[1] != "conf":
            result[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return result


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of the package that ``path`` imports anywhere, under TYPE_CHECKING and in functions, too."""
    result = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            result |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: a relative import"
            within = {f"{node.module}.{alias.name}" for alias in node.names}
            result |= within & known.keys() or {node.module}
    return result & known.keys()


def test_no_module_imports_itself_by_way_of_others() -> None:
    known = modules()
    graph = {name: imported(path, known) for name, path in known.items()}
    assert len(graph) > 300
    assert sum(map(len, graph.values())) > 1000
    TopologicalSorter(graph).prepare()  # names a cycle where there is one


def test_few_modules_lie_at_the_top() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 4


def test_private_modules_of_hydra_are_imported_in_one_place() -> None:
    within = [name for name, path in modules().items() if "from hydra._internal" in path.read_text(encoding="utf-8")]
    assert within == ["grasp_rl.launch.compat"]


def test_the_loop_is_read_at_one_glance() -> None:
    assert len((PACKAGE / "training/trainer.py").read_text().splitlines()) <= 150


def test_tests_replace_what_is_public() -> None:
    """A private name that a test replaces by its string keeps a function from being rewritten."""
    private = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith((*REPLACERS, "parametrize")):
                texts = chain.from_iterable(ast.walk(argument) for argument in node.args)
                names = [str(text.value).rpartition(".")[2] for text in texts if isinstance(text, ast.Constant)]
                private += [
                    f"{path.relative_to(ROOT)}:{node.lineno}: {name}"
                    for name in names
                    if name.isidentifier() and name[0] == "_" and name[-1] != "_" and name not in OF_OTHERS
                ]
    assert private == []
