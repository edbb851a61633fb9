"""The committed notebooks: plain cells, executed whole, with the run of README and static/."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from unittest.mock import Mock

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


DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


def test_cells_call_no_shell_and_no_magic(notebook):
    """nbval takes a failed "!" for a success."""
    for source in sources(notebook):
        for line in source.splitlines():
            assert not line.lstrip().startswith(("!", "%"))


def test_cells_define_no_function_and_no_class(notebook):
    """The course forbids it."""
    for source in sources(notebook):
        for node in ast.walk(ast.parse(source)):
            assert not isinstance(node, DEFINITIONS), ast.unparse(node)


def test_notebook_is_short(notebook):
    assert len(sources(notebook)) <= 18


NAMED_BY_THE_ASSIGNMENT = [
    "transform = train_transform(",
    "train_loader, test_loader = make_loaders(",
    "model = run.build(",
    "criterion = nn.CrossEntropyLoss(",
    "optimizer = ",
    "search = run.find_lr(",
    "scheduler = one_cycle(",
    "history = run.fit(",
]


@pytest.mark.parametrize("statement", NAMED_BY_THE_ASSIGNMENT)
def test_what_the_assignment_names_is_made_in_a_cell(notebook, statement):
    lines = "\n".join(sources(notebook)).splitlines()
    assert any(line.startswith(statement) for line in lines)


def names_in(source: str, context: type) -> set[str]:
    """The names that a cell reads (``ast.Load``) or assigns (``ast.Store``)."""
    nodes = ast.walk(ast.parse(source))
    return {node.id for node in nodes if isinstance(node, ast.Name) and type(node.ctx) is context}


def imported(source: str) -> set[str]:
    """The names that a cell imports: ``os`` of ``import os.path``."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return names


def test_imports_stand_where_they_are_used_first(notebook):
    for source in sources(notebook):
        assert imported(source) <= names_in(source, ast.Load)


def test_every_name_is_used(notebook):
    source = "\n".join(sources(notebook))
    made = names_in(source, ast.Store) | imported(source)
    assert made - names_in(source, ast.Load) == set()


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
    """What the cells print and return."""
    texts = []
    for cell in code_cells(notebook):
        for output in cell.outputs:
            texts.append(output.get("text") or output.get("data", {}).get("text/plain", ""))
    return "".join(texts)


def not_published(path: Path, difference: str) -> str:
    """What to tell a student who has saved a run of their own over the published notebook."""
    return (
        f"{path.name} {difference}. You have saved another run over the published one, with which "
        "this test compares. This is fine for handing in, and no fault of the code. "
        f"`git checkout {path.name}` brings the published one back."
    )


def test_notebook_was_executed_from_top_to_bottom(path, executed):
    counts = [cell.execution_count for cell in code_cells(executed)]
    whole = counts == list(range(1, len(counts) + 1))
    assert whole, not_published(path, "was not executed once, from top to bottom")


def test_notebook_shows_the_published_run(path, executed, static):
    log = log_of(static).splitlines()
    lines = text_of(executed).splitlines()
    epochs = [line for line in lines if line.startswith(("EPOCH", "Test set"))]
    same = epochs == log
    last = epochs[-1] if epochs else "no epoch"
    difference = f"shows a run that ends with “{last}”, static/{static.name} one with “{log[-1]}”"
    assert same, not_published(path, difference)


def test_run_of_a_student_is_no_fault_of_the_code():
    path = Path("session9_assignment.ipynb")
    cell = nbformat.v4.new_code_cell("run.fit()", execution_count=1)
    cell.outputs = [nbformat.v4.new_output("stream", text="Test set: Accuracy: 1/10 (10.00%)\n")]
    with pytest.raises(AssertionError) as failure:
        test_notebook_shows_the_published_run(
            path, nbformat.v4.new_notebook(cells=[cell]), ROOT / "static/session9"
        )
    message, _, _ = str(failure.value).partition("\n")
    assert "shows a run that ends with “Test set: Accuracy: 1/10 (10.00%)”" in message
    assert "fine for handing in" in message


def test_outputs_hold_no_path_of_a_machine(path, executed):
    outputs = json.dumps([cell.outputs for cell in code_cells(executed)])
    places = ("/root/", "/home/", "/work/", "/tmp/", "/content/")
    visible = [place for place in places if place in outputs]
    assert not visible, not_published(path, f"shows paths of the machine that ran it: {visible}")


