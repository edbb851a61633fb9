"""What several tests share."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from utils import data
from utils.sessions import SESSIONS

ROOT = Path(__file__).parents[1]
SESSION9 = SESSIONS[9]


@pytest.fixture(autouse=True)
def new_states():
    """Each test chooses its device and precision anew, as a new process does."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def full(monkeypatch):
    """Not smoke mode."""
    monkeypatch.setenv("EVA8_SMOKE", "0")


@pytest.fixture
def folder(full, monkeypatch, tmp_path):
    """The folder of a session 9 run on a few digits, not in smoke mode, with three pictures, which are drawn fast."""
    monkeypatch.setattr(data, "load_digits", partial(data.load_digits, *data.SMOKE_DIGITS))
    few = ("loss_and_accuracy_graphs", "lr_finder_plot", "confusion_matrix")
    monkeypatch.setitem(SESSIONS, 9, replace(SESSION9, pictures=few))
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs/session9"
