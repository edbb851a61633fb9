"""A run's folder, and the facts of the run that its figures are quoted with."""

import json
import shutil
import statistics
import time
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout
from torch import nn

from utils.checkpoint import save_weights
from utils.data import ImageData
from utils.device import describe, precision_of
from utils.errors import FileError
from utils.files import replace_file
from utils.history import History
from utils.recipes import Recipe
from utils.settings import run_folder, smoke

HELD: dict[Path, FileLock] = {}  # the folders that this process writes to, until it ends


def run_plan(recipe: Recipe, data: ImageData, max_lr: float | None = None) -> dict:
    """What makes two runs the same; ``max_lr`` is None where the LR finder chooses."""
    return {"recipe": asdict(recipe), "data": data.name, "max_lr": max_lr}


def start_run(recipe: Recipe, data: ImageData, max_lr: float | None = None) -> Path:
    """The folder ``runs/session<N>/``: that of an unfinished run of this very plan, which then resumes, else empty."""
    return open_folder(run_folder(recipe.name), run_plan(recipe, data, max_lr))


def can_go_on(folder: Path, plan: dict) -> bool:
    """Whether ``folder`` holds an unfinished run of this ``plan``."""
    kept = folder / "plan.json"
    try:
        return not (folder / "run.json").exists() and json.loads(kept.read_text("utf-8")) == plan
    except (OSError, ValueError):
        return False  # what has no plan that can be read is another run


def hold(folder: Path) -> None:
    """Keep ``folder`` for this process until it ends, however it ends; FileError if another one has it."""
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = HELD.setdefault(folder, FileLock(folder.with_name(f".{folder.name}.lock")))  # the folder itself may move
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise FileError(
            f"{folder} is in use by another notebook or terminal: end that one (in Jupyter: Kernel → Shut Down), "
            "or set RUNS to another folder for this one."
        ) from error


def open_folder(folder: Path, plan: dict) -> Path:
    """``folder``, empty or with the beginnings of a run of this ``plan``; any other run is moved aside, not lost.

    Raises:
        FileError: another process is writing to ``folder``, or it cannot be made.
    """
    try:
        hold(folder)
        if can_go_on(folder, plan) and not smoke():
            for half in folder.glob(".*.part"):  # left by a run that was killed while it saved
                half.unlink()
            return folder
        if smoke():
            shutil.rmtree(folder, ignore_errors=True)
        elif folder.exists() and any(folder.iterdir()):
            stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(folder.stat().st_mtime))
            aside = folder.with_name(f"{folder.name}-{stamp}")
            folder.rename(aside)
            print(f"The earlier run was moved to {aside}/")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            f"{folder} cannot be made ({error.strerror}): set RUNS to a folder that can be written."
        ) from error
    replace_file(folder / "plan.json", lambda part: part.write_text(json.dumps(plan, indent=2) + "\n", "utf-8"))
    return folder


def finish_run(
    folder: Path,
    model: nn.Module,
    data: ImageData,
    recipe: Recipe,
    max_lr: float,
    history: History,
    accelerator: Accelerator,
    flip_averaged: float | None = None,
) -> dict:
    """Write ``weights.pt``, the trained network, and ``run.json``: on which data, with which recipe, on
    which hardware, with which result. ``flip_averaged`` is the test accuracy in percent of the answers
    to each image and its mirror image averaged, kept apart from the one without tricks."""
    save_weights(folder / "weights.pt", model, recipe.session, data)
    facts = {
        "session": recipe.session,
        "data": data.name,
        "train_images": len(data.train_labels),
        "test_images": len(data.test_labels),
        "smoke": smoke(),
        "epochs": len(history.lr),
        "top_epoch": recipe.top_epoch,
        "batch_size": recipe.batch_size,
        "first_lr": history.step_lr[0],
        "max_lr": max_lr,
        "seed": recipe.seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_accuracy": history.train_accuracy[-1],
        "test_accuracy": history.test_accuracy[-1],
        **({} if flip_averaged is None else {"flip_averaged": round(flip_averaged, 2)}),
        "seconds_per_epoch": round(statistics.median(history.seconds), 2),
        "hardware": describe(accelerator),
        "precision": precision_of(accelerator),
        "torch": torch.__version__,
    }
    replace_file(folder / "run.json", lambda part: part.write_text(json.dumps(facts, indent=2) + "\n", "utf-8"))
    return facts
