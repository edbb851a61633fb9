"""The learning rate: how high it may go (range test) and how it moves (one-cycle policy)."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch_lr_finder.lr_finder
from accelerate import Accelerator
from torch import nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader
from torch_lr_finder import LRFinder

from utils.recipes import Recipe
from utils.system.device import precision_of
from utils.system.errors import TrainingError, explain_out_of_memory
from utils.system.progress import progress

SEARCH_STEPS = 120  # of the range test: 20 for every factor of ten


@dataclass(frozen=True)
class LRSearch:
    """The result of a range test: the smoothed loss at each learning rate, and the max LR that follows from it."""

    lrs: list[float]
    losses: list[float]
    divergence_lr: float  # where the loss is back at its start or, if that never happens, where it stops falling
    diverges: bool  # whether it is back at its start
    suggestion: float

    def __str__(self) -> str:
        what = f"The loss does not rise again: the search ended at LR {self.lrs[-1]:.4f}. It stops falling at"
        why = ""
        if self.diverges:
            what = "The loss falls, rises and is back at its start at"
            why = f", 1/{self.divergence_lr / self.suggestion:.0f} of it: a third, so that training stays stable, and less for batches smaller than 512"
        return f"{what} LR {self.divergence_lr:.4f}. Suggested max LR: {self.suggestion:.4f}{why}."


def find_lr(
    model: nn.Module, optimizer: Optimizer, loader: DataLoader, accelerator: Accelerator, steps: int = SEARCH_STEPS
) -> LRSearch:
    """LR range test: raise the learning rate from 1e-5 to 10 over ``steps`` batches and see where the loss rises again.

    The suggestion is a third of the learning rate at which the smoothed loss is back at its start, and less for small
    batches (``batch_share``), or, if the loss never rises again, the learning rate at which it stops falling. Weights,
    optimizer, random state and mode are restored afterwards. TrainingError: the loss became infinite too early to judge.

    Source: Smith, https://arxiv.org/abs/1506.01186, as implemented in torch-lr-finder.
    """
    device, was_training = accelerator.device, model.training
    dtype = getattr(torch, precision_of(accelerator))
    finder = LRFinder(
        model,
        optimizer,
        nn.functional.cross_entropy,
        device=device,
        amp_backend="torch",
        amp_config={"device_type": device.type, "dtype": dtype, "enabled": dtype is not torch.float32},
        grad_scaler=torch.amp.GradScaler(device.type, enabled=dtype is torch.float16),
    )
    gpus = [device] if device.type == "cuda" else []
    batch_size = loader.batch_size or 1
    with explain_out_of_memory(batch_size), torch.random.fork_rng(devices=gpus), project_progress_bar():
        try:
            finder.range_test(loader, start_lr=1e-5, end_lr=10, num_iter=steps, smooth_f=0.2)
        finally:
            finder.reset()
            model.train(was_training)
    lrs, losses = finder.history["lr"], finder.history["loss"]
    finite = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    if finite < max(10, steps // 5):
        what = f"LR finder: loss infinite after {finite} of {steps} steps"
        raise TrainingError(f"{what}: check the images for invalid values.")
    lrs, losses = lrs[:finite], losses[:finite]
    divergence_lr = find_divergence(lrs, losses)
    diverges = divergence_lr < lrs[-1] or len(lrs) < steps  # the search stops early when the loss has risen fivefold
    if diverges:
        suggestion = divergence_lr / 3 * batch_share(optimizer, batch_size)
    else:
        divergence_lr = suggestion = find_plateau(lrs, losses)
    return LRSearch(lrs, losses, divergence_lr, diverges, suggestion)


@contextlib.contextmanager
def project_progress_bar() -> Iterator[None]:
    """Make torch-lr-finder print nothing but the project's bar: its own is a widget, empty in a saved notebook."""
    module: Any = torch_lr_finder.lr_finder
    original = module.tqdm
    module.tqdm, module.print = partial(progress, desc="LR finder", leave=False), lambda *texts: None
    try:
        yield
    finally:
        module.tqdm = original
        del module.print


def starting_loss(losses: list[float]) -> float:
    """The mean of the first ten losses, at learning rates that change nothing yet."""
    return sum(losses[:10]) / 10


def batch_share(optimizer: Optimizer, batch_size: int) -> float:
    """The share of the learning rate that batches smaller than 512 can take, whose noise a range test does not show.

    For SGD, the learning rate is proportional to the batch size (Goyal et al., https://arxiv.org/abs/1706.02677), for
    Adam to its square root (Malladi et al., https://arxiv.org/abs/2205.10287).
    """
    share = min(1.0, batch_size / 512)
    return math.sqrt(share) if isinstance(optimizer, Adam) else share


def find_divergence(lrs: list[float], losses: list[float]) -> float:
    """The learning rate at which the loss, past its minimum, exceeds its start again, or the last one."""
    start = starting_loss(losses)
    lowest = losses.index(min(losses))
    risen = max(start, losses[lowest] + 0.1 * start)  # on a plateau, noise alone would exceed the start
    return next((lr for lr, loss in zip(lrs[lowest:], losses[lowest:]) if loss > risen), lrs[-1])


def find_plateau(lrs: list[float], losses: list[float]) -> float:
    """The learning rate at which the loss has made nine tenths of its fall; noise decides where it is lowest."""
    lowest = min(losses)
    fall = max(0.0, starting_loss(losses) - lowest)  # rounding makes it negative if all losses are equal
    return next(lr for lr, loss in zip(lrs, losses) if loss <= lowest + 0.1 * fall)


def one_cycle(optimizer: Optimizer, max_lr: float, recipe: Recipe, batches: int) -> OneCycleLR:
    """Linear one-cycle policy over ``recipe.epochs × batches`` steps, to be stepped after every batch.

    From ``max_lr / recipe.start_div`` up to ``max_lr``, which the last batch of epoch ``recipe.top_epoch`` uses, then
    down to ``max_lr / recipe.end_div``, all times a parameter group's ``lr_factor``. The cycle has one point more than
    there are steps, so that the step after the last batch lands on its end and not on a negative learning rate past it.

    Source: Smith & Topin, https://arxiv.org/abs/1708.07120
    """
    points = recipe.epochs * batches + 1
    return OneCycleLR(
        optimizer,
        max_lr=[max_lr * group.get("lr_factor", 1.0) for group in optimizer.param_groups],
        total_steps=points,
        pct_start=max(2, recipe.top_epoch * batches) / points,  # it cannot top at its first point
        anneal_strategy="linear",
        cycle_momentum=False,
        div_factor=recipe.start_div,
        final_div_factor=recipe.end_div / recipe.start_div,
    )
