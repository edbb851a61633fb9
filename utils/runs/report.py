"""What a finished run reports: a summary, ``submission.md``, and a list of all runs."""

import csv
import json
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.data import ImageData
from utils.git import GitError, commit, page
from utils.recipes import Recipe
from utils.runs.plan import NetworkInfo
from utils.training import History

# What the assignment page of each session asks for, in its order; the texts are made below.
ANSWERS = {
    7: (
        "repository",
        "network",
        "log",
        "loss_and_accuracy_graphs",
        "misclassified_images",
        "grad_cam",
    ),
    8: ("repository", "network", "learning_rates", "log", "accuracy"),
    9: ("repository", "network", "log", "loss_and_accuracy_graphs"),
}

PICTURES = {
    "loss_and_accuracy_graphs": "Loss and accuracy, train and test",
    "misclassified_images": "Ten misclassified images",
    "grad_cam": "Grad-CAM on the ten misclassified images",
}


def results(
    recipe: Recipe,
    data: ImageData,
    history: History,
    network: NetworkInfo,
    model: nn.Module,
    hardware: str,
    precision: str,
) -> dict[str, Any]:
    """What ``run.json`` holds of a finished run; accuracies are in percent."""
    return asdict(recipe) | {
        "network": network.title,
        "network_class": network.name,
        "data": data.name,
        "is_cifar10": data.is_cifar10,
        "train_images": len(data.train_labels),
        "test_images": len(data.test_labels),
        "first_lr": history.step_lr[0],
        "max_lr": max(history.step_lr),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_accuracy": history.train_accuracy[-1],
        "test_accuracy": history.test_accuracy[-1],
        "seconds_per_epoch": round(statistics.median(history.seconds), 2),
        "hardware": hardware,
        "precision": precision,
        "torch": torch.__version__,
        "commit": commit(),
        "finished": time.strftime("%Y-%m-%d %H:%M"),
    }


def summary(facts: dict[str, Any]) -> str:
    """The results in ``run.json``, in three lines."""
    return (
        f"Test accuracy after epoch {facts['epochs']}: {facts['test_accuracy']:.2f}% "
        f"of {facts['test_images']:,} images, {facts['data']}\n"
        "Training accuracy in the last epoch (augmented images): "
        f"{facts['train_accuracy']:.2f}%\n"
        f"{facts['parameters']:,} parameters, {facts['seconds_per_epoch']:.1f} s an epoch "
        f"on {facts['hardware']}"
    )


def submission_text(facts: dict[str, Any], repository: str, source: str, log: str) -> str:
    """The page to hand in: what the assignment asks for, point by point, in its order."""
    texts = {name: f"{title}:\n\n![{title}]({name}.png)" for name, title in PICTURES.items()}
    texts["repository"] = repository_line(repository)
    texts["network"] = (
        f"The network, {facts['network']} ({facts['parameters']:,} parameters):\n\n"
        f"```python\n{source}\n```"
    )
    texts["log"] = (
        f"The training log, {facts['epochs']} epochs on {facts['data']}:\n\n```text\n{log}```"
    )
    texts["accuracy"] = (
        f"Test accuracy after epoch {facts['epochs']}: {facts['test_accuracy']:.2f}%, "
        f"on {facts['data']}."
    )
    texts["learning_rates"] = (
        f"One-cycle policy: LRMIN = {facts['first_lr']:.4f}, LRMAX = {facts['max_lr']:.4f} "
        f"at the end of epoch {facts['top_epoch']}."
    )
    parts = [f"# Session {facts['session']}"]
    if not facts["is_cifar10"]:
        warning = f"it was trained on {facts['data']}, not on CIFAR-10."
        parts.insert(0, f"**Do not hand this in: {warning}**")
    for number, answer in enumerate(ANSWERS[facts["session"]], start=1):
        parts.append(f"{number}. {texts[answer]}")
    return "\n\n".join(parts) + "\n"


def repository_line(address: str) -> str:
    """The address of the project, or what to do if there is none."""
    try:
        return f"Repository: {page(address)}"
    except GitError as error:
        return f"Repository: (add the address of your repository; git does not know it: {error})"


def list_runs(folder: Path) -> str:
    """A table of the runs in ``folder``, the newest last; their checkpoints are not read."""
    heads = ("name", "date", "network", "epochs", "max LR", "accuracy", "finished")
    rows: list[tuple[str, ...]] = [heads]
    plans = sorted(folder.glob("*/plan.json"), key=lambda path: path.stat().st_mtime)
    for plan in plans:
        rows.append(row_of_run(plan.parent))
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def row_of_run(folder: Path) -> tuple[str, ...]:
    """Name, date, network, epochs, max LR, accuracy and end of a run, as text."""
    plan = read_json(folder / "plan.json")
    facts = read_json(folder / "run.json")
    network = plan.get("network", {})
    title = facts.get("network") or str(network.get("class", "")).split(".")[-1]
    planned = plan.get("recipe", {}).get("epochs", "")
    max_lrs = plan.get("schedule", {}).get("max_lr", [])
    try:
        epochs = list(csv.DictReader((folder / "history.csv").read_text("utf-8").splitlines()))
    except OSError:
        epochs = []
    accuracy = f"{float(epochs[-1]['test_accuracy']):.2f}%" if epochs else ""
    date = time.localtime((folder / "plan.json").stat().st_mtime)
    return (
        folder.name,
        time.strftime("%Y-%m-%d %H:%M", date),
        title,
        f"{len(epochs)} of {planned}",
        f"{max_lrs[0]:.4f}" if max_lrs else "",
        accuracy,
        "yes" if facts else "no",
    )


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty if it is missing or damaged."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
