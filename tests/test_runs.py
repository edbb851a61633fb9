"""An interrupted run resumes and ends as if it had not been interrupted; other runs are kept."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from accelerate.utils import set_seed

from models.model9 import TransformerModel
from tests.conftest import ROOT
from tests.small import DIGITS, small_run
from tests.terminal import TWO_EPOCHS, exit_message, interrupt_epoch
from utils import training
from utils.data import load_data, make_loaders
from utils.optimizers import adam
from utils.recipes import SESSION9
from utils.runs.folder import lock_folder
from utils.runs.run import SMOKE_SEARCH_STEPS, Run
from utils.schedule import find_lr, one_cycle
from utils.sessions import SESSIONS
from utils.system import device
from utils.system.device import make_accelerator, precision_of
from utils.system.files import load_tensors, save_tensors

RECIPE = replace(SESSION9, epochs=4, top_epoch=2, crop_padding=1).for_images(80)


def train(folder, random_state=0, precision="float32"):
    """Four epochs on a few digits; a checkpoint in ``folder`` is resumed."""
    run = small_run(folder, replace(RECIPE, precision=precision), load_data())
    torch.manual_seed(random_state)
    return run.model, run.fit(0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole"))


def test_a_run_computes_what_the_bare_functions_compute(tmp_path):
    """Bit for bit, although the run draws a batch of images first."""
    few = load_data()
    run = small_run(tmp_path / "run", RECIPE, few)
    assert run.sample[0].shape == (2, 3, 32, 32)  # 20 steps an epoch
    run.build()
    search, history = run.find_lr(), run.fit(0.01)

    recipe, accelerator = run.session.recipe, make_accelerator()
    set_seed(recipe.seed)
    loaders = make_loaders(few, recipe, accelerator.device)
    model = TransformerModel(a=8).to(accelerator.device).to(memory_format=torch.channels_last)
    optimizer = adam(model, recipe.weight_decay)
    assert find_lr(model, optimizer, loaders[0], accelerator, SMOKE_SEARCH_STEPS) == search
    scheduler = one_cycle(optimizer, 0.01, recipe, batches=len(loaders[0]))
    prepared, optimizer, *loaders = accelerator.prepare(model, optimizer, *loaders)
    bare = training.fit(prepared, optimizer, scheduler, loaders, recipe, accelerator)
    if accelerator.device.type != "cpu":
        pytest.skip("bit for bit is promised on the CPU only")
    assert (bare.train_loss, bare.test_loss) == (history.train_loss, history.test_loss)
    for name, value in model.state_dict().items():
        assert torch.equal(value, run.model.state_dict()[name]), name


KILLED = """
import os, signal, sys, torch
from pathlib import Path
import {module} as module
from tests.test_runs import train
real, calls = module.{name}, []
def deadly(*arguments, **options):
    calls.append(1)
    if len(calls) == {call}:
        {last_words}
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **options)
module.{name} = deadly
train(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("module, name, call, last_words", [
    ("utils.training", "F.cross_entropy", 50, "pass"),  # a step of epoch 3: each epoch has 20 steps and one test
    ("utils.system.files", "os.replace", 8, "arguments[0].write_bytes(b'half')"),  # the third save
], ids=["in an epoch", "in a save"])  # fmt: skip
def test_sigkill(tmp_path, whole, capsys, module, name, call, last_words):
    code = KILLED.format(module=module, name=name, call=call, last_words=last_words)
    killed = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, stdout=subprocess.DEVNULL)
    assert killed.returncode == -signal.SIGKILL
    assert len(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["history"]["lr"]) == 2
    for half in tmp_path.glob(".*.part"):
        half.unlink()
    model, history = train(tmp_path, random_state=7)  # nothing may depend on the earlier state
    if next(model.parameters()).device.type != "cpu":
        pytest.skip("bit for bit is promised on the CPU only")
    for weight, value in whole[0].state_dict().items():
        assert torch.equal(value, model.state_dict()[weight]), weight
    for measure in ("lr", "step_lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy"):
        assert getattr(history, measure) == getattr(whole[1], measure), measure
    shown = [line.split("\r")[-1] for line in capsys.readouterr().out.split("\n")]  # a progress bar overwrites itself
    log = (tmp_path / "training_log.txt").read_text("utf-8").splitlines()
    assert [line for line in shown if line.startswith(("EPOCH", "Test set"))] == history.log == log
    assert len(log) == len((tmp_path / "history.csv").read_text("utf-8").splitlines()) * 2 - 2 == 8
    assert not list(tmp_path.glob("*.part"))


