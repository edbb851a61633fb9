"""What a run saves: its state after each epoch, its log and history, and the trained network."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from utils.data import ImageData
from utils.recipes import Recipe
from utils.runs.report import commit
from utils.system.device import precision_of
from utils.system.errors import FileError
from utils.system.files import load_tensors, save_tensors, write_text
from utils.training import MEASURES, History


@dataclass
class TrainingState:
    """Everything that the next epoch depends on, besides the history of the earlier ones."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    order: torch.Generator | None  # draws the order of images for several processes; None: there is one
    accelerator: Accelerator
    max_lr: float

    def save(self, path: Path, history: History, about: dict) -> None:
        """Save it with the history and ``about``, which describes the network. All processes call it; the first one writes."""
        gpu = self.accelerator.device.type == "cuda"
        random = gather_object([torch.get_rng_state()])  # one per process
        random_gpu = gather_object([torch.cuda.get_rng_state()] if gpu else [])
        if not self.accelerator.is_main_process:
            return
        content = about | {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            "precision": precision_of(self.accelerator),
            "max_lr": self.max_lr,
            "random": random,
            "random_gpu": random_gpu,
            "random_order": self.order.get_state() if self.order else None,
            "history": asdict(history),
        }
        save_tensors(path, content)

    def restore(self, content: dict, path: Path) -> History:
        """Restore ``content``, which ``save`` saved in ``path``, on whatever device it is now, and return the history.

        If the number of processes has changed, the random state stays as this process has seeded it. Raises FileError:
        the file was saved by a run of another network or optimizer.
        """
        rank = self.accelerator.process_index
        try:
            self.model.load_state_dict(content["model"])
            for saved, group in zip(content["optimizer"]["param_groups"], self.optimizer.param_groups):
                saved["fused"] = group["fused"]  # this device's
            self.optimizer.load_state_dict(content["optimizer"])
            self.scheduler.load_state_dict(content["scheduler"])
            if self.accelerator.scaler and content["scaler"]:
                self.accelerator.scaler.load_state_dict(content["scaler"])
            if len(content["random"]) == self.accelerator.num_processes:
                torch.set_rng_state(content["random"][rank])
                if self.order and content["random_order"] is not None:
                    self.order.set_state(content["random_order"])
                if self.accelerator.device.type == "cuda" and content["random_gpu"]:
                    torch.cuda.set_rng_state(content["random_gpu"][rank])
            return History(**content["history"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise FileError(f"{path} was saved by another run: move it away to train from the start.") from error


def load_checkpoint(folder: Path) -> dict | None:
    """The checkpoint in the folder of a run, if there is one; raises FileError if it is damaged."""
    path = folder / "checkpoint.pt"
    return load_tensors(path) if path.exists() else None


def write_history(folder: Path, history: History) -> None:
    """Write ``training_log.txt`` and ``history.csv``: one row per epoch, counted from 1."""
    write_text(folder / "training_log.txt", "\n".join(history.log) + "\n")
    rows = zip(*(getattr(history, name) for name in MEASURES))
    lines = [[str(epoch), *(f"{value:.6g}" for value in row)] for epoch, row in enumerate(rows, start=1)]
    write_text(folder / "history.csv", "".join(",".join(line) + "\n" for line in [["epoch", *MEASURES], *lines]))


def about_network(model: nn.Module, recipe: Recipe, data: ImageData) -> dict:
    """What ``weights.pt`` holds: the weights, the classes and the normalization of the images, recipe and commit."""
    content = {"model": model.state_dict(), "session": recipe.session, "recipe": asdict(recipe), "commit": commit()}
    return content | {"classes": data.classes, "mean": data.mean, "std": data.std}
