"""How pytest runs notebooks here, by the root's conftest.py, tried on notebooks of a few lines."""

import shutil
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tests.conftest import ROOT


@pytest.fixture
def run_notebook(tmp_path):
    """A function that runs a notebook of some cells as a test; returns what pytest prints."""
    shutil.copy(ROOT / "conftest.py", tmp_path)

    def run(*sources: str) -> str:
        cells = [new_code_cell(source) for source in sources]
        nbformat.write(new_notebook(cells=cells), tmp_path / "notebook.ipynb")
        options = ["--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", "notebook.ipynb", *options]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout

    return run


def test_kernel_that_has_died_is_said_to_have_died(run_notebook):
    """By nbval alone it would be a timeout, after five minutes."""
    output = run_notebook("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert "the notebook's kernel has died" in output
    assert "Timeout" not in output


def test_cell_that_takes_longer_than_a_second_passes(run_notebook):
    """The kernel is asked for its answer once per second."""
    assert "1 passed" in run_notebook("import time; time.sleep(1.5)")
