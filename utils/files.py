"""Atomic writes, locks, and tensors loaded without executing code.

PyTorch and filelock are imported on use: the former takes two seconds, and tools/colab.py must
run without either.
"""

import contextlib
import io
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from utils.errors import FileError


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Rename a temporary file, which ``write`` makes, to ``path``.

    Raises FileError: that failed, and nothing has changed.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        os.replace(part, path)
    except OSError as error:
        raise FileError(
            f"{path} cannot be written ({error.strerror or error}): free some space or fix the "
            "folder's permissions, then run the same command again. "
            "Files that were written before are intact."
        ) from error
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` atomically, as UTF-8; raises FileError."""
    replace_file(path, lambda part: part.write_bytes(text.encode()))


@contextlib.contextmanager
def one_process_at_a_time(path: Path, work: str) -> Iterator[None]:
    """Hold the file lock ``path``, or say what another process is doing and wait for it."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    with contextlib.suppress(
        OSError, NotImplementedError
    ):  # in a read-only folder, or on a disk without locks
        try:
            lock.acquire(blocking=False)
        except Timeout:
            print(f"Another process is {work}: waiting for it.", flush=True)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def as_bytes(content: dict) -> bytes:
    """``content``, which holds tensors and plain values, as ``torch.save`` writes it to a file."""
    import torch

    buffer = io.BytesIO()  # on a full disk, torch.save itself raises "unexpected pos 704 vs 598"
    torch.save(plain(content), buffer)
    return buffer.getvalue()


def plain(value: Any) -> Any:
    """NumPy's numbers as Python's, also inside dicts, lists and tuples.

    ``load_tensors`` could not read them: to PyTorch, they are objects that could run code.
    """
    if isinstance(value, dict):
        return {plain(name): plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(plain(part) for part in value)
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    return value


def load_tensors(path: str | Path) -> dict:
    """What ``as_bytes`` made of tensors and plain values, on the CPU.

    Raises FileError: the file is damaged, or holds objects that could run code.
    """
    import torch

    wrong = "is not a weights file: give the weights.pt of a run."
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(content, dict):
            return content
    except pickle.UnpicklingError:
        if zipfile.is_zipfile(path):
            wrong = (
                "contains objects that could run code, so it was not loaded: "
                "only use files of this program."
            )
    except (OSError, EOFError, RuntimeError) as error:
        wrong = "is damaged or truncated: download it again, or move it away and train again."
        if isinstance(error, OSError) and error.filename:
            wrong = f"cannot be read ({error.strerror}): give the weights.pt of a run."
    raise FileError(f"{path} {wrong}")
