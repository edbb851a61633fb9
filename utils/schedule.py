"""The learning rate: how high it may go (range test) and how it moves (one-cycle policy)."""

import contextlib
import io
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch_lr_finder.lr_finder
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader
from torch_lr_finder import LRFinder

from utils.device import HALF, room_for
from utils.errors import FileError, TrainingError
from utils.files import replace_file
from utils.progress import progress
from utils.recipes import Recipe
from utils.settings import smoke

STEPS, SMOKE_STEPS = 120, 24  # of the range test: 20 for every factor of ten, in smoke mode 4


@dataclass(frozen=True)
class LRSearch:
    """What the range test saw: the smoothed loss at each learning rate, the ``edge`` where it rises again, or, if it
    does not, where the search ended, and what that suggests."""

    lrs: list[float]
    losses: list[float]
    edge: float
    rises: bool
    suggestion: float

    def __str__(self) -> str:
        what = "The loss rises again at" if self.rises else "The loss does not rise again: the search ended at"
        return f"{what} LR {self.edge:.4f}: suggested max LR {self.suggestion:.4f}"


def find_lr(
    model: nn.Module, optimizer: Optimizer, train_loader: DataLoader, accelerator: Accelerator, folder: Path
) -> LRSearch:
    """Raise the learning rate from 1e-5 to 10 over 120 training batches and see where the loss rises again.

    The one-cycle policy wants the highest learning rate that is safe, so the suggestion is a third of
    the edge: the rate at which the smoothed loss, past its minimum, has risen a tenth above its start.
    (The steepest point of the curve, another common rule, scatters: on a loss that hardly falls at first
    it was found anywhere from 3e-5 to 0.06.) Below 512 images a batch it falls with the root of their
    number: the noise of small batches, which throws a whole run off its course, does not show in so
    few steps. Everything is put back afterwards: weights, optimizer, random state, train or eval mode. The
    result is kept in ``folder``: a run that resumes there keeps its learning rate.

    Source: Smith, https://arxiv.org/abs/1506.01186, as built in torch-lr-finder.

    Raises:
        TrainingError: the loss became infinite before there was anything to judge by, or a GPU's memory is too small.
        FileError: what an earlier search left in ``folder`` cannot be read.
    """
    kept = folder / "lr_finder.json"
    if kept.exists():
        try:
            return LRSearch(**json.loads(kept.read_text("utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise FileError(f"{kept} cannot be read: remove it, and the LR finder runs again.") from error
    device, was_training, steps = accelerator.device, model.training, SMOKE_STEPS if smoke() else STEPS
    dtype = HALF.get(accelerator.mixed_precision)
    finder = LRFinder(
        model,
        optimizer,
        nn.functional.cross_entropy,
        device=device,
        amp_backend="torch",
        amp_config={"device_type": device.type, "dtype": dtype, "enabled": dtype is not None},
        grad_scaler=torch.amp.GradScaler(device.type, enabled=dtype is torch.float16),
    )
    gpus = [device] if device.type == "cuda" else []
    size = train_loader.batch_size or 1
    with room_for(size), torch.random.fork_rng(devices=gpus), our_bar():
        try:
            finder.range_test(train_loader, start_lr=1e-5, end_lr=10, num_iter=steps, smooth_f=0.2)
        finally:
            finder.reset()
            model.train(was_training)
    lrs, losses = finder.history["lr"], finder.history["loss"]
    finite = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    if finite < max(10, steps // 5):
        raise TrainingError(
            f"LR finder: the loss was infinite after {finite} of {steps} steps: check the images for wrong values."
        )
    lrs, losses = lrs[:finite], losses[:finite]
    edge = edge_of(lrs, losses)
    rises = edge < lrs[-1] or len(lrs) < steps  # a search is broken off where the loss has risen fivefold
    noise = min(1.0, math.sqrt(size / 512))
    search = LRSearch(lrs, losses, edge, rises, edge / 3 * noise)
    replace_file(kept, lambda part: part.write_text(json.dumps(asdict(search)), "utf-8"))
    return search


@contextlib.contextmanager
def our_bar() -> Iterator[None]:
    """Within it torch-lr-finder shows our bar, for its own is a widget, which a saved notebook shows empty, and
    keeps silent otherwise."""
    theirs = torch_lr_finder.lr_finder.tqdm
    torch_lr_finder.lr_finder.tqdm = partial(progress, file=sys.stdout, desc="LR finder", leave=False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        torch_lr_finder.lr_finder.tqdm = theirs


def edge_of(lrs: list[float], losses: list[float]) -> float:
    """The learning rate at which the loss, past its minimum, has risen a tenth above its start; else the last."""
    start = sum(losses[:10]) / 10
    lowest = losses.index(min(losses))
    return next((lr for lr, loss in zip(lrs[lowest:], losses[lowest:]) if loss > 1.1 * start), lrs[-1])


def one_cycle(optimizer: Optimizer, max_lr: float, recipe: Recipe, batches: int) -> OneCycleLR:
    """Linear one-cycle policy over ``recipe.epochs × batches`` steps, to be stepped after every batch.

    From ``max_lr / recipe.start_div`` up to ``max_lr``, which the last batch of epoch ``recipe.top_epoch``
    uses, then down to ``max_lr / recipe.end_div``. The cycle has one point more than there are steps, so
    that the step after the last batch lands on its end and not, as is often seen, on a negative learning
    rate beyond it.

    Source: Smith & Topin, https://arxiv.org/abs/1708.07120
    """
    points = recipe.epochs * batches + 1
    return OneCycleLR(
        optimizer,
        max_lr=max_lr,
        total_steps=points,
        pct_start=max(2, recipe.top_epoch * batches) / points,  # it cannot top at its first point
        anneal_strategy="linear",
        cycle_momentum=False,
        div_factor=recipe.start_div,
        final_div_factor=recipe.end_div / recipe.start_div,
    )
