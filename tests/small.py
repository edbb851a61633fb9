"""Runs of a few seconds, from Python and, by main.py, as from a terminal."""

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

import main
from models.model9 import TransformerModel
from utils import training
from utils.data import ImageData, load_data, make_loaders, train_transform
from utils.files import as_bytes
from utils.optimizers import adam
from utils.recipes import SESSION9, Recipe
from utils.runs.checkpoint import network_content
from utils.runs.plan import NetworkInfo
from utils.runs.run import Run
from utils.schedule import one_cycle
from utils.training import History

DIGITS = load_data("digits")
FEW_DIGITS = load_data()  # smoke mode's 40 training and 24 test images: 20 steps an epoch

# New processes, which find PyTorch imported.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["sklearn.model_selection", "torch._dynamo", "utils.runs.run"])

RECIPE = SESSION9.replace(epochs=2, precision="float32")
SMALL = partial(TransformerModel, a=8)

# Command lines of a few seconds; with the first one, the LR finder chooses the max LR.
FIND_LR = ("session9", "--data", "digits", "--epochs", "2")
TWO_EPOCHS = (*FIND_LR, "--max-lr", "0.01")


@dataclass
class Cells:
    """The objects that a notebook's cells make for a run, and the cells themselves as methods."""

    run: Run
    train_loader: DataLoader
    test_loader: DataLoader
    model: nn.Module
    criterion: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler | None = None

    def make_schedule(self, max_lr: float = 0.01) -> None:
        steps = len(self.train_loader)
        self.scheduler = one_cycle(self.optimizer, max_lr, self.run.recipe, steps)

    def fit(self) -> History:
        """``run.fit`` with the objects as they are."""
        return self.run.fit(
            self.model,
            self.criterion,
            self.optimizer,
            self.scheduler,
            self.train_loader,
            self.test_loader,
        )

    def train(self, max_lr: float = 0.01) -> History:
        """The training cell of the notebook: a new schedule, then ``fit``."""
        self.make_schedule(max_lr)
        return self.fit()


def cells_of(
    folder: Path,
    recipe: Recipe = RECIPE,
    data: ImageData = FEW_DIGITS,
    network: Callable[[], nn.Module] = SMALL,
    optimizer: Callable[[nn.Module, float], Optimizer] = adam,
) -> Cells:
    """A run on the CPU whose cells were executed up to the training; files go to ``folder``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNS", str(folder.parent))
        patch.setenv("EVA8_SMOKE", "0")
        run = Run.open(folder.name, recipe, data, cpu=True)
    transform = train_transform(run.recipe, data)
    loaders = make_loaders(data, transform, run.recipe.batch_size, run.device)
    model = run.build(network)
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    return Cells(run, *loaders, model, criterion, optimizer(model, recipe.weight_decay))


def save_weights(path: Path, network: Callable[[], nn.Module], data: ImageData) -> nn.Module:
    """Write a file as a finished run writes it; returns its untrained network."""
    model = network()
    content = network_content(model, NetworkInfo.of(network), SESSION9, data)
    path.write_bytes(as_bytes(content))
    return model


def call(*arguments) -> None:
    """Run main.py's command line in this process."""
    main.main([str(argument) for argument in arguments])


def exit_message(*arguments) -> str:
    """The one line with which main.py exits."""
    with pytest.raises(SystemExit) as stop:
        call(*arguments)
    message = stop.value.code
    assert isinstance(message, str)
    assert "\n" not in message.strip()
    return message


def interrupt_epoch(number: int, patch: pytest.MonkeyPatch) -> None:
    """Simulate Ctrl-C at the start of an epoch until ``patch`` is undone."""
    real = training.train

    def train(step, loader, epoch):
        if epoch == number:
            raise KeyboardInterrupt
        return real(step, loader, epoch)

    patch.setattr(training, "train", train)


def stop_in_the_second_epoch(monkeypatch, words=TWO_EPOCHS) -> None:
    """Two epochs of session 9 on the digits, interrupted by Ctrl-C in the second one."""
    with monkeypatch.context() as patch:
        interrupt_epoch(2, patch)
        message = exit_message(*words)
    assert "All finished epochs are saved" in message
