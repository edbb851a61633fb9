"""The learning rate: how high it may go (range test) and how it moves (one-cycle policy)."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch_lr_finder.lr_finder
from torch import nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader
from torch_lr_finder import LRFinder

from utils.device import forked_random_state
from utils.errors import TrainingError, explain_out_of_memory
from utils.optimizers import group_settings, restore_group_settings
from utils.progress import progress
from utils.recipes import Recipe, check_range, plain_number

SEARCH_STEPS = 120  # of the range test: 20 for every factor of ten


@dataclass(frozen=True)
class LRSearch:
    """The result of a range test: the smoothed loss at each learning rate, and the max LR."""

    lrs: list[float]
    losses: list[float]
    limit_lr: float  # where the loss is back at its start or, if never, where it stops falling
    diverges: bool  # whether it is back at its start
    suggestion: float

    def __str__(self) -> str:
        suggestion = f"Suggested max LR: {self.suggestion:.4f}"
        if not self.diverges:
            return (
                f"The loss does not rise again: the search ended at LR {self.lrs[-1]:.4f}. "
                f"It stops falling at LR {self.limit_lr:.4f}.\n{suggestion}."
            )
        share = f"1/{self.limit_lr / self.suggestion:.0f} of it"
        return (
            f"The loss falls, rises and is back at its start at LR {self.limit_lr:.4f}.\n"
            f"{suggestion}, {share}: a third for stability, and less for batches below 512."
        )


def find_lr(
    model: nn.Module,
    optimizer: Optimizer,
    loader: DataLoader,
    precision: str = "float32",
    steps: int = SEARCH_STEPS,
) -> LRSearch:
    """LR range test: raise the learning rate from 1e-5 to 10 and see where the loss rises again.

    It uses plain cross-entropy and does not clip gradients, whatever the training does: the rules
    of ``judge`` were tuned that way. Weights, optimizer, random state and mode are restored
    afterwards. TrainingError: the loss became infinite too early to judge.
    """
    lrs, losses = range_test(model, optimizer, loader, precision, steps)
    return judge(lrs, losses, steps, batch_share(optimizer, loader.batch_size or 1))


def range_test(
    model: nn.Module, optimizer: Optimizer, loader: DataLoader, precision: str, steps: int
) -> tuple[list[float], list[float]]:
    """The learning rate and the smoothed loss of each step, until the loss has risen fivefold.

    Source: Smith, https://arxiv.org/abs/1506.01186, as implemented in torch-lr-finder.
    """
    device = next(model.parameters()).device
    batch_size = loader.batch_size or 1
    with (
        explain_out_of_memory(batch_size),
        forked_random_state(device),
        project_progress_bar(),
        contextlib.ExitStack() as afterwards,
    ):
        afterwards.callback(restore_group_settings, optimizer, group_settings(optimizer))
        afterwards.callback(model.train, model.training)
        # torch-lr-finder refuses an optimizer with a schedule, as when a cell runs a second time.
        for group in optimizer.param_groups:
            group.pop("initial_lr", None)
        finder = make_finder(model, optimizer, device, precision)
        afterwards.callback(finder.reset)
        finder.range_test(loader, start_lr=1e-5, end_lr=10, num_iter=steps, smooth_f=0.2)
    return finder.history["lr"], finder.history["loss"]


def make_finder(
    model: nn.Module, optimizer: Optimizer, device: torch.device, precision: str
) -> LRFinder:
    """torch-lr-finder's range test with plain cross-entropy, computed in ``precision``."""
    dtype = getattr(torch, precision)
    return LRFinder(
        model,
        optimizer,
        nn.functional.cross_entropy,
        device=device,
        amp_backend="torch",
        amp_config={
            "device_type": device.type,
            "dtype": dtype,
            "enabled": dtype is not torch.float32,
        },
        grad_scaler=torch.amp.GradScaler(device.type, enabled=dtype is torch.float16),
    )


