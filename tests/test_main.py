"""The sessions from a terminal."""

import json
import os
import signal
import subprocess
import sys
from unittest.mock import Mock

import pytest
import torch
from PIL import Image

import main
from tests.conftest import ROOT
from tests.small import FIND_LR, TWO_EPOCHS, call, exit_message, stop_in_the_second_epoch
from utils import sessions, training
from utils.files import load_tensors
from utils.sessions import SESSIONS


@pytest.fixture
def few_pictures(monkeypatch):
    """Only the curves are drawn after a training: they are drawn fast."""

    def show(session, run):
        run.show(sessions.plots.loss_and_accuracy_graphs, run.history, run.data)

    monkeypatch.setattr(sessions, "show_results", show)


@pytest.fixture
def trained(folder, few_pictures):
    """A finished run of two epochs at a given max LR."""
    call(*TWO_EPOCHS)
    return folder


def facts_of(folder) -> dict:
    return json.loads((folder / "run.json").read_text("utf-8"))


def test_a_run_leaves_all_its_files(folder):
    call(*FIND_LR)
    names = {path.name for path in folder.iterdir()}
    pictures = {f"{name}.png" for name in SESSIONS[9].pictures}
    assert names >= pictures | {"run.json", "weights.pt", "training_log.txt", "submission.md"}


def test_last_lines_are_the_results(trained, capsys):
    facts = facts_of(trained)
    assert facts["epochs"] == 2
    assert facts["test_images"] == 24
    assert facts["data"] == "digits"


def test_summary_is_printed(folder, few_pictures, capsys):
    call(*TWO_EPOCHS)
    shown = capsys.readouterr().out
    assert f"Test accuracy after epoch 2: {facts_of(folder)['test_accuracy']:.2f}%" in shown
    assert f"Log, weights, pictures and submission.md: {folder}/" in shown


def test_max_lr_that_is_given_needs_no_search(trained):
    assert facts_of(trained)["max_lr"] == pytest.approx(0.01)
    assert not (trained / "lr_finder.json").exists()


def test_options_change_the_recipe(folder, few_pictures):
    call(*TWO_EPOCHS[:3], "--epochs", "4", "--max-lr", "0.01", "--seed", "3", "--batch-size", "1")
    facts = facts_of(folder)
    assert facts["top_epoch"] == 1
    assert facts["seed"] == 3
    assert facts["batch_size"] == 1


def test_precision_is_as_asked(folder, few_pictures):
    call(*TWO_EPOCHS, "--precision", "bfloat16")
    assert facts_of(folder)["precision"] == "bfloat16"


def test_runs_of_other_names_are_listed(trained, capsys):
    call(*TWO_EPOCHS, "--name", "wide")
    capsys.readouterr()
    call("runs")
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == ["name", "session9", "wide"]


def test_interrupted_run_resumes(folder, few_pictures, monkeypatch, capsys):
    stop_in_the_second_epoch(monkeypatch)
    call(*TWO_EPOCHS)
    assert "Resuming after epoch 1" in capsys.readouterr().out
    assert facts_of(folder)["epochs"] == 2


def test_finished_run_is_moved_aside(trained, capsys):
    call(*TWO_EPOCHS)
    assert "session9-2/: it is finished." in capsys.readouterr().out
    assert (trained.with_name("session9-2") / "run.json").exists()


def test_line_about_a_run_moved_aside_says_what_differs(trained, capsys):
    call(*TWO_EPOCHS, "--seed", "1")
    assert "recipe seed (0, now 1)" in capsys.readouterr().out


def test_evaluate_shows_the_accuracy_of_the_run(trained, capsys):
    capsys.readouterr()
    call("evaluate", "--data", "digits", "--checkpoint", trained / "weights.pt")
    accuracy = facts_of(trained)["test_accuracy"]
    assert capsys.readouterr().out.rstrip().endswith(f"({accuracy:.2f}%)")


def test_evaluate_refuses_other_classes(folder):
    message = exit_message("evaluate", "--data", "digits", "--checkpoint", main.WEIGHTS)
    assert "was not trained on the classes of digits" in message
    assert "airplane" in message


