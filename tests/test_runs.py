"""A run that was cut off, however rudely, goes on and ends as if it had not been; other runs are kept."""

import json
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from accelerate.utils import set_seed

from models.model9 import TransformerModel
from tests.terminal import TWO_EPOCHS, call, refused, stop_in_the_second_epoch
from utils import recipes, runs, training
from utils.data import load_data
from utils.device import make_accelerator, precision_of
from utils.files import load_tensors
from utils.loaders import make_loaders
from utils.recipes import SESSION9

ROOT = Path(__file__).parents[1]
RECIPE = replace(SESSION9, epochs=4, top_epoch=2, crop_padding=1).for_images(80)


def run(folder, seed=0):
    """Four epochs on a few digits; the checkpoint that ``folder`` may hold is used."""
    data, accelerator = load_data(), make_accelerator()
    set_seed(seed)
    loaders = make_loaders(data, RECIPE, accelerator.device)
    model = TransformerModel(a=8).to(accelerator.device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters())
    history = training.fit(model, optimizer, loaders, RECIPE, 0.01, accelerator, folder)
    return model, history


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"))


def assert_as_if_never_stopped(folder, whole, capsys):
    model, history = run(folder, seed=7)  # nothing may depend on the state before
    if next(model.parameters()).device.type != "cpu":
        pytest.skip("bit for bit is promised on the CPU only")
    for name, value in whole[0].state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    for name in ("lr", "step_lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy"):
        assert getattr(history, name) == getattr(whole[1], name), name
    shown = [line.split("\r")[-1] for line in capsys.readouterr().out.split("\n")]  # a bar is overwritten in the end
    assert (
        [line for line in shown if line.startswith(("EPOCH", "Test set"))]
        == history.log
        == (folder / "training_log.txt").read_text("utf-8").splitlines()
    )
    assert len(history.log) == len((folder / "history.csv").read_text("utf-8").splitlines()) * 2 - 2 == 8
    assert not list(folder.glob("*.part"))


