"""What the environment says, read when asked: a notebook's cell may set it after the imports."""

import os
from pathlib import Path


def smoke() -> bool:
    """Smoke mode, ``EVA8_SMOKE=1``: a notebook's whole path in seconds, on a few digits. What tests run."""
    return os.environ.get("EVA8_SMOKE") == "1"


def runs_folder() -> Path:
    """``RUNS``, where every run gets its folder; default ``runs/``."""
    return Path(os.environ.get("RUNS") or "runs")


def run_folder(name: str) -> Path:
    """Where the run of ``"session<N>"`` goes: a smoke run never where a real one lies."""
    return runs_folder() / "smoke" / name if smoke() else runs_folder() / name


def data_source() -> str:
    """``DATA``, which images are read; default ``"auto"``."""
    return os.environ.get("DATA") or "auto"


def data_root() -> Path:
    """``DATA_ROOT``, where CIFAR-10's own archive lies; default ``data/``."""
    return Path(os.environ.get("DATA_ROOT") or "data")
