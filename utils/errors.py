"""The errors that a user can mend: one line that names the thing, the reason and the remedy."""


class UserError(Exception):
    """What a terminal shows without a traceback."""


class DataError(UserError):
    """The images cannot be had or cannot be used."""


class TrainingError(UserError):
    """The training cannot go on."""


class FileError(UserError):
    """A run's file or folder cannot be read or written, or is of another run."""
