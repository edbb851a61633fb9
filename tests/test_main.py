"""The sessions from a terminal."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main
from utils import runs, training

ROOT = Path(__file__).parents[1]
TWO_EPOCHS = ("session9", "--data", "digits", "--epochs", "2")


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(runs, "SMOKE", False)
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    return tmp_path / "session9"


def call(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["main.py", *map(str, arguments)])
    main.main()


def test_train_evaluate_classify(folder, monkeypatch, capsys):
    call(monkeypatch, *TWO_EPOCHS, "--seed", 1, "--batch-size", 50)
    facts = json.loads((folder / "run.json").read_text())
    assert (facts["epochs"], facts["batch_size"], facts["seed"], facts["data"]) == (2, 50, 1, "digits")
    pictures = {path.stem for path in folder.glob("*.png")}
    assert {
        "loss_and_accuracy_graphs",
        "lr_finder_plot",
        "lr_history_plot",
        "misclassified_images",
        "confusion_matrix",
    } < pictures
    last = capsys.readouterr().out.splitlines()[-2:]
    assert last == [f"Test accuracy after epoch 2: {facts['test_accuracy']:.2f}% of 360 images, digits",
                    f"Log, weights, pictures and submission.md, what the assignment page asks for: {folder}/"]  # fmt: skip
    assert (folder / "submission.md").read_text().startswith("**Not for handing in: it was trained on digits")

    call(monkeypatch, "evaluate", "--checkpoint", folder / "weights.pt", "--data", "digits")
    assert f"({facts['test_accuracy']:.2f}%)" in capsys.readouterr().out

    Image.new("RGB", (40, 40)).save(folder / "black.png")
    call(monkeypatch, "classify", folder / "black.png", "--checkpoint", folder / "weights.pt")
    assert capsys.readouterr().out.startswith(f"{folder / 'black.png'}: ")


def test_a_given_max_lr_is_used(folder, monkeypatch):
    call(monkeypatch, *TWO_EPOCHS, "--max-lr", "0.01", "--device", "cpu")
    assert json.loads((folder / "run.json").read_text())["max_lr"] == 0.01
    steps = torch.load(folder / "checkpoint.pt", weights_only=True)["history"]["step_lr"]
    assert max(steps) == pytest.approx(0.01)
    assert not (folder / "lr_finder.json").exists() and not (folder / "lr_finder_plot.png").exists()


def test_tensorboard_sees_scalars_and_pictures(folder, monkeypatch):
    call(monkeypatch, *TWO_EPOCHS, "--tensorboard")
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    rows = list(csv.DictReader((folder / "history.csv").open()))
    for tag, column in (("test/accuracy", "test_accuracy"), ("train/loss", "train_loss"), ("lr", "lr")):
        assert [event.step for event in events.Scalars(tag)] == [1, 2]
        assert [event.value for event in events.Scalars(tag)] == pytest.approx(
            [float(row[column]) for row in rows], rel=1e-4
        )
    assert {"loss_and_accuracy_graphs", "confusion_matrix"} < set(events.Tags()["images"])


def test_ctrl_c_keeps_what_is_finished(folder, monkeypatch, capsys):
    real = training.train

    def stop_in_the_second_epoch(*arguments):
        if arguments[-1] == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, "train", stop_in_the_second_epoch)
        with pytest.raises(SystemExit, match=r"Stopped. Every finished epoch is kept: the same command goes on"):
            call(monkeypatch, *TWO_EPOCHS)
    capsys.readouterr()
    call(monkeypatch, *TWO_EPOCHS, "--resume")
    assert "Going on after epoch 1:" in capsys.readouterr().out
    assert json.loads((folder / "run.json").read_text())["epochs"] == 2


@pytest.mark.parametrize(
    "other", [(), ("--seed", "1"), ("--max-lr", "0.01")], ids=["none", "another seed", "another max LR"]
)
def test_nothing_to_resume(folder, monkeypatch, other):
    if other:
        monkeypatch.setattr(training, "train", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(SystemExit, match="Stopped"):
            call(monkeypatch, *TWO_EPOCHS)
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(SystemExit, match="session9/ holds no unfinished run of these options"):
        call(monkeypatch, *TWO_EPOCHS, *other, "--resume")
    assert sorted(folder.parent.rglob("*")) == before


def test_evaluate_wants_the_classes_it_learned(monkeypatch):
    with pytest.raises(
        SystemExit, match=r"tells airplane, .* digits has other classes: give the data it was trained on"
    ):
        call(monkeypatch, "evaluate", "--checkpoint", main.WEIGHTS, "--data", "digits")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "required: command"),
        (["session6"], "invalid choice: 'session6'"),
        (["session9", "--epochs", "0"], "--epochs: '0' is not a whole number above 0"),
        (["session9", "--batch-size", "2.5"], "--batch-size: '2.5' is not a whole number above 0"),
        (["session9", "--max-lr", "high"], "--max-lr: 'high' is neither a number above 0 nor \"find\""),
        (["session9", "--max-lr", "nan"], "'nan' is neither"),
        (["session9", "--device", "tpu"], "--device: invalid choice: 'tpu'"),
        (["evaluate", "--checkpoint", "no.pt"], "no.pt does not exist"),
        (["classify"], "required: IMAGE"),
        (["classify", "no.png"], "no.png does not exist"),
    ],
)
def test_wrong_values_get_one_line_and_exit_code_2(monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, *arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


def test_help_comes_at_once():
    code = "import sys, main\ntry: main.main()\nexcept SystemExit: print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "session9" in shown.stdout and shown.stdout.splitlines()[-1] == "False"


def test_training_starts_without_what_only_others_need():
    code = "import sys, utils.plots, utils.training, utils.sessions, utils.classify, utils.data; utils.data.load_data('digits')\nprint({'torchvision', 'pytorch_grad_cam', 'tensorboard'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
