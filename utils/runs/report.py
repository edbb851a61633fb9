"""What a finished run reports: a summary, and ``submission.md``, which answers the assignment page."""

import json
import re
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch

from utils.system.device import hardware_of, precision_of
from utils.system.files import write_text

ROOT = Path(__file__).parents[2]
PICTURES = {
    "loss_and_accuracy_graphs": "Loss and accuracy, train and test",
    "misclassified_images": "Ten misclassified images",
    "grad_cam": "Grad-CAM on the ten misclassified images",
}


def write_submission(folder: Path, answers: Sequence[str], repository: str) -> str:
    """Write ``submission.md``, the ``warnings`` and then the ``answers`` in order; returns a summary of a few lines."""
    facts = json.loads((folder / "run.json").read_text("utf-8"))
    network = f"models/model{facts['session']}.py"
    texts = {name: f"{title}:\n\n![{title}]({name}.png)" for name, title in PICTURES.items()} | {
        "repository": f"Repository: {repository}",
        "network": f"The network, {network} ({facts['parameters']:,} parameters):\n\n"
        f"```python\n{(ROOT / network).read_text('utf-8')}```",
        "log": f"The training log, {facts['epochs']} epochs on {facts['data']}:\n\n"
        f"```text\n{(folder / 'training_log.txt').read_text('utf-8')}```",
        "accuracy": f"Test accuracy after epoch {facts['epochs']}: {facts['test_accuracy']:.2f}%, on {facts['data']}.",
        "learning_rates": f"One-cycle policy: LRMIN = {facts['first_lr']:.4f}, LRMAX = {facts['max_lr']:.4f} "
        f"at the end of epoch {facts['top_epoch']}.",
    }
    first, file = warnings(facts, repository), folder / "submission.md"
    numbered = [f"{number}. {texts[answer]}" for number, answer in enumerate(answers, start=1)]
    write_text(file, "\n\n".join([*first, f"# Session {facts['session']}", *numbered]) + "\n")
    titles = [answer.split("\n")[0].rstrip(":") for answer in numbered]
    return "\n".join([*first, f"{file} holds the answers to the assignment page:", *titles])


def warnings(facts: dict, repository: str) -> list[str]:
    """Why the run should not be handed in as it is, if so."""
    lines = []
    if not facts["is_cifar10"]:
        lines.append(f"**Do not hand this in: it was trained on {facts['data']}, not on CIFAR-10.**")
    if not repository:
        lines.append("**Add the address of your repository: this folder has no git remote named origin.**")
    return lines


def git(*words: str) -> str:
    """What a git command prints in the project's folder; "" if it fails or there is no git."""
    try:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def repository() -> str:
    """The address of the remote "origin", without credentials; "" if there is none or it is a folder."""
    address = re.sub(r"//[^@/]*@", "//", git("remote", "get-url", "origin")).removesuffix(".git")
    return address if ":" in address else ""


@cache
def commit() -> str:
    """The short hash of the commit whose code runs, with "+" if tracked files were changed; "" without git."""
    return git("describe", "--always", "--dirty=+", "--exclude=*")


def results(run) -> dict:
    """What ``run.json`` holds of a finished run: its recipe, data, hardware, commit and accuracy, in percent."""
    history, data = run.history, run.data
    return asdict(run.session.recipe) | {
        "data": data.name,
        "is_cifar10": data.is_cifar10,
        "train_images": len(data.train_labels),
        "test_images": len(data.test_labels),
        "first_lr": history.step_lr[0],
        "max_lr": run.max_lr,
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "train_accuracy": history.train_accuracy[-1],
        "test_accuracy": history.test_accuracy[-1],
        "seconds_per_epoch": round(statistics.median(history.seconds), 2),
        "hardware": hardware_of(run.accelerator),
        "precision": precision_of(run.accelerator),
        "torch": torch.__version__,
        "commit": commit(),
    }


def summary(facts: dict) -> str:
    """The results in ``run.json``, in three lines."""
    return (
        f"Test accuracy after epoch {facts['epochs']}: {facts['test_accuracy']:.2f}% of {facts['test_images']:,} images, {facts['data']}\n"
        f"Training accuracy in the last epoch (augmented images): {facts['train_accuracy']:.2f}%\n"
        f"{facts['parameters']:,} parameters, {facts['seconds_per_epoch']:.1f} s an epoch on {facts['hardware']}"
    )
