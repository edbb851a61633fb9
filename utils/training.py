"""The training loop: train() and test() run one epoch, fit() repeats them, predict() returns logits."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset

from utils.recipes import Recipe
from utils.system.errors import TrainingError, explain_out_of_memory
from utils.system.graphs import GraphedFunction
from utils.system.progress import progress

MEASURES = ("lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds")  # of each epoch


@dataclass
class History:
    """What a run has measured, one entry per epoch if nothing else is said; accuracies are in percent."""

    lr: list[float] = field(default_factory=list)  # of the epoch's last step
    train_loss: list[float] = field(default_factory=list)  # mean over the images, in training mode
    train_accuracy: list[float] = field(default_factory=list)
    test_loss: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # training and testing
    step_lr: list[float] = field(default_factory=list)  # of every step
    log: list[str] = field(default_factory=list)  # two lines per epoch, as printed


def forward_backward(
    model: nn.Module, accelerator: Accelerator, recipe: Recipe, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Loss and number of correct predictions of a batch; the gradients are in the parameters."""
    logits = model(images)  # (B, 10)
    loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    accelerator.backward(loss)
    return loss.detach(), (logits.argmax(dim=1) == labels).sum()


def train(
    model: nn.Module,
    step: Callable[..., Sequence[Tensor]],
    loader: DataLoader,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    accelerator: Accelerator,
    recipe: Recipe,
    epoch: int,
) -> tuple[float, float, list[float], str]:
    """Train for one epoch on this process's share of each batch; ``step`` is ``forward_backward``, a graph on a GPU.

    Returns: mean loss over the images and accuracy in percent, both over all processes; the learning rate of each step;
    the final line of the progress bar. Raises TrainingError: the loss is no longer finite.
    """
    model.train()
    losses, hits, sizes, lrs = [], [], [], []  # one entry per batch; the first two stay on the device
    quiet = not accelerator.is_main_process
    with progress(total=len(loader), mininterval=1, smoothing=0, leave=False, disable=quiet) as bar:
        for batch, (images, labels) in enumerate(loader):
            optimizer.zero_grad()
            loss, correct = step(images, labels)
            if recipe.max_grad_norm:
                accelerator.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
            optimizer.step()
            lrs.append(float(scheduler.get_last_lr()[0]))  # of this step
            scheduler.step()

            losses.append(loss)
            hits.append(correct)
            sizes.append(len(labels))
            # Reading the values waits for the GPU, so it is done only when the bar is drawn, once per second.
            last = batch == len(loader) - 1
            if bar.update() or last:
                sums = totals(losses, hits, sizes, lrs, epoch)
                if last:
                    sums = accelerator.reduce(sums.to(accelerator.device, torch.float32))  # the sum over all processes
                loss_sum, right, images_seen = sums.tolist()
                mean_loss, accuracy = loss_sum / images_seen, 100 * right / images_seen
                bar.set_description(
                    f"EPOCH = {epoch} | LR = {lrs[-1]:.7f} | Loss = {mean_loss:.2f} | "
                    f"Batch = {batch} | Accuracy = {accuracy:.2f}"
                )
        line = bar.format_meter(**(bar.format_dict | {"ncols": None}))  # in full, however narrow the terminal is
    accelerator.print(line, flush=True)  # the log contains exactly the printed line
    return mean_loss, accuracy, lrs, line


def totals(losses: list[Tensor], hits: list[Tensor], sizes: list[int], lrs: list[float], epoch: int) -> Tensor:
    """Sum of the losses, correct predictions and images so far: ``(3,)``. TrainingError if a loss is not finite."""
    loss = torch.stack(losses).cpu().double()
    if not loss.isfinite().all():
        batch = int((~loss.isfinite()).nonzero()[0])
        raise TrainingError(
            f"the loss became {loss[batch].item()} in epoch {epoch}, batch {batch}, at LR {lrs[batch]:.7f}: "
            "try a quarter of the max LR, and check the images for invalid values."
        )
    return torch.tensor([loss @ torch.tensor(sizes).double(), torch.stack(hits).sum(), sum(sizes)])  # (3,)


