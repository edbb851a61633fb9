"""The training loop: ``train`` and ``test`` run one epoch, ``fit`` repeats them."""

import dataclasses
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from utils.device import autocast, forked_random_state
from utils.errors import TrainingError, explain_out_of_memory
from utils.graphs import GraphedFunction
from utils.progress import progress


@dataclass
class Epoch:
    """What one epoch has measured; accuracies are in percent."""

    lr: float  # of the last step
    train_loss: float  # mean over the images, in training mode
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float  # training and testing


BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
MEASURES = tuple(measure.name for measure in dataclasses.fields(Epoch))


@dataclass
class History:
    """What a run has measured so far: lists with one entry per epoch, if nothing else is said."""

    lr: list[float] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    train_accuracy: list[float] = field(default_factory=list)
    test_loss: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    step_lr: list[float] = field(default_factory=list)  # of every step
    log: list[str] = field(default_factory=list)  # two lines per epoch, as printed

    @property
    def epochs(self) -> int:
        """The number of complete epochs."""
        return len(self.lr)

    def append(self, epoch: Epoch, step_lr: list[float], log: list[str]) -> None:
        """Add what an epoch has measured, the learning rate of its steps and its log lines."""
        for measure in MEASURES:
            getattr(self, measure).append(getattr(epoch, measure))
        self.step_lr += step_lr
        self.log += log


class TrainingStep:
    """One step of the training, with all that belongs to it: precision, clipping and schedule.

    Images ``(B, 3, 32, 32)`` and labels ``(B,)`` → their mean loss and the number of correct
    predictions, both on the device. In float16 the loss is scaled, so that small gradients do not
    vanish; a step whose gradients overflow is skipped. On a CUDA GPU the forward and backward pass
    are recorded once and then replayed.

    Source of the scaling: Micikevicius et al., https://arxiv.org/abs/1710.03740
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[Tensor, Tensor], Tensor],
        optimizer: Optimizer,
        scheduler: LRScheduler,
        precision: str = "float32",
        max_grad_norm: float | None = None,
    ) -> None:
        self.model = model
        self.criterion = criterion
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.precision = precision
        self.max_grad_norm = max_grad_norm
        self.device = next(model.parameters()).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "float16")
        self.graphed_forward_backward = GraphedFunction(self.forward_backward, model)

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.scheduler.get_last_lr()[0])

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self.optimizer.zero_grad()
        loss, hits = self.graphed_forward_backward(images, labels)
        if self.max_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        return loss, hits

    def forward_backward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and the number of correct predictions; the gradients are in the parameters."""
        with autocast(self.device, self.precision):
            logits = self.model(images).float()  # (B, 10)
        loss = self.criterion(logits, labels)
        self.scaler.scale(loss).backward()
        return loss.detach(), (logits.argmax(dim=1) == labels).sum()


def train(step: TrainingStep, loader: DataLoader, epoch: int) -> "EpochMeter":
    """Train for one epoch: one step for each batch of ``loader``.

    Returns: the meter, with the epoch's mean loss, accuracy, learning rates and log line.
    Raises TrainingError: the loss is no longer finite.
    """
    step.model.train()
    with EpochMeter(epoch, batches=len(loader)) as meter:
        for images, labels in loader:
            lr = step.lr
            loss, hits = step(images.to(step.device), labels.to(step.device))
            meter.update(loss, hits, len(labels), lr)
    print(meter.line, flush=True)  # made when the bar was closed; the log contains it, too
    return meter


class EpochMeter:
    """Adds up the losses and correct predictions of an epoch and shows them as a progress bar.

    Reading a value waits for the GPU, so the values stay on the device until the bar is drawn, once
    per second.
    """

    def __init__(self, epoch: int, batches: int) -> None:
        self.epoch = epoch
        self.batches = batches
        self.losses: list[Tensor] = []  # of each batch
        self.hits: list[Tensor] = []
        self.sizes: list[int] = []
        self.lrs: list[float] = []
        self.loss = 0.0  # mean over the images
        self.accuracy = 0.0  # in percent
        self.line = ""

    def __enter__(self) -> "EpochMeter":
        self.bar = progress(total=self.batches, mininterval=1, smoothing=0, leave=False)
        return self

    def __exit__(self, *error: object) -> None:
        # In full, however narrow the terminal is.
        self.line = self.bar.format_meter(**(self.bar.format_dict | {"ncols": None}))
        self.bar.close()

    def update(self, loss: Tensor, hits: Tensor, size: int, lr: float) -> None:
        """Count a batch; TrainingError if a loss is not finite."""
        self.losses.append(loss)
        self.hits.append(hits)
        self.sizes.append(size)
        self.lrs.append(lr)
        is_last = len(self.sizes) == self.batches
        if self.bar.update() or is_last:
            self.add_up()
            self.bar.set_description(
                f"EPOCH = {self.epoch} | LR = {lr:.7f} | Loss = {self.loss:.2f} | "
                f"Batch = {len(self.sizes) - 1} | Accuracy = {self.accuracy:.2f}"
            )

    def add_up(self) -> None:
        """Compute the mean loss and the accuracy of the images so far."""
        losses = torch.stack(self.losses).cpu().double()
        if not losses.isfinite().all():
            batch = int((~losses.isfinite()).nonzero()[0])
            raise TrainingError(
                f"the loss became {losses[batch].item()} in epoch {self.epoch}, batch {batch}, "
                f"at LR {self.lrs[batch]:.7f}: try a quarter of the max LR, and check the images "
                "for invalid values."
            )
        images = sum(self.sizes)
        sizes = torch.tensor(self.sizes).double()
        self.loss = (losses @ sizes).float().item() / images
        self.accuracy = 100 * torch.stack(self.hits).sum().item() / images


