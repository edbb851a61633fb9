"""Running a notebook from the terminal: what it prints is seen at once, and only a whole run is kept."""

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_notebook

from utils.execute import execute


def write(path, *sources):
    nbformat.write(new_notebook(cells=[new_code_cell(source) for source in sources]), path)
    return path


def test_executed_notebook_keeps_the_last_state_of_a_progress_bar(tmp_path, capfd):
    bar = "print('10%', end='\\r', flush=True); print('100%')"
    notebook = write(tmp_path / "in.ipynb", bar, "1 + 1")
    execute(notebook, tmp_path / "out.ipynb")
    first, second = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells
    assert (first.execution_count, second.execution_count) == (1, 2)
    assert [output.text for output in first.outputs] == ["100%\n"]
    assert second.outputs[0].data["text/plain"] == "2"
    assert "10%\r100%\n" in capfd.readouterr().out
    assert nbformat.read(notebook, as_version=4).cells[0].outputs == []


def test_a_notebook_that_fails_is_not_kept(tmp_path):
    notebook = write(tmp_path / "in.ipynb", "raise ValueError('no')", "1 + 1")
    with pytest.raises(CellExecutionError):
        execute(notebook, tmp_path / "out.ipynb")
    assert [path.name for path in tmp_path.iterdir()] == ["in.ipynb"]
