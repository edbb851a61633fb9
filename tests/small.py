"""A run of session 9's small network (a = 8) on the digits, without pictures."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from models.model9 import TransformerModel
from utils.data import ImageData, load_data
from utils.recipes import SESSION9, Recipe
from utils.runs.checkpoint import about_network
from utils.runs.run import Run
from utils.sessions import SESSIONS
from utils.system.files import save_tensors

DIGITS = load_data("digits")
RECIPE = SESSION9.for_epochs(2).for_images(1437)


def save_weights(path: Path, model, session: int, data: ImageData) -> None:
    """A file as a finished run saves it."""
    save_tensors(path, about_network(model, SESSIONS[session].recipe, data))


def small_run(folder: Path, recipe: Recipe = RECIPE, data: ImageData = DIGITS) -> Run:
    """The run is built, not trained; its files go to ``folder``."""
    session = replace(SESSIONS[9], recipe=recipe, network=partial(TransformerModel, a=8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNS", str(folder.parent))
        patch.setenv("EVA8_SMOKE", "0")
        run = Run.open(session, data, name=folder.name)
    return run
