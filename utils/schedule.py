"""The learning rate: how high it may go (range test) and how it moves (one-cycle policy)."""

import contextlib
import io
import math
import sys
from dataclasses import dataclass
from functools import partial

import torch
import torch_lr_finder.lr_finder
from accelerate import Accelerator
from matplotlib.figure import Figure
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader
from torch_lr_finder import LRFinder
from tqdm import tqdm

from utils.errors import TrainingError
from utils.recipes import Recipe


@dataclass(frozen=True)
class LRSearch:
    """What the range test saw: the (smoothed) loss at each learning rate, and the one it suggests."""

    lrs: list[float]
    losses: list[float]
    suggestion: float


def find_lr(
    model: nn.Module, optimizer: Optimizer, train_loader: DataLoader, accelerator: Accelerator
) -> LRSearch:
    """Raise the learning rate from 1e-5 to 1 over 100 training batches; suggest where the loss falls fastest.

    Everything is put back afterwards: weights, optimizer, random state, train or eval mode.

    Source: Smith, https://arxiv.org/abs/1506.01186, as built in torch-lr-finder.

    Raises:
        TrainingError: the loss became infinite before there was anything to judge by.
    """
    device, was_training = accelerator.device, model.training
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
    finder = LRFinder(
        model,
        optimizer,
        nn.functional.cross_entropy,
        device=device,
        amp_backend="torch",
        amp_config={"device_type": device.type, "dtype": dtype, "enabled": dtype is not None},
        grad_scaler=torch.amp.GradScaler(device.type, enabled=dtype is torch.float16),
    )
    # Its own bar would be a widget, which a saved notebook shows empty.
    torch_lr_finder.lr_finder.tqdm = partial(tqdm, desc="LR finder", file=sys.stdout, bar_format="{l_bar}{bar:10}{r_bar}")
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus), contextlib.redirect_stdout(io.StringIO()):  # it chats
        try:
            finder.range_test(train_loader, start_lr=1e-5, end_lr=1, num_iter=100, smooth_f=0.2)
        finally:
            finder.reset()
            model.train(was_training)
        losses = finder.history["loss"]
        # Its suggestion would be the first NaN: only what came before counts.
        finite = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
        finder.history = {name: values[:finite] for name, values in finder.history.items()}
        try:
            _, suggestion = finder.plot(ax=Figure().add_subplot())
        except RuntimeError as error:
            raise TrainingError(
                f"LR finder: the loss was infinite after {finite} of 100 steps: check the images for wrong values."
            ) from error
    return LRSearch(finder.history["lr"], finder.history["loss"], suggestion)


def one_cycle(optimizer: Optimizer, max_lr: float, recipe: Recipe, batches: int) -> OneCycleLR:
    """Linear one-cycle policy over ``recipe.epochs × batches`` steps, to be stepped after every batch.

    From ``max_lr``/10 up to ``max_lr``, which the last batch of epoch ``recipe.top_epoch`` uses, then
    down to nearly 0. The cycle has one point more than there are steps, so that the step after the
    last batch lands on its end and not, as is often seen, on a negative learning rate beyond it.

    Source: Smith & Topin, https://arxiv.org/abs/1708.07120
    """
    points = recipe.epochs * batches + 1
    return OneCycleLR(
        optimizer,
        max_lr=max_lr,
        total_steps=points,
        pct_start=recipe.top_epoch * batches / points,
        anneal_strategy="linear",
        cycle_momentum=False,
        div_factor=10,
        final_div_factor=1000,
    )
