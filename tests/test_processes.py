"""Several processes train one network, here on one CPU, as on machines without a common folder."""

import json
import os
import socket
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import PartialState

import main
from models.model9 import TransformerModel
from tests.small import DIGITS, PROCESSES, save_weights
from utils import data, training
from utils.runs.run import Run
from utils.sessions import SESSIONS
from utils.device import make_accelerator, precision_of
from utils.errors import TrainingError

EPOCHS = 3
TRAIN = ("session9", "--data", "digits", "--epochs", str(EPOCHS), "--precision", "float32", "--batch-size", "8")


def work(rank: int, count: int, port: int, folder: Path, words: tuple[str, ...], dies: bool) -> None:
    """What torchrun starts: main.py without a GPU on 40 digits, here with session 9's small network and no pictures."""
    launcher = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in launcher.items()}
    os.environ |= {"EVA8_SMOKE": "0", "RUNS": str(folder / f"machine{rank}"), "CUDA_VISIBLE_DEVICES": ""}
    torch.set_num_threads(1)
    sys.stdout = open(folder / f"printed{rank}.txt", "w")  # noqa: SIM115
    data.load_digits = partial(data.load_digits, 40, 25)
    SESSIONS[9] = replace(SESSIONS[9], network=partial(TransformerModel, a=8), pictures=())
    fit, train = Run.fit, training.train

    def fit_and_save(run: Run, max_lr: float) -> None:
        measured = vars(fit(run, max_lr))
        saved = {name: measured[name] for name in ("train_loss", "test_loss")} | {"seed": torch.initial_seed()}
        torch.save(saved | {"model": run.model.state_dict()}, folder / f"process{rank}.pt")

    def train_or_die(*arguments):
        if dies and rank == 1 and arguments[-1] == 2:
            os._exit(3)
        return train(*arguments)

    Run.fit, training.train = fit_and_save, train_or_die
    main.main(list(words))
    assert not torch.distributed.is_initialized()


def launch(folder: Path, *words: str, count: int = 2, dies: bool = False) -> list[str]:
    """Run main.py in ``count`` processes; returns what each of them printed."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    processes = [PROCESSES.Process(target=work, args=(rank, count, port, folder, words, dies)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode != 0 for process in processes] == [dies] * count
    return [(folder / f"printed{rank}.txt").read_text() for rank in range(count)]


def saved_by(folder: Path, rank: int) -> dict:
    return torch.load(folder / f"process{rank}.pt", weights_only=True)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    return folder, launch(folder, *TRAIN)


def test_every_process_ends_with_the_same_network_and_the_first_one_prints_and_writes(two):
    folder, (shown, nothing) = two
    first, second = (saved_by(folder, rank) for rank in (0, 1))
    assert first["seed"] != second["seed"]  # each draws its own augmentation
    assert first["test_loss"] == second["test_loss"]
    torch.testing.assert_close(first["model"], second["model"], rtol=0, atol=0)
    assert shown.count("Test set: ") == shown.count("/25 (") == EPOCHS and nothing == ""  # each image counts once
    assert shown.count(f"Test accuracy after epoch {EPOCHS}") == 1
    facts = json.loads((folder / "machine0/session9/run.json").read_text())
    assert facts["hardware"].startswith("2 × ") and facts["batch_size"] == 8
    assert not (folder / "machine1").exists()


def test_a_process_that_dies_ends_the_run_which_can_be_resumed(two, tmp_path):
    """All draw the same order of the images, and each its own augmentation, as without the interruption."""
    launch(tmp_path, *TRAIN, dies=True)
    log = (tmp_path / "machine0/session9/training_log.txt").read_text()
    assert len(log.splitlines()) == 2  # of the epoch that all processes had finished
    assert not (tmp_path / "machine0/session9/run.json").exists()
    assert "Resuming after epoch 1:" in launch(tmp_path, *TRAIN)[0]
    for rank in (0, 1):
        never_stopped, stopped = saved_by(two[0], rank), saved_by(tmp_path, rank)
        assert stopped["train_loss"] == never_stopped["train_loss"]
        torch.testing.assert_close(stopped["model"], never_stopped["model"], rtol=0, atol=0)


def test_evaluation_with_three_processes(tmp_path):
    """Batches of 512 are not divisible by three."""
    save_weights(tmp_path / "weights.pt", TransformerModel(a=8), 9, DIGITS)
    words = ("evaluate", "--data", "digits", "--checkpoint", str(tmp_path / "weights.pt"))
    shown = "".join(launch(tmp_path, *words, count=3))
    assert shown.count("Test set: ") == shown.count("/25 (") == 1


def test_incomplete_variables_of_a_launcher(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(TrainingError, match="variables of a launcher, such as LOCAL_RANK, are incomplete"):
        make_accelerator(cpu=True)


def test_environment_and_earlier_runs_do_not_change_the_training(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    accelerator = make_accelerator(cpu=True, precision="float32")
    assert accelerator.gradient_accumulation_steps == 1 and precision_of(accelerator) == "float32"
    PartialState._shared_state["device"] = torch.device("meta")  # as if it were a GPU
    assert make_accelerator(cpu=True).device.type == "cpu"
