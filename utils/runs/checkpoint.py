"""What a run saves: its state after each epoch, its log and history, and the trained network."""

import inspect
from dataclasses import asdict
from typing import Any

from torch import nn

from utils.data import ImageData
from utils.device import random_state, set_random_state
from utils.errors import FileError
from utils.files import as_bytes, load_tensors
from utils.git import commit
from utils.recipes import Recipe
from utils.runs.folder import RunFolder
from utils.runs.plan import NetworkInfo
from utils.training import MEASURES, History, TrainingStep


def network_content(
    model: nn.Module, network: NetworkInfo, recipe: Recipe, data: ImageData
) -> dict[str, Any]:
    """What ``weights.pt`` holds: all that is needed to build the network again and to use it."""
    return {
        "model": model.state_dict(),
        "network": {"class": network.name, "arguments": network.arguments},
        "session": recipe.session,
        "recipe": asdict(recipe),
        "commit": commit(),
        "classes": data.classes,
        "mean": data.mean,
        "std": data.std,
    }


def save_checkpoint(
    folder: RunFolder, step: TrainingStep, history: History, network: dict[str, Any]
) -> None:
    """Save everything that the next epoch depends on, and the history of the earlier ones.

    ``network`` is what ``network_content`` returns, so a checkpoint serves as weights, too.
    """
    content = network | {
        "optimizer": step.optimizer.state_dict(),
        "scheduler": without_code(step.scheduler.state_dict()),
        "scaler": step.scaler.state_dict(),
        "precision": step.precision,
        "random": random_state(step.device),
        "history": asdict(history),
    }
    folder.write("checkpoint.pt", as_bytes(content))
    write_history(folder, history)


def without_code(state: dict[str, Any]) -> dict[str, Any]:
    """``state`` without functions and classes, which a file cannot hold and no step changes."""
    return {
        name: value
        for name, value in state.items()
        if not inspect.isroutine(value) and not inspect.isclass(value)
    }


def load_checkpoint(folder: RunFolder) -> dict | None:
    """The checkpoint in the folder of a run, if there is one; raises FileError if it is damaged."""
    path = folder.path / "checkpoint.pt"
    return load_tensors(path) if path.exists() else None


def restore_checkpoint(content: dict, step: TrainingStep, folder: RunFolder) -> History:
    """Restore what ``save_checkpoint`` saved, on whatever device it is now, and return the history.

    Raises FileError: the file was saved by a run of another network or optimizer.
    """
    try:
        step.model.load_state_dict(content["model"])
        saved_groups = content["optimizer"]["param_groups"]
        for saved, group in zip(saved_groups, step.optimizer.param_groups, strict=True):
            if "fused" in group:
                saved["fused"] = group["fused"]  # this device's
        step.optimizer.load_state_dict(content["optimizer"])
        step.scheduler.load_state_dict(content["scheduler"])
        if step.precision == content["precision"]:
            step.scaler.load_state_dict(content["scaler"])
        set_random_state(content["random"], step.device)
        return History(**content["history"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise FileError(
            f"{folder.path / 'checkpoint.pt'} was saved by another run: "
            "move it away to train from the start."
        ) from error


def write_history(folder: RunFolder, history: History) -> None:
    """Write ``training_log.txt`` and ``history.csv``: one row per epoch, counted from 1."""
    folder.write("training_log.txt", ("\n".join(history.log) + "\n").encode())
    lines = [",".join(("epoch", *MEASURES))]
    for epoch in range(history.epochs):
        values = [f"{getattr(history, measure)[epoch]:.6g}" for measure in MEASURES]
        lines.append(",".join([str(epoch + 1), *values]))
    folder.write("history.csv", ("\n".join(lines) + "\n").encode())
