"""Run a session's notebook from top to bottom: ``python -m utils.execute 9``.

What the cells print is shown as it comes; the executed notebook goes to the run's folder.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

from utils.files import replace_file
from utils.runs import run_folder


class EchoingClient(NotebookClient):
    """Shows on the terminal what the cells print, progress bars included."""

    def process_message(self, msg, cell, cell_index):
        if msg["msg_type"] == "stream":
            print(msg["content"]["text"], end="", flush=True)
        return super().process_message(msg, cell, cell_index)


def execute(notebook: Path, executed: Path) -> None:
    """Run ``notebook`` with this Python in the current folder and write it, outputs and all, to ``executed``."""
    content = nbformat.read(notebook, as_version=4)
    quiet = ["--IPKernelApp.log_level=40"]  # errors only: warnings about its sockets help nobody here
    EchoingClient(
        content, timeout=None, kernel_name="python3", record_timing=False, extra_arguments=quiet
    ).execute()
    # A progress bar overwrites itself on a terminal; in a saved notebook only its last state is of use.
    content, _ = CoalesceStreamsPreprocessor().preprocess(content, {})
    replace_file(executed, lambda part: nbformat.write(content, part))


def main() -> None:
    notebook = Path(f"session{sys.argv[1]}_assignment.ipynb")
    folder = run_folder(f"session{sys.argv[1]}")
    try:
        execute(notebook, folder / notebook.name)
    except CellExecutionError as error:
        sys.exit(f"\n{notebook} stopped: {error.ename}: {error.evalue}")
    print(f"\nExecuted notebook, log, checkpoint and pictures: {folder}/")


if __name__ == "__main__":
    main()
