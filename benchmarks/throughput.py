"""Images per second, compared with the classic pipeline: ``python -m benchmarks.throughput 7 8 9``.

Both pipelines train and test the same network on random images; the table shows medians of rounds after a warm-up. The
classic one is measured first, because ours changes how this process allocates memory.
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

from tools.publish import fill_section, table
from utils.data import ImageData, make_loaders
from utils.sessions import SESSIONS, Session
from utils.cpu import compile_where_it_pays
from utils.device import hardware_of, make_accelerator
from utils.files import write_text
from utils.graphs import GraphedFunction
from utils.progress import progress
from utils.training import forward_backward, test, train

README = Path(__file__).parents[1] / "README.md"
IMAGES = 51_200 if torch.cuda.is_available() else 2048  # in a round
ROUNDS = 5
HEADS = "session", "training: classic", "training: ours", "testing: classic", "testing: ours"


def transform_each(steps: list, batch: list) -> list[Tensor]:
    """Transform one PIL image at a time, as in torchvision's CIFAR10, and stack them."""
    transform = transforms.Compose([Image.fromarray, *steps])
    return default_collate([(transform(image), label) for image, label in batch])


def classic_epoch(model: nn.Module, loader: DataLoader, optimizer: Optimizer | None = None) -> None:
    """The loop of the course; without an ``optimizer``, it tests."""
    device, training = next(model.parameters()).device, optimizer is not None
    model.train(training)
    with torch.set_grad_enabled(training):
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            logits = model(images)
            loss = F.cross_entropy(logits, labels)
            if optimizer:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            _ = loss.item(), (logits.argmax(dim=1) == labels).sum().item()  # for the log


def classic(session: Session, data: ImageData) -> list[Callable]:
    """The pipeline as students usually write it, in float32. It also tests on the training images."""
    recipe, gpu = session.recipe, torch.cuda.is_available()
    images: Any = list(zip(data.train_images.permute(0, 2, 3, 1).numpy(), data.train_labels.tolist()))
    loader = partial(DataLoader, images, recipe.batch_size, num_workers=os.cpu_count() or 1, pin_memory=gpu)
    area = (recipe.cutout / 32) ** 2
    cutout = [transforms.RandomErasing(p=1.0, scale=(area, area), ratio=(1.0, 1.0))] if recipe.cutout else []
    augment = [transforms.RandomCrop(32, padding=recipe.crop_padding), transforms.RandomHorizontalFlip()]
    end = [transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]
    train_loader = loader(shuffle=True, collate_fn=partial(transform_each, [*augment, *end, *cutout]))
    test_loader = loader(collate_fn=partial(transform_each, end))
    model = session.network().to("cuda" if gpu else "cpu")
    optimizer = session.optimizer(model, recipe.weight_decay)
    return [partial(classic_epoch, model, train_loader, optimizer), partial(classic_epoch, model, test_loader)]


def ours(session: Session, data: ImageData) -> list[Callable]:
    """The project's own train() and test(), and on a GPU the bare graph."""
    recipe, accelerator = session.recipe, make_accelerator()
    model, optimizer = session.build(accelerator.device)
    scheduler = ConstantLR(optimizer)  # the learning rate does not change the time
    loaders = make_loaders(data, recipe, accelerator.device)
    model, optimizer, train_loader, test_loader = accelerator.prepare(model, optimizer, *loaders)
    if recipe.compile:  # as in a full run on CIFAR-10
        compile_where_it_pays(model, accelerator, steps=recipe.epochs * 50_000 // recipe.batch_size)
    step = GraphedFunction(partial(forward_backward, model, accelerator, recipe), model)
    training = partial(train, model, step, train_loader, optimizer, scheduler, accelerator, recipe, epoch=1)
    graph = [bare_graph(training)] if accelerator.device.type == "cuda" else []
    return [training, partial(test, model, test_loader, accelerator), *graph]


def bare_graph(training: partial) -> Callable:
    """An epoch of train()'s steps, each one CUDA graph, and nothing between them: what the GPU allows."""
    model, step, loader, optimizer, _, accelerator, recipe = training.args
    for group in optimizer.param_groups:
        group["capturable"] = True  # Adam asks for it

    def whole_step(indices: Tensor) -> tuple[Tensor, ...]:
        optimizer.zero_grad()
        result = step.function(*loader.dataset.make_batch(indices))
        if recipe.max_grad_norm:
            accelerator.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        optimizer.step()
        return result

    def epoch() -> None:
        for indices in torch.randperm(len(loader.dataset), device=accelerator.device).split(recipe.batch_size):
            loss, _ = replay(indices)
        loss.item()

    replay = GraphedFunction(whole_step)
    return epoch


def noise(count: int) -> ImageData:
    """``count`` random images: their content does not change the time."""
    images, labels = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8), torch.randint(10, (count,))
    return ImageData("noise", (), images, labels, images, labels, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def speed(epoch: Callable, name: str) -> float:
    """Images per second of an epoch, the median of ``ROUNDS`` after a warm-up."""
    times = []
    for _ in progress(range(ROUNDS + 1), desc=name):
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):  # train() prints its line
            epoch()  # it reads its results, so a GPU has finished
        times.append(time.perf_counter() - start)
    return IMAGES / statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sessions", type=int, nargs="*", choices=[*SESSIONS, []], help="default: all")
    parser.add_argument("--readme", action="store_true", help="also write the table into the README")
    options = parser.parse_args()
    data, numbers = noise(IMAGES), options.sessions or list(SESSIONS)
    speeds: dict[int, list[float]] = {number: [] for number in numbers}
    for pipeline in (classic, ours):
        for number in numbers:
            for epoch in pipeline(SESSIONS[number], data):
                speeds[number].append(speed(epoch, f"session {number}"))
    rows = []
    for number, (a, b, c, d, *graph) in speeds.items():
        cells = [number, f"{a:,.0f}", f"{c:,.0f} ({c / a:.1f}×)", f"{b:,.0f}", f"{d:,.0f} ({d / b:.1f}×)"]
        rows.append([*cells, *(f"{bare:,.0f}" for bare in graph)])
    heads = [*HEADS, "training: bare graph"][: len(rows[0])]
    without = "" if GraphedFunction.works else ", without CUDA graphs, which do not work here"
    text = f"\n{hardware_of(make_accelerator())}, PyTorch {torch.__version__}{without}\n{table(heads, rows)}"
    print(text.strip())
    if options.readme:
        write_text(README, fill_section(README.read_text("utf-8"), "throughput", text))


if __name__ == "__main__":
    main()
