"""What a finished run reports: a summary, and ``submission.md``, which answers the assignment page."""

import json
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from utils.system.files import write_text

ROOT = Path(__file__).parents[2]


def write_submission(folder: Path, answers: Sequence[str], repository: str) -> str:
    """Write ``submission.md``: the ``answers``, in their order, for the finished run in ``folder``.

    An answer is a key of ``TEXTS`` or of ``PICTURES``. If the run should not be handed in, the first line
    says so. Returns the text, in Markdown.
    """
    facts = json.loads((folder / "run.json").read_text("utf-8"))
    facts |= {"folder": folder, "repository": repository}
    texts = [TEXTS[answer](facts) if answer in TEXTS else picture(answer) for answer in answers]
    numbered = [f"{number}. {text}" for number, text in enumerate(texts, start=1)]
    text = "\n\n".join([*warnings(facts), f"# Session {facts['session']}", *numbered]) + "\n"
    write_text(folder / "submission.md", text)
    return text


def summary(facts: dict) -> str:
    """The results in ``run.json``, in three or four lines."""
    accuracy = f"{facts['test_accuracy']:.2f}% of {facts['test_images']:,} images, {facts['data']}"
    flip_averaged = [f"Flip-averaged: {facts['flip_averaged']:.2f}%"] if "flip_averaged" in facts else []
    lines = [
        f"Test accuracy after epoch {facts['epochs']}: {accuracy}",
        *flip_averaged,
        f"Training accuracy in the last epoch (augmented images): {facts['train_accuracy']:.2f}%",
        f"{facts['parameters']:,} parameters, {facts['seconds_per_epoch']:.1f} s an epoch on {facts['hardware']}",
    ]
    return "\n".join(lines)


def repository() -> str:
    """The address of the remote "origin", without credentials; "" if there is none."""
    try:
        found = subprocess.run(["git", "remote", "get-url", "origin"], cwd=ROOT, capture_output=True, text=True)
    except OSError:  # there is no git
        return ""
    return re.sub(r"//[^@/]*@", "//", found.stdout.strip()).removesuffix(".git")


def warnings(facts: dict) -> list[str]:
    """Why the run should not be handed in as it is, if so."""
    reasons = ["it is a smoke run"] if facts["smoke"] else []
    if not facts["is_cifar10"]:
        reasons.append(f"it was trained on {facts['data']}, not on CIFAR-10")
    lines = [f"**Do not hand this in: {' and '.join(reasons)}.**"] if reasons else []
    if not facts["repository"]:
        lines.append("**Add the address of your repository: this folder has no git remote named origin.**")
    return lines


def link(facts: dict) -> str:
    return f"Repository: {facts['repository']}"


def code(facts: dict) -> str:
    name = f"models/model{facts['session']}.py"
    return (
        f"The network, {name} ({facts['parameters']:,} parameters):\n\n```python\n{(ROOT / name).read_text('utf-8')}```"
    )


def log(facts: dict) -> str:
    lines = (facts["folder"] / "training_log.txt").read_text("utf-8")
    return f"The training log, {facts['epochs']} epochs on {facts['data']}:\n\n```text\n{lines}```"


def accuracy(facts: dict) -> str:
    return f"Test accuracy after epoch {facts['epochs']}: {facts['test_accuracy']:.2f}%, on {facts['data']}."


def learning_rates(facts: dict) -> str:
    return (
        f"One-cycle policy: LRMIN = {facts['first_lr']:.4f}, LRMAX = {facts['max_lr']:.4f} "
        f"at the end of epoch {facts['top_epoch']}."
    )


def picture(name: str) -> str:
    return f"{PICTURES[name]}:\n\n![{PICTURES[name]}]({name}.png)"


TEXTS: dict[str, Callable[[dict], str]] = {
    "repository": link,
    "network": code,
    "log": log,
    "accuracy": accuracy,
    "learning_rates": learning_rates,
}
PICTURES = {
    "loss_and_accuracy_graphs": "Loss and accuracy, train and test",
    "misclassified_images": "Ten misclassified images",
    "grad_cam": "Grad-CAM on the ten misclassified images",
}
