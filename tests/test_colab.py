"""Session 7's notebook, which needs all packages, alone in an empty folder on Colab.

Stand-ins, so that no network is needed: the module ``google.colab``; a repository of the files as
they are now; packages that Colab lacks, hidden until pip is asked for them.
"""

import re
import shutil
import subprocess
import zipfile

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT

PIP = """
import sys
from pathlib import Path
with open(Path(__file__).parents[1] / "asked.txt", "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
"""
COLAB = """
from pathlib import Path

class files:
    def download(name):
        print("offered", Path(name).name)
"""
SITE_CUSTOMIZE = """
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import google.colab

ASKED = Path(__file__).with_name("asked.txt")
LACKS = {"torch_lr_finder", "torchinfo", "torchsummary", "pytorch_grad_cam"}

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name in LACKS and not ASKED.read_text():
            return None
        return super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""
SITE = {
    "google/colab/__init__.py": COLAB,
    "pip/__init__.py": "",
    "pip/__main__.py": PIP,
    "sitecustomize.py": SITE_CUSTOMIZE,
    "asked.txt": "",
}


def make_repository(folder) -> None:
    """A repository of the files as they are now, with an eighth of ResNet-18's channels."""
    command = ["git", "ls-files", "-z", "-co", "--exclude-standard"]
    listed = subprocess.check_output(command, cwd=ROOT, text=True)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    network = folder / "models/model7.py"
    source = network.read_text()
    for width in ("64", "128", "256", "512"):
        source = re.sub(rf"\b{width}\b", str(int(width) // 8), source)
    network.write_text(source)
    author = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for words in (["init", "-q"], ["add", "-A"], [*author, "commit", "-qm", "as it is"]):
        subprocess.run(["git", *words], cwd=folder, check=True)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The folder of the machine, and the setup and the last cell after all cells have run."""
    folder = tmp_path_factory.mktemp("colab")
    repository = folder / "remote/project"
    make_repository(repository)
    site = folder / "site"
    for name, text in SITE.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    content = folder / "content"
    content.mkdir()
    notebook = nbformat.read(ROOT / "session7_assignment.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    address = f'REPOSITORY = "file://{repository}"'
    cells[0].source = re.sub('REPOSITORY = ".*"', address, cells[0].source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(site))
        patch.setenv("EVA8_SMOKE", "1")
        resources = {"metadata": {"path": str(content)}}
        NotebookClient(notebook, timeout=600, resources=resources).execute()
    return folder, cells[-1]


def test_only_the_project_is_cloned(executed):
    folder, _ = executed
    assert [entry.name for entry in (folder / "content").iterdir()] == ["project"]


def test_missing_packages_are_installed(executed):
    folder, _ = executed
    asked = (folder / "site/asked.txt").read_text().splitlines()
    assert asked == ["install -q -r requirements-notebook.txt"]


def test_last_cell_says_that_it_offers_the_results_as_one_file(executed):
    _, cell = executed
    shown = "".join(output.text for output in cell.outputs)
    assert shown.startswith("Downloading session7.zip: ")
    assert "offered session7.zip" in shown


@pytest.mark.parametrize(
    "name",
    [
        "training_log.txt",
        "weights.pt",
        "loss_and_accuracy_graphs.png",
        "misclassified_images.png",
        "grad_cam.png",
        "submission.md",
    ],
)
def test_results_are_in_the_file(executed, name):
    folder, _ = executed
    with zipfile.ZipFile(folder / "content/project/session7.zip") as archive:
        assert name in archive.namelist()