def test_stop_after_two_epochs(tmp_path, whole, monkeypatch, capsys):
    real = training.train

    def stop_at_the_third_epoch(*arguments):
        if arguments[-1] == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, "train", stop_at_the_third_epoch)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    capsys.readouterr()
    assert_as_if_never_stopped(tmp_path, whole, capsys)


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from tests.test_runs import run
from utils import {module}
real, calls = {module}.{name}, []
def deadly(*arguments, **options):
    calls.append(1)
    if len(calls) == {call}:
        {last_words}
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **options)
{module}.{name} = deadly
run(Path(sys.argv[1]))
"""


@pytest.mark.parametrize(
    "patch",
    [
        # a step of epoch 3: each epoch takes 20 steps and one look at the test set
        {"module": "training", "name": "F.cross_entropy", "call": 50, "last_words": "pass"},
        # the third save, of which half a file has come to disk
        {"module": "files", "name": "os.replace", "call": 7, "last_words": "arguments[0].write_bytes(b'half')"},
    ],
    ids=["in an epoch", "in a save"],
)
def test_sigkill(tmp_path, whole, patch, capsys):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED.format(**patch), tmp_path], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    assert killed.returncode == -signal.SIGKILL
    assert len(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["history"]["lr"]) == 2
    for half in tmp_path.glob(".*.part"):
        half.unlink()
    assert_as_if_never_stopped(tmp_path, whole, capsys)


def test_a_resumed_run_keeps_its_precision(tmp_path, capsys):
    """As one that began on a CPU with bfloat16 and is resumed, by itself, on one where float32 is the faster."""
    here = precision_of(make_accelerator())
    other = "float32" if here == "bfloat16" else "bfloat16"
    data, results = load_data(), []
    for name, precision, epochs in (("whole", other, 2), ("halves", other, 1), ("halves", "auto", 2)):
        (tmp_path / name).mkdir(exist_ok=True)
        recipe = replace(RECIPE, epochs=epochs, precision=precision)
        set_seed(0)
        accelerator = make_accelerator()
        loaders = make_loaders(data, recipe, accelerator.device)
        model = TransformerModel(a=8).to(accelerator.device, memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(model.parameters())
        with pytest.MonkeyPatch.context() as patch:  # two epochs' schedule, of which the first half is one epoch
            patch.setattr(
                training, "one_cycle", lambda optimizer, *_, **__: torch.optim.lr_scheduler.LinearLR(optimizer)
            )
            training.fit(model, optimizer, loaders, recipe, 0.01, accelerator, tmp_path / name)
        assert precision_of(accelerator) == other
        assert load_tensors(tmp_path / name / "checkpoint.pt")["precision"] == other
        results.append(model.state_dict())
    for name, value in results[0].items():
        assert torch.equal(value, results[2][name]), name
    assert precision_of(make_accelerator()) == here


def test_settings_are_read_when_asked(monkeypatch, tmp_path):
    """A cell that sets RUNS after the imports is obeyed."""
    monkeypatch.setenv("RUNS", str(tmp_path))
    assert runs.run_folder("session9") == tmp_path / "smoke/session9" and recipes.SMOKE
    monkeypatch.setenv("EVA8_SMOKE", "0")
    assert runs.run_folder("session9") == tmp_path / "session9" and not recipes.SMOKE


@pytest.fixture
def in_runs(full, tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS", str(tmp_path))
    return tmp_path / "session9"


def test_an_unfinished_run_of_the_same_plan_goes_on(in_runs):
    data = load_data("digits")
    assert runs.start_run(RECIPE, data) == in_runs
    for name in ("checkpoint.pt", ".checkpoint.pt.123.part"):
        (in_runs / name).touch()
    assert runs.start_run(RECIPE, data) == in_runs
    assert {path.name for path in in_runs.iterdir()} == {"plan.json", "checkpoint.pt"}
    assert [path.name for path in in_runs.parent.glob("[!.]*")] == ["session9"]


@pytest.mark.parametrize("difference", ["recipe", "data", "finished", "no plan"])
def test_any_other_run_is_moved_aside(in_runs, difference, capsys):
    data = load_data("digits")
    runs.start_run(RECIPE, data)
    (in_runs / "checkpoint.pt").write_bytes(b"weights")
    if difference == "finished":
        (in_runs / "run.json").touch()
    if difference == "no plan":
        (in_runs / "plan.json").unlink()
    recipe = replace(RECIPE, seed=1) if difference == "recipe" else RECIPE
    runs.start_run(recipe, replace(data, name="photos") if difference == "data" else data)
    assert [path.name for path in in_runs.iterdir()] == ["plan.json"]
    assert json.loads((in_runs / "plan.json").read_text())["recipe"] == asdict(recipe)
    (aside,) = (path for path in in_runs.parent.glob("[!.]*") if path != in_runs)
    assert (aside / "checkpoint.pt").read_bytes() == b"weights"
    assert f"moved to {aside}/" in capsys.readouterr().out


HOLDS = """
import sys, time
from pathlib import Path
from utils.runs import hold
hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_two_runs_in_one_folder(folder, monkeypatch):
    other = subprocess.Popen([sys.executable, "-c", HOLDS, folder], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    try:
        shown = refused(*TWO_EPOCHS)
        assert "session9 is in use by another notebook or terminal: end that one" in shown and not folder.exists()
    finally:
        other.kill()
        other.communicate()
    runs.hold(folder)  # a process that was killed holds nothing


def test_runs_that_is_no_folder(folder, monkeypatch):
    folder.parent.write_text("a file stands where the folder should")
    assert "session9 cannot be made (" in refused(*TWO_EPOCHS)


def test_damaged_plan_counts_as_another_run(folder, monkeypatch, capsys):
    stop_in_the_second_epoch(monkeypatch)
    (folder / "plan.json").write_text('{"recipe": ')
    checkpoint = (folder / "checkpoint.pt").read_bytes()
    call(*TWO_EPOCHS)
    (aside,) = folder.parent.glob("session9-*")
    assert (aside / "checkpoint.pt").read_bytes() == checkpoint and f"moved to {aside}/" in capsys.readouterr().out
