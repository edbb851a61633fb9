"""The sessions from a terminal."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main
from models.model7 import ResNet
from models.model9 import TransformerModel
from tests.conftest import SESSION9
from tests.small import save_weights
from tests.terminal import FIND_LR, TWO_EPOCHS, call, exit_message
from utils import schedule, training
from utils.data import load_data
from utils.runs.run import Run
from utils.sessions import SESSIONS
from utils.system.files import load_tensors

ROOT = Path(__file__).parents[1]
DIGITS = load_data("digits")


def test_train_evaluate_classify(folder, monkeypatch, capsys):
    monkeypatch.setitem(SESSIONS, 9, SESSION9)  # with all its pictures
    call(*FIND_LR, "--seed", 1, "--batch-size", 9)
    facts = json.loads((folder / "run.json").read_text())
    assert (facts["epochs"], facts["batch_size"], facts["seed"], facts["data"]) == (2, 9, 1, "digits")
    steps = load_tensors(folder / "checkpoint.pt")["history"]["step_lr"]
    assert (facts["first_lr"], facts["top_epoch"]) == (steps[0], 1) and max(steps) == steps[len(steps) // 2 - 1]
    assert facts["hardware"].endswith(facts["precision"]) and "flip_averaged" not in facts
    pictures = {path.stem for path in folder.glob("*.png")}
    assert pictures == set(SESSIONS[9].pictures) and {"lr_finder_plot", "signal_rank", "attention_maps"} < pictures
    last = capsys.readouterr().out.splitlines()[-4:]
    assert last[0] == f"Test accuracy after epoch 2: {facts['test_accuracy']:.2f}% of 24 images, digits"
    assert last[2] == f"26,064 parameters, {facts['seconds_per_epoch']:.1f} s an epoch on {facts['hardware']}"
    assert last[3] == f"Log, weights, pictures and submission.md (the answers to the assignment page): {folder}/"
    assert (folder / "submission.md").read_text().startswith("**Do not hand this in: it was trained on digits")

    call("evaluate", "--checkpoint", folder / "weights.pt", "--data", "digits")
    assert f"({facts['test_accuracy']:.2f}%)" in capsys.readouterr().out

    Image.new("RGB", (40, 40)).save(folder / "black.png")
    call("classify", folder / "black.png", "--checkpoint", folder / "weights.pt")
    assert capsys.readouterr().out.startswith(f"{folder / 'black.png'}: ")


def test_session_7_in_smoke_mode_shows_what_its_notebook_shows(monkeypatch, tmp_path, capsys):
    """A ResNet of half the depth, two epochs by default, on a few digits."""
    monkeypatch.setenv("RUNS", str(tmp_path))
    monkeypatch.setitem(SESSIONS, 7, replace(SESSIONS[7], network=lambda: ResNet((1, 1, 1, 1))))
    call("session7", "--max-lr", "0.01")
    folder = tmp_path / "smoke/session7"
    facts = json.loads((folder / "run.json").read_text())
    assert facts["smoke"] and facts["epochs"] == 2 and facts["test_images"] == 24
    assert {path.stem for path in folder.glob("*.png")} == set(SESSIONS[7].pictures) - {"lr_finder_plot"}
    assert f"Flip-averaged: {facts['flip_averaged']:.2f}%" in capsys.readouterr().out
    for picture in re.findall(r"!\[.*\]\((.*)\)", (folder / "submission.md").read_text()):
        assert (folder / picture).exists(), picture


def test_tensorboard_sees_scalars_and_pictures(folder, monkeypatch):
    call(*TWO_EPOCHS, "--tensorboard")
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    rows = list(csv.DictReader((folder / "history.csv").open()))
    for tag, column in (("test/accuracy", "test_accuracy"), ("train/loss", "train_loss"), ("lr", "lr")):
        assert [event.step for event in events.Scalars(tag)] == [1, 2]
        assert [event.value for event in events.Scalars(tag)] == pytest.approx(
            [float(row[column]) for row in rows], rel=1e-4
        )
    assert {"loss_and_accuracy_graphs", "confusion_matrix"} == set(events.Tags()["images"])


def test_evaluate_wants_the_classes_it_learned():
    shown = exit_message("evaluate", "--checkpoint", main.WEIGHTS, "--data", "digits")
    assert re.search(
        "has the classes airplane, .* digits has others: use --data to give the data it was trained on", shown
    )


def test_evaluate_without_cifar10_announces_no_digits(folder, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setattr("utils.sources.cifar10.MIRRORS", ("http://127.0.0.1:1/cifar-10-python.tar.gz",))
    told = exit_message("evaluate", "--checkpoint", main.WEIGHTS)
    assert "CIFAR-10 is not available" in told and "git clone https://github.com/cyizhuo/CIFAR-10-dataset" in told
    assert "DIGITS" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "required: command"),
        (["session6"], "invalid choice: 'session6'"),
        (
            ["session9", "--batch-size", "2.5"],
            "--batch-size: invalid int value: '2.5' (`main.py session9 --help` explains)",
        ),
        (
            ["session9", "--max-lr", "high"],
            "--max-lr: invalid float value: 'high' (`main.py session9 --help` explains)",
        ),
        (["session9", "--device", "tpu"], "--device: invalid choice: 'tpu'"),
        (["session9", "--resume"], "unrecognized arguments: --resume (`main.py session9 --help` explains)"),
        (["classify"], "required: IMAGE"),
    ],
)
def test_wrong_values_get_one_line_and_exit_code_2(monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        call(*arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("--epochs", "0", "epochs is 0: it must be from 1 to"),
        ("--batch-size", "-1", "batch size is -1: it must be from 1 to"),
        ("--seed", "-1", "seed is -1: it must be from 0 to 4294967295"),
        ("--max-lr", "nan", "max LR is nan: it must be from 1e-09 to"),
        ("--max-lr", "0", "max LR is 0.0: it must be from"),
    ],
)
def test_value_out_of_its_range(folder, option, value, message):
    assert message in exit_message(*TWO_EPOCHS, option, value) and not folder.exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["evaluate", "--data", "digits", "--checkpoint", "no.pt"], "no.pt cannot be read (No such file or directory)"),
        (["classify", "no.png"], "no.png does not exist"),
    ],
)
def test_file_that_does_not_exist(words, message):
    assert message in exit_message(*words)


def test_help_comes_at_once():
    code = "import sys, main\ntry: main.main()\nexcept SystemExit: print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "session9" in shown.stdout and shown.stdout.splitlines()[-1] == "False"


def test_training_starts_without_what_only_others_need():
    code = "import sys, utils.plots, utils.training, utils.sessions, utils.classify, utils.data; utils.data.load_data('digits')\nprint({'torchvision', 'pytorch_grad_cam', 'tensorboard'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


def start(tmp_path) -> subprocess.Popen:
    """Many short epochs of session 9 in a separate process."""
    command = [sys.executable, "main.py", "session9", "--epochs", "40", "--max-lr", "0.01", "--device", "cpu"]
    environment = os.environ | {"RUNS": str(tmp_path)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_closed_pipe_ends_the_run_silently(tmp_path):
    """As in `main.py session9 | head -2`."""
    run = start(tmp_path)
    while not run.stdout.readline().startswith("Test set"):
        pass
    run.stdout.close()
    told = run.stderr.read()
    assert run.wait() == 1 and told == ""
    assert len(load_tensors(tmp_path / "smoke/session9/checkpoint.pt")["history"]["lr"]) >= 1


def test_sigterm_is_handled_like_ctrl_c(tmp_path):
    run = start(tmp_path)
    while run.poll() is None and not (tmp_path / "smoke/session9/checkpoint.pt").exists():
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    _, told = run.communicate(timeout=60)
    assert told.strip().endswith("Stopped. All finished epochs are saved: run the same command again to resume.")
    assert run.returncode == 1 and "Traceback" not in told
    assert len(load_tensors(tmp_path / "smoke/session9/checkpoint.pt")["history"]["lr"]) >= 1


def test_ctrl_c_outside_a_training_promises_nothing(monkeypatch):
    monkeypatch.setattr(main, "evaluate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert exit_message("evaluate", "--checkpoint", main.WEIGHTS) == "\nStopped."


def test_pictures_come_between_the_weights_and_the_end(folder, monkeypatch):
    """A run whose pictures cannot be saved is not finished: the same command resumes it without training."""
    with monkeypatch.context() as patch:
        patch.setattr(Run, "show", lambda run, *names: sys.exit(3))
        with pytest.raises(SystemExit):
            call(*TWO_EPOCHS)
    assert (folder / "weights.pt").exists() and not (folder / "run.json").exists()
    monkeypatch.setattr(training, "train", lambda *_: pytest.fail("trained again"))
    call(*TWO_EPOCHS)
    assert (folder / "run.json").exists() and (folder / "confusion_matrix.png").exists()


def test_max_lr_at_which_the_loss_diverges(folder, monkeypatch):
    shown = exit_message(*TWO_EPOCHS, "--max-lr", "1e6")
    assert re.search(r"the loss became (nan|inf) in epoch \d, batch \d+, at LR .*: try a quarter of the max LR", shown)


def too_big(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


@pytest.mark.parametrize("where", ["LR finder", "training"])
def test_gpu_out_of_memory(folder, monkeypatch, where):
    if where == "LR finder":
        monkeypatch.setattr(schedule.LRFinder, "range_test", too_big)
    else:
        monkeypatch.setattr(training, "train", too_big)
    shown = exit_message(*(FIND_LR if where == "LR finder" else TWO_EPOCHS), "--batch-size", "100")
    assert "the GPU is out of memory with batches of 100 images: try 50 (main.py: --batch-size; notebook:" in shown


def test_data_that_does_not_exist(monkeypatch, folder):
    shown = exit_message("session9", "--data", "nowhere")
    assert shown == "main.py: nowhere does not exist: set DATA to cifar10, digits, auto, or a folder of images."
    assert not folder.exists()


@pytest.mark.parametrize("kind", ["half", "text", "folder", "huge"])
def test_picture_that_cannot_be_classified(tmp_path, monkeypatch, kind):
    save_weights(tmp_path / "weights.pt", TransformerModel(), 9, DIGITS)
    path = tmp_path / "horse.png"
    content = io.BytesIO()
    Image.new("RGB", (400, 400)).save(content, "png")
    if kind == "folder":
        path.mkdir()
    else:
        path.write_bytes({"half": content.getvalue()[:300], "text": b"a horse", "huge": content.getvalue()}[kind])
    if kind == "huge":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # as if it had billions
    shown = exit_message("classify", path, "--checkpoint", tmp_path / "weights.pt")
    assert "horse.png is not an image that Pillow can read: give a PNG or JPEG file" in shown
