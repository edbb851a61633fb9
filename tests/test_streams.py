"""Output that cannot be written, names that are not ASCII, and environments that lack something."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tests.conftest import ROOT
from tests.test_image_folder import CLASSES, picture, write_images
from utils.data import load_data
from utils.system.settings import data_root, runs_folder

PICTURE = "static/session9/test_accuracy.png"


def shell(command: str, cwd: Path = ROOT, **variables) -> subprocess.CompletedProcess:
    """Run ``command`` with this Python as ``python``."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(command, shell=True, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("stream, code, told", [
    (">&-", 0, ""),
    (">/dev/full", 1, "main.py: standard output: No space left on device"),
    ("| true; exit ${PIPESTATUS[0]}", 1, ""),
])  # fmt: skip
def test_standard_output_that_cannot_be_written(stream, code, told):
    done = shell(f"bash -c 'python main.py classify {PICTURE} {PICTURE} {stream}'")
    assert (done.returncode, done.stderr.strip()) == (code, told)


def test_terminal_without_unicode_and_a_kernel_that_is_this_python_whatever_the_user_has_installed(tmp_path):
    folder = tmp_path / "jupyter/kernels/python3"
    folder.mkdir(parents=True)
    other = {"argv": ["/bin/false", "{connection_file}"], "display_name": "another Python", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(other))
    cells = [new_code_cell("import sys; print('→', sys.executable)")]
    nbformat.write(new_notebook(cells=cells), tmp_path / "session9_assignment.ipynb")
    (tmp_path / "runs/smoke/session9").mkdir(parents=True)
    variables = {"JUPYTER_PATH": str(tmp_path / "jupyter"), "PYTHONIOENCODING": "latin-1"}
    done = shell("python -m tools.execute 9", tmp_path, **variables)
    assert done.returncode == 0 and done.stdout.startswith(f"\\u2192 {sys.executable}\n"), done.stderr


def test_file_and_class_names_that_are_not_utf8(tmp_path):
    folder = write_images(tmp_path / os.fsdecode(b"caf\xe9"), [*CLASSES[:9], os.fsdecode(b"th\xe9")])
    picture(1).save(folder / "train/class0" / os.fsdecode(b"caf\xe9.png"))
    data = load_data(folder)
    assert len(data.train_labels) == 31 and data.classes[9] == "th\\xe9"
    assert data.name == "caf\\xe9 (folder of images)" and str(data).encode()


def test_damaged_file_whose_name_is_not_utf8(tmp_path):
    folder = write_images(tmp_path / "pets")
    (folder / "train/class0" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"no image")
    command = "python main.py session9 --epochs 1 --max-lr 0.01"
    done = shell(command, DATA=str(folder), RUNS=str(tmp_path), EVA8_SMOKE="0")
    assert done.returncode == 1 and "is not a readable image: replace or remove it." in done.stderr
    assert "Traceback" not in done.stderr


def test_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RUNS", "~/runs")
    monkeypatch.setenv("DATA_ROOT", "~/data")
    assert (runs_folder(), data_root()) == (tmp_path / "runs", tmp_path / "data")
    write_images(tmp_path / "pets")
    assert load_data("~/pets").name == "pets (folder of images)"


def test_environment_without_home():
    done = shell(f"env -u HOME python main.py classify {PICTURE}")
    assert done.returncode == 0 and done.stdout.startswith(PICTURE), done.stderr


def test_python_without_the_packages():
    code = "import sys; sys.modules['accelerate'] = None; import main; main.main(['session9'])"
    done = shell(f'python -c "{code}"')
    told = "main.py: accelerate is not installed in this Python: use .venv/bin/python, which `make test` creates."
    assert (done.returncode, done.stderr.strip()) == (1, told)
    assert ".venv/bin/python main.py session9" in shell("python main.py --help").stdout
