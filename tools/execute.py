"""Run a session's notebook and save it in the run's folder: ``python -m tools.execute 9``."""

import argparse
import asyncio
import atexit
import logging
import signal
import sys
import tempfile
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

from utils.errors import UserError, one_line_errors
from utils.files import replace_file
from utils.settings import run_folder


class EchoingClient(NotebookClient):
    """Prints the output of the cells as it comes, and stops when that fails (a closed pipe)."""

    unwritable: OSError | None = None
    task: asyncio.Task

    def create_kernel_manager(self):
        """Without folders of kernels, "python3" is this Python, whatever the user has installed."""
        manager = super().create_kernel_manager()
        manager.kernel_spec_manager = KernelSpecManager(kernel_dirs=[])
        return manager

    def process_message(self, msg, cell, cell_index):
        if msg["msg_type"] == "stream":
            try:
                print(msg["content"]["text"], end="", flush=True)
            except OSError as error:
                self.unwritable = error
                self.task.cancel()  # nbclient alone would wait for the end of the cell
        return super().process_message(msg, cell, cell_index)

    def stop_on_signals(self, notebook: nbformat.NotebookNode) -> None:
        """Cancel the run on Ctrl-C and SIGTERM; nbclient alone would print tracebacks."""
        task = asyncio.current_task()
        assert task is not None  # nbclient calls this from the task that runs the notebook
        self.task = task
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)


def execute(notebook: Path) -> nbformat.NotebookNode:
    """Run ``notebook`` with this Python in the current folder and return it with its outputs.

    Of each progress bar, only the last state is kept, of a cleared bar nothing. Standard error is
    shown, but not kept. Raises UserError: the kernel does not start.
    """
    content = nbformat.read(notebook, as_version=4)
    options: dict = {
        "timeout": None,
        "startup_timeout": 600,  # a busy machine or a network drive takes minutes
        "kernel_name": "python3",
        "record_timing": False,
        "shutdown_kernel": "immediate",
    }
    quiet = ["--IPKernelApp.log_level=40"]  # errors only, no warnings about sockets
    client = EchoingClient(content, extra_arguments=quiet, **options)
    client.log.setLevel(logging.CRITICAL)  # its errors are raised, too
    client.on_notebook_start = client.stop_on_signals
    with tempfile.TemporaryFile("w+", errors="replace") as errors_of_start:
        try:
            client.execute(stderr=errors_of_start)
        except (DeadKernelError, KeyboardInterrupt) as error:  # raised when a cell is canceled
            raise (client.unwritable or error) from None
        except asyncio.CancelledError:  # raised when the kernel's start is canceled
            raise KeyboardInterrupt from None
        except RuntimeError as error:  # nbclient's, about a kernel that does not start
            atexit.unregister(client._cleanup_kernel)  # nbclient has done this, and would fail
            errors_of_start.seek(0)
            lines = errors_of_start.read().strip().splitlines()
            raise UserError(
                f"the notebook's kernel does not start ({lines[-1] if lines else error}): "
                "unset PYTHONPATH and PYTHONHOME, or install everything anew with `make clean test`"
            ) from error
    content, _ = CoalesceStreamsPreprocessor().preprocess(content, {})
    for cell in content.cells:
        if cell.cell_type == "code":
            outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            cell.outputs = [output for output in outputs if output.get("text", "-").strip()]
    return content


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.execute", description="Run a session's notebook."
    )
    parser.add_argument("session", type=int, choices=(7, 8, 9))
    session = f"session{parser.parse_args().session}"
    notebook = Path(f"{session}_assignment.ipynb")
    with one_line_errors("\ntools.execute"):
        try:
            content, folder = execute(notebook), run_folder(session)
            replace_file(folder / notebook.name, lambda part: nbformat.write(content, part))
            print(f"\nExecuted notebook, log, checkpoint and pictures: {folder}/", flush=True)
        except CellExecutionError as error:
            sys.exit(f"\n{notebook} stopped: {error.ename}: {error.evalue}")
        except (DeadKernelError, KeyboardInterrupt):  # the former when a cell is canceled
            remedy = "All finished epochs are saved: run the same command again to resume."
            sys.exit(f"\n{notebook} was stopped, by you or because memory ran out. {remedy}")


if __name__ == "__main__":
    main()
