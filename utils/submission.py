"""What the assignment page asks for, ready to paste: ``submission.md`` in a run's folder."""

import json
import re
from collections.abc import Callable
from pathlib import Path

from utils.data import is_cifar10
from utils.files import replace_file

ROOT = Path(__file__).parents[1]


def write_submission(folder: Path, repository: str) -> str:
    """Answer the session's points, in the page's order, from the finished run in ``folder``.

    A run that is not fit to be handed in says so in its first line. Returns the text, in Markdown.
    """
    facts = json.loads((folder / "run.json").read_text("utf-8"))
    facts |= {"folder": folder, "repository": repository}
    points = [f"{number}. {point(facts)}" for number, point in enumerate(POINTS[facts["session"]], start=1)]
    text = "\n\n".join([*warnings(facts), f"# Session {facts['session']}", *points]) + "\n"
    replace_file(folder / "submission.md", lambda part: part.write_text(text, "utf-8"))
    return text


def repository() -> str:
    """The address in the notebooks' setup cells, which `make colab` writes."""
    notebook = next(ROOT.glob("session*_assignment.ipynb")).read_text("utf-8")
    return re.findall(r'REPOSITORY = \\"(.*?)\\"', notebook)[0]


def warnings(facts: dict) -> list[str]:
    """Why the run should not be handed in."""
    reasons = ["it is a smoke run"] if facts["smoke"] else []
    if not is_cifar10(facts["data"]):
        reasons.append(f"it was trained on {facts['data']}, not on CIFAR-10")
    return [f"**Not for handing in: {' and '.join(reasons)}.**"] if reasons else []


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


def picture(name: str, title: str) -> Callable[[dict], str]:
    return lambda facts: f"{title}:\n\n![{title}]({name}.png)"


LOSS_CHART = picture("loss_and_accuracy_graphs", "Loss and accuracy, train and test")
POINTS = {
    7: (link, code, log, LOSS_CHART, picture("misclassified_images", "Ten misclassified images"),
        picture("grad_cam", "Grad-CAM on the ten misclassified images")),
    8: (link, code, learning_rates, log, accuracy),
    9: (link, code, log, LOSS_CHART),
}  # fmt: skip
