"""Publish a finished run in the repository: ``python -m tools.publish 9``.

It copies the executed notebook, the log and the pictures into the repository, and the results into the
README. Only complete runs on CIFAR-10 are accepted.
"""

import argparse
import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import nbformat

from utils.sessions import SESSIONS
from utils.system.errors import UserError
from utils.system.files import replace_file, write_text
from utils.system.settings import runs_folder

FILES = ("run.json", "history.csv", "training_log.txt")
WEIGHTS = {7: (), 8: (), 9: ("weights.pt",)}  # session 9's are small, and the default of `main.py classify`
BEST_PUBLIC = {  # the best public solution as assigned
    7: "[92.00%](https://github.com/partha-goswami/EVA8/blob/f5ee357385/Session7/README.md)",
    8: "[92.10%](https://github.com/ajinkyakhadilkar/EVA-8/blob/39f6322e91/Assignment8/README.md)",
    9: "[62.25%](https://github.com/abhyuditjain/eva-8/blob/adf545ae77/session9/README.md)",
}


class NotPublishable(UserError):
    """Why a run cannot be published."""


def files(session: int) -> tuple[str, ...]:
    """The files of a run of ``session`` that are published, besides its notebook."""
    return (*FILES, *(f"{name}.png" for name in SESSIONS[session].pictures), *WEIGHTS[session])


def publish(session: int, root: Path = Path()) -> None:
    """Copy ``runs/session<N>/`` under ``root`` into the repository there, if the run is complete."""
    name = f"session{session}"
    notebook = f"{name}_assignment.ipynb"
    run = root / runs_folder() / name
    static = root / "static" / name
    check(run, session, root / notebook)
    static.mkdir(parents=True, exist_ok=True)
    for file in files(session):
        replace_file(static / file, partial(shutil.copyfile, run / file))
    replace_file(root / notebook, partial(shutil.copyfile, run / notebook))
    readme = (root / "README.md").read_text("utf-8")
    readme = fill_section(readme, "results", results_table(root / "static"))
    log = (run / "training_log.txt").read_text("utf-8")
    readme = fill_section(readme, f"{name}-log", f"\n```text\n{log}```\n")
    write_text(root / "README.md", readme)


def check(run: Path, session: int, notebook: Path) -> None:
    """Raise NotPublishable unless the run is a complete one on CIFAR-10 with the current notebook."""
    recipe = SESSIONS[session].recipe
    again = f"run `make {recipe.name}` again"
    missing = [name for name in (*files(session), notebook.name) if not (run / name).exists()]
    if missing:
        raise NotPublishable(f"{run} is missing {', '.join(missing)}: finish `make {recipe.name}` first")
    facts = json.loads((run / "run.json").read_text("utf-8"))
    epochs = len((run / "history.csv").read_text("utf-8").splitlines()) - 1
    ran, shown = (nbformat.read(path, as_version=4).cells for path in (run / notebook.name, notebook))
    # The repository's address may differ: `make colab` writes it after a run as well.
    sources = [[re.sub('REPOSITORY = ".*"', "", cell.source) for cell in cells] for cells in (ran, shown)]
    code = [cell for cell in ran if cell.cell_type == "code"]
    whole = [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    failed = any(output.output_type == "error" for cell in code for output in cell.outputs)
    for wrong, reason in (
        (facts["smoke"], f"{run} is a smoke run: {again} without EVA8_SMOKE"),
        (not facts["is_cifar10"], f"{run} was trained on {facts['data']}, not on CIFAR-10: {again} with DATA=cifar10"),
        (epochs < recipe.epochs, f"{run} has {epochs} of {recipe.epochs} epochs: finish it"),
        (sources[0] != sources[1], f"{notebook.name} has changed since the run in {run}: {again}"),
        (not whole, f"the notebook in {run} was not executed whole, from top to bottom: {again}"),
        (failed, f"the notebook in {run} shows an error: fix it and {again}"),
    ):
        if wrong:
            raise NotPublishable(reason)


def results_table(static: Path) -> str:
    """The README's table of results, one row per published session."""
    heads = "session|test accuracy|best public solution|train accuracy|n|s/epoch|hardware|data".split("|")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for file in sorted(static.glob("session*/run.json"), reverse=True):  # in the order of the README
        facts = json.loads(file.read_text("utf-8"))
        flipped = f" ({facts['flip_averaged']:.2f}% flip-averaged)" if "flip_averaged" in facts else ""
        name, best = SESSIONS[facts["session"]].recipe.title, BEST_PUBLIC[facts["session"]]
        cells = [f"{facts['session']}: {name}", f"**{facts['test_accuracy']:.2f}%**{flipped}", best]
        cells += [f"{facts['train_accuracy']:.2f}%", "1", f"{facts['seconds_per_epoch']:.0f}", facts["hardware"]]
        lines.append("| " + " | ".join([*cells, facts["data"]]) + " |")
    return "\n".join(["", *lines, ""])


def fill_section(text: str, name: str, content: str) -> str:
    """Replace the text between ``<!-- name -->`` and ``<!-- /name -->``."""
    marks = f"<!-- {name} -->", f"<!-- /{name} -->"
    if any(mark not in text for mark in marks):
        raise NotPublishable(f"README.md has no marks {' and '.join(marks)}: add them")
    head, rest = text.split(marks[0], 1)
    return f"{head}{marks[0]}\n{content}\n{marks[1]}{rest.split(marks[1], 1)[1]}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tools.publish", description="Publish a finished run.")
    parser.add_argument("session", type=int, choices=SESSIONS)
    session = parser.parse_args().session
    try:
        publish(session)
    except UserError as error:
        sys.exit(f"Not published: {error}")
    print(f"Published: the notebook, static/session{session}/ and the README's figures.")
