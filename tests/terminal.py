"""main.py, called as from a terminal."""

import pytest

import main
from utils import training

# Runs of a few seconds; in the first one, the LR finder chooses the max LR.
FIND_LR = ("session9", "--data", "digits", "--epochs", "2")
TWO_EPOCHS = (*FIND_LR, "--max-lr", "0.01")


def call(*arguments) -> None:
    main.main([str(argument) for argument in arguments])


def exit_message(*arguments) -> str:
    """The one line with which main.py exits."""
    with pytest.raises(SystemExit) as stop:
        call(*arguments)
    assert isinstance(stop.value.code, str) and "\n" not in stop.value.code.strip()
    return stop.value.code


def interrupt_epoch(number: int, patch: pytest.MonkeyPatch) -> None:
    """Simulate Ctrl-C at the start of an epoch until ``patch`` is undone."""
    real = training.train

    def train(*arguments):
        if arguments[-1] == number:
            raise KeyboardInterrupt
        return real(*arguments)

    patch.setattr(training, "train", train)


def stop_in_the_second_epoch(monkeypatch, words=TWO_EPOCHS) -> None:
    """Two epochs of session 9 on the digits, interrupted by Ctrl-C in the second one."""
    with monkeypatch.context() as patch:
        interrupt_epoch(2, patch)
        kept = "Stopped. All finished epochs are saved: run the same command again to resume."
        assert exit_message(*words).strip() == kept
