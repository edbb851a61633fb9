"""The folder of a run: one process at a time, and no earlier run is lost."""

import json
import shutil
import time
from pathlib import Path

from filelock import FileLock, Timeout

from utils.machine.errors import FileError
from utils.machine.files import write_text
from utils.machine.settings import smoke

LOCKS: dict[Path, FileLock] = {}  # the folders that this process writes to, until it ends


def is_unfinished(folder: Path, plan: dict) -> bool:
    """Whether ``folder`` holds an unfinished run of this ``plan``, which has everything that makes two runs the same."""
    kept = folder / "plan.json"
    try:
        return not smoke() and not (folder / "run.json").exists() and json.loads(kept.read_text("utf-8")) == plan
    except (OSError, ValueError):
        return False  # a run without a readable plan is another run


def lock_folder(folder: Path) -> None:
    """Lock ``folder`` for this process until it ends, however it ends; FileError if another process has it."""
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = LOCKS.setdefault(
        folder, FileLock(folder.with_name(f".{folder.name}.lock"))
    )  # beside it, because the folder itself may move
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise FileError(
            f"{folder} is in use by another notebook or terminal: end that one (in Jupyter: Kernel → Shut Down), "
            "or set RUNS to another folder for this one."
        ) from error


def open_folder(folder: Path, plan: dict) -> None:
    """Make ``folder`` ready: empty, or with an unfinished run of this ``plan``. Any other run is moved aside.

    Raises:
        FileError: another process is writing to ``folder``, or it cannot be created.
    """
    try:
        lock_folder(folder)
        if is_unfinished(folder, plan):
            for half in folder.glob(".*.part"):  # left by a run that was killed while it saved
                half.unlink()
            return
        if smoke():
            shutil.rmtree(folder, ignore_errors=True)
        elif folder.exists() and any(folder.iterdir()):
            stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(folder.stat().st_mtime))
            aside = folder.with_name(f"{folder.name}-{stamp}")
            folder.rename(aside)
            print(f"The earlier run was moved to {aside}/")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            f"{folder} cannot be made ({error.strerror}): set RUNS to a folder that can be written."
        ) from error
    write_text(folder / "plan.json", json.dumps(plan, indent=2) + "\n")
