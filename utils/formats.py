"""What a file is instead of weights, by its content: its name may say anything.

All phrases continue "weights.pt …": what the file is, and what to do.
"""

import codecs
import zipfile
from pathlib import Path

DAMAGED = "is damaged or truncated: download it again, or move it away and train again"
EMPTY = "is empty: download it again, or move it away and train again"
GIVE = "give the weights.pt of a run"
ARCHIVE = f"is a packed archive: unpack it and {GIVE}"
IMAGE = f"is an image: {GIVE}"
PICKLE = f"is a pickle, which could run code, so it was not loaded: {GIVE}"
RUNS_CODE = (
    "contains objects that could run code, such as a whole model, so it was not loaded: "
    f"{GIVE}, which this program has written"
)
UNKNOWN = f"is not a weights file: {GIVE}"

# How ``torch.save`` begins a file: a zip archive, and before PyTorch 1.6 its magic number.
ZIP = b"PK\3\4"
OLD_FORM = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"

BEGINNINGS = {
    b"version https://git-lfs": "is a pointer of Git LFS: fetch the file with `git lfs pull`",
    b"\x89HDF\r\n": f"is an HDF5 file, as TensorFlow and Keras write: {GIVE}",
    b"\x93NUMPY": f"is an array of NumPy: {GIVE}",
    b"%PDF": f"is a PDF document: {GIVE}",
    b"\x89PNG": IMAGE,
    b"\xff\xd8\xff": IMAGE,
    b"GIF8": IMAGE,
    **{b"\x80" + bytes([protocol]): PICKLE for protocol in range(2, 6)},
    b"\x1f\x8b": ARCHIVE,
    b"BZh": ARCHIVE,
    b"\xfd7zXZ": ARCHIVE,
    b"7z\xbc\xaf": ARCHIVE,
    b"Rar!": ARCHIVE,
}


def other_format(path: Path) -> str:
    """What the file is and what to do; "" if it may be one of PyTorch's.

    Raises OSError, or BadZipFile: a zip archive is damaged.
    """
    with open(path, "rb") as file:
        start = file.read(1024)
    if start.startswith(ZIP):
        return format_of_zip(path)
    if not start.strip(b"\0"):
        return EMPTY
    return "" if start.startswith(OLD_FORM) else format_of_beginning(start)


def format_of_beginning(start: bytes) -> str:
    """What a file that begins with ``start`` is, and what to do."""
    for beginning, phrase in BEGINNINGS.items():
        if start.startswith(beginning):
            return phrase
    if start[257:262] == b"ustar":
        return ARCHIVE
    if start[8:10] == b'{"':  # a JSON text after its length, in eight bytes
        return f"is a file of safetensors: {GIVE}"
    return format_of_text(start)


def format_of_zip(path: Path) -> str:
    """What a zip archive is, by the names in it; "" if it is a sound one of ``torch.save``."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        ends = {name.rpartition("/")[2] for name in names}
        if "constants.pkl" in ends:
            return f"is a TorchScript program: {GIVE}"
        if "archive_format" in ends:
            return f"is a program of torch.export: {GIVE}"
        if "data.pkl" in ends:
            return DAMAGED if archive.testzip() else ""  # PyTorch checks no checksums
    if names and all(name.endswith(".npy") for name in names):
        return f"is a file of NumPy's arrays: {GIVE}"
    if {"config.json", "metadata.json"} <= ends:
        return f"is a model of Keras: {GIVE}"
    return f"is a zip archive of other files: unpack it and {GIVE}"


def format_of_text(start: bytes) -> str:
    """Whether a file that begins with ``start`` is a web page or another text, and what to do."""
    encoding = "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8"
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(start)  # without a last half letter
    except UnicodeDecodeError:
        return UNKNOWN
    if text.lstrip("\ufeff \t\r\n").lower().startswith(("<!doctype html", "<html", "<head")):
        return "is a web page: download the file itself (on GitHub, with “Download raw file”)"
    if all(letter.isprintable() or letter.isspace() for letter in text.lstrip("\ufeff")):
        return f"is a text file: {GIVE}"
    return UNKNOWN
