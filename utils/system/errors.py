"""Errors that a user can fix: one line that names the object, the reason and the remedy."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import NoReturn


class UserError(Exception):
    """Shown in the terminal without a traceback."""


class DataError(UserError):
    """The images are not available or not usable."""


class TrainingError(UserError):
    """The training cannot continue."""


class FileError(UserError):
    """A file or folder of a run cannot be read or written, or belongs to another run."""


@contextlib.contextmanager
def explain_out_of_memory(batch_size: int) -> Iterator[None]:
    """Turn a GPU's out-of-memory error into a TrainingError that says which batch size to try."""
    import torch  # here, because the import takes two seconds

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"the GPU is out of memory with batches of {batch_size} images: try {max(1, batch_size // 2)} "
            "(main.py: --batch-size; notebook: batch_size in utils/recipes.py)."
        ) from error


def exit_on_broken_pipe() -> NoReturn:
    """Exit silently when the reader of the output has closed the pipe, as ``| head`` does."""
    # The interpreter flushes standard output at exit, which would raise the error again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
