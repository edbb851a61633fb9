"""Images per second, compared with the classic pipeline: ``python -m benchmarks.throughput 7 8 9``.

Both pipelines train and test the same network on random images; the table shows medians of rounds
after a warm-up. The classic one is measured first, because ours changes how this process allocates
memory.
"""

import argparse
import contextlib
import io
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR
from torch.utils.data import DataLoader, default_collate
from torchvision import transforms

from benchmarks.results import fill_section, table
from utils.data import ImageData, make_loaders, train_transform
from utils.device import (
    choose_device,
    compile_where_it_pays,
    fast_precision,
    hardware_of,
    memory_format,
)
from utils.files import write_text
from utils.graphs import GraphedFunction
from utils.progress import progress
from utils.sessions import SESSIONS, Session
from utils.training import TrainingStep, test, train

README = Path(__file__).parents[1] / "README.md"
IMAGES = 51_200 if torch.cuda.is_available() else 2048  # in a round
ROUNDS = 5
HEADS = ("session", "training: classic", "training: ours", "testing: classic", "testing: ours")


def transform_each(steps: list, batch: list) -> list[Tensor]:
    """Transform one PIL image at a time, as in torchvision's CIFAR10, and stack them."""
    transform = transforms.Compose([Image.fromarray, *steps])
    return default_collate([(transform(image), label) for image, label in batch])


def classic_epoch(model: nn.Module, loader: DataLoader, optimizer: Optimizer | None = None) -> None:
    """The loop of the course; without an ``optimizer``, it tests."""
    device = next(model.parameters()).device
    training = optimizer is not None
    model.train(training)
    with torch.set_grad_enabled(training):
        for images, labels in loader:
            images = images.to(device)
            labels = labels.to(device)
            logits = model(images)
            loss = F.cross_entropy(logits, labels)
            if optimizer:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            loss.item()  # for the log
            (logits.argmax(dim=1) == labels).sum().item()


def classic(session: Session, data: ImageData) -> list[Callable]:
    """The pipeline as students usually write it, in float32. It tests on the training images."""
    recipe = session.recipe
    gpu = torch.cuda.is_available()
    pixels = data.train_images.permute(0, 2, 3, 1).numpy()  # (N, H, W, 3)
    images: Any = list(zip(pixels, data.train_labels.tolist(), strict=True))
    loader = partial(
        DataLoader, images, recipe.batch_size, num_workers=os.cpu_count() or 1, pin_memory=gpu
    )
    augment = [
        transforms.RandomCrop(32, padding=recipe.crop_padding),
        transforms.RandomHorizontalFlip(),
    ]
    normalize = [transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]
    area = (recipe.cutout / 32) ** 2
    cutout = []
    if recipe.cutout:
        cutout = [transforms.RandomErasing(p=1.0, scale=(area, area), ratio=(1.0, 1.0))]
    train_loader = loader(
        shuffle=True, collate_fn=partial(transform_each, [*augment, *normalize, *cutout])
    )
    test_loader = loader(collate_fn=partial(transform_each, normalize))
    model = session.network().to("cuda" if gpu else "cpu")
    optimizer = session.optimizer(model, recipe.weight_decay)
    return [
        partial(classic_epoch, model, train_loader, optimizer),
        partial(classic_epoch, model, test_loader),
    ]


def ours(session: Session, data: ImageData) -> list[Callable]:
    """The project's own train() and test(), and on a GPU the bare graph."""
    recipe = session.recipe
    device = choose_device()
    precision = fast_precision(device)
    transform = train_transform(recipe, data)
    train_loader, test_loader = make_loaders(data, transform, recipe.batch_size, device)
    model = session.network().to(device).to(memory_format=memory_format(device))
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    optimizer = session.optimizer(model, recipe.weight_decay)
    scheduler = ConstantLR(optimizer)  # the learning rate does not change the time
    if recipe.compile:  # as in a full run on CIFAR-10
        steps = recipe.epochs * 50_000 // recipe.batch_size
        compile_where_it_pays(model, device, steps)
    step = TrainingStep(model, criterion, optimizer, scheduler, precision, recipe.max_grad_norm)
    phases: list[Callable] = [
        partial(train, step, train_loader, epoch=1),
        partial(test, model, test_loader, precision),
    ]
    if device.type == "cuda":
        phases.append(bare_graph(step, train_loader))
    return phases


def bare_graph(step: TrainingStep, loader: DataLoader) -> Callable:
    """An epoch of train()'s steps, each one CUDA graph, and nothing between them.

    This is what the GPU allows.
    """
    data_set: Any = loader.dataset
    for group in step.optimizer.param_groups:
        group["capturable"] = True  # Adam asks for it

    def whole_step(indices: Tensor) -> tuple[Tensor, ...]:
        step.optimizer.zero_grad()
        result = step.forward_backward(*data_set.make_batch(indices))
        if step.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(step.model.parameters(), step.max_grad_norm)
        step.optimizer.step()
        return result

    replay = GraphedFunction(whole_step)

    def epoch() -> None:
        order = torch.randperm(len(data_set), device=step.device)
        for indices in order.split(loader.batch_size or 1):
            loss, _ = replay(indices)
        loss.item()

    return epoch


def noise(count: int) -> ImageData:
    """``count`` random images: their content does not change the time."""
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(10, (count,))
    mean = (0.5, 0.5, 0.5)
    std = (0.25, 0.25, 0.25)
    return ImageData("noise", (), images, labels, images, labels, mean, std)


def speed(epoch: Callable, name: str) -> float:
    """Images per second of an epoch, the median of ``ROUNDS`` after a warm-up."""
    times = []
    for _ in progress(range(ROUNDS + 1), desc=name):
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):  # train() prints its line
            epoch()  # it reads its results, so a GPU has finished
        times.append(time.perf_counter() - start)
    return IMAGES / statistics.median(times[1:])


def measure(sessions: list[int]) -> str:
    """The README's table of the images per second of some sessions."""
    data = noise(IMAGES)
    speeds: dict[int, list[float]] = {number: [] for number in sessions}
    for pipeline in (classic, ours):
        for number in sessions:
            for epoch in pipeline(SESSIONS[number], data):
                speeds[number].append(speed(epoch, f"session {number}"))
    rows = []
    for number, measured in speeds.items():
        classic_train, classic_test, our_train, our_test, *graph = measured
        row = [
            str(number),
            f"{classic_train:,.0f}",
            f"{our_train:,.0f} ({our_train / classic_train:.1f}×)",
            f"{classic_test:,.0f}",
            f"{our_test:,.0f} ({our_test / classic_test:.1f}×)",
        ]
        rows.append([*row, *(f"{bare:,.0f}" for bare in graph)])
    heads = [*HEADS, "training: bare graph"][: len(rows[0])]
    device = choose_device()
    hardware = hardware_of(device, fast_precision(device))
    remark = ""
    if not GraphedFunction.recording_works:
        remark = ", without CUDA graphs, which do not work here"
    return f"\n{hardware}, PyTorch {torch.__version__}{remark}\n{table(heads, rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Images per second.")
    parser.add_argument(
        "sessions", type=int, nargs="*", choices=[*SESSIONS, []], help="default: all"
    )
    parser.add_argument(
        "--readme", action="store_true", help="also write the table into the README"
    )
    options = parser.parse_args()
    text = measure(options.sessions or list(SESSIONS))
    print(text.strip())
    if options.readme:
        readme = README.read_text("utf-8")
        write_text(README, fill_section(readme, "throughput", text))


if __name__ == "__main__":
    main()
