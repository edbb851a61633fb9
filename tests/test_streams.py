"""Output that cannot be written, names that are not ASCII, and environments that lack something."""

import json
import os
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tests.conftest import ROOT
from tests.test_image_folder import CLASSES, picture, write_images
from utils.data import load_data
from utils.system.errors import DataError
from utils.system.settings import data_root, runs_folder


@pytest.mark.parametrize("stream, code, told", [
    (">&-", 0, ""), (">/dev/full", 1, "main.py: standard output: No space left on device"),
    ("| true; exit ${PIPESTATUS[0]}", 1, ""),
])  # fmt: skip
def test_standard_output_that_cannot_be_written(stream, code, told):
    program = "from utils.system.errors import one_line_errors\nwith one_line_errors('main.py'): print('x' * 100_000)"
    command = ["bash", "-c", f'"{sys.executable}" -c "{program}" {stream}']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (code, told)


def test_terminal_without_unicode_and_a_kernel_that_is_this_python_whatever_the_user_has_installed(tmp_path):
    folder = tmp_path / "jupyter/kernels/python3"
    folder.mkdir(parents=True)
    other = {"argv": ["/bin/false", "{connection_file}"], "display_name": "another Python", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(other))
    cells = [new_code_cell("import sys; print('→', sys.executable)")]
    nbformat.write(new_notebook(cells=cells), tmp_path / "session9_assignment.ipynb")
    (tmp_path / "runs/smoke/session9").mkdir(parents=True)
    variables = {"JUPYTER_PATH": str(tmp_path / "jupyter"), "PYTHONIOENCODING": "latin-1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tools.execute", "9"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(f"\\u2192 {sys.executable}\n"), done.stderr


def test_file_and_class_names_that_are_not_utf8(tmp_path):
    folder = write_images(tmp_path / os.fsdecode(b"caf\xe9"), [*CLASSES[:9], os.fsdecode(b"th\xe9")])
    picture(1).save(folder / "train/class0" / os.fsdecode(b"caf\xe9.png"))
    data = load_data(folder)
    assert len(data.train_labels) == 31 and data.classes[9] == "th\\xe9"
    assert data.name == "caf\\xe9 (folder of images)" and str(data).encode()
    (folder / "train/class0" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"class0/caf\\xe9.png is not a readable image: replace or remove it"):
        load_data(folder)


def test_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RUNS", "~/runs")
    monkeypatch.setenv("DATA_ROOT", "~/data")
    assert (runs_folder(), data_root()) == (tmp_path / "runs", tmp_path / "data")
    write_images(tmp_path / "pets")
    assert load_data("~/pets").name == "pets (folder of images)"
