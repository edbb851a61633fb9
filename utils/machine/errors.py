"""The errors that a user can mend: one line that names the thing, the reason and the remedy."""

import os
import sys
from typing import NoReturn


class UserError(Exception):
    """What a terminal shows without a traceback."""


class DataError(UserError):
    """The images are not available or not usable."""


class TrainingError(UserError):
    """The training cannot go on."""


class FileError(UserError):
    """A run's file or folder cannot be read or written, or is of another run."""


def exit_on_broken_pipe() -> NoReturn:
    """End quietly where nobody reads the output any more (``| head``); what a flush at exit writes goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
