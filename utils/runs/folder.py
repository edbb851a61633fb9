"""The folder of a run. Only one process at a time writes to it, and earlier runs are never overwritten."""

import json
import shutil
import time
from pathlib import Path

from filelock import FileLock, Timeout

from utils.system.errors import FileError
from utils.system.files import write_text
from utils.system.settings import smoke

LOCKS: dict[Path, FileLock] = {}  # of the folders of this process, held until it exits


def is_unfinished(folder: Path, plan: dict) -> bool:
    """Whether ``folder`` contains an unfinished run with this ``plan``, which is all that makes two runs equal."""
    kept = folder / "plan.json"
    try:
        return not smoke() and not (folder / "run.json").exists() and json.loads(kept.read_text("utf-8")) == plan
    except (OSError, ValueError):
        return False  # a run without a readable plan is another run


def lock_folder(folder: Path) -> None:
    """Lock ``folder`` until this process exits; raises FileError if another process has locked it."""
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The lock is beside the folder, because the folder itself may be moved.
    lock = LOCKS.setdefault(folder, FileLock(folder.with_name(f".{folder.name}.lock")))
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise FileError(
            f"{folder} is in use by another notebook or terminal: end that one (in Jupyter: Kernel → Shut Down), "
            "or set RUNS to another folder."
        ) from error
    except (OSError, NotImplementedError) as error:
        raise FileError(f"{lock.lock_file} cannot be locked ({error}): set RUNS to a local folder.") from error


def move_aside(folder: Path, keep: tuple[str, ...] = ()) -> str:
    """Rename ``folder`` after its last change and make a new one with the files to ``keep``; returns a line about it."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(folder.stat().st_mtime))
    aside = folder.with_name(f"{folder.name}-{stamp}")
    while aside.exists():
        aside = aside.with_name(f"{aside.name}-2")
    folder.rename(aside)
    folder.mkdir()
    for name in keep:
        if (aside / name).exists():
            shutil.copy2(aside / name, folder)
    return f"The earlier run was moved to {aside}/"


def open_folder(folder: Path, plan: dict) -> None:
    """Keep an unfinished run with this ``plan`` and move any other aside; FileError: in use, or not writable."""
    moved = ""
    try:
        lock_folder(folder)
        if is_unfinished(folder, plan):
            for half in folder.glob(".*.part"):  # left by a run that was killed while saving
                half.unlink()
            return
        if smoke():
            shutil.rmtree(folder, ignore_errors=True)
        elif folder.exists() and any(folder.iterdir()):
            moved = move_aside(folder)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{folder} cannot be created ({error.strerror}): set RUNS to a writable folder.") from error
    write_text(folder / "plan.json", json.dumps(plan, indent=2) + "\n")
    if moved:
        print(moved, flush=True)
