"""The sessions from a terminal."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main
from tests.conftest import ROOT, SESSION9
from tests.small import FIND_LR, TWO_EPOCHS, call, exit_message
from utils import training
from utils.runs.report import commit
from utils.runs.run import Run
from utils.sessions import SESSIONS
from utils.files import load_tensors

README = (ROOT / "README.md").read_text("utf-8")


def test_the_readmes_commands_train_evaluate_and_classify(folder, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(SESSIONS, 9, SESSION9)  # with all its pictures
    (tmp_path / "static").symlink_to(ROOT / "static")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA", "digits")
    train, evaluate, classify = re.findall(r"^\.venv/bin/python main\.py (.*)", README, re.MULTILINE)
    call(*train.split())
    facts = json.loads((folder / "run.json").read_text())
    recipe = replace(SESSION9.recipe.for_epochs(12), batch_size=2, seed=1, precision=facts["precision"])
    assert facts.items() >= (asdict(recipe) | {"data": "digits", "commit": commit()}).items()
    steps = load_tensors(folder / "checkpoint.pt")["history"]["step_lr"]
    assert facts["first_lr"] == steps[0] and max(steps) == steps[20 * facts["top_epoch"] - 1]
    assert facts["hardware"].endswith(facts["precision"])
    pictures = {path.stem for path in folder.glob("*.png")}
    assert pictures == set(SESSIONS[9].pictures) and {"lr_finder_plot", "signal_rank", "attention_maps"} < pictures
    last = capsys.readouterr().out.splitlines()[-4:]
    assert last[0] == f"Test accuracy after epoch 12: {facts['test_accuracy']:.2f}% of 24 images, digits"
    assert last[2] == f"26,064 parameters, {facts['seconds_per_epoch']:.1f} s an epoch on {facts['hardware']}"
    assert last[3] == f"Log, weights, pictures and submission.md (what the assignment page asks for): {folder}/"
    assert (folder / "submission.md").read_text().startswith("**Do not hand this in: it was trained on digits")
    call(*evaluate.split())
    call(*classify.split())
    shown = capsys.readouterr().out.splitlines()
    assert shown[-2].endswith(f"({facts['test_accuracy']:.2f}%)") and shown[-1].startswith("static/horse.png: horse ")


@pytest.mark.parametrize("command", re.findall(r"^(?:make|\.venv/bin/torchrun) .*|DATA=\w+ make \w+", README, re.M))
def test_the_readmes_commands_of_other_programs(tmp_path, command):
    settings = {"MAKEFLAGS": "n", "RUNS": str(tmp_path), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = command.replace(".venv/bin", str(Path(sys.executable).parent))
    shown = subprocess.check_output(command, shell=True, cwd=ROOT, env=os.environ | settings, text=True)
    assert re.search(r"-m tools.execute 9|-m pytest --nbval-lax|Test accuracy after epoch 2: .*\n.*\n.*2 × ", shown)


def test_session_7_in_smoke_mode_and_what_tensorboard_sees(monkeypatch, tmp_path):
    """Two epochs by default, on a few digits; here with session 9's network. Without the LR finder, it has no plot."""
    monkeypatch.setenv("RUNS", str(tmp_path))
    few = ("lr_finder_plot", "confusion_matrix")
    monkeypatch.setitem(SESSIONS, 7, replace(SESSIONS[7], network=SESSION9.network, pictures=few))
    call("session7", "--max-lr", "0.01", "--tensorboard", "--precision", "bfloat16")
    folder = tmp_path / "smoke/session7"
    facts = json.loads((folder / "run.json").read_text())
    assert (facts["epochs"], facts["test_images"], facts["precision"]) == (2, 24, "bfloat16")
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    rows = list(csv.DictReader((folder / "history.csv").open()))
    for tag, column in (("test/accuracy", "test_accuracy"), ("train/loss", "train_loss"), ("lr", "lr")):
        assert [event.step for event in events.Scalars(tag)] == [1, 2]
        values, expected = [event.value for event in events.Scalars(tag)], [float(row[column]) for row in rows]
        assert values == pytest.approx(expected, rel=1e-4)
    assert events.Tags()["images"] == [path.stem for path in folder.glob("*.png")] == ["confusion_matrix"]


