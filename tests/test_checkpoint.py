"""Weights and checkpoints: complete or absent; damaged, foreign or malicious ones give one line and stay as they are."""

import os
import pickle
import resource
import zipfile

import pytest
import torch

from models.model8 import CustomResNet
from models.model9 import TransformerModel
from tests.small import DIGITS, TWO_EPOCHS, exit_message, save_weights, stop_in_the_second_epoch
from utils.classify import Classifier
from utils.runs.checkpoint import TrainingState
from utils.device import make_accelerator
from utils.errors import FileError
from utils.files import load_tensors, save_tensors
from utils.training import History


class Evil:
    """Runs code when a careless program unpickles it."""

    def __reduce__(self):
        return os.mkdir, ("hacked",)


TRUNCATED = "is damaged or truncated: download it again, or move it away and train again"
NO_WEIGHTS = "is not a weights file: give the weights.pt of a run"
NO_NETWORK = "contains no trained network: give the weights.pt of a finished run"
MALICIOUS = "contains objects that could run code, so it was not loaded: only use files of this program"
DAMAGES = {  # what is done to a file's path and content, and the message
    "cut off": (lambda path, whole: path.write_bytes(whole[: len(whole) // 2]), TRUNCATED),
    "empty": (lambda path, _: path.write_bytes(b""), TRUNCATED),
    "no weights": (lambda path, _: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)), NO_WEIGHTS),
    "another archive": (lambda path, _: zipfile.ZipFile(path, "w").writestr("notes/today.txt", "nothing"), TRUNCATED),
    "malicious": (lambda path, _: torch.save({"model": Evil()}, path), MALICIOUS),
    "malicious, old form": (lambda path, _: path.write_bytes(pickle.dumps(Evil())), NO_WEIGHTS),
    "a list": (lambda path, _: torch.save([1, 2], path), NO_WEIGHTS),
    "a folder": (lambda path, _: path.unlink() or path.mkdir(), "cannot be read (Is a directory): give the weights.pt"),
    "of no session": (lambda path, _: save_tensors(path, {"session": 5, "model": {}}), NO_NETWORK),
    "of another": (
        lambda path, _: save_tensors(path, {"session": 8, "model": TransformerModel().state_dict()}),
        NO_NETWORK,
    ),
    "absent": (lambda path, _: path.unlink(), "cannot be read (No such file or directory): give the weights.pt of"),
}


@pytest.mark.parametrize("damage, message", DAMAGES.values(), ids=DAMAGES)
def test_damaged_weights(tmp_path, monkeypatch, damage, message):
    path = tmp_path / "weights.pt"
    save_weights(path, TransformerModel(), 9, DIGITS)
    damage(path, path.read_bytes())
    monkeypatch.chdir(tmp_path)  # where Evil would create its file
    with pytest.raises(FileError) as caught:
        Classifier(path)
    assert str(caught.value).startswith(f"{path} {message}") and "\n" not in str(caught.value)
    assert not (tmp_path / "hacked").exists()


def test_scale_of_float16_is_restored(tmp_path):
    """A GradScaler on the CPU stands in for the GPU's."""
    path, model, accelerator = tmp_path / "checkpoint.pt", torch.nn.Linear(1, 1), make_accelerator(cpu=True)
    optimizer = torch.optim.SGD(model.parameters())
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    state = TrainingState(model, optimizer, scheduler, None, accelerator, 0.1)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    state.save(path, History(), {"model": model.state_dict()})
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    state.restore(load_tensors(path), path)
    assert accelerator.scaler.get_scale() == 1024


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


@pytest.mark.parametrize("kind", ["cut off", "of another network"])
def test_damaged_checkpoint_stops_the_run_and_stays(folder, monkeypatch, kind):
    stop_in_the_second_epoch(monkeypatch)
    checkpoint = folder / "checkpoint.pt"
    foreign = load_tensors(checkpoint) | {"model": CustomResNet().state_dict()}
    of_another = lambda path, _: save_tensors(path, foreign), "was saved by another run: move it away to train from the"
    damage, message = DAMAGES.get(kind, of_another)
    damage(checkpoint, checkpoint.read_bytes())
    before, shown = checkpoint.read_bytes(), exit_message(*TWO_EPOCHS)
    assert str(checkpoint) in shown and message in shown
    assert checkpoint.read_bytes() == before and not (folder / "run.json").exists()