def test_outputs_hold_no_error_and_no_warning(path, executed):
    kinds = set()
    for cell in code_cells(executed):
        kinds |= {output.get("name", output.output_type) for output in cell.outputs}
    clean = kinds <= {"stdout", "display_data", "execute_result"}
    assert clean, not_published(path, "shows an error or a warning")


def make_project(folder: Path) -> None:
    """A folder with the files by which the setup cells find the project."""
    (folder / "models").mkdir(parents=True)
    for network in ROOT.glob("models/model*.py"):
        (folder / "models" / network.name).touch()
    (folder / "utils").mkdir()
    (folder / "utils/transforms.py").touch()


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """An empty folder as the current one; commands are recorded instead of run.

    A clone creates the files that the setup cell looks for, in ``subfolder`` of the repository.
    """
    machine = types.SimpleNamespace(folder=tmp_path, commands=[], subfolder="")

    def run(command, check=False):
        machine.commands.append(command)
        if command[0] == "git":
            make_project(tmp_path / command[-1] / machine.subfolder)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("RUNS", "unset")
    monkeypatch.setenv("GIT_TERMINAL_PROMPT", "1")
    return machine


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
    elsewhere.subfolder = "EVA8/session9"
    exec(setup, {})
    assert Path.cwd() == elsewhere.folder / "mine/EVA8/session9"


def test_setup_run_again_clones_no_more(setup, elsewhere):
    exec(setup, {})
    exec(setup, {})
    assert len(elsewhere.commands) == 1
    assert Path.cwd() == elsewhere.folder / "mine"


def test_setup_run_again_leaves_the_import_path_as_it_is(setup, elsewhere):
    exec(setup, {})
    first = list(sys.path)
    exec(setup, {})
    assert sys.path == first
    assert sys.path.count(str(elsewhere.folder / "mine")) == 1


def test_setup_after_a_restart_of_the_kernel_clones_no_more(setup, elsewhere, monkeypatch):
    exec(setup, {})
    monkeypatch.chdir(elsewhere.folder)
    exec(setup, {})
    assert len(elsewhere.commands) == 1
    assert Path.cwd() == elsewhere.folder / "mine"


def test_setup_finds_the_project_in_a_folder_beside(setup, elsewhere):
    make_project(elsewhere.folder / "project")
    exec(setup, {})
    assert elsewhere.commands == []
    assert Path.cwd() == elsewhere.folder / "project"


