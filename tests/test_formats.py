"""Files that are no weights are named for what they are, and only damaged ones are called so."""

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.small import DIGITS, SMALL, exit_message, save_weights
from utils.errors import FileError
from utils.files import load_tensors

GIVE = "give the weights.pt of a run"
UNPACK = f"unpack it and {GIVE}"
WEB_PAGE = "is a web page: download the file itself"
RUNS_CODE = "contains objects that could run code, such as a whole model, so it was not loaded"


def torchscript(path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(3, 2)), path)


def exported(path: Path) -> None:
    """A program of torch.export is a zip archive with this file; to write a real one is slow."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("program/archive_format", "pt2")


def whole_model(path: Path) -> None:
    torch.save(nn.Linear(3, 2), path)


def whole_model_in_the_old_form(path: Path) -> None:
    torch.save(nn.Linear(3, 2), path, _use_new_zipfile_serialization=False)


def other_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weights": [1.0]}))


def arrays(path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, weights=np.ones(3))


def array(path: Path) -> None:
    with open(path, "wb") as file:
        np.save(file, np.ones(3))


def safetensors(path: Path) -> None:
    header = b'{"weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


def hdf5(path: Path) -> None:
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(500))


def keras(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("metadata.json", "config.json", "model.weights.h5"):
            archive.writestr(name, "{}")


def zipped(path: Path) -> None:
    content = path.read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("session9/weights.pt", content)


def gzipped(path: Path) -> None:
    path.write_bytes(gzip.compress(path.read_bytes()))


def in_a_tar_archive(path: Path) -> None:
    """What it contains is a zip archive, too."""
    content = path.read_bytes()
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("weights.pt")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))


def web_page(path: Path) -> None:
    path.write_text("\n\n<!DOCTYPE html>\n<html><title>weights.pt – GitHub</title></html>")


def web_page_without_a_doctype(path: Path) -> None:
    path.write_text("<HTML lang=en><body>Sign in</body></HTML>")


def pointer_of_git_lfs(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def text(path: Path) -> None:
    """PyTorch would take its letters for commands."""
    path.write_text("hello there\n")


def text_of_windows(path: Path) -> None:
    path.write_text("weights – später\n", "utf-16")


def long_text(path: Path) -> None:
    """Its first bytes end within a letter."""
    path.write_text("x" + "é" * 5000, "utf-8")


def json_text(path: Path) -> None:
    path.write_text(json.dumps({"weights": [1.0]}))


def image(path: Path) -> None:
    Image.new("RGB", (32, 32)).save(path, "JPEG")


def archive_whose_letters_are_commands(path: Path) -> None:
    path.write_bytes(b"Rar!\x1a\x07\x00" + bytes(100))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zeros(path: Path) -> None:
    """As after a power cut."""
    path.write_bytes(bytes(len(path.read_bytes())))


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def changed(path: Path) -> None:
    """In the middle, among the weights: PyTorch alone would load them."""
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes(200) + whole[middle + 200 :])


def with_other_ends_of_lines(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


DAMAGED = "is damaged or truncated: download it again, or move it away and train again"
EMPTY = "is empty: download it again, or move it away and train again"

FORMATS = [
    (torchscript, f"is a TorchScript program: {GIVE}"),
    (exported, f"is a program of torch.export: {GIVE}"),
    (whole_model, RUNS_CODE),
    (whole_model_in_the_old_form, RUNS_CODE),
    (other_pickle, f"is a pickle, which could run code, so it was not loaded: {GIVE}"),
    (arrays, f"is a file of NumPy's arrays: {GIVE}"),
    (array, f"is an array of NumPy: {GIVE}"),
    (safetensors, f"is a file of safetensors: {GIVE}"),
    (hdf5, f"is an HDF5 file, as TensorFlow and Keras write: {GIVE}"),
    (keras, f"is a model of Keras: {GIVE}"),
    (zipped, f"is a zip archive of other files: {UNPACK}"),
    (gzipped, f"is a packed archive: {UNPACK}"),
    (in_a_tar_archive, f"is a packed archive: {UNPACK}"),
    (archive_whose_letters_are_commands, f"is a packed archive: {UNPACK}"),
    (web_page, WEB_PAGE),
    (web_page_without_a_doctype, WEB_PAGE),
    (pointer_of_git_lfs, "is a pointer of Git LFS: fetch the file with `git lfs pull`"),
    (text, f"is a text file: {GIVE}"),
    (text_of_windows, f"is a text file: {GIVE}"),
    (long_text, f"is a text file: {GIVE}"),
    (json_text, f"is a text file: {GIVE}"),
    (image, f"is an image: {GIVE}"),
    (empty, EMPTY),
    (zeros, EMPTY),
    (cut_off, DAMAGED),
    (changed, DAMAGED),
    (with_other_ends_of_lines, DAMAGED),
]


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # TorchScript is outdated, not its files
@pytest.mark.parametrize("write, message", FORMATS, ids=[write.__name__ for write, _ in FORMATS])
def test_file_is_named_for_what_it_is(tmp_path, write: Callable[[Path], None], message: str):
    path = tmp_path / "weights.pt"
    save_weights(path, SMALL, DIGITS)
    write(path)
    with pytest.raises(FileError) as caught:
        load_tensors(path)
    line = str(caught.value)
    assert line.startswith(f"{path} {message}")
    assert "\n" not in line


def test_weights_with_something_behind_them_stay_readable(tmp_path):
    """A zip archive may be followed by anything."""
    path = tmp_path / "weights.pt"
    save_weights(path, SMALL, DIGITS)
    path.write_bytes(path.read_bytes() + b"\n")
    assert load_tensors(path)["classes"] == DIGITS.classes


@pytest.mark.parametrize("command", ["classify", "evaluate"])
def test_message_of_the_command_line(tmp_path, command):
    path = tmp_path / "weights.pt"
    web_page(path)
    images = ["horse.png"] if command == "classify" else ["--data", "digits"]
    message = exit_message(command, *images, "--checkpoint", path)
    assert message.startswith(f"main.py: {path} {WEB_PAGE}")


def test_path_of_two_lines_gives_one_line(tmp_path):
    message = exit_message("classify", "horse.png", "--checkpoint", tmp_path / "two\nlines.pt")
    assert r"two\nlines.pt cannot be read (No such file or directory)" in message
