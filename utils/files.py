"""Atomic writes, locks, and tensors loaded without executing code.

PyTorch and filelock are imported on use: the former takes two seconds, and tools/colab.py must
run without either.
"""

import contextlib
import io
import os
import pickle
import re
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from enum import Enum
from numbers import Real
from pathlib import Path, PurePath
from typing import Any

from utils.errors import FileError
from utils.formats import DAMAGED, GIVE, RUNS_CODE, UNKNOWN, other_format


def printable(name: str | Path) -> str:
    """``name`` in one line, with escapes for what cannot be printed or saved as text.

    That are control characters, and bytes that are not UTF-8.
    """
    text = os.fsencode(name).decode(errors="backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", escaped, text)


def escaped(match: re.Match) -> str:
    return match.group().encode("unicode_escape").decode()


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
            f"{printable(path)} cannot be written ({error.strerror or error}): free some space or "
            "fix the folder's permissions, then run the same command again. "
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
    # A read-only folder or a disk without locks is no obstacle.
    with contextlib.suppress(OSError, NotImplementedError):
        try:
            lock.acquire(blocking=False)
        except Timeout:
            print(f"Another process is {work}: waiting for it.", flush=True)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


SCALARS: tuple[type, ...] = (bool, int, float, complex, str, bytes)


def as_bytes(content: dict) -> bytes:
    """``content``, which holds tensors and plain values, as ``torch.save`` writes it to a file.

    Raises FileError: ``content`` holds something that ``load_tensors`` would not read.
    """
    import torch

    buffer = io.BytesIO()  # on a full disk, torch.save itself raises "unexpected pos 704 vs 598"
    torch.save(plain_values(content), buffer)
    return buffer.getvalue()


def plain_values(value: Any, name: str = "") -> Any:
    """``value`` in the types that ``load_tensors`` reads, also inside dicts, lists and tuples.

    NumPy's numbers, fractions, enums and paths become Python's numbers and texts: to PyTorch, they
    are objects that could run code. Raises FileError: ``name`` is or holds another object.
    """
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, dict):
        parts = {}
        for key, part in value.items():
            parts[plain_values(key, name)] = plain_values(part, f"{name} {key}".strip())
        return Counter(parts) if isinstance(value, Counter) else parts
    if isinstance(value, (list, range)):
        return [plain_values(part, name) for part in value]
    if isinstance(value, tuple):
        return tuple(plain_values(part, name) for part in value)
    if isinstance(value, (set, frozenset)):
        return {plain_values(part, name) for part in value}
    return scalar_of_python(value, name)


def scalar_of_python(value: Any, name: str) -> Any:
    """A single ``value`` in a type that ``load_tensors`` reads; raises FileError."""
    import torch

    if value is None or isinstance(value, (torch.Tensor, torch.dtype, torch.device)):
        return value
    for scalar in SCALARS:
        if isinstance(value, scalar):
            return scalar(value)
    if isinstance(value, (Real, Decimal)):  # a fraction, for example
        return float(value)
    if isinstance(value, PurePath):
        return str(value)
    raise FileError(
        f"{name} is a {type(value).__name__}, which a file of weights cannot hold: "
        "use numbers, texts, tensors, lists and dicts."
    )


def load_tensors(path: str | Path) -> dict:
    """What ``as_bytes`` made of tensors and plain values, on the CPU.

    Raises FileError: the file is damaged, of another format, or holds objects that could run code.
    """
    import torch

    try:
        wrong = other_format(Path(path))
        if not wrong:
            content = torch.load(path, map_location="cpu", weights_only=True)
            if isinstance(content, dict):
                return content
            wrong = UNKNOWN
    except OSError as error:
        wrong = f"cannot be read ({error.strerror or error}): {GIVE}"
    except pickle.UnpicklingError:
        wrong = RUNS_CODE
    except Exception:  # what PyTorch raises for a damaged file depends on the damage
        wrong = DAMAGED
    raise FileError(f"{printable(path)} {wrong}.")