def test_setup_in_the_project_clones_nothing(setup, elsewhere, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec(setup, {})
    assert elsewhere.commands == []
    assert Path.cwd() == ROOT


def test_project_is_imported_before_another_utils(setup, tmp_path):
    """PYTHONPATH names the other one; -P leaves out the current folder, as a kernel does."""
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils/__init__.py").touch()
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"{setup}\nimport utils\nprint(utils.__file__)"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(ROOT / "utils/__init__.py")


def test_setup_without_an_address_says_what_to_do(notebook, elsewhere):
    placeholder = re.sub('github.com/.*"', 'github.com/OWNER/NAME"', sources(notebook)[0])
    with pytest.raises(SystemExit) as stop:
        exec(placeholder, {})
    assert "set REPOSITORY" in stop.value.code
    assert "\n" not in stop.value.code
    assert elsewhere.commands == []


def test_repository_that_cannot_be_cloned_is_one_line(setup, elsewhere, monkeypatch):
    failed = subprocess.CompletedProcess([], 128)
    monkeypatch.setattr(subprocess, "run", Mock(return_value=failed))
    with pytest.raises(SystemExit) as stop:
        exec(setup, {})
    assert "https://github.com/me/mine cannot be cloned" in stop.value.code
    assert "check the address" in stop.value.code
    assert "\n" not in stop.value.code


def test_last_file_of_a_checkout_is_the_one_that_setup_looks_for():
    """Git writes files in the order of their names."""
    names = [path.relative_to(ROOT).as_posix() for path in (ROOT / "utils").rglob("*.py")]
    assert max(names) == "utils/transforms.py"
    folders = [path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()]
    assert max(folders) == "utils"


def incomplete_line(setup: str) -> str:
    with pytest.raises(SystemExit) as stop:
        exec(setup, {})
    assert "\n" not in stop.value.code
    assert "not a complete copy of the project" in stop.value.code
    return stop.value.code


def test_clone_that_was_cut_off_is_said_to_be_incomplete(setup, elsewhere):
    make_project(elsewhere.folder / "mine")
    (elsewhere.folder / "mine/utils/transforms.py").unlink()
    assert str(elsewhere.folder / "mine") in incomplete_line(setup)


def test_setup_may_run_again_after_an_incomplete_clone_is_deleted(setup, elsewhere):
    make_project(elsewhere.folder / "mine")
    (elsewhere.folder / "mine/utils/transforms.py").unlink()
    incomplete_line(setup)
    shutil.rmtree(elsewhere.folder / "mine")
    exec(setup, {})
    assert Path.cwd() == elsewhere.folder / "mine"


def test_repository_without_the_project_is_said_to_be_incomplete(setup, elsewhere, monkeypatch):
    def clone_nothing(command):
        Path(command[-1]).mkdir()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", clone_nothing)
    assert "check REPOSITORY" in incomplete_line(setup)


def modules_of(setup: str) -> list[str]:
    """The packages that the setup cell looks for."""
    (line,) = [line for line in setup.splitlines() if line.startswith("modules = ")]
    return ast.literal_eval(line.removeprefix("modules = ")).split()


@pytest.mark.parametrize("module", modules_of(sources(nbformat.read(NOTEBOOKS[0], 4))[0]))
def test_setup_installs_a_package_that_is_missing(setup, elsewhere, monkeypatch, module):
    real = importlib.util.find_spec

    def find_spec(name):
        return None if name == module else real(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.chdir(ROOT)
    exec(setup, {})
    (install,) = elsewhere.commands
    assert install[1:] == ["-m", "pip", "install", "-q", "-r", "requirements-notebook.txt"]


@pytest.fixture
def mounted(monkeypatch):
    """Folders that a stand-in for Colab's Google Drive mounts."""
    folders = []
    colab = types.ModuleType("google.colab")
    colab.drive = types.SimpleNamespace(mount=folders.append)
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    return folders


def test_setup_leaves_google_drive_alone(setup, elsewhere, mounted):
    exec(setup, {})
    assert mounted == []
    assert os.environ["RUNS"] == "unset"


def test_setup_keeps_the_run_on_google_drive_if_asked(setup, elsewhere, mounted):
    exec(setup.replace("KEEP_ON_DRIVE = False", "KEEP_ON_DRIVE = True"), {})
    assert mounted == ["/content/drive"]
    assert os.environ["RUNS"] == "/content/drive/MyDrive/mine"


def test_setup_cells_differ_only_in_the_network():
    cells = set()
    for path in NOTEBOOKS:
        source = sources(nbformat.read(path, as_version=4))[0]
        cells.add(re.sub(r"models/model\d\.py", "models/model.py", source))
    assert len(cells) == 1


# Packages of modules with another name.
PACKAGES = {
    "pytorch_grad_cam": "grad-cam",
    "sklearn": "scikit-learn",
    "torch_lr_finder": "torch-lr-finder",
    "PIL": "torchvision",
    "numpy": "torch",
}
# The project's own, and what notebooks have where they run.
NO_PACKAGES = {"main", "models", "utils", "IPython", "google"}


def required() -> set[str]:
    text = (ROOT / "requirements-notebook.txt").read_text("utf-8")
    return {line.split(">=")[0] for line in text.splitlines() if ">=" in line}


def modules_imported(source: str) -> set[str]:
    """The top-level modules of other packages that a source imports, also inside functions."""
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module.split(".")[0])
    return modules - NO_PACKAGES - sys.stdlib_module_names


SOURCES = [ROOT / "main.py", *ROOT.glob("models/*.py"), *(ROOT / "utils").rglob("*.py")]


def test_requirements_of_the_notebooks_cover_what_the_project_imports():
    for path in SOURCES:
        for module in modules_imported(path.read_text("utf-8")):
            assert PACKAGES.get(module, module) in required(), path.name


def test_requirements_of_the_notebooks_cover_what_their_cells_import(notebook):
    modules = modules_imported("\n".join(sources(notebook)))
    assert {PACKAGES.get(module, module) for module in modules} <= required()


def test_setup_looks_for_each_requirement(setup):
    assert {PACKAGES.get(module, module) for module in modules_of(setup)} == required()


def test_requirements_include_those_of_the_notebooks():
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    assert "-r requirements-notebook.txt" in lines
