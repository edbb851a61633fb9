"""Imports form no circle, and the training loop, the schedule and the plots know no files."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
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
    graph = {name: imports(path) & MODULES.keys() for name, path in MODULES.items()}
    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("name", ["training", "schedule", "plots"])
def test_the_core_knows_no_files(name):
    known = imports(ROOT / "utils" / f"{name}.py")
    assert not known & {"pathlib", "os", "json", "csv", "shutil", "utils.files", "utils.settings"}


@pytest.mark.parametrize("name", ["model7", "model8", "model9"])
def test_networks_import_pytorch_only(name):
    path = ROOT / "models" / f"{name}.py"
    assert {module.split(".")[0] for module in imports(path)} <= {"torch", "math"}