def test_evaluate_without_cifar10_announces_no_digits(folder, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setattr("utils.cifar10.MIRRORS", ("http://127.0.0.1:1/cifar-10-python.tar.gz",))
    told = exit_message("evaluate", "--checkpoint", main.WEIGHTS)
    assert "CIFAR-10 is not available" in told and "git clone https://github.com/cyizhuo/CIFAR-10-dataset" in told
    assert "DIGITS" not in capsys.readouterr().out


@pytest.mark.parametrize("words, message", [
    ("", "required: command"),
    ("session9 --batch-size 2.5", "--batch-size: invalid int value: '2.5' (`main.py session9 --help` explains)"),
    ("session9 --resume", "unrecognized arguments: --resume (`main.py session9 --help` explains)"),
])  # fmt: skip
def test_wrong_words_get_one_line_and_exit_code_2(capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        call(*words.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


@pytest.mark.parametrize("words, message", [
    ("session9 --data digits --epochs 0", "epochs is 0: it must be from 1 to"),
    ("session9 --data digits --seed -1", "seed is -1: it must be from 0 to 4294967295"),
    ("session9 --data digits --max-lr nan", "max LR is nan: it must be from 1e-09 to"),
    (f"evaluate --data digits --checkpoint {main.WEIGHTS}", "was not trained on the classes of digits: use --data to give images of airplane"),
    ("classify no.png", "main.py: no.png cannot be read (No such file or directory): give a PNG"),
])  # fmt: skip
def test_values_that_cannot_be_used_get_one_line(folder, words, message):
    assert message in exit_message(*words.split()) and not folder.exists()


def test_help_comes_at_once_and_training_starts_without_what_only_others_need():
    code = """
import sys, main
try: main.main(["--help"])
except SystemExit: print("torch" in sys.modules)
import utils.plots, utils.training, utils.sessions, utils.classify, utils.data
utils.data.load_data("digits")
print({"torchvision", "pytorch_grad_cam", "tensorboard"} & set(sys.modules))
"""
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "session9" in shown and shown.splitlines()[-2:] == ["False", "set()"]


@pytest.mark.parametrize("stream, count, code, told", [
    (">&-", 1, 0, ""), (">/dev/full", 1, 1, "main.py: standard output: No space left on device"),
    ("| true; exit ${PIPESTATUS[0]}", 100_000, 1, ""),  # more than fits into a pipe
])  # fmt: skip
def test_standard_output_that_cannot_be_written(stream, count, code, told):
    program = f"from utils.errors import one_line_errors\nwith one_line_errors('main.py'): print('x' * {count})"
    command = ["bash", "-c", f'"{sys.executable}" -c "{program}" {stream}']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (code, told)


@pytest.mark.parametrize("end", ["SIGTERM", "closed pipe"])
def test_end_from_outside(tmp_path, end):
    """SIGTERM is handled like Ctrl-C; a closed pipe, as in `main.py session9 | head`, ends the run silently."""
    command = [sys.executable, "main.py", "session9", "--epochs", "40", "--max-lr", "0.01", "--device", "cpu"]
    environment, checkpoint = os.environ | {"RUNS": str(tmp_path)}, tmp_path / "smoke/session9/checkpoint.pt"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    run = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)
    while run.poll() is None and not checkpoint.exists():
        time.sleep(0.05)
    run.stdout.close() if end == "closed pipe" else run.send_signal(signal.SIGTERM)
    told, kept = run.stderr.read(), "Stopped. All finished epochs are saved: run the same command again to resume."
    assert run.wait() == 1 and "Traceback" not in told
    assert told == "" if end == "closed pipe" else told.strip().endswith(kept)
    assert 1 <= len(load_tensors(checkpoint)["history"]["lr"]) < 40


@pytest.mark.parametrize("error, told", [
    (KeyboardInterrupt(), "\nStopped."),  # no promise about finished epochs
    (ModuleNotFoundError(name="torch"),
     "main.py: torch is not installed here: use .venv/bin/python, which `make test` creates."),
])  # fmt: skip
def test_interrupted_evaluation_and_python_without_the_packages(monkeypatch, error, told):
    monkeypatch.setattr(main, "evaluate", Mock(side_effect=error))
    assert exit_message("evaluate", "--checkpoint", main.WEIGHTS) == told


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


@pytest.mark.parametrize("words, place", [
    (FIND_LR, "utils.schedule.LRFinder.range_test"), (TWO_EPOCHS, "utils.training.train")
])  # fmt: skip
def test_gpu_out_of_memory(folder, monkeypatch, words, place):
    monkeypatch.setattr(place, Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory")))
    shown = exit_message(*words, "--batch-size", "100")
    assert "the GPU is out of memory with batches of 100 images: try 50 (main.py: --batch-size; notebook:" in shown


def test_picture_that_cannot_be_classified(tmp_path, monkeypatch):
    Image.new("RGB", (400, 400)).save(tmp_path / "huge.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "huge.png").read_bytes()[:300])
    (tmp_path / "text.png").write_bytes(b"a horse")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # as if it had billions
    for path in tmp_path.iterdir():
        told = f"{path} cannot be read (it is not an image that Pillow knows): give a PNG or JPEG file"
        assert told in exit_message("classify", path)
