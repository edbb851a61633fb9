"""Running a notebook from the terminal: its output is shown at once, and only a complete run is saved."""

import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tests.conftest import ROOT
from tools.execute import main

NAME = "session9_assignment.ipynb"


@pytest.fixture
def run(full, tmp_path, monkeypatch):
    """Run a notebook of these cells as `make session9` does; returns the saved one."""
    folder = tmp_path / "runs/session9"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["tools.execute", "9"])

    def run(*sources):
        folder.mkdir(parents=True)
        write(tmp_path, *sources)
        main()
        return nbformat.read(folder / NAME, as_version=4)

    return run


def write(folder, *sources):
    nbformat.write(new_notebook(cells=[new_code_cell(source) for source in sources]), folder / NAME)


def test_executed_notebook_keeps_the_last_state_of_a_progress_bar_but_none_of_a_cleared_one(run, tmp_path, capfd):
    bar = "import sys; print('10%', end='\\r', flush=True); print('100%'); print('no widgets', file=sys.stderr)"
    cleared = "print('10%', end='\\r'); print('   ', end='\\r', flush=True)"
    first, second, third = run(bar, cleared, f"{cleared}; print('done'); 1 + 1").cells
    assert [cell.execution_count for cell in (first, second, third)] == [1, 2, 3]
    assert [output.text for output in first.outputs] == ["100%\n"] and second.outputs == []
    assert third.outputs[0].text == "done\n" and third.outputs[1].data["text/plain"] == "2"
    shown = capfd.readouterr().out
    assert "10%\r100%\n" in shown and "no widgets" in shown
    assert nbformat.read(tmp_path / NAME, as_version=4).cells[0].outputs == []


def test_notebook_with_an_error_is_not_saved(run, tmp_path):
    with pytest.raises(SystemExit, match=f"^\n{NAME} stopped: ValueError: no$"):
        run("raise ValueError('no')")
    assert not list(tmp_path.rglob("runs/**/*.ipynb"))


def test_terminal_without_unicode_and_a_kernel_that_is_this_python_whatever_the_user_has_installed(tmp_path):
    folder = tmp_path / "jupyter/kernels/python3"
    folder.mkdir(parents=True)
    other = {"argv": ["/bin/false", "{connection_file}"], "display_name": "another Python", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(other))
    write(tmp_path, "import sys; print('→', sys.executable)")
    (tmp_path / "runs/smoke/session9").mkdir(parents=True)
    variables = {"JUPYTER_PATH": str(tmp_path / "jupyter"), "PYTHONIOENCODING": "latin-1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tools.execute", "9"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(f"\\u2192 {sys.executable}\n"), done.stderr


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM", "no memory", "closed pipe"])
def test_notebook_that_is_stopped(tmp_path, how):
    """A pipe is closed silently, as in `make session9 | head -1`."""
    loop = "for i in range(600): print(i, flush=True); time.sleep(0.1)"
    write(tmp_path, f"import os, time; print('pid', os.getpid(), flush=True)\n{loop}")
    run = subprocess.Popen(
        [sys.executable, "-m", "tools.execute", "9"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    kernel = int(run.stdout.readline().split()[1])
    if how == "closed pipe":
        run.stdout.close()
    elif how == "no memory":
        os.kill(kernel, signal.SIGKILL)
    else:
        run.send_signal(signal.SIGINT if how == "Ctrl-C" else signal.SIGTERM)
    told = run.stderr.read().strip()
    kept = f"{NAME} was stopped, by you or because memory ran out."
    assert run.wait(60) == 1 and "\n" not in told
    assert told == "" if how == "closed pipe" else told.startswith(kept)
    assert not list(tmp_path.rglob("runs/**/*.ipynb"))
    time.sleep(1)
    with pytest.raises(ProcessLookupError):  # the notebook's kernel has ended, too
        os.kill(kernel, 0)
