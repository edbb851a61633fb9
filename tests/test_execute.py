"""Running a notebook from the terminal: its output is shown at once, and only a complete run is saved."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tools.execute import execute

ROOT = Path(__file__).parents[1]


def write(path, *sources):
    nbformat.write(new_notebook(cells=[new_code_cell(source) for source in sources]), path)
    return path


def test_executed_notebook_keeps_the_last_state_of_a_progress_bar(tmp_path, capfd):
    bar = "print('10%', end='\\r', flush=True); print('100%')"
    notebook = write(tmp_path / "in.ipynb", bar, "1 + 1")
    first, second = execute(notebook).cells
    assert (first.execution_count, second.execution_count) == (1, 2)
    assert [output.text for output in first.outputs] == ["100%\n"]
    assert second.outputs[0].data["text/plain"] == "2"
    assert "10%\r100%\n" in capfd.readouterr().out
    assert nbformat.read(notebook, as_version=4).cells[0].outputs == []


def test_executed_notebook_has_no_trace_of_a_cleared_progress_bar(tmp_path):
    cleared = "import sys; print('10%', end='\\r'); print('   ', end='\\r', flush=True)"
    (cell, after) = execute(write(tmp_path / "in.ipynb", cleared, f"{cleared}; print('done'); 1 + 1")).cells
    assert cell.outputs == []
    assert after.outputs[0].text == "done\n" and after.outputs[1].data["text/plain"] == "2"


@pytest.mark.parametrize(
    "source, told",
    [
        ("import os; os.makedirs('runs/session9')", None),
        ("raise ValueError('no')", "session9_assignment.ipynb stopped: ValueError: no"),
        ("1 + 1", "cannot be written (No such file or directory)"),  # it did not create its folder
    ],
)
def test_a_notebook_is_saved_if_it_ran_completely(tmp_path, source, told):
    write(tmp_path / "session9_assignment.ipynb", source)
    run = subprocess.run(
        [sys.executable, "-m", "tools.execute", "9"], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "EVA8_SMOKE": "0"},
    )  # fmt: skip
    kept = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("runs/**/*.*")]
    if told is None:
        assert run.returncode == 0 and kept == ["runs/session9/session9_assignment.ipynb"]
    else:
        assert run.returncode == 1 and kept == []
        assert told in run.stderr and "\n" not in run.stderr.strip()


@pytest.mark.parametrize(
    "number, whom",
    [(signal.SIGINT, "run"), (signal.SIGTERM, "run"), (signal.SIGKILL, "kernel")],
    ids=["Ctrl-C", "SIGTERM", "no memory"],
)
def test_notebook_that_is_stopped(tmp_path, number, whom):
    write(tmp_path / "session9_assignment.ipynb", "import os, time; print('pid', os.getpid()); time.sleep(60)")
    run = subprocess.Popen(
        [sys.executable, "-m", "tools.execute", "9"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    kernel = int(run.stdout.readline().split()[1])
    os.kill(kernel if whom == "kernel" else run.pid, number)
    _, told = run.communicate(timeout=60)
    assert told.strip().startswith("session9_assignment.ipynb was stopped, by you or because memory ran out.")
    assert "\n" not in told.strip() and run.returncode == 1
    assert not list(tmp_path.rglob("runs/**/*.ipynb"))
    time.sleep(1)
    with pytest.raises(ProcessLookupError):  # the notebook's kernel has ended, too
        os.kill(kernel, 0)


def test_closed_pipe_ends_the_notebook_silently(tmp_path):
    """As in `make session9 | head -1`."""
    cell = "import time\nfor i in range(600): print(i, flush=True); time.sleep(0.1)"
    write(tmp_path / "session9_assignment.ipynb", "import os; print('pid', os.getpid(), flush=True)", cell)
    run = subprocess.Popen(
        [sys.executable, "-m", "tools.execute", "9"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    kernel = int(run.stdout.readline().split()[1])
    run.stdout.close()
    told = run.stderr.read()
    assert run.wait() == 1 and told == ""
    with pytest.raises(ProcessLookupError):
        os.kill(kernel, 0)


@pytest.mark.parametrize(
    "module, arguments", [("tools.execute", ["5"]), ("tools.publish", []), ("tools.publish", ["x"])]
)
def test_unknown_session(module, arguments):
    told = subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 2 and f"python -m {module}: error: " in told.stderr and "session" in told.stderr
