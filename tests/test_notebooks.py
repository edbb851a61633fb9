"""The committed notebooks: plain cells, executed whole, with the run of README and static/."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import nbformat
import pytest

from benchmarks.results import SEEDS, read, row_of
from tests.conftest import ROOT
from tools.publish import results_table
from utils.sessions import SESSIONS

NOTEBOOKS = sorted(ROOT.glob("session*_assignment.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def sources(notebook) -> list[str]:
    return [cell.source for cell in code_cells(notebook)]


def test_cells_define_nothing(notebook):
    """The course forbids it; and nbval takes a failed "!" for a success."""
    for source in sources(notebook):
        assert not re.search(r"^\s*((def|class) |[!%])|lambda", source, re.MULTILINE)


def test_notebook_is_short(notebook):
    assert len(sources(notebook)) <= 18


@pytest.mark.parametrize(
    "name",
    ["train_transform(", "make_loaders(", "CrossEntropyLoss(", "one_cycle(", "find_lr(", "fit("],
)
def test_what_the_assignment_names_is_made_in_a_cell(notebook, name):
    assert name in "\n".join(sources(notebook))


def names_in(source: str, context: type) -> set[str]:
    """The names that a cell reads (``ast.Load``) or assigns (``ast.Store``)."""
    nodes = ast.walk(ast.parse(source))
    return {node.id for node in nodes if isinstance(node, ast.Name) and type(node.ctx) is context}


def imported(source: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return names


def test_imports_stand_where_they_are_used_first(notebook):
    for source in sources(notebook):
        assert imported(source) - names_in(source, ast.Load) <= {"show_source", "drive"}


def test_nothing_made_is_unused(notebook):
    made = set()
    used = set()
    for source in sources(notebook):
        made |= names_in(source, ast.Store) | imported(source)
        used |= names_in(source, ast.Load)
    assert made <= used


def test_colab_presets_a_gpu(notebook):
    assert notebook.metadata["accelerator"] == "GPU"
    assert notebook.metadata["colab"]["gpuType"] == "T4"
    assert notebook.metadata["kernelspec"]["name"] == "python3"


@pytest.fixture
def static(path):
    """The published run of a notebook."""
    return ROOT / "static" / path.stem.removesuffix("_assignment")


def facts_of(static: Path) -> dict:
    return json.loads((static / "run.json").read_text("utf-8"))


def log_of(static: Path) -> str:
    return (static / "training_log.txt").read_text("utf-8")


def test_published_run_is_a_whole_one_on_cifar10(static):
    facts = facts_of(static)
    assert facts["data"] == "CIFAR-10"
    assert facts["epochs"] == SESSIONS[facts["session"]].recipe.epochs
    assert f"{facts['test_accuracy']:.2f}%" in log_of(static).splitlines()[-1]


def test_published_run_is_in_the_readme(static):
    readme = (ROOT / "README.md").read_text("utf-8")
    link = f"[Log](static/{static.name}/training_log.txt)"
    assert log_of(static) in readme or link in readme
    assert results_table(ROOT / SEEDS) in readme


def test_published_run_is_among_the_measured_ones(static):
    assert row_of(static) in read(ROOT / SEEDS, seed="0")


@pytest.fixture
def executed(path, notebook):
    """A notebook with outputs."""
    if not any(cell.execution_count for cell in code_cells(notebook)):
        pytest.skip(f"{path.name} has no outputs: its cells have changed since the last full run")
    return notebook


def text_of(notebook) -> str:
    texts = []
    for cell in code_cells(notebook):
        for output in cell.outputs:
            texts.append(output.get("text") or output.get("data", {}).get("text/plain", ""))
    return "".join(texts)


def test_notebook_was_executed_from_top_to_bottom(executed):
    counts = [cell.execution_count for cell in code_cells(executed)]
    assert counts == list(range(1, len(counts) + 1))


def test_notebook_shows_the_published_run(executed, static):
    shown = [
        line for line in text_of(executed).splitlines() if line.startswith(("EPOCH", "Test set"))
    ]
    assert shown == log_of(static).splitlines(), (
        "The notebook shows another run than static/: it was run again and saved. That is no fault "
        "of the code; `git checkout` brings the published one back."
    )


def test_outputs_hold_no_path_of_a_machine_and_no_error(executed):
    outputs = json.dumps([cell.outputs for cell in code_cells(executed)])
    assert not re.search(r'/(root|home|work|tmp|content)/|"output_type": "error"|"stderr"', outputs)


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """An empty folder. Commands are recorded; a clone creates what git would create."""
    commands = []
    subfolder = {"of the project": ""}

    def run(command, check=False):
        commands.append(command)
        if command[0] == "git":
            models = tmp_path / command[-1] / subfolder["of the project"] / "models"
            models.mkdir(parents=True)
            for network in ROOT.glob("models/model*.py"):
                (models / network.name).touch()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("RUNS", "unset")
    monkeypatch.setenv("GIT_TERMINAL_PROMPT", "1")
    return types.SimpleNamespace(commands=commands, subfolder=subfolder, folder=tmp_path)


@pytest.fixture
def setup(notebook):
    """The setup cell, with an address as `make colab` writes it."""
    placeholder = '"https://github.com/OWNER/NAME"'
    return sources(notebook)[0].replace(placeholder, '"https://github.com/me/mine"')


@pytest.mark.parametrize("end", ["", "/", ".git", ".git/"])
def test_setup_clones_the_repository(setup, elsewhere, end):
    exec(setup.replace("me/mine", f"me/mine{end}"), {})
    (clone,) = elsewhere.commands
    assert clone == ["git", "clone", "--depth", "1", f"https://github.com/me/mine{end}", "mine"]
    assert Path.cwd() == elsewhere.folder / "mine"


def test_setup_finds_the_project_inside_a_course_repository(setup, elsewhere):
    elsewhere.subfolder["of the project"] = "EVA8/session9"
    exec(setup, {})
    assert Path.cwd() == elsewhere.folder / "mine/EVA8/session9"


def test_setup_run_again_changes_nothing(setup, elsewhere):
    exec(setup, {})
    path = list(sys.path)
    exec(setup, {})
    assert len(elsewhere.commands) == 1
    assert sys.path == path
    assert Path.cwd() == elsewhere.folder / "mine"


def test_setup_after_a_restart_of_the_kernel_clones_no_more(setup, elsewhere, monkeypatch):
    exec(setup, {})
    monkeypatch.chdir(elsewhere.folder)
    exec(setup, {})
    assert len(elsewhere.commands) == 1
    assert Path.cwd() == elsewhere.folder / "mine"


def test_setup_finds_the_project_in_a_folder_beside(setup, elsewhere):
    (elsewhere.folder / "project/models").mkdir(parents=True)
    for network in ROOT.glob("models/model*.py"):
        (elsewhere.folder / "project/models" / network.name).touch()
    exec(setup, {})
    assert elsewhere.commands == []
    assert Path.cwd() == elsewhere.folder / "project"


def test_setup_in_the_project_clones_nothing(setup, elsewhere, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec(setup, {})
    assert elsewhere.commands == []
    assert Path.cwd() == ROOT


def test_project_is_imported_before_another_utils(setup, elsewhere, monkeypatch):
    monkeypatch.chdir(ROOT)
    sys.path.insert(0, "/another/project")
    exec(setup, {})
    assert sys.path[0] == str(ROOT)


def test_setup_without_an_address_says_what_to_do(notebook, elsewhere):
    source = re.sub(
        'REPOSITORY = ".*"', 'REPOSITORY = "https://github.com/OWNER/NAME"', sources(notebook)[0]
    )
    with pytest.raises(SystemExit, match="set REPOSITORY"):
        exec(source, {})
    assert elsewhere.commands == []


def test_repository_that_cannot_be_cloned_is_one_line(setup, elsewhere, monkeypatch):
    failed = subprocess.CompletedProcess([], 128)
    monkeypatch.setattr(subprocess, "run", lambda command, check=False: failed)
    with pytest.raises(SystemExit, match="cannot be cloned: check the address"):
        exec(setup, {})


def test_setup_installs_what_is_missing(setup, elsewhere, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "torchinfo" else real(name),
    )
    monkeypatch.chdir(ROOT)
    exec(setup, {})
    (install,) = elsewhere.commands
    assert install[1:] == ["-m", "pip", "install", "-q", "-r", "requirements-notebook.txt"]


def test_setup_keeps_the_run_on_drive_only_if_asked(setup, elsewhere, monkeypatch):
    mounted = []
    colab = types.ModuleType("google.colab")
    colab.drive = types.SimpleNamespace(mount=mounted.append)
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    exec(setup, {})
    assert os.environ["RUNS"] == "unset"
    exec(setup.replace("KEEP_ON_DRIVE = False", "KEEP_ON_DRIVE = True"), {})
    assert mounted == ["/content/drive"]
    assert os.environ["RUNS"] == "/content/drive/MyDrive/mine"


def test_setup_cells_differ_only_in_the_network():
    cells = set()
    for path in NOTEBOOKS:
        source = sources(nbformat.read(path, as_version=4))[0]
        cells.add(re.sub(r"models/model\d\.py", "models/model.py", source))
    assert len(cells) == 1


MODULES = {
    "pytorch_grad_cam": "grad-cam",
    "sklearn": "scikit-learn",
    "torch_lr_finder": "torch-lr-finder",
    "PIL": "torchvision",
    "numpy": "torch",
    "IPython": None,
    "google": None,
}


def test_requirements_of_the_notebooks_cover_what_is_imported():
    text = (ROOT / "requirements-notebook.txt").read_text("utf-8")
    required = {line.split(">=")[0] for line in text.splitlines() if ">=" in line}
    own = {"models", "utils", "main"}
    files = [ROOT / "main.py", *ROOT.glob("models/*.py"), *(ROOT / "utils").rglob("*.py")]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in {name.split(".")[0] for name in names if name}:
                if module not in own and module not in sys.stdlib_module_names:
                    package = MODULES.get(module, module)
                    assert package is None or package in required, f"{file.name}: {module}"


def test_requirements_include_those_of_the_notebooks():
    assert "-r requirements-notebook.txt" in (ROOT / "requirements.txt").read_text("utf-8")


@pytest.fixture
def clone(tmp_path):
    """A clone's README and notebooks, with git and the Makefile, and no remote."""
    for path in (ROOT / "Makefile", ROOT / "README.md", *NOTEBOOKS):
        address = r"(google\.com/github/)[\w.-]+/[\w.-]+(/blob)"
        text = re.sub(address, r"\1OWNER/NAME\2", path.read_text("utf-8"))
        (tmp_path / path.name).write_text(text, "utf-8")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def add_origin(folder: Path, address: str) -> None:
    subprocess.run(["git", "remote", "add", "origin", address], cwd=folder, check=True)


