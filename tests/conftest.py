"""What several tests share."""

import pytest

from utils import runs


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """The folder of a session 9 run that is not a smoke run."""
    monkeypatch.setattr(runs, "SMOKE", False)
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    return tmp_path / "runs/session9"
