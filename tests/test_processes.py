"""Several processes train one network, here two on one CPU, as on two machines without a common folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import PartialState

from models.model9 import TransformerModel
from tests.conftest import ROOT
from tests.small import DIGITS, save_weights
from utils.system.device import make_accelerator, precision_of
from utils.system.errors import TrainingError

# What every process does; {more} is inserted before the training. Session 9's small network, without pictures, is fast.
SCRIPT = """
import os, sys
rank = int(os.environ.get("RANK", 0))
folder = os.environ["RUNS"]
os.environ["RUNS"] += "/other machine" * rank
import torch
from dataclasses import replace
from functools import partial
from pathlib import Path
torch.set_num_threads(1)
import main
from models.model9 import TransformerModel
from utils import sessions, training
from utils.runs import run as runs
sessions.SESSIONS[9] = replace(sessions.SESSIONS[9], network=partial(TransformerModel, a=8), pictures={{}})
fit = runs.fit
def fit_and_save(model, *arguments):
    history = fit(model, *arguments)
    saved = {{"model": model.state_dict(), "test_loss": history.test_loss, "train_loss": history.train_loss}}
    torch.save(saved | {{"seed": torch.initial_seed()}}, Path(folder) / f"process{{rank}}.pt")
    return history
runs.fit = fit_and_save
{more}
main.main()
"""
EPOCHS = 3
OPTIONS = ("session9", "--data", "digits", "--epochs", str(EPOCHS), "--precision", "float32")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def launch(folder: Path, *launcher: str, more: str = "", check: bool = True) -> subprocess.CompletedProcess:
    script = folder / "script.py"
    script.write_text(SCRIPT.format(more=more))
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "EVA8_SMOKE": "0", "RUNS": str(folder)}
    environment["CUDA_VISIBLE_DEVICES"] = ""  # without a GPU, the README's command uses the CPU by itself
    return subprocess.run(
        [*launcher, script, *OPTIONS, "--batch-size", "70"], cwd=ROOT, check=check, capture_output=True, text=True,
        timeout=240, env=os.environ | environment,
    )  # fmt: skip


def saved_by(folder: Path, rank: int) -> dict:
    return torch.load(folder / f"process{rank}.pt", weights_only=True)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    return folder, launch(folder, *TORCHRUN, "2")


def test_every_process_ends_with_the_same_network(two):
    folder, _ = two
    first, second = (saved_by(folder, rank) for rank in (0, 1))
    assert first["test_loss"] == second["test_loss"]
    for name, value in first["model"].items():
        assert torch.equal(value, second["model"][name]), name
    assert first["seed"] != second["seed"]  # each draws its own augmentation


def test_only_the_first_process_prints_and_writes_and_each_test_image_counts_once(two):
    folder, printed = two
    shown = printed.stdout
    assert shown.count("Test set: ") == shown.count("/360 (") == EPOCHS
    assert shown.count(f"Test accuracy after epoch {EPOCHS}") == 1
    facts = json.loads((folder / "session9/run.json").read_text())
    assert facts["hardware"].startswith("2 × ") and facts["batch_size"] == 70 and facts["test_accuracy"] > 20
    assert len((folder / "session9/training_log.txt").read_text().splitlines()) == 2 * EPOCHS
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["session9"]  # nothing on the other machine


DIES = """
real = training.train
def train(*arguments):
    if rank == 1 and arguments[-1] == 2:
        os._exit(3)
    return real(*arguments)
training.train = train
"""


def test_a_process_that_dies_ends_the_run_which_can_be_resumed(two, tmp_path):
    ended = launch(tmp_path, *TORCHRUN, "2", more=DIES, check=False)
    assert ended.returncode != 0
    log = (tmp_path / "session9/training_log.txt").read_text()
    assert len(log.splitlines()) == 2  # of the epoch that all processes had finished
    assert not (tmp_path / "session9/run.json").exists()
    # Each process draws its own augmentation, and all draw the same order of the images, as without the interruption.
    resumed = launch(tmp_path, *TORCHRUN, "2")
    assert "Resuming after epoch 1:" in resumed.stdout
    for rank in (0, 1):
        never_stopped, stopped = saved_by(two[0], rank), saved_by(tmp_path, rank)
        assert stopped["train_loss"] == never_stopped["train_loss"]
        for name, value in never_stopped["model"].items():
            assert torch.equal(value, stopped["model"][name]), name


def test_evaluation_with_three_processes(tmp_path):
    """Batches of 512 are not divisible by three."""
    save_weights(tmp_path / "weights.pt", TransformerModel(), 9, DIGITS)
    command = [*TORCHRUN, "3", "main.py", "evaluate", "--data", "digits", "--checkpoint", tmp_path / "weights.pt"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stdout.count("Test set: ") == 1 and "/360 (" in done.stdout, done.stderr


def test_incomplete_variables_of_a_launcher(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    PartialState._reset_state()
    with pytest.raises(TrainingError, match="variables of a launcher, such as LOCAL_RANK, are incomplete"):
        make_accelerator(cpu=True)


def test_environment_and_earlier_runs_do_not_change_the_training(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    accelerator = make_accelerator(cpu=True, precision="float32")
    assert accelerator.gradient_accumulation_steps == 1 and precision_of(accelerator) == "float32"
    PartialState._shared_state["device"] = torch.device("meta")  # as if it were a GPU
    assert make_accelerator(cpu=True).device.type == "cpu"
