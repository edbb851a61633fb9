"""Session 7's notebook, which needs all packages, alone in an empty folder on Colab: it clones, installs, runs.

Stand-ins, so that no network is needed: the module ``google.colab``; a repository of the files as they are now;
packages that Colab lacks, hidden until pip is asked for them. Setup cells are tested in test_notebooks.py.
"""

import re
import shutil
import subprocess

import nbformat
from nbclient import NotebookClient

from tests.conftest import ROOT

SITE = {
    "google/colab/__init__.py": "",
    "pip/__init__.py": "",
    "pip/__main__.py": """
import sys
from pathlib import Path
with open(Path(__file__).parents[1] / "asked.txt", "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n" + Path(sys.argv[-1]).read_text())
""",
    "sitecustomize.py": """
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import google.colab

ASKED = Path(__file__).with_name("asked.txt")
LACKS = {"accelerate", "torch_lr_finder", "torchinfo", "torchsummary", "pytorch_grad_cam", "ttach"}

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name in LACKS and {"pytorch_grad_cam": "grad-cam"}.get(name, name.replace("_", "-")) not in ASKED.read_text()
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
""",
    "asked.txt": "",
}


def test_notebook_runs_alone_on_colab(tmp_path, monkeypatch):
    copy = tmp_path / "remote/project"
    command = ["git", "ls-files", "-z", "-co", "--exclude-standard"]
    for name in subprocess.check_output(command, cwd=ROOT, text=True).split("\0"):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    network = copy / "models/model7.py"  # with an eighth of its channels, it takes seconds
    network.write_text(re.sub(r"\b(64|128|256|512)\b", lambda width: str(int(width[0]) // 8), network.read_text()))
    author = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "-A"], [*author, "commit", "-qm", "as it is"]):
        subprocess.run(["git", *command], cwd=copy, check=True)
    site, content = tmp_path / "site", tmp_path / "content"
    for name, text in SITE.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    content.mkdir()
    monkeypatch.chdir(content)
    monkeypatch.setenv("PYTHONPATH", str(site))
    notebook = nbformat.read(ROOT / "session7_assignment.ipynb", as_version=4)
    setup = next(cell for cell in notebook.cells if cell.cell_type == "code")
    address = setup.source.split('REPOSITORY = "')[1].split('"')[0]
    setup.source = setup.source.replace(address, f"file://{copy}") + "\nprint(os.getcwd())"
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(content)}}).execute()
    assert setup.outputs[0].text.strip() == str(content / "project")
    assert [entry.name for entry in content.iterdir()] == ["project"]
    asked = (site / "asked.txt").read_text().split("\n")
    assert asked[0] == "install -q --no-deps -r requirements-colab.txt"
    assert {line.split(">=")[0] for line in asked[2:] if line} >= {"accelerate", "grad-cam", "torch-lr-finder"}
    folder = content / "project/runs/smoke/session7"
    assert {"run.json", "loss_and_accuracy_graphs.png", "grad_cam.png"} < {path.name for path in folder.iterdir()}
