"""What a run keeps on disk: its whole state after each epoch, and the trained network."""

from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from utils.data import ImageData
from utils.errors import FileError
from utils.files import load_tensors, save_tensors
from utils.history import History


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    accelerator: Accelerator,
    history: History,
) -> None:
    """Save everything that the next epoch depends on, and what was measured so far."""
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
        "random": torch.get_rng_state(),
        "random_gpu": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "history": asdict(history),
    }
    save_tensors(path, content)


def resume(
    path: Path, model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler, accelerator: Accelerator
) -> History:
    """Put everything back to where ``save_checkpoint`` saw it, on whatever device it is now.

    Raises:
        FileError: the file cannot be read, or was saved by a run of another network or optimizer.
    """
    content = load_tensors(path)
    try:
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
        scheduler.load_state_dict(content["scheduler"])
        if accelerator.scaler and content["scaler"]:
            accelerator.scaler.load_state_dict(content["scaler"])
        torch.set_rng_state(content["random"])
        if len(content["random_gpu"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(content["random_gpu"])
        return History(**content["history"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise FileError(f"{path} was saved by another run: move it away to train from the start.") from error


def save_weights(path: Path, model: nn.Module, session: int, data: ImageData) -> None:
    """Save what it takes to use the trained network: its weights, and how it was shown which classes."""
    content = {
        "model": model.state_dict(),
        "session": session,
        "classes": data.classes,
        "mean": data.mean,
        "std": data.std,
    }
    save_tensors(path, content)


def load_weights(path: str | Path, model: nn.Module) -> None:
    """Load the weights of either kind of file into ``model``, on whatever device it is.

    Raises:
        FileError: the file cannot be read, or holds the weights of another network.
    """
    content = load_tensors(path)
    try:
        model.load_state_dict(content["model"])
    except (KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise FileError(f"{path} holds no weights of {type(model).__name__}: give those of its own run.") from error
