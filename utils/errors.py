"""Errors that a user can fix: one line that names the object, the reason and the remedy."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator


class UserError(Exception):
    """Shown as one line, without a traceback, in a terminal and in a notebook."""

    def _render_traceback_(self) -> list[str]:  # IPython's hook
        return [f"{type(self).__name__}: {self}"]


class DataError(UserError):
    """The images are not available or not usable."""


class TrainingError(UserError):
    """The training cannot continue."""


class FileError(UserError):
    """A file or folder of a run cannot be read or written, or belongs to another run."""


@contextlib.contextmanager
def explain_out_of_memory(batch_size: int) -> Iterator[None]:
    """Turn an out-of-memory error into a TrainingError that says which batch size to try."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        smaller = max(1, batch_size // 2)
        raise TrainingError(
            f"out of memory with batches of {batch_size} images: try {smaller} (notebook: "
            f"SESSION….replace(batch_size={smaller}) in the cell with Run.open; "
            f"main.py: --batch-size {smaller})."
        ) from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether a GPU, an Apple GPU or the CPU had no memory left; only CUDA has a type for it."""
    import torch  # here, because the import takes two seconds

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return "out of memory" in text or "DefaultCPUAllocator" in text


@contextlib.contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """Exit with one line: for a UserError, without memory, or without standard output."""
    if sys.stdout is None:  # closed: print does nothing, but others expect a stream
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for terminals without Unicode
    try:
        yield
        sys.stdout.flush()  # here, so that an error is still caught
    except UserError as error:
        sys.exit(f"{program}: {error}")
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        sys.exit(f"{program}: out of memory: close other programs, then run the command again.")
    except OSError as error:
        if error.filename is not None:
            raise
        # The interpreter flushes standard output at exit, which would raise the error again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        # A reader such as `| head` that has what it wanted is no error to report.
        sys.exit(
            1
            if isinstance(error, BrokenPipeError)
            else f"{program}: standard output: {error.strerror}"
        )
