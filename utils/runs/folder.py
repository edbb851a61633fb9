"""The folder of a run. Only one process at a time writes to it, and earlier runs are kept."""

import errno
import json
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from utils.errors import FileError
from utils.files import printable, replace_file
from utils.runs.plan import Plan, as_json_reads, differences

LOCKS: dict[Path, FileLock] = {}  # of the folders of this process, held until it exits


class RunFolder:
    """The files of one run. Nothing of an earlier run is overwritten.

    Until ``start`` has decided what happens to an earlier run in the folder, files to write are
    kept in memory: whoever only looks at a notebook and its pictures changes nothing.
    """

    def __init__(self, path: Path, temporary: bool = False) -> None:
        """Lock the folder; FileError: another process uses it. A ``temporary`` one starts empty."""
        self.path = path
        lock_folder(path)
        if temporary:
            shutil.rmtree(path, ignore_errors=True)
        self.waiting: dict[str, bytes] = {}
        self.hold_back()
        self.finished_here = False  # by this process, so that its cells may run again

    def hold_back(self) -> None:
        """If there is a run in the folder, keep files in memory from now on, until ``start``."""
        self.holds_back = self.contains_a_run()

    def contains_a_run(self) -> bool:
        """Whether a run, of whatever plan, has started in the folder."""
        return any(
            (self.path / name).exists() for name in ("plan.json", "checkpoint.pt", "run.json")
        )

    def write(self, name: str, content: bytes) -> None:
        """Write a file atomically, or keep it until the run starts; raises FileError."""
        if self.holds_back:
            self.waiting[name] = content
            return
        self.make()
        replace_file(self.path / name, lambda part: part.write_bytes(content))

    def read_json(self, name: str) -> dict | None:
        """The content of a JSON file; None if it is missing or damaged."""
        try:
            content = json.loads(self.waiting.get(name) or (self.path / name).read_bytes())
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def make(self) -> None:
        """Create the folder; raises FileError."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(
                f"{printable(self.path)} cannot be created ({reason_of(error)}): "
                f"{remedy_for(error)}."
            ) from error

    def start(self, plan: Plan) -> None:
        """Begin or resume the run of ``plan``; move any other run aside and say what differs."""
        plan = as_json_reads(plan)
        reason = self.why_another_run(plan)
        if reason:
            print(f"The earlier run was moved to {self.move_aside()}/: {reason}.", flush=True)
            self.finished_here = False
        self.holds_back = False
        self.make()
        for half in self.path.glob(".*.part"):  # left by a run that was killed while saving
            half.unlink()
        self.write("plan.json", (json.dumps(plan, indent=2) + "\n").encode())
        for name, content in self.waiting.items():
            self.write(name, content)
        self.waiting.clear()

    def why_another_run(self, plan: Plan) -> str:
        """Why the folder's run is another one than ``plan``'s; "" if it is not, or is absent."""
        if not self.contains_a_run():
            return ""
        earlier = self.read_json("plan.json")
        if earlier is None:
            return "its plan.json is missing or damaged"
        changes = differences(earlier, plan)
        if changes:
            more = f", and {len(changes) - 3} more" if len(changes) > 3 else ""
            return "; ".join(changes[:3]) + more
        if (self.path / "run.json").exists() and not self.finished_here:
            return "it is finished"
        return ""

    def move_aside(self) -> Path:
        """Rename the folder to the next free one of ``session9-2``, ``session9-3``, …"""
        number = 2
        while (aside := self.path.with_name(f"{self.path.name}-{number}")).exists():
            number += 1
        try:
            self.path.rename(aside)
        except OSError as error:
            raise FileError(
                f"{printable(self.path)} cannot be renamed ({error.strerror}): move it away."
            ) from error
        return aside


def lock_folder(folder: Path) -> None:
    """Lock ``folder`` until this process exits; FileError: another process has locked it."""
    folder = folder.resolve()
    # The lock is beside the folder, because the folder itself may be moved.
    lock = LOCKS.setdefault(folder, FileLock(folder.with_name(f".{folder.name}.lock")))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout as error:
        raise FileError(
            f"{printable(folder)} is in use by another notebook or terminal: end that one "
            "(in Jupyter: Kernel → Shut Down), or set RUNS to another folder."
        ) from error
    except (OSError, NotImplementedError) as error:
        raise FileError(
            f"{printable(lock.lock_file)} cannot be locked ({reason_of(error)}): "
            f"{remedy_for(error)}."
        ) from error


NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # as on some network file systems
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def reason_of(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def remedy_for(error: Exception) -> str:
    """What to do if a run's folder cannot be created or locked."""
    code = getattr(error, "errno", None)
    if isinstance(error, NotImplementedError) or code in NO_LOCKS:
        return "set RUNS to a local folder"
    if code in NO_SPACE:
        return "free some space, or set RUNS to a folder on another disk"
    if code == errno.ENAMETOOLONG:
        return "choose a shorter name of the run or of the folder RUNS"
    return "set RUNS to a writable folder"
