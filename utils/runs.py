"""A run's folder, and the facts of the run that its figures are quoted with."""

import json
import statistics
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from utils.data import ImageData
from utils.device import describe
from utils.files import replace_file
from utils.history import History
from utils.recipes import SMOKE, Recipe

RUNS = Path("runs")


def run_folder(name: str) -> Path:
    """Where the run of ``"session<N>"`` goes: a smoke run never where a real one lies."""
    return RUNS / "smoke" / name if SMOKE else RUNS / name


def start_run(recipe: Recipe) -> Path:
    """An empty folder ``runs/session<N>/``; what an earlier run left there is moved aside, not lost."""
    folder = run_folder(recipe.name)
    if folder.exists() and any(folder.iterdir()) and not SMOKE:
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(folder.stat().st_mtime))
        aside = folder.with_name(f"{folder.name}-{stamp}")
        folder.rename(aside)
        print(f"The earlier run was moved to {aside}/")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def finish_run(
    folder: Path,
    model: nn.Module,
    data: ImageData,
    recipe: Recipe,
    max_lr: float,
    history: History,
    accelerator: Accelerator,
) -> dict:
    """Write ``run.json``: on which data, with which recipe, on which hardware, with which result."""
    facts = {
        "session": recipe.session,
        "data": data.name,
        "train_images": len(data.train_labels),
        "test_images": len(data.test_labels),
        "smoke": SMOKE,
        "epochs": len(history.lr),
        "batch_size": recipe.batch_size,
        "max_lr": max_lr,
        "seed": recipe.seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_accuracy": history.train_accuracy[-1],
        "test_accuracy": history.test_accuracy[-1],
        "seconds_per_epoch": round(statistics.median(history.seconds), 2),
        "hardware": describe(accelerator),
        "torch": torch.__version__,
    }
    replace_file(folder / "run.json", lambda part: part.write_text(json.dumps(facts, indent=2) + "\n", "utf-8"))
    return facts