@torch.inference_mode()
def predict(model: nn.Module, loader: DataLoader, accelerator: Accelerator | None = None) -> tuple[Tensor, Tensor]:
    """Logits ``(N, 10)`` and labels ``(N,)`` of all images, in the loader's order and in evaluation mode.

    With the ``accelerator`` that prepared the loader, the predictions of all processes are gathered, each image once.
    """
    model.eval()
    quiet = accelerator is not None and not accelerator.is_main_process
    outputs = []
    for images, labels in progress(loader, desc="Testing", mininterval=1, leave=False, disable=quiet):
        output = model(images).float(), labels
        outputs.append(accelerator.gather_for_metrics(output) if accelerator else output)
    logits, labels = zip(*outputs)
    return torch.cat(logits), torch.cat(labels)


@torch.no_grad()
def refresh_batchnorm(model: nn.Module, train_set: Dataset, batch_size: int, accelerator: Accelerator) -> None:
    """Recompute BatchNorm's statistics from a tenth of the training images (at least ten batches), with augmentation.

    The running averages lag behind weights that change fast: at the peak of the cycle, they lower the test accuracy by
    up to 20 points. Training is not affected: it uses the statistics of each batch, no weight changes, and the random
    state is restored. It takes 3% of an epoch. Processes share the images.
    """
    device, processes = accelerator.device, accelerator.num_processes
    gpus = [device] if device.type == "cuda" else []
    count = max(len(train_set) // 10, 10 * batch_size) // processes  # type: ignore[arg-type]
    momenta = {module: module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)}
    for norm in momenta:
        norm.reset_running_stats()
    model.train()
    # Eager, because a compiled model would be compiled again for a pass without gradients.
    with torch.random.fork_rng(devices=gpus), torch.compiler.set_stance("force_eager"):
        parts = torch.randperm(len(train_set))[:count].split(batch_size // processes)  # type: ignore[arg-type]
        for number, part in enumerate(parts, start=1):
            for norm in momenta:
                norm.momentum = 1 / number  # the mean over all batches; PyTorch's update_bn would wait for a GPU
            model(train_set.__getitems__(part.tolist())[0])  # type: ignore[attr-defined]
    for norm, momentum in momenta.items():
        norm.momentum = momentum
    for statistic in model.buffers():
        if statistic.is_floating_point():
            statistic.copy_(accelerator.reduce(statistic, "mean"))


def test(model: nn.Module, loader: DataLoader, accelerator: Accelerator) -> tuple[float, float, str]:
    """Mean loss over the test images, accuracy in percent, and both as a line of the log."""
    logits, labels = predict(model, loader, accelerator=accelerator)
    loss = F.cross_entropy(logits, labels).item()
    hits, count = int((logits.argmax(dim=1) == labels).sum()), len(labels)
    accuracy = 100 * hits / count
    return loss, accuracy, f"Test set: Average loss: {loss:.4f}, Accuracy: {hits}/{count} ({accuracy:.2f}%)"


def fit(
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    loaders: tuple[DataLoader, DataLoader],
    recipe: Recipe,
    accelerator: Accelerator,
    history: History | None = None,
    after_epoch: Callable[[History], None] = lambda history: None,
) -> History:
    """Train ``model`` in place and test it after every epoch, up to ``recipe.epochs`` epochs.

    Model, optimizer and loaders are as ``accelerator.prepare`` returned them, ``history`` is that of the epochs that are
    already done, and ``after_epoch`` is called with it after every epoch, for example to save a checkpoint. Raises
    TrainingError: the loss is no longer finite, or the GPU runs out of memory.
    """
    history = history or History()
    train_loader, test_loader = loaders
    step = GraphedFunction(partial(forward_backward, model, accelerator, recipe), model)
    for epoch in range(len(history.lr) + 1, recipe.epochs + 1):
        start = time.perf_counter()
        with explain_out_of_memory(recipe.batch_size):
            train_loss, train_accuracy, lrs, train_line = train(
                model, step, train_loader, optimizer, scheduler, accelerator, recipe, epoch
            )
            refresh_batchnorm(model, train_loader.dataset, recipe.batch_size, accelerator)
            test_loss, test_accuracy, test_line = test(model, test_loader, accelerator)
        accelerator.print(test_line, flush=True)

        measured = (lrs[-1], train_loss, train_accuracy, test_loss, test_accuracy, time.perf_counter() - start)
        for name, value in zip(MEASURES, measured):
            getattr(history, name).append(value)
        history.step_lr += lrs
        history.log += [train_line, test_line]
        after_epoch(history)
    return history
