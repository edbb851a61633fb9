"""The committed notebooks: short, executed whole, with the run of README and static/ (nbval runs their cells)."""

import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import nbformat
import pytest

from tests.conftest import ROOT
from tools.publish import SEEDS, read, results_table, row_of
from utils import recipes

NOTEBOOKS = sorted(ROOT.glob("session*_assignment.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_thin_and_opens_on_colab_with_a_gpu(notebook):
    sources = [cell.source for cell in code_cells(notebook)]
    assert len(notebook.cells) <= 24 and len(sources) == 12
    steps = r"Run\.open.*session\.recipe.*Code\(.*NBVAL.*build.*find_lr.*fit.*\nrun\.show.*finish\(.*submission\("
    assert re.search(steps, "\n".join(sources), re.DOTALL)
    for cell in code_cells(notebook):
        assert not re.search(r"^\s*((def|class) |[!%])|lambda", cell.source, re.MULTILINE)  # nbval passes a failed "!"
    assert notebook.metadata["accelerator"] == "GPU" and notebook.metadata["colab"]["gpuType"] == "T4"
    assert notebook.metadata["kernelspec"]["name"] == "python3"


def test_readme_static_and_notebook_show_one_whole_run(path, notebook):
    static, readme = ROOT / "static" / path.stem.removesuffix("_assignment"), (ROOT / "README.md").read_text("utf-8")
    facts, log = json.loads((static / "run.json").read_text("utf-8")), (static / "training_log.txt").read_text("utf-8")
    assert log in readme or f"[Log](static/{static.name}/training_log.txt)" in readme
    assert row_of(static) in read(ROOT / SEEDS, seed="0") and results_table(ROOT / SEEDS) in readme
    accuracy = f"{facts['test_accuracy']:.2f}%"
    assert accuracy in log.splitlines()[-1] and facts["data"] == "CIFAR-10"
    assert facts["epochs"] == getattr(recipes, f"SESSION{facts['session']}").epochs
    cells = code_cells(notebook)
    if not any(cell.execution_count for cell in cells):
        pytest.skip("the cells have changed since the last full run: the notebook is to be executed again")
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not re.search(r'/(root|home|work|tmp|content)/|\\r|"output_type": "error"|"stderr"', json.dumps(outputs))
    text = "".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)
    assert [line for line in text.splitlines() if line.startswith(("EPOCH", "Test set"))] == log.splitlines()
    assert f"Test accuracy after epoch {facts['epochs']}: {accuracy}" in text and not re.search(r"\d\.\d{8}", text)


@pytest.fixture
def colab(monkeypatch, tmp_path):
    """An empty folder on Colab. Commands are recorded; a clone creates the folder that git would create."""
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


@pytest.fixture
def setup(notebook):
    """The setup cell, with an address as `make colab` writes it."""
    return code_cells(notebook)[0].source.replace('"https://github.com/OWNER/NAME"', '"https://github.com/me/mine"')


@pytest.mark.parametrize("end", ["", "/", ".git", ".git/"])
def test_setup_cell_clones_and_installs(setup, colab, monkeypatch, tmp_path, end):
    setup = setup.replace("me/mine", f"me/mine{end}")
    exec(setup, {})
    clone, install = colab
    assert clone == ["git", "clone", "--depth", "1", f"https://github.com/me/mine{end}", "mine"]
    assert install[1:] == ["-m", "pip", "install", "-q", "--no-deps", "-r", "requirements-colab.txt"]
    assert Path.cwd() == tmp_path / "mine" and str(Path.cwd()) in sys.path
    exec(setup, {})  # again in the same kernel
    monkeypatch.chdir(tmp_path)
    exec(setup, {})  # after a restart of the kernel
    assert [command[0] for command in colab].count("git") == 1 and Path.cwd() == tmp_path / "mine"


def test_setup_cell_with_the_placeholder_says_what_to_do_except_in_an_uploaded_folder(setup, colab, monkeypatch):
    setup = setup.replace("me/mine", "OWNER/NAME")
    with pytest.raises(SystemExit, match=r"^Set REPOSITORY to the address of your repository, or upload the project's"):
        exec(setup, {})
    assert colab == []
    monkeypatch.chdir(ROOT)
    exec(setup, {})
    assert [command[2:4] for command in colab] == [["pip", "install"]]


def test_colab_gets_what_the_project_needs_and_no_pytorch():
    lines = (ROOT / "requirements-colab.txt").read_text().splitlines()[1:]
    names = [re.match("[a-z-]+", line)[0] for line in lines]
    assert names == ["accelerate", "grad-cam", "torch-lr-finder", "torchinfo", "torchsummary", "ttach"]
    assert all(line in (ROOT / "requirements.txt").read_text() for line in lines[:-1])  # grad-cam requires ttach


def test_setup_cell_keeps_the_run_on_drive_if_asked(setup, colab, monkeypatch):
    mounted = []
    drive = types.SimpleNamespace(mount=mounted.append)
    monkeypatch.setattr(sys.modules["google.colab"], "drive", drive, raising=False)
    monkeypatch.setenv("RUNS", "unset")
    exec(setup, {})
    assert mounted == [] and os.environ["RUNS"] == "unset"
    exec(setup.replace("KEEP_ON_DRIVE = False", "KEEP_ON_DRIVE = True"), {})
    assert mounted == ["/content/drive"] and os.environ["RUNS"] == f"/content/drive/MyDrive/{Path.cwd().name}"
    monkeypatch.delitem(sys.modules, "google.colab")  # elsewhere it does nothing
    colab.clear()
    exec(setup, {})
    assert colab == []


@pytest.fixture
def clone(tmp_path):
    """A clone's README and notebooks, with git and the Makefile, and no remote."""
    for path in (ROOT / "Makefile", ROOT / "README.md", *NOTEBOOKS):
        text = re.sub(r"(google\.com/github/)[\w.-]+/[\w.-]+(/blob)", r"\1OWNER/NAME\2", path.read_text("utf-8"))
        (tmp_path / path.name).write_text(text, "utf-8")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def make_colab(folder, *arguments):
    return subprocess.run(["make", "colab", *arguments], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("remote", ["https://github.com/me/mine.git", "git@github.com:me/mine.git", "https://user@github.com/me/mine"])  # fmt: skip
def test_make_colab_writes_the_address_of_origin_into_this_projects_links_only(clone, remote):
    subprocess.run(["git", "remote", "add", "origin", remote], cwd=clone, check=True)
    before = {path: path.read_text("utf-8").splitlines() for path in (clone / "README.md", *clone.glob("*.ipynb"))}
    assert make_colab(clone).returncode == 0
    for path, lines in before.items():
        text = path.read_text("utf-8")
        changed = [old for old, new in zip(lines, text.splitlines(), strict=True) if old != new]
        assert changed and all("colab.research.google.com/github/" in old or "REPOSITORY = " in old for old in changed)
        assert "github/me/mine/blob/main/session" in text and "OWNER/NAME/blob" not in text
        if path.suffix == ".ipynb":
            assert 'REPOSITORY = \\"https://github.com/me/mine\\"' in text
            nbformat.validate(nbformat.read(path, as_version=4))
    cited = [re.findall(r"https://github\.com/[\w.-]+/[\w.-]+/blob/\w+", text) for text in
             ("\n".join(before[clone / "README.md"]), (clone / "README.md").read_text("utf-8"))]  # fmt: skip
    assert cited[0] == cited[1] and len(cited[0]) > 3


@pytest.mark.parametrize("remote", [None, "https://gitlab.com/me/mine"])
def test_make_colab_without_an_address_says_how_to_give_it(clone, remote):
    if remote:
        subprocess.run(["git", "remote", "add", "origin", remote], cwd=clone, check=True)
    before = (clone / "README.md").read_text("utf-8")
    told = make_colab(clone)
    assert told.returncode == 2 and "give the address with make colab REPO=owner/name" in told.stdout
    assert (clone / "README.md").read_text("utf-8") == before
    assert make_colab(clone, "REPO=you/yours").returncode == 0
    assert "github/you/yours/blob" in (clone / "README.md").read_text("utf-8")
