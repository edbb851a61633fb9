"""An interrupted run resumes and ends as if it had not been interrupted; other runs are kept."""

import itertools
import json
import os
import shutil
import signal
import subprocess
from dataclasses import replace
from functools import partial
from unittest.mock import Mock

import pytest
import torch
from accelerate.utils import set_seed
from filelock import FileLock
from torch.nn import functional

from models.model9 import TransformerModel
from tests.small import DIGITS, PROCESSES, TWO_EPOCHS, exit_message, interrupt_epoch, small_run
from utils import training
from utils.data import load_data, make_loaders
from utils.optimizers import adam
from utils.recipes import SESSION9
from utils.runs.folder import lock_folder
from utils.runs.run import SMOKE_SEARCH_STEPS, Run
from utils.schedule import find_lr, one_cycle
from utils.sessions import SESSIONS
from utils import device
from utils.device import make_accelerator, precision_of
from utils.files import load_tensors, save_tensors

RECIPE = replace(SESSION9, epochs=4, top_epoch=2, crop_padding=1).for_images(80)


def train(folder, random_state=0, precision="float32"):
    """Four epochs on a few digits and on the CPU; a checkpoint in ``folder`` is resumed."""
    run = small_run(folder, replace(RECIPE, precision=precision), load_data(), cpu=True)
    torch.manual_seed(random_state)
    return run.model, run.fit(0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole"))


def test_a_run_computes_what_the_bare_functions_compute(tmp_path):
    """Bit for bit, although the run draws a batch of images first."""
    few = load_data()
    run = small_run(tmp_path / "run", RECIPE, few, cpu=True)
    assert run.sample[0].shape == (2, 3, 32, 32)  # 20 steps an epoch
    run.build()
    search, history = run.find_lr(), run.fit(0.01)

    recipe, accelerator = run.session.recipe, make_accelerator(cpu=True)
    set_seed(recipe.seed)
    loaders = make_loaders(few, recipe, accelerator.device)
    model = TransformerModel(a=8).to(memory_format=torch.channels_last)
    optimizer = adam(model, recipe.weight_decay)
    assert find_lr(model, optimizer, loaders[0], accelerator, SMOKE_SEARCH_STEPS) == search
    scheduler = one_cycle(optimizer, 0.01, recipe, batches=len(loaders[0]))
    prepared, optimizer, *loaders = accelerator.prepare(model, optimizer, *loaders)
    bare = training.fit(prepared, optimizer, scheduler, loaders, recipe, accelerator)
    assert (bare.train_loss, bare.test_loss) == (history.train_loss, history.test_loss)
    torch.testing.assert_close(model.state_dict(), run.model.state_dict(), rtol=0, atol=0)


def train_and_die(folder, name, call):
    """Train until the given call of ``cross_entropy`` or, when half of a file is written, of ``os.replace``."""
    module = os if name == "replace" else functional
    real, calls = getattr(module, name), itertools.count(1)

    def deadly(*arguments, **options):
        if next(calls) == call:
            if name == "replace":
                arguments[0].write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    setattr(module, name, deadly)
    train(folder)


@pytest.mark.parametrize("name, call", [
    ("cross_entropy", 50),  # in a step of epoch 3: each epoch has 20 steps and one test
    ("replace", 8),  # in the third save
])  # fmt: skip
def test_sigkill(tmp_path, whole, capsys, name, call):
    killed = PROCESSES.Process(target=train_and_die, args=(tmp_path, name, call))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert len(load_tensors(tmp_path / "checkpoint.pt")["history"]["lr"]) == 2
    model, history = train(tmp_path, random_state=7)  # nothing may depend on the earlier state
    torch.testing.assert_close(model.state_dict(), whole[0].state_dict(), rtol=0, atol=0)
    for measure in ("lr", "step_lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy"):
        assert getattr(history, measure) == getattr(whole[1], measure), measure
    shown = [line.split("\r")[-1] for line in capsys.readouterr().out.split("\n")]  # a progress bar overwrites itself
    log = (tmp_path / "training_log.txt").read_text("utf-8").splitlines()
    assert [line for line in shown if line.startswith(("EPOCH", "Test set"))] == history.log == log
    assert len(log) == len((tmp_path / "history.csv").read_text("utf-8").splitlines()) * 2 - 2 == 8
    assert not list(tmp_path.glob(".*.part"))


def test_a_resumed_run_keeps_its_precision(tmp_path, monkeypatch):
    """A run that started in bfloat16 stays in it, even on a CPU where float32 is faster."""
    monkeypatch.setattr(device, "fast_precision", lambda device: "bfloat16")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_epoch(2, patch)
        train(tmp_path, precision="auto")
    monkeypatch.setattr(device, "fast_precision", lambda device: "float32")
    train(tmp_path, precision="auto")
    assert load_tensors(tmp_path / "checkpoint.pt")["precision"] == "bfloat16"
    assert precision_of(make_accelerator()) == "float32"


start = partial(Run.open, SESSIONS[9], epochs=4)


def test_an_unfinished_run_of_the_same_plan_is_resumed(folder):
    start(data=DIGITS)
    save_tensors(folder / "checkpoint.pt", {"precision": "float32"})
    (folder / ".checkpoint.pt.123.part").touch()
    start(data=DIGITS)
    assert {path.name for path in folder.iterdir()} == {"plan.json", "checkpoint.pt"}
    assert [path.name for path in folder.parent.glob("[!.]*")] == ["session9"]


@pytest.mark.parametrize("change, data, seed", [
    ("true", DIGITS, 1), ("true", replace(DIGITS, name="photos"), 0), ("touch run.json", DIGITS, 0),
    ("rm plan.json", DIGITS, 0),
], ids=["recipe", "data", "finished", "no plan"])  # fmt: skip
def test_any_other_run_is_moved_aside(folder, capsys, change, data, seed):
    start(data=DIGITS)
    (folder / "checkpoint.pt").write_bytes(b"weights")
    subprocess.run(change.split(), cwd=folder, check=True)
    start(data=data, seed=seed)
    assert [path.name for path in folder.iterdir()] == ["plan.json"]
    assert json.loads((folder / "plan.json").read_text())["recipe"]["seed"] == seed
    (aside,) = (path for path in folder.parent.glob("[!.]*") if path != folder)
    assert (aside / "checkpoint.pt").read_bytes() == b"weights"
    assert f"moved to {aside}/" in capsys.readouterr().out


def test_two_runs_in_one_folder(folder):
    folder.parent.mkdir()
    with FileLock(folder.with_name(".session9.lock")):
        told = "session9 is in use by another notebook or terminal: end that one"
        assert told in exit_message(*TWO_EPOCHS) and not folder.exists()
    lock_folder(folder)


def test_folder_that_cannot_be_locked_or_created(folder, monkeypatch):
    no_locks = Mock(side_effect=OSError(38, "Function not implemented"))
    with monkeypatch.context() as patch:
        patch.setattr("utils.runs.folder.FileLock.acquire", no_locks)
        told = ".session9.lock cannot be locked ([Errno 38] Function not implemented): set RUNS"
        assert told in exit_message(*TWO_EPOCHS)
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.parent.write_text("a file stands where the folder should")
    assert "session9 cannot be created (" in exit_message(*TWO_EPOCHS)
