"""Damaged, foreign or malicious weights and checkpoints give a one-line error and are left unchanged."""

import os
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from models.model8 import CustomResNet
from models.model9 import TransformerModel
from tests.small import save_weights
from tests.terminal import TWO_EPOCHS, exit_message, stop_in_the_second_epoch
from utils.classify import load_classifier
from utils.data import load_data
from utils.runs.checkpoint import TrainingState
from utils.system.device import make_accelerator
from utils.system.errors import FileError
from utils.system.files import load_tensors, save_tensors
from utils.training import History

DIGITS = load_data("digits")


class Evil:
    """Runs code when a careless program unpickles it."""

    def __reduce__(self):
        return os.mkdir, ("hacked",)


def damage(path: Path, kind: str) -> None:
    save_weights(path, TransformerModel(), 9, DIGITS)
    whole = path.read_bytes()
    if kind == "cut off":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "no weights":
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    elif kind == "another archive":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("notes/today.txt", "nothing")
    elif kind == "malicious":
        torch.save({"model": Evil()}, path)
    elif kind == "malicious, old form":
        path.write_bytes(pickle.dumps(Evil()))
    elif kind == "a list":
        torch.save([1, 2], path)
    elif kind == "a folder":
        path.unlink()
        path.mkdir()
    elif kind == "absent":
        path.unlink()


DAMAGES = {
    "cut off": "is damaged or truncated: download it again, or move it away and train again",
    "empty": "is damaged or truncated: download it again, or move it away and train again",
    "no weights": "is not a weights file: give the weights.pt of a run",
    "another archive": "is damaged or truncated: download it again, or move it away and train again",
    "malicious": "contains objects that could run code, so it was not loaded: only use files that this program wrote",
    "malicious, old form": "is not a weights file: give the weights.pt of a run",
    "a list": "is not a weights file: give the weights.pt of a run",
    "a folder": "cannot be read (Is a directory): give the weights.pt of a run",
    "absent": "cannot be read (No such file or directory): give the weights.pt of a run",
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_weights(tmp_path, monkeypatch, kind):
    path = tmp_path / "weights.pt"
    damage(path, kind)
    monkeypatch.chdir(tmp_path)  # where Evil would create its file
    with pytest.raises(FileError) as caught:
        load_classifier(path)
    assert str(caught.value).startswith(f"{path} ") and DAMAGES[kind] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "hacked").exists()


def test_damaged_weights_from_the_terminal(tmp_path, monkeypatch):
    damage(tmp_path / "weights.pt", "malicious")
    shown = exit_message("evaluate", "--checkpoint", tmp_path / "weights.pt", "--data", "digits")
    assert shown.startswith("main.py: ") and "could run code" in shown


@pytest.mark.parametrize("content", [{"session": 5}, {"session": 8}, {"history": {}}], ids=str)
def test_weights_without_what_a_classifier_needs(tmp_path, content):
    save_tensors(tmp_path / "checkpoint.pt", {"model": TransformerModel().state_dict(), **content})
    with pytest.raises(
        FileError, match=r"checkpoint.pt contains no trained network: give the weights.pt of a finished"
    ):
        load_classifier(tmp_path / "checkpoint.pt")


def test_scale_of_float16_is_restored(tmp_path):
    """A GradScaler on the CPU stands in for the GPU's."""
    make_accelerator(cpu=True)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters())
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)

    def state(scale: float) -> TrainingState:
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        accelerator = SimpleNamespace(
            device=torch.device("cpu"), is_main_process=True, num_processes=1, process_index=0, mixed_precision="fp16",
            scaler=scaler,
        )  # fmt: skip
        return TrainingState(model, optimizer, scheduler, SimpleNamespace(), accelerator, 0.1)

    state(1024.0).save(tmp_path / "checkpoint.pt", History(), {"model": model.state_dict()})
    later = state(2.0)
    later.restore(load_tensors(tmp_path / "checkpoint.pt"), tmp_path / "checkpoint.pt")
    assert later.accelerator.scaler.get_scale() == 1024


@pytest.mark.parametrize("kind", ["cut off", "malicious", "of another network"])
def test_damaged_checkpoint_stops_the_run_and_stays(folder, monkeypatch, kind):
    stop_in_the_second_epoch(monkeypatch)
    checkpoint = folder / "checkpoint.pt"
    content = load_tensors(checkpoint)
    if kind == "of another network":
        save_tensors(checkpoint, content | {"model": CustomResNet().state_dict()})
    else:
        damage(checkpoint, kind)
    before = checkpoint.read_bytes()
    shown = exit_message(*TWO_EPOCHS)
    wanted = "was saved by another run: move it away to train from the start"
    assert str(checkpoint) in shown and (wanted if kind == "of another network" else DAMAGES[kind]) in shown
    assert checkpoint.read_bytes() == before and not (folder / "run.json").exists()
