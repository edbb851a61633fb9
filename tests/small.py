"""Runs of a few seconds, from Python and, by main.py, as from a terminal."""

import multiprocessing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

import main
from models.model9 import TransformerModel
from utils import training
from utils.data import ImageData, load_data
from utils.recipes import SESSION9, Recipe
from utils.runs.checkpoint import about_network
from utils.runs.run import Run
from utils.sessions import SESSIONS
from utils.system.files import save_tensors

DIGITS = load_data("digits")
PROCESSES = multiprocessing.get_context("forkserver")  # new processes, which find PyTorch imported
PROCESSES.set_forkserver_preload("sklearn.model_selection torch._dynamo torch.distributed.fsdp utils.runs.run".split())
RECIPE = SESSION9.for_epochs(2).for_images(1437)
# Runs of a few seconds; in the first one, the LR finder chooses the max LR.
FIND_LR = ("session9", "--data", "digits", "--epochs", "2")
TWO_EPOCHS = (*FIND_LR, "--max-lr", "0.01")


def save_weights(path: Path, model, session: int, data: ImageData) -> None:
    """A file as a finished run saves it."""
    save_tensors(path, about_network(model, SESSIONS[session].recipe, data))


def small_run(folder: Path, recipe: Recipe = RECIPE, data: ImageData = DIGITS, cpu: bool = False) -> Run:
    """A run of session 9's small network, built and not trained; its files go to ``folder``."""
    session = replace(SESSIONS[9], recipe=recipe, network=partial(TransformerModel, a=8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNS", str(folder.parent))
        patch.setenv("EVA8_SMOKE", "0")
        run = Run.open(session, data, name=folder.name, cpu=cpu)
    return run


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
