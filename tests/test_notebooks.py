"""The committed notebooks: thin, whole, and showing the very run that README and static/ show.

That their cells run is what `pytest --nbval-lax` checks.
"""

import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import nbformat
import pytest

from utils import recipes
from utils.publish import results_table

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(ROOT.glob("session*_assignment.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def published(request):
    """The notebook, and its session's folder of static/."""
    return nbformat.read(request.param, as_version=4), ROOT / "static" / request.param.stem.removesuffix("_assignment")


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(cell):
    """What the cell printed or returned as text."""
    return "".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)


def test_thin(notebook):
    assert len(notebook.cells) <= 26
    for cell in code_cells(notebook):
        assert not re.search(r"^\s*(def|class) |lambda", cell.source, re.MULTILINE)
        assert not re.search(r"^\s*[!%]", cell.source, re.MULTILINE)  # nbval takes a failed one for passed


def test_opens_on_colab_with_a_gpu(notebook):
    assert notebook.metadata["accelerator"] == "GPU" and notebook.metadata["colab"]["gpuType"] == "T4"
    assert notebook.metadata["kernelspec"]["name"] == "python3"


def test_executed_whole(notebook):
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    shown = json.dumps([cell.outputs for cell in cells])
    assert '"output_type": "error"' not in shown
    assert not re.search(r"/(root|home|work|tmp|content)/", shown)
    assert "\\r" not in shown


def test_readme_static_and_notebook_show_one_run(published):
    notebook, static = published
    facts = json.loads((static / "run.json").read_text("utf-8"))
    log = (static / "training_log.txt").read_text("utf-8")
    readme = (ROOT / "README.md").read_text("utf-8")
    outputs = [text_of(cell) for cell in code_cells(notebook)]
    training = next(text for text in outputs if "EPOCH = 1 " in text)
    assert [line for line in training.splitlines() if line.startswith(("EPOCH", "Test set"))] == log.splitlines()
    assert log in readme and results_table(ROOT / "static") in readme
    assert f"{facts['test_accuracy']:.2f}%" in log.splitlines()[-1]
    assert any(
        f"Test accuracy after epoch {facts['epochs']}: {facts['test_accuracy']:.2f}%" in text for text in outputs
    )
    assert facts["data"].startswith("CIFAR-10") and not facts["smoke"]
    assert facts["epochs"] == getattr(recipes, f"SESSION{facts['session']}").epochs


@pytest.fixture
def colab(monkeypatch, tmp_path):
    """An empty folder on Colab; commands are noted, a clone makes the folder that git would."""
    commands = []

    def run(command, check):
        assert check
        commands.append(command)
        if command[0] == "git":
            (tmp_path / command[-1] / "models").mkdir(parents=True)
            for network in ROOT.glob("models/model*.py"):
                (tmp_path / command[-1] / "models" / network.name).touch()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_setup_cell_clones_and_installs_only_what_is_missing(notebook, colab, monkeypatch, tmp_path):
    missing = ["torch_lr_finder", "torchinfo"]
    found = lambda name: None if name in missing else object()  # noqa: E731
    monkeypatch.setattr("importlib.util.find_spec", found)
    setup = code_cells(notebook)[0].source
    exec(setup, {})
    (clone, install) = colab
    assert clone[:2] == ["git", "clone"] and clone[-2].startswith("https://github.com/")
    assert install[-2:] == ["torch-lr-finder", "torchinfo"] and "--no-deps" in install
    assert Path.cwd() == tmp_path / clone[-1] and str(Path.cwd()) in sys.path
    exec(setup, {})  # a second time: nothing
    assert len(colab) == 2
    monkeypatch.chdir(tmp_path)
    exec(setup, {})  # after a restart of the kernel: no second clone
    assert [command[0] for command in colab].count("git") == 1


def test_setup_cell_keeps_the_run_on_drive_if_asked(notebook, colab, monkeypatch):
    mounted = []
    drive = types.SimpleNamespace(mount=mounted.append)
    monkeypatch.setattr(sys.modules["google.colab"], "drive", drive, raising=False)
    monkeypatch.setenv("RUNS", "unset")
    setup = code_cells(notebook)[0].source
    exec(setup, {})
    assert mounted == [] and os.environ["RUNS"] == "unset"
    exec(setup.replace("KEEP_ON_DRIVE = False", "KEEP_ON_DRIVE = True"), {})
    assert mounted == ["/content/drive"] and os.environ["RUNS"] == f"/content/drive/MyDrive/{Path.cwd().name}"


def test_setup_cell_does_nothing_elsewhere(notebook, colab, monkeypatch):
    monkeypatch.delitem(sys.modules, "google.colab")
    exec(code_cells(notebook)[0].source, {})
    assert colab == []
