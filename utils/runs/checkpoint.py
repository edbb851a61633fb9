"""What a run saves: its state after each epoch, its log and history, and the trained network."""

import csv
import io
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from utils.data import ImageData
from utils.system.device import precision_of
from utils.system.errors import FileError
from utils.system.files import load_tensors, save_tensors, write_text
from utils.training import History

MEASURES = ("lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy")  # of an epoch, in the history


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    train_loader: DataLoader,
    accelerator: Accelerator,
    history: History,
) -> None:
    """Save everything that the next epoch depends on, and the history.

    All processes must call it, because each has its own random state. The first one writes the file.
    """
    random = gather_object([torch.get_rng_state()])  # one per process
    random_gpu = gather_object([torch.cuda.get_rng_state()] if accelerator.device.type == "cuda" else [])
    order = shuffle_generator(train_loader)
    if not accelerator.is_main_process:
        return
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
        "precision": precision_of(accelerator),
        "random": random,
        "random_gpu": random_gpu,
        "random_order": order.get_state() if order else None,
        "history": asdict(history),
    }
    save_tensors(path, content)


def shuffle_generator(train_loader: DataLoader) -> torch.Generator | None:
    """The generator from which several processes draw their common order of the images; one process uses PyTorch's."""
    return getattr(train_loader, "synchronized_generator", None)


def restore_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    train_loader: DataLoader,
    accelerator: Accelerator,
) -> History:
    """Restore the state that ``save_checkpoint`` saved, on whatever device it is now.

    If the number of processes has changed, the random state stays as this process has seeded it.

    Raises:
        FileError: the file is damaged, or was saved by a run of another network or optimizer.
    """
    content = load_tensors(path)
    order, rank = shuffle_generator(train_loader), accelerator.process_index
    try:
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
        scheduler.load_state_dict(content["scheduler"])
        if accelerator.scaler and content["scaler"]:
            accelerator.scaler.load_state_dict(content["scaler"])
        if len(content["random"]) == accelerator.num_processes:
            torch.set_rng_state(content["random"][rank])
            if order and content["random_order"] is not None:
                order.set_state(content["random_order"])
            if accelerator.device.type == "cuda" and content["random_gpu"]:
                torch.cuda.set_rng_state(content["random_gpu"][rank])
        return History(**content["history"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise FileError(f"{path} was saved by another run: move it away to train from the start.") from error


def write_history(folder: Path, history: History) -> None:
    """Write ``training_log.txt`` and ``history.csv``: one row per epoch, counted from 1."""
    write_text(folder / "training_log.txt", "\n".join(history.log) + "\n")
    columns = [*MEASURES, "seconds"]
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["epoch", *columns])
    for epoch, row in enumerate(zip(*(getattr(history, column) for column in columns)), start=1):
        writer.writerow([epoch, *(f"{value:.6g}" for value in row)])
    write_text(folder / "history.csv", buffer.getvalue())


def save_weights(path: Path, model: nn.Module, session: int, data: ImageData) -> None:
    """Save the trained network: its weights, its classes and the normalization of its images."""
    content = {
        "model": model.state_dict(),
        "session": session,
        "classes": data.classes,
        "mean": data.mean,
        "std": data.std,
    }
    save_tensors(path, content)