def test_a_resumed_run_keeps_its_precision(tmp_path, monkeypatch):
    """A run that started in bfloat16 stays in it, even on a CPU where float32 is faster."""
    here = precision_of(make_accelerator())
    other = "float32" if here == "bfloat16" else "bfloat16"
    with monkeypatch.context() as patch:
        patch.setattr(device, "fast_precision", lambda device: other)
        whole, _ = train(tmp_path / "whole", precision="auto")
        interrupt_epoch(3, patch)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "halves", precision="auto")
    halves, _ = train(tmp_path / "halves", precision="auto")
    assert load_tensors(tmp_path / "halves/checkpoint.pt")["precision"] == other
    for name, value in whole.state_dict().items():
        assert torch.equal(value, halves.state_dict()[name]), name
    assert precision_of(make_accelerator()) == here


start = partial(Run.open, SESSIONS[9], epochs=4)


@pytest.fixture
def in_runs(full, tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS", str(tmp_path))
    return tmp_path / "session9"


def test_an_unfinished_run_of_the_same_plan_is_resumed(in_runs):
    start(data=DIGITS)
    save_tensors(in_runs / "checkpoint.pt", {"precision": "float32"})
    (in_runs / ".checkpoint.pt.123.part").touch()
    start(data=DIGITS)
    assert {path.name for path in in_runs.iterdir()} == {"plan.json", "checkpoint.pt"}
    assert [path.name for path in in_runs.parent.glob("[!.]*")] == ["session9"]


@pytest.mark.parametrize("change, data, seed", [
    ("true", DIGITS, 1), ("true", replace(DIGITS, name="photos"), 0), ("touch run.json", DIGITS, 0),
    ("rm plan.json", DIGITS, 0),
], ids=["recipe", "data", "finished", "no plan"])  # fmt: skip
def test_any_other_run_is_moved_aside(in_runs, capsys, change, data, seed):
    start(data=DIGITS)
    (in_runs / "checkpoint.pt").write_bytes(b"weights")
    subprocess.run(change.split(), cwd=in_runs, check=True)
    start(data=data, seed=seed)
    assert [path.name for path in in_runs.iterdir()] == ["plan.json"]
    assert json.loads((in_runs / "plan.json").read_text())["recipe"]["seed"] == seed
    (aside,) = (path for path in in_runs.parent.glob("[!.]*") if path != in_runs)
    assert (aside / "checkpoint.pt").read_bytes() == b"weights"
    assert f"moved to {aside}/" in capsys.readouterr().out


LOCKS_FOLDER = """
import sys, time
from pathlib import Path
from utils.runs.folder import lock_folder
lock_folder(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(60)
"""


def test_two_runs_in_one_folder(folder):
    other = subprocess.Popen([sys.executable, "-c", LOCKS_FOLDER, folder], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "locked\n"
    shown = exit_message(*TWO_EPOCHS)
    other.kill()
    other.communicate()
    assert "session9 is in use by another notebook or terminal: end that one" in shown and not folder.exists()
    lock_folder(folder)  # the lock of a killed process is released


def test_folder_that_cannot_be_locked_or_created(folder, monkeypatch):
    def no_locks(*_, **__):
        raise OSError(38, "Function not implemented")

    with monkeypatch.context() as patch:
        patch.setattr("utils.runs.folder.FileLock.acquire", no_locks)
        told = ".session9.lock cannot be locked ([Errno 38] Function not implemented): set RUNS"
        assert told in exit_message(*TWO_EPOCHS)
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.parent.write_text("a file stands where the folder should")
    assert "session9 cannot be created (" in exit_message(*TWO_EPOCHS)