def test_evaluate_without_cifar10_announces_no_digits(folder, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setattr("utils.cifar10.MIRRORS", ("http://127.0.0.1:1/cifar-10-python.tar.gz",))
    message = exit_message("evaluate", "--checkpoint", main.WEIGHTS)
    assert "git clone https://github.com/cyizhuo/CIFAR-10-dataset" in message
    assert "DIGITS" not in capsys.readouterr().out


def test_published_network_sees_a_horse(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    call("classify", "static/horse.png")
    assert capsys.readouterr().out.startswith("static/horse.png: horse ")


WRONG_WORDS = {
    "no command": ([], "required: command"),
    "no number": (["session9", "--batch-size", "2.5"], "invalid int value: '2.5'"),
    "unknown option": (["session9", "--resume"], "unrecognized arguments: --resume"),
}


@pytest.mark.parametrize("words, message", WRONG_WORDS.values(), ids=WRONG_WORDS)
def test_wrong_words_get_one_line_and_exit_code_2(capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        call(*words)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error
    assert error.count("\n") == 1


WRONG_VALUES = {
    "epochs": (["--epochs", "0"], "epochs is 0"),
    "seed": (["--seed", "-1"], "seed is -1"),
    "max LR": (["--max-lr", "nan"], "max LR is nan"),
    "data": (["--data", ""], "--data is empty"),
}


@pytest.mark.parametrize("words, message", WRONG_VALUES.values(), ids=WRONG_VALUES)
def test_values_out_of_range_get_one_line(folder, words, message):
    assert message in exit_message("session9", "--data", "digits", *words)
    assert not folder.exists()


def test_help_comes_without_pytorch():
    code = (
        "import sys, main\n"
        "try: main.main(['--help'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "session9" in shown
    assert shown.splitlines()[-1] == "False"


def test_training_starts_without_what_only_others_need():
    code = (
        "import sys, utils.sessions, utils.classify, utils.data\n"
        "utils.data.load_data('digits')\n"
        "print({'torchvision', 'pytorch_grad_cam'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "set()"


def printing(count: int) -> str:
    return (
        "from utils.errors import one_line_errors\n"
        f"with one_line_errors('main.py'): print('x' * {count})"
    )


def test_standard_output_that_is_full():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", printing(1)]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == "main.py: standard output: No space left on device"


def test_standard_output_that_nobody_reads():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", printing(100_000)]
    done = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 1
    assert done.stderr == ""


def long_run(tmp_path) -> subprocess.Popen:
    """A run of many epochs in a process of its own, after its first epoch."""
    words = ["session9", "--epochs", "40", "--max-lr", "0.01", "--device", "cpu"]
    environment = os.environ | {"RUNS": str(tmp_path), "DATA": "digits", "EVA8_SMOKE": "0"}
    run = subprocess.Popen(
        [sys.executable, "main.py", *words, "--data", "digits"],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    for line in run.stdout:
        if "Test set" in line:
            return run
    pytest.fail(run.stderr.read())


def test_sigterm_is_handled_like_ctrl_c(tmp_path):
    run = long_run(tmp_path)
    run.send_signal(signal.SIGTERM)
    _, error = run.communicate()
    assert run.returncode == 1
    assert error.strip().startswith("Stopped. All finished epochs are saved")


def test_closed_pipe_ends_the_run_silently(tmp_path):
    run = long_run(tmp_path)
    run.stdout.close()
    assert run.stderr.read() == ""
    assert run.wait() == 1


def test_interrupted_evaluation_makes_no_promise_about_epochs(monkeypatch):
    monkeypatch.setattr(main, "evaluate", Mock(side_effect=KeyboardInterrupt))
    assert exit_message("evaluate", "--checkpoint", main.WEIGHTS) == "\nStopped."


def test_python_without_the_packages(monkeypatch):
    error = ModuleNotFoundError(name="torch")
    monkeypatch.setattr(main, "evaluate", Mock(side_effect=error))
    message = exit_message("evaluate", "--checkpoint", main.WEIGHTS)
    assert "torch is not installed here: use .venv/bin/python" in message


def test_run_whose_pictures_cannot_be_saved_resumes_without_training(folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sessions, "show_results", lambda session, run: sys.exit(3))
        with pytest.raises(SystemExit):
            call(*TWO_EPOCHS)
    assert (folder / "weights.pt").exists()
    assert not (folder / "run.json").exists()
    monkeypatch.setattr(training, "train", lambda *_: pytest.fail("trained again"))
    call(*TWO_EPOCHS)
    assert (folder / "run.json").exists()


MEMORY = {
    "LR finder": (FIND_LR, "utils.schedule.LRFinder.range_test"),
    "training": (TWO_EPOCHS, "utils.training.train"),
}


@pytest.mark.parametrize("words, place", MEMORY.values(), ids=MEMORY)
def test_out_of_memory_names_a_smaller_batch(folder, monkeypatch, words, place):
    error = torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(place, Mock(side_effect=error))
    message = exit_message(*words, "--batch-size", "2")
    assert "out of memory with batches of 2 images: try 1" in message
    assert "--batch-size 1" in message


@pytest.mark.parametrize("name", ["half.png", "text.png", "no.png"])
def test_picture_that_cannot_be_classified(tmp_path, name):
    Image.new("RGB", (400, 400)).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:300])
    (tmp_path / "text.png").write_bytes(b"a horse")
    message = exit_message("classify", tmp_path / name)
    assert f"{name} cannot be read (" in message
    assert "give a PNG or JPEG file" in message


def test_checkpoint_serves_as_weights(trained):
    content = load_tensors(trained / "checkpoint.pt")
    assert content["network"] == {"class": "models.model9.TransformerModel", "arguments": {}}