def judge(lrs: list[float], losses: list[float], steps: int, share: float) -> LRSearch:
    """The max LR that follows from the losses of a range test of ``steps`` steps.

    A third of the learning rate at which the loss is back at its start, times ``share``; if it
    never rises again, the learning rate at which it stops falling. Losses after the first one that
    is not finite do not count. TrainingError: too few losses count.
    """
    not_finite = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
    count = not_finite[0] if not_finite else len(losses)
    if count < max(10, steps // 5):
        raise TrainingError(
            f"LR finder: loss infinite after {count} of {steps} steps: "
            "check the images for invalid values."
        )
    lrs = lrs[:count]
    losses = losses[:count]
    limit_lr = find_divergence(lrs, losses)
    stopped_early = count < steps
    if limit_lr < lrs[-1] or stopped_early:
        return LRSearch(lrs, losses, limit_lr, True, limit_lr / 3 * share)
    plateau_lr = find_plateau(lrs, losses)
    return LRSearch(lrs, losses, plateau_lr, False, plateau_lr)


@contextlib.contextmanager
def project_progress_bar() -> Iterator[None]:
    """Make torch-lr-finder print only the project's bar: its own is empty in a saved notebook."""
    module: Any = torch_lr_finder.lr_finder
    original = module.tqdm
    module.tqdm = partial(progress, desc="LR finder", leave=False)
    module.print = lambda *texts: None
    try:
        yield
    finally:
        module.tqdm = original
        del module.print


def starting_loss(losses: list[float]) -> float:
    """The mean of the first ten losses, at learning rates that change nothing yet."""
    return sum(losses[:10]) / 10


def batch_share(optimizer: Optimizer, batch_size: int) -> float:
    """The share of the learning rate that suits batches smaller than 512.

    A range test does not show their noise. For SGD, the learning rate is proportional to the batch
    size (Goyal et al., https://arxiv.org/abs/1706.02677), for Adam to its square root (Malladi et
    al., https://arxiv.org/abs/2205.10287).
    """
    share = min(1.0, batch_size / 512)
    return math.sqrt(share) if isinstance(optimizer, (Adam, AdamW)) else share


def find_divergence(lrs: list[float], losses: list[float]) -> float:
    """The LR at which the loss, past its minimum, exceeds its start again, or the last one."""
    start = starting_loss(losses)
    lowest = losses.index(min(losses))
    risen = max(start, losses[lowest] + 0.1 * start)  # on a plateau, noise alone exceeds the start
    for lr, loss in zip(lrs[lowest:], losses[lowest:], strict=True):
        if loss > risen:
            return lr
    return lrs[-1]


def find_plateau(lrs: list[float], losses: list[float]) -> float:
    """The LR at which the loss has made nine tenths of its fall.

    Its minimum would be a matter of chance: on a plateau, noise decides where it is.
    """
    lowest = min(losses)
    fall = max(0.0, starting_loss(losses) - lowest)  # negative by rounding if all are equal
    return next(lr for lr, loss in zip(lrs, losses, strict=True) if loss <= lowest + 0.1 * fall)


def one_cycle(
    optimizer: Optimizer, max_lr: float, recipe: Recipe, steps_per_epoch: int
) -> OneCycleLR:
    """Linear one-cycle policy, to be stepped after every batch.

    The learning rate rises from ``max_lr / recipe.start_div`` to ``max_lr``, which the last batch
    of epoch ``recipe.top_epoch`` uses. It then falls to ``max_lr / recipe.end_div``, which the step
    after the last one would use. A parameter group with an ``lr_factor`` has that multiple of it.
    TrainingError: ``max_lr`` is out of range.

    Source: Smith & Topin, https://arxiv.org/abs/1708.07120
    """
    max_lr = plain_number(max_lr)
    check_range("max LR", max_lr, 1e-9, 1e6)
    # One point more than there are steps: the step after the last batch then lands on the cycle's
    # end, not on a negative learning rate past it.
    points = recipe.epochs * steps_per_epoch + 1
    top = max(2, recipe.top_epoch * steps_per_epoch)  # the cycle cannot peak at its first point
    return OneCycleLR(
        optimizer,
        max_lr=[max_lr * group.get("lr_factor", 1.0) for group in optimizer.param_groups],
        total_steps=points,
        pct_start=top / points,
        anneal_strategy="linear",
        cycle_momentum=False,
        div_factor=recipe.start_div,
        final_div_factor=recipe.end_div / recipe.start_div,
    )
