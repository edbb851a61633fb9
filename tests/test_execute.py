"""Running a notebook from the terminal: its output comes at once, and only a whole run is saved."""

import json
import os
import signal
import subprocess
import sys

import nbformat
import pytest
from jupyter_client import AsyncKernelClient
from nbformat.v4 import new_code_cell, new_notebook

from tests.conftest import ROOT
from tools.execute import main

NAME = "session9_assignment.ipynb"


def write(folder, *sources) -> None:
    cells = [new_code_cell(source) for source in sources]
    nbformat.write(new_notebook(cells=cells), folder / NAME)


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


def test_cells_are_numbered_in_their_order(run):
    cells = run("a = 1", "a").cells
    assert [cell.execution_count for cell in cells] == [1, 2]


def test_last_state_of_a_progress_bar_is_kept(run, capfd):
    (cell,) = run("print('10%', end='\\r', flush=True); print('100%')").cells
    assert [output.text for output in cell.outputs] == ["100%\n"]
    assert "10%\r100%\n" in capfd.readouterr().out


def test_cleared_progress_bar_leaves_nothing(run):
    (cell,) = run("print('10%', end='\\r'); print('   ', end='\\r', flush=True)").cells
    assert cell.outputs == []


def test_standard_error_is_shown_and_not_kept(run, capfd):
    (cell,) = run("import sys; print('no widgets', file=sys.stderr)").cells
    assert cell.outputs == []
    assert "no widgets" in capfd.readouterr().out


def test_notebook_in_the_folder_stays_without_outputs(run, tmp_path):
    run("print('done')")
    assert nbformat.read(tmp_path / NAME, as_version=4).cells[0].outputs == []


def test_notebook_with_an_error_is_not_saved(run, tmp_path):
    with pytest.raises(SystemExit, match=f"^\n{NAME} stopped: ValueError: no$"):
        run("raise ValueError('no')")
    assert not list(tmp_path.rglob("runs/**/*.ipynb"))


def start(folder, **variables) -> subprocess.Popen:
    """``python -m tools.execute 9`` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tools.execute", "9"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
    )


def test_kernel_is_this_python_whatever_the_user_has_installed(tmp_path):
    folder = tmp_path / "jupyter/kernels/python3"
    folder.mkdir(parents=True)
    other = {
        "argv": ["/bin/false", "{connection_file}"],
        "display_name": "another Python",
        "language": "python",
    }
    (folder / "kernel.json").write_text(json.dumps(other))
    write(tmp_path, "import sys; print(sys.executable)")
    (tmp_path / "runs/smoke/session9").mkdir(parents=True)
    output, _ = start(tmp_path, JUPYTER_PATH=str(tmp_path / "jupyter")).communicate()
    assert output.startswith(f"{sys.executable}\n")


def test_terminal_without_unicode(tmp_path):
    write(tmp_path, "print('→')")
    (tmp_path / "runs/smoke/session9").mkdir(parents=True)
    output, _ = start(tmp_path, PYTHONIOENCODING="latin-1").communicate()
    assert output.startswith("\\u2192\n")


@pytest.fixture
def endless(tmp_path):
    """A running notebook that does not end by itself, and its kernel's process number."""
    write(tmp_path, "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)")
    run = start(tmp_path)
    with run:
        yield run, int(run.stdout.readline())
        run.kill()  # if the test has failed


def assert_stopped(run: subprocess.Popen, folder) -> None:
    """The run has ended with one line, and nothing is saved."""
    # Standard error ends when the kernel, which shares it, has ended as well.
    error = run.stderr.read().strip()
    assert run.wait() == 1
    assert error.startswith(f"{NAME} was stopped, by you or because memory ran out.")
    assert "\n" not in error
    assert not list(folder.rglob("runs/**/*.ipynb"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_the_notebook(endless, tmp_path, number):
    run, _ = endless
    run.send_signal(number)
    assert_stopped(run, tmp_path)


def test_kernel_without_memory_stops_the_notebook(endless, tmp_path):
    run, kernel = endless
    os.kill(kernel, signal.SIGKILL)
    assert_stopped(run, tmp_path)


def test_closed_pipe_stops_the_notebook_silently(tmp_path):
    """As in `make session9 | head -1`."""
    loop = "for i in range(600): print(i, flush=True); time.sleep(0.1)"
    write(tmp_path, f"import time\n{loop}")
    with start(tmp_path) as run:
        run.stdout.readline()
        run.stdout.close()
        assert run.stderr.read() == ""
        assert run.wait() == 1


def broken_kernel(folder, source: str) -> subprocess.Popen:
    """A run whose kernel is this program."""
    (folder / "broken").mkdir()
    (folder / "broken/ipykernel_launcher.py").write_text(source)
    write(folder, "a = 1")
    return start(folder, PYTHONPATH=os.pathsep.join([str(ROOT), str(folder / "broken")]))


def line_of_broken_kernel(folder, source: str) -> str:
    """The one line with which the run ends."""
    with broken_kernel(folder, source) as run:
        error = run.stderr.read().strip()
    assert run.returncode == 1
    assert "\n" not in error
    return error


def test_kernel_that_dies_at_its_start_is_one_line(tmp_path):
    error = line_of_broken_kernel(tmp_path, "import no_such_package")
    assert "ModuleNotFoundError: No module named 'no_such_package'" in error
    assert "unset PYTHONPATH" in error


def test_kernel_that_dies_without_a_word_is_one_line(tmp_path):
    error = line_of_broken_kernel(tmp_path, "raise SystemExit(1)")
    assert "kernel does not start" in error


def test_signal_while_the_kernel_starts_is_one_line(tmp_path):
    source = "import time; print('started', flush=True); time.sleep(600)"
    with broken_kernel(tmp_path, source) as run:
        run.stdout.readline()
        run.send_signal(signal.SIGINT)
        assert_stopped(run, tmp_path)


def test_kernel_has_ten_minutes_to_start(run, monkeypatch):
    timeouts = []
    wait = AsyncKernelClient.wait_for_ready

    async def wait_for_ready(client, timeout=None):
        timeouts.append(timeout)
        await wait(client, timeout)

    monkeypatch.setattr(AsyncKernelClient, "wait_for_ready", wait_for_ready)
    run("a = 1")
    assert timeouts == [600]
