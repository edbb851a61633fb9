"""Files that are whole or not there, and tensors that are loaded without running anyone's code.

PyTorch is imported where it is needed: what only writes a file starts two seconds earlier.
"""

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

from utils.machine.errors import FileError


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path`` and give it the name ``path`` only when it is whole.

    Raises:
        FileError: there is no room or no permission; what stood at ``path`` still stands there.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        os.replace(part, path)
    except OSError as error:
        raise FileError(
            f"{path} cannot be written ({error.strerror or error}): make room or mend the folder's permissions, "
            "then give the same command again. What was written before is whole."
        ) from error
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as a whole file; FileError if that is not possible."""
    replace_file(path, lambda part: part.write_bytes(text.encode()))


def save_tensors(path: Path, content: dict) -> None:
    """Write ``content``, tensors and plain values, as a whole file; FileError if that is not possible."""
    import torch

    buffer = io.BytesIO()  # torch.save itself says "unexpected pos 704 vs 598" of a full disk
    torch.save(content, buffer)
    replace_file(path, lambda part: part.write_bytes(buffer.getbuffer()))


def load_tensors(path: str | Path) -> dict:
    """What ``save_tensors`` wrote, on the CPU.

    Raises:
        FileError: it is not there, not whole, not such a file, or holds more than tensors and plain values.
    """
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(path):
            raise FileError(
                f"{path} holds objects that could run code, so it was not loaded: use files that this program wrote."
            ) from error
        raise FileError(f"{path} is no file of weights: give a weights.pt that a run wrote.") from error
    except (OSError, EOFError, RuntimeError) as error:
        if isinstance(error, OSError) and error.filename:
            raise FileError(f"{path} cannot be read ({error.strerror}): give a weights.pt that a run wrote.") from error
        raise FileError(f"{path} is damaged or cut off: download it again, or move it away and train again.") from error
    if not isinstance(content, dict):
        raise FileError(f"{path} is no file of weights: give a weights.pt that a run wrote.")
    return content
