"""Settings from environment variables, read on every call: a notebook may set them late."""

import os
from pathlib import Path


def smoke() -> bool:
    """Smoke mode, ``EVA8_SMOKE=1``: a notebook runs in seconds, on a few digits. Tests use it."""
    return os.environ.get("EVA8_SMOKE") == "1"


def runs_folder() -> Path:
    """``RUNS``, the folder of all runs; default ``runs/``."""
    return Path(os.path.expanduser(os.environ.get("RUNS") or "runs"))


def run_folder(name: str) -> Path:
    """The folder of the run ``name``; smoke runs are kept apart from real ones."""
    return runs_folder() / "smoke" / name if smoke() else runs_folder() / name


def data_source() -> str:
    """``DATA``, the source of the images; default ``"auto"``."""
    return os.environ.get("DATA") or "auto"


def data_root() -> Path:
    """``DATA_ROOT``, the folder of CIFAR-10's archive; default ``data/``."""
    return Path(os.path.expanduser(os.environ.get("DATA_ROOT") or "data"))
