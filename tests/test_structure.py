"""Imports point downward, and the training loop, the schedule and the plots know nothing about files."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [
    {"models", "utils.system", "utils.recipes", "utils.transforms"},
    {"utils.explain", "utils.optimizers", "utils.schedule", "utils.sources", "utils.training"},
    {"utils.data", "utils.plots"},
    {"utils.sessions"},
    {"utils.classify", "utils.runs", "tools"},
    {"benchmarks", "main"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = [ROOT / "main.py", *(path for top in ("models", "utils", "tools", "benchmarks") for path in (ROOT / top).rglob("*.py"))]  # fmt: skip


def room_of(module: str) -> str:
    """ "utils.runs.folder" → "utils.runs"; a file of models/, tools/ or benchmarks/ → that folder."""
    return ".".join(module.split(".")[: 2 if module.startswith("utils.") else 1])


def imports(path: Path) -> set[str]:
    """Modules that a file imports, also inside functions; of ``from utils import plots``, "utils.plots"."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "utils":
            found |= {f"utils.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", [path for path in FILES if path.stem != "__init__"], ids=lambda path: path.stem)
def test_imports_point_downward(path):
    room = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for module in imports(path):
        other = room_of(module)
        if other in FLOOR_OF and other != room:
            assert FLOOR_OF[other] < FLOOR_OF[room], module


@pytest.mark.parametrize("name", ["training", "schedule", "plots"])
def test_the_core_knows_no_files(name):
    known = imports(ROOT / "utils" / f"{name}.py")
    assert not known & {"pathlib", "os", "json", "csv", "shutil", "utils.files", "utils.settings"}


def test_networks_import_pytorch_only():
    for path in (ROOT / "models").glob("*.py"):
        assert {module.split(".")[0] for module in imports(path)} <= {"torch", "math"}