def make_colab(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = ["make", "colab", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize(
    "address",
    [
        "https://github.com/me/mine.git",
        "git@github.com:me/mine.git",
        "https://user@github.com/me/mine",
    ],
)
def test_make_colab_writes_the_address_of_origin(clone, address):
    add_origin(clone, address)
    assert make_colab(clone).returncode == 0
    assert "github/me/mine/blob/main/session" in (clone / "README.md").read_text("utf-8")
    for path in clone.glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        assert 'REPOSITORY = "https://github.com/me/mine"' in sources(notebook)[0]


def test_make_colab_changes_only_lines_with_the_address(clone):
    before = {path: path.read_text("utf-8").splitlines() for path in clone.glob("*.[im]*")}
    make_colab(clone, "REPO=me/mine")
    for path, lines in before.items():
        for old, new in zip(lines, path.read_text("utf-8").splitlines(), strict=True):
            if old != new:
                assert "colab.research.google.com/github/" in old or "REPOSITORY = " in old


@pytest.mark.parametrize("address", [None, "https://gitlab.com/me/mine"])
def test_make_colab_without_an_address_says_how_to_give_it(clone, address):
    if address:
        add_origin(clone, address)
    before = (clone / "README.md").read_text("utf-8")
    done = make_colab(clone)
    assert done.returncode == 2
    assert "REPO=owner/name" in done.stdout
    assert (clone / "README.md").read_text("utf-8") == before
