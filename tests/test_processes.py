"""Several processes train one network, here on two shares of the CPU: for those `accelerate launch` asks for MPI,
so PyTorch's own launcher, which it uses for GPUs, starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
# What every process does; {more} goes in before the training.
SCRIPT = """
import os, sys, torch
from pathlib import Path
torch.set_num_threads(1)
import main
from utils import runs, sessions, training
runs.RUNS = Path(sys.argv.pop())
runs.SMOKE = False
fit, rank = training.fit, int(os.environ.get("RANK", 0))
def fit_and_tell(model, *arguments):
    history = fit(model, *arguments)
    torch.save({{"model": model.state_dict(), "test_loss": history.test_loss}}, runs.RUNS / f"process{{rank}}.pt")
    return history
training.fit = fit_and_tell
{more}
main.main()
"""
EPOCHS = ("--data", "digits", "--device", "cpu", "--epochs", "24", "--max-lr", "0.02", "--batch-size", "70")


def launch(folder: Path, processes: int, more: str = "", check: bool = True) -> subprocess.CompletedProcess:
    script = folder / "script.py"
    script.write_text(SCRIPT.format(more=more))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [*launcher, script, "session9", *EPOCHS, folder], cwd=ROOT, check=check, capture_output=True, text=True,
        timeout=240, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    return folder, launch(folder, 2)


def test_every_process_ends_with_the_same_network(two):
    folder, _ = two
    first, second = (torch.load(folder / f"process{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["test_loss"] == second["test_loss"]
    for name, value in first["model"].items():
        assert torch.equal(value, second["model"][name]), name


def test_the_first_process_alone_speaks_and_writes(two):
    folder, told = two
    assert told.stdout.count("Test set: ") == 24 and told.stdout.count("Test accuracy after epoch 24") == 1
    facts = json.loads((folder / "session9/run.json").read_text())
    assert facts["hardware"].startswith("2 × ") and facts["batch_size"] == 70
    assert len((folder / "session9/training_log.txt").read_text().splitlines()) == 48
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["session9"]


def test_each_test_image_counts_once(two):
    _, told = two
    assert told.stdout.count("/360 (") == 24


def test_two_processes_learn_what_one_learns(two, tmp_path):
    launch(tmp_path, 1)
    accuracies = [
        json.loads((folder / "session9/run.json").read_text())["test_accuracy"] for folder in (two[0], tmp_path)
    ]
    print(accuracies)
    assert min(accuracies) > 60 and abs(accuracies[0] - accuracies[1]) < 20, accuracies


def test_a_process_that_dies_ends_the_run(tmp_path):
    dies = """
real = training.train
def train(*arguments):
    if rank == 1 and arguments[-1] == 2:
        os._exit(3)
    return real(*arguments)
training.train = train
"""
    ended = launch(tmp_path, 2, dies, check=False)
    assert ended.returncode != 0
    log = (tmp_path / "session9/training_log.txt").read_text()
    assert len(log.splitlines()) == 2  # the epoch that all had finished
    assert not (tmp_path / "session9/run.json").exists()
