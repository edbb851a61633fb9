"""Errors that a user can fix: one line that names the object, the reason and the remedy."""

import os
import sys
from typing import NoReturn


class UserError(Exception):
    """Shown in the terminal without a traceback."""


class DataError(UserError):
    """The images are not available or not usable."""


class TrainingError(UserError):
    """The training cannot continue."""


class FileError(UserError):
    """A file or folder of a run cannot be read or written, or belongs to another run."""


def exit_on_broken_pipe() -> NoReturn:
    """Exit silently when the reader of the output has closed the pipe, as ``| head`` does."""
    # The interpreter flushes standard output at exit, which would raise the error again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
