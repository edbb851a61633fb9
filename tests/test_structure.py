"""Imports point down, without circles; the training loop, schedule and plots know no files."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

FOLDERS = ("models", "utils", "tools", "benchmarks")
FILES = [ROOT / "main.py", *(path for name in FOLDERS for path in (ROOT / name).rglob("*.py"))]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


MODULES = {module_of(path): path for path in FILES if path.stem != "__init__"}


def imports(path: Path) -> set[str]:
    """Modules that a file imports, also inside functions; of ``from utils import plots``, both."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_imports_form_no_circle():
    """``static_order`` raises CycleError, which names the circle."""
    graph = {name: imports(path) & MODULES.keys() for name, path in MODULES.items()}
    order = list(TopologicalSorter(graph).static_order())
    assert len(order) == len(MODULES)


CORE = [name for name in MODULES if name.startswith(("models.", "utils."))]


@pytest.mark.parametrize("name", CORE)
def test_the_core_imports_nothing_that_is_built_on_it(name):
    folders = {module.split(".")[0] for module in imports(MODULES[name])}
    assert not folders & {"main", "tools", "benchmarks", "tests"}


@pytest.mark.parametrize("name", CORE)
def test_only_the_sessions_are_built_on_runs(name):
    """Whoever writes a loop of their own needs nothing of utils/runs/."""
    if name != "utils.sessions" and not name.startswith("utils.runs."):
        assert not [module for module in imports(MODULES[name]) if "utils.runs" in module]


FILES_AND_SETTINGS = {"pathlib", "os", "json", "csv", "shutil", "utils.files", "utils.settings"}


@pytest.mark.parametrize("name", ["utils.training", "utils.schedule", "utils.plots"])
def test_training_schedule_and_plots_know_no_files(name):
    assert not imports(MODULES[name]) & FILES_AND_SETTINGS


@pytest.mark.parametrize("name", [name for name in CORE if name.startswith("models.")])
def test_networks_import_pytorch_only(name):
    assert {module.split(".")[0] for module in imports(MODULES[name])} <= {"torch", "math"}
