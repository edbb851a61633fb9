"""The errors that a user can mend: one line that names the thing, the reason and the remedy."""


class DataError(Exception):
    """The images cannot be had or cannot be used."""


class TrainingError(Exception):
    """The training cannot go on."""
