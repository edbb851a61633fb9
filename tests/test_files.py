"""A file is complete or absent, even if the disk fails."""

import json
import os
import resource

import pytest
import torch

from tests.terminal import TWO_EPOCHS, call, exit_message
from utils.system.errors import FileError
from utils.system.files import load_tensors, replace_file, save_tensors


def test_full_disk_keeps_what_stood_there(tmp_path):
    """The operating system rejects files larger than 100 kB, as a full disk would."""
    path = tmp_path / "checkpoint.pt"
    save_tensors(path, {"epoch": 1})
    before = path.read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(FileError, match=r"checkpoint.pt cannot be written \(File too large\): free some space"):
            save_tensors(path, {"epoch": torch.ones(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_file_that_cannot_be_written(tmp_path):
    def write(part):
        part.write_text("half")
        raise OSError(30, "Read-only file system")

    (tmp_path / "run.json").write_text("whole")
    with pytest.raises(FileError, match=r"run.json cannot be written \(Read-only file system\): free some space or"):
        replace_file(tmp_path / "run.json", write)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("run.json", "whole")]


def test_disk_that_fills_up_in_a_run(folder, monkeypatch):
    real, calls = os.replace, []

    def full(part, path):
        calls.append(path.name)
        if calls.count("checkpoint.pt") == 2:
            raise OSError(28, "No space left on device")
        return real(part, path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert "checkpoint.pt cannot be written (No space left on device)" in exit_message(*TWO_EPOCHS)
    assert len(load_tensors(folder / "checkpoint.pt")["history"]["lr"]) == 1
    call(*TWO_EPOCHS)
    assert json.loads((folder / "run.json").read_text())["epochs"] == 2
