"""What several tests share."""

from functools import partial
from pathlib import Path

import pytest

from utils import data
from utils.sessions import SESSIONS

ROOT = Path(__file__).parents[1]
SESSION9 = SESSIONS[9]


@pytest.fixture
def full(monkeypatch):
    """Not smoke mode."""
    monkeypatch.setenv("EVA8_SMOKE", "0")


@pytest.fixture
def folder(full, monkeypatch, tmp_path):
    """The folder of a session 9 run on a few digits, not in smoke mode."""
    few_digits = partial(data.load_digits, *data.SMOKE_DIGITS)
    monkeypatch.setattr(data, "load_digits", few_digits)
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs/session9"
