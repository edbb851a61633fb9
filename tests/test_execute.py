"""Running a notebook from the terminal: its output is shown at once, and only a complete run is saved."""

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tests.conftest import ROOT
from tools.execute import execute, main


def write(path, *sources):
    nbformat.write(new_notebook(cells=[new_code_cell(source) for source in sources]), path)
    return path


def test_executed_notebook_keeps_the_last_state_of_a_progress_bar_but_none_of_a_cleared_one(tmp_path, capfd):
    bar = "print('10%', end='\\r', flush=True); print('100%')"
    cleared = "import sys; print('10%', end='\\r'); print('   ', end='\\r', flush=True)"
    notebook = write(tmp_path / "in.ipynb", bar, cleared, f"{cleared}; print('done'); 1 + 1")
    first, second, third = execute(notebook).cells
    assert [cell.execution_count for cell in (first, second, third)] == [1, 2, 3]
    assert [output.text for output in first.outputs] == ["100%\n"] and second.outputs == []
    assert third.outputs[0].text == "done\n" and third.outputs[1].data["text/plain"] == "2"
    assert "10%\r100%\n" in capfd.readouterr().out
    assert nbformat.read(notebook, as_version=4).cells[0].outputs == []


@pytest.mark.parametrize("source, told", [
    ("import os; os.makedirs('runs/session9')", None),
    ("raise ValueError('no')", "\nsession9_assignment.ipynb stopped: ValueError: no"),
    ("1 + 1", "cannot be written (No such file or directory)"),  # it did not create its folder
])  # fmt: skip
def test_a_notebook_is_saved_if_it_ran_completely(full, tmp_path, monkeypatch, source, told):
    write(tmp_path / "session9_assignment.ipynb", source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["tools.execute", "9"])
    with pytest.raises(SystemExit) if told else nullcontext() as stop:
        main()
    assert told is None or (told in stop.value.code and "\n" not in stop.value.code.strip())
    kept = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("runs/**/*.*")]
    assert kept == ([] if told else ["runs/session9/session9_assignment.ipynb"])


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM", "no memory", "closed pipe"])
def test_notebook_that_is_stopped(tmp_path, how):
    """A pipe is closed silently, as in `make session9 | head -1`."""
    loop = "for i in range(600): print(i, flush=True); time.sleep(0.1)"
    write(tmp_path / "session9_assignment.ipynb", f"import os, time; print('pid', os.getpid(), flush=True)\n{loop}")
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
    kept = "session9_assignment.ipynb was stopped, by you or because memory ran out."
    assert run.wait(60) == 1 and "\n" not in told
    assert told == "" if how == "closed pipe" else told.startswith(kept)
    assert not list(tmp_path.rglob("runs/**/*.ipynb"))
    time.sleep(1)
    with pytest.raises(ProcessLookupError):  # the notebook's kernel has ended, too
        os.kill(kernel, 0)


def test_unknown_session(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["execute.py", "5"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "python -m tools.execute: error: argument session: invalid choice: 5" in capsys.readouterr().err
    command = [sys.executable, "-m", "tools.publish", "x"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 2 and "error: argument session: invalid int value: 'x'" in told.stderr
