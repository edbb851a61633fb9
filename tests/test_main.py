"""The sessions from a terminal."""

import ast
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
from benchmarks.results import read
from tests.conftest import ROOT
from tests.small import FIND_LR, TWO_EPOCHS, call, exit_message, stop_in_the_second_epoch
from utils import sessions, training
from utils.errors import FileError, one_line_errors
from utils.runs.folder import RunFolder
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


FILES = {
    "checkpoint.pt",
    "history.csv",
    "lr_finder.json",
    "network.py",
    "plan.json",
    "run.json",
    "submission.md",
    "training_log.txt",
    "weights.pt",
}


def test_a_run_leaves_all_its_files(folder):
    call(*FIND_LR)
    names = {path.name for path in folder.iterdir()}
    pictures = {f"{name}.png" for name in SESSIONS[9].pictures}
    assert names >= FILES | pictures


def test_results_say_what_was_trained_on_what(trained):
    facts = facts_of(trained)
    assert facts["network"] == "TransformerModel()"
    assert facts["epochs"] == 2
    assert facts["data"] == "digits"
    assert facts["test_images"] == 24


def test_last_lines_are_the_results_and_their_place(folder, few_pictures, capsys):
    call(*TWO_EPOCHS)
    *_, accuracy, _, parameters, warning, submission, place = capsys.readouterr().out.splitlines()
    assert f"Test accuracy after epoch 2: {facts_of(folder)['test_accuracy']:.2f}%" in accuracy
    assert parameters.startswith("26,064 parameters")
    assert warning.startswith("**Do not hand this in")
    assert f"{folder}/submission.md" in submission
    assert place == f"Log, weights, pictures and submission.md: {folder}/"


def test_without_a_max_lr_the_lr_finder_chooses_it(folder, few_pictures):
    call(*FIND_LR)
    saved = json.loads((folder / "lr_finder.json").read_text("utf-8"))
    assert facts_of(folder)["max_lr"] == pytest.approx(saved["search"]["suggestion"])


def test_max_lr_that_is_given_needs_no_search(trained):
    assert facts_of(trained)["max_lr"] == pytest.approx(0.01)
    assert not (trained / "lr_finder.json").exists()


def test_options_change_the_recipe(folder, few_pictures):
    call(*TWO_EPOCHS, "--seed", "3", "--batch-size", "1")
    assert facts_of(folder)["seed"] == 3
    assert facts_of(folder)["batch_size"] == 1


def test_peak_of_the_learning_rate_moves_with_the_epochs(folder, few_pictures):
    """At the end of epoch 4 of 24, and so of epoch 2 of 12."""
    call("session9", "--data", "digits", "--max-lr", "0.01", "--epochs", "12")
    rates = [float(epoch["lr"]) for epoch in read(folder / "history.csv")]
    assert len(rates) == 12
    assert rates[1] == max(rates)


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
    earlier = (trained / "run.json").read_bytes()
    call(*TWO_EPOCHS)
    assert "session9-2/: it is finished." in capsys.readouterr().out
    assert (trained.with_name("session9-2") / "run.json").read_bytes() == earlier
    assert (trained / "run.json").exists()


def test_line_about_a_run_moved_aside_says_what_differs(folder, few_pictures, monkeypatch, capsys):
    stop_in_the_second_epoch(monkeypatch)
    call(*TWO_EPOCHS, "--seed", "1")
    shown = capsys.readouterr().out
    assert "session9-2/" in shown
    assert "recipe seed (0, now 1)" in shown
    assert "Resuming" not in shown


def test_evaluate_shows_the_accuracy_of_the_run(trained, capsys):
    capsys.readouterr()
    call("evaluate", "--data", "digits", "--checkpoint", trained / "weights.pt")
    accuracy = facts_of(trained)["test_accuracy"]
    assert capsys.readouterr().out.rstrip().endswith(f"({accuracy:.2f}%)")


def test_evaluate_takes_a_checkpoint_as_well(trained, capsys):
    capsys.readouterr()
    call("evaluate", "--data", "digits", "--checkpoint", trained / "checkpoint.pt")
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
    "unknown command": (["session6"], "invalid choice: 'session6'"),
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
    "batch size": (["--batch-size", "0"], "batch_size is 0"),
    "seed": (["--seed", "-1"], "seed is -1"),
    "max LR": (["--max-lr", "nan"], "max LR is nan"),
    "data": (["--data", ""], "the name of the images is empty"),
}


@pytest.mark.parametrize("words, message", WRONG_VALUES.values(), ids=WRONG_VALUES)
def test_values_out_of_range_get_one_line(folder, words, message):
    assert message in exit_message("session9", "--data", "digits", *words)
    assert not folder.exists()