@torch.no_grad()
def refresh_batchnorm(model: nn.Module, loader: DataLoader, precision: str = "float32") -> None:
    """Recompute BatchNorm's statistics from a tenth of the training images, at least ten batches.

    The running averages lag behind weights that change fast, which lowers the test accuracy in the
    middle of a run. Training is not affected: it uses the statistics of each batch, no weight
    changes, and the random state is restored. The images are augmented, as in training.
    """
    device = next(model.parameters()).device
    norms = [module for module in model.modules() if isinstance(module, BATCH_NORMS)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
    model.train()
    seen = 0
    try:
        # Eager, because a compiled model would be compiled again for a pass without gradients.
        with forked_random_state(device), torch.compiler.set_stance("force_eager"):
            for images, _ in some_batches(loader):
                seen += len(images)
                for norm in norms:
                    # With this batch's share of all images so far, the running averages are the
                    # means over all of them. (PyTorch's update_bn would wait for a GPU.)
                    norm.momentum = len(images) / seen
                with autocast(device, precision):
                    model(images.to(device))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def some_batches(loader: DataLoader) -> DataLoader:
    """A random tenth of a loader's images, and at least ten batches of them."""
    batch_size = loader.batch_size or 1
    images_in_all = len(loader.dataset)  # type: ignore[arg-type]  # PyTorch's types lack __len__
    count = max(images_in_all // 10, 10 * batch_size)
    chosen = torch.randperm(images_in_all)[:count]
    return DataLoader(
        loader.dataset,
        batch_sampler=[part.tolist() for part in chosen.split(batch_size)],
        collate_fn=loader.collate_fn,
        generator=torch.Generator(),  # else it would draw a random number from the global state
    )


@torch.inference_mode()
def predict(
    model: nn.Module, loader: DataLoader, precision: str = "float32"
) -> tuple[Tensor, Tensor]:
    """Logits ``(N, 10)`` and labels ``(N,)`` of all images, in order and in evaluation mode."""
    device = next(model.parameters()).device
    model.eval()
    all_logits = []
    all_labels = []
    for images, labels in progress(loader, desc="Testing", mininterval=1, leave=False):
        with autocast(device, precision):
            all_logits.append(model(images.to(device)).float())
        all_labels.append(labels.to(device))
    return torch.cat(all_logits), torch.cat(all_labels)


def test(
    model: nn.Module, loader: DataLoader, precision: str = "float32"
) -> tuple[float, float, str]:
    """Mean cross-entropy of the test images, accuracy in percent, and both as a line of the log."""
    logits, labels = predict(model, loader, precision)
    loss = F.cross_entropy(logits, labels).item()
    hits = int((logits.argmax(dim=1) == labels).sum())
    accuracy = 100 * hits / len(labels)
    line = f"Test set: Average loss: {loss:.4f}, Accuracy: {hits}/{len(labels)} ({accuracy:.2f}%)"
    return loss, accuracy, line


def fit(
    step: TrainingStep,
    train_loader: DataLoader,
    test_loader: DataLoader,
    epochs: int,
    history: History,
    after_epoch: Callable[[History], None],
) -> None:
    """Train ``step.model`` up to epoch ``epochs`` and test it after every epoch.

    ``history`` is that of the epochs that are already done, and grows. ``after_epoch`` is called
    with it after every epoch, for example to save a checkpoint. Raises TrainingError: the loss is
    no longer finite, or the memory is not enough.
    """
    batch_size = train_loader.batch_size or 1
    for epoch in range(history.epochs + 1, epochs + 1):
        start = time.perf_counter()
        with explain_out_of_memory(batch_size), warnings.catch_warnings():
            # If the first step in float16 overflows, the optimizer's step is skipped, and PyTorch
            # warns that the schedule has come before it.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            meter = train(step, train_loader, epoch)
            refresh_batchnorm(step.model, train_loader, step.precision)
            test_loss, test_accuracy, test_line = test(step.model, test_loader, step.precision)
        print(test_line, flush=True)
        seconds = time.perf_counter() - start
        measured = Epoch(
            meter.lrs[-1], meter.loss, meter.accuracy, test_loss, test_accuracy, seconds
        )
        history.append(measured, meter.lrs, [meter.line, test_line])
        after_epoch(history)