def imported_by(code: str, *modules: str) -> list[str]:
    """Which of ``modules`` a new Python has imported after ``code``."""
    code += f"\nprint([name for name in {modules} if name in sys.modules])"
    command = [sys.executable, "-c", f"import sys\n{code}"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return ast.literal_eval(shown.splitlines()[-1])


@pytest.mark.parametrize("words", [["--help"], ["session9", "--help"], ["classify", "--help"]])
def test_help_comes_without_pytorch(words):
    code = f"import main\ntry: main.main({words})\nexcept SystemExit: pass"
    assert imported_by(code, "argparse", "torch", "numpy") == ["argparse"]


def test_training_starts_without_what_only_others_need():
    code = "import utils.sessions, utils.classify, utils.data\nutils.data.load_data('digits')"
    assert imported_by(code, "torch", "torchvision", "pytorch_grad_cam") == ["torch"]


@pytest.mark.parametrize("backend", ["bogus", "module://nothing.here"])
def test_pictures_do_not_depend_on_the_backend_for_windows(tmp_path, backend):
    """As MPLBACKEND or a matplotlibrc names it, for other programs."""
    settings = tmp_path / "matplotlibrc"
    settings.write_text("backend: module://nothing.here\n")
    code = (
        "import runpy, sys\n"
        "sys.argv = ['main.py', 'runs']\n"
        "runpy.run_path('main.py', run_name='__main__')\n"
        "from utils import plots\n"
        "plots.figure(1, 1, (1, 1), 'title')"
    )
    variables = {"MPLBACKEND": backend, "MATPLOTLIBRC": str(settings), "RUNS": str(tmp_path)}
    command = [sys.executable, "-c", code]
    subprocess.run(command, cwd=ROOT, env=os.environ | variables, check=True)


def printing(count: int) -> list[str]:
    """A command that prints so many characters as main.py does."""
    code = (
        "from utils.errors import one_line_errors\n"
        f"with one_line_errors('main.py'): print('x' * {count})"
    )
    return [sys.executable, "-c", code]


def test_standard_output_that_is_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with one_line_errors("main.py"):
        sys.stdout.write("as progress bars do")
    sys.stdout.close()


def test_standard_output_that_is_full():
    with open("/dev/full", "w") as full:
        done = subprocess.run(printing(1), cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == "main.py: standard output: No space left on device"


def test_standard_output_that_nobody_reads():
    reading_end, writing_end = os.pipe()
    os.close(reading_end)
    done = subprocess.run(
        printing(100_000), cwd=ROOT, stdout=writing_end, stderr=subprocess.PIPE, text=True
    )
    os.close(writing_end)
    assert done.returncode == 1
    assert done.stderr == ""


@pytest.fixture
def long_run(tmp_path):
    """A run in a process of its own, after its first epoch; too short a one to be compiled."""
    words = ["session9", "--data", "digits", "--epochs", "40", "--max-lr", "0.01"]
    run = subprocess.Popen(
        [sys.executable, "main.py", *words, "--device", "cpu"],
        cwd=ROOT,
        env=os.environ | {"RUNS": str(tmp_path), "EVA8_SMOKE": "0"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with run:
        for line in run.stdout:
            if line.startswith("Test set"):
                break
        yield run
        run.kill()  # if the test has failed, it would run on


def test_sigterm_is_handled_like_ctrl_c(long_run):
    long_run.send_signal(signal.SIGTERM)
    _, error = long_run.communicate()
    assert long_run.returncode == 1
    assert error.strip().startswith("Stopped. All finished epochs are saved")


def test_closed_pipe_ends_the_run_silently(long_run):
    """As in `main.py session9 | head`."""
    long_run.stdout.close()
    assert long_run.stderr.read() == ""
    assert long_run.wait() == 1


def test_interrupted_evaluation_makes_no_promise_about_epochs(monkeypatch):
    monkeypatch.setattr(main, "evaluate", Mock(side_effect=KeyboardInterrupt))
    assert exit_message("evaluate", "--checkpoint", main.WEIGHTS) == "\nStopped."


def test_python_without_the_packages(monkeypatch):
    error = ModuleNotFoundError(name="torch")
    monkeypatch.setattr(main, "evaluate", Mock(side_effect=error))
    message = exit_message("evaluate", "--checkpoint", main.WEIGHTS)
    assert "torch is not installed here: use .venv/bin/python" in message


@pytest.fixture
def without_pictures(folder, monkeypatch):
    """The folder of a run that was trained when its pictures could not be saved."""
    real = RunFolder.write

    def write(self, name, content):
        if name == "loss_and_accuracy_graphs.png":
            raise FileError(f"{name} cannot be written (No space left on device)")
        real(self, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write", write)
        message = exit_message(*TWO_EPOCHS)
    assert "graphs.png cannot be written" in message
    return folder


def test_run_whose_pictures_cannot_be_saved_is_unfinished(without_pictures):
    assert (without_pictures / "weights.pt").exists()
    assert not (without_pictures / "run.json").exists()


def test_run_whose_pictures_cannot_be_saved_resumes_without_training(
    without_pictures, few_pictures, monkeypatch
):
    monkeypatch.setattr(training, "train", Mock(side_effect=AssertionError("trained again")))
    call(*TWO_EPOCHS)
    assert (without_pictures / "run.json").exists()
    assert not without_pictures.with_name("session9-2").exists()


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
    assert ".replace(batch_size=1)" in message
    assert "--batch-size 1" in message


@pytest.mark.parametrize("name", ["half.png", "text.png", "no.png"])
def test_picture_that_cannot_be_classified(tmp_path, name):
    Image.new("RGB", (400, 400)).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:300])
    (tmp_path / "text.png").write_bytes(b"a horse")
    message = exit_message("classify", tmp_path / name)
    assert f"{name} cannot be read (" in message
    assert "give a PNG or JPEG file" in message
