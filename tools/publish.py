"""Publish a finished run in the repository: ``python -m tools.publish 9``.

It copies the executed notebook, the log and the pictures into the repository, adds the run to benchmarks/seeds.csv and
writes the results into the README. Only complete runs on CIFAR-10 are accepted.
"""

import argparse
import csv
import io
import json
import re
import shutil
import statistics
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import nbformat

from utils.sessions import SESSIONS
from utils.errors import UserError, one_line_errors
from utils.files import replace_file, write_text
from utils.settings import runs_folder

SEEDS = Path("benchmarks/seeds.csv")  # all measured runs; curve: the test accuracy of each epoch
COLUMNS = ("session,variant,data,seed,epochs,max_lr,train_accuracy,test_accuracy,seconds_per_epoch,hardware,torch,"
           "commit,curve").split(",")  # fmt: skip
BEST_PUBLIC = {  # the best public solution as assigned
    9: "[62.25%](https://github.com/abhyuditjain/eva-8/blob/adf545ae77/session9/README.md)",
    8: "[92.10%](https://github.com/ajinkyakhadilkar/EVA-8/blob/39f6322e91/Assignment8/README.md)",
    7: "[92.00%](https://github.com/partha-goswami/EVA8/blob/f5ee357385/Session7/README.md)",
}


def files(session: int) -> list[str]:
    """The files of a run of ``session`` that are published, besides its notebook."""
    weights = ["weights.pt"] if session == 9 else []  # they are small, and the default of `main.py classify`
    pictures = [f"{name}.png" for name in SESSIONS[session].pictures]
    return ["run.json", "history.csv", "training_log.txt", *pictures, *weights]


def publish(session: int, root: Path = Path()) -> None:
    """Copy ``runs/session<N>/`` under ``root`` into the repository there, if the run is complete."""
    name = f"session{session}"
    notebook = f"{name}_assignment.ipynb"
    run, static = root / runs_folder() / name, root / "static" / name
    check(run, session, root / notebook)
    static.mkdir(parents=True, exist_ok=True)
    for file in files(session):
        replace_file(static / file, partial(shutil.copyfile, run / file))
    replace_file(root / notebook, partial(shutil.copyfile, run / notebook))
    append(root / SEEDS, row_of(run))
    readme = fill_section((root / "README.md").read_text("utf-8"), "results", results_table(root / SEEDS))
    if f"<!-- {name}-log -->" in readme:
        log = (run / "training_log.txt").read_text("utf-8")
        readme = fill_section(readme, f"{name}-log", f"\n```text\n{log}```\n")
    write_text(root / "README.md", readme)


def row_of(run: Path, variant: str = "ours") -> dict[str, str]:
    """The row of ``SEEDS`` for the finished run in the folder ``run``."""
    facts = json.loads((run / "run.json").read_text("utf-8")) | {"variant": variant}
    facts["curve"] = " ".join(epoch["test_accuracy"] for epoch in read(run / "history.csv"))
    values = [facts.get(name, "") for name in COLUMNS]
    return {name: f"{x:.6g}" if isinstance(x, float) else str(x) for name, x in zip(COLUMNS, values)}


def read(path: Path, **wanted: str) -> list[dict[str, str]]:
    """The rows of a CSV file that have the ``wanted`` values."""
    return [row for row in csv.DictReader(path.read_text("utf-8").splitlines()) if wanted.items() <= row.items()]


def append(path: Path, row: dict[str, str]) -> None:
    """Add a row to ``SEEDS``, in place of that of an earlier run of the same seed on the same hardware."""
    run = {name: row.get(name, "") for name in ("session", "variant", "data", "seed", "epochs", "hardware")}
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows([*(old for old in read(path) if not run.items() <= old.items()), row])
    write_text(path, text.getvalue())


def check(run: Path, session: int, notebook: Path) -> None:
    """Raise UserError unless the run is a complete one on CIFAR-10 with the current notebook."""
    recipe = SESSIONS[session].recipe
    again = f"run `make {recipe.name}` again"
    missing = [name for name in (*files(session), notebook.name) if not (run / name).exists()]
    if missing:
        raise UserError(f"{run} is missing {', '.join(missing)}: finish `make {recipe.name}` first")
    facts, epochs = json.loads((run / "run.json").read_text("utf-8")), len(read(run / "history.csv"))
    ran, shown = (nbformat.read(path, as_version=4).cells for path in (run / notebook.name, notebook))
    # The repository's address may differ: `make colab` writes it after a run as well.
    sources = [[re.sub('REPOSITORY = ".*"', "", cell.source) for cell in cells] for cells in (ran, shown)]
    code = [cell for cell in ran if cell.cell_type == "code"]
    whole = [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    failed = any(output.output_type == "error" for cell in code for output in cell.outputs)
    for wrong, reason in (
        (not facts["is_cifar10"], f"{run} was trained on {facts['data']}, not on CIFAR-10: {again} with DATA=cifar10"),
        (epochs < recipe.epochs, f"{run} has {epochs} of {recipe.epochs} epochs: {again}"),
        (sources[0] != sources[1], f"{notebook.name} has changed since the run in {run}: {again}"),
        (not whole, f"the notebook in {run} was not executed whole, from top to bottom: {again}"),
        (failed, f"the notebook in {run} shows an error: fix it and {again}"),
    ):
        if wrong:
            raise UserError(reason)


def accuracy(rows: list[dict[str, str]]) -> str:
    """Test accuracy of some runs: mean ± std (n)."""
    values = [float(row["test_accuracy"]) for row in rows]
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}% ({len(values)})"


def results_table(seeds: Path) -> str:
    """The README's table of results, with the times of our newest run on such hardware, by whichever recipe."""
    rows = []
    for session, best in BEST_PUBLIC.items():
        recipe = SESSIONS[session].recipe
        runs = read(seeds, session=str(session), data="CIFAR-10", epochs=str(recipe.epochs))
        timed = [row for row in runs if "ours" in row["variant"] and row["seconds_per_epoch"]]
        times = [
            recipe.epochs * [float(row["seconds_per_epoch"]) for row in timed if kind in row["hardware"]][-1] / unit
            for kind, unit in (("NVIDIA", 1), ("2 threads", 60))
        ]
        mean = accuracy([row for row in runs if row["variant"] == "ours"])
        rows.append((f"{session}: {recipe.title}", f"**{mean}**", best, *(f"{time:.0f}" for time in times)))
    heads = "session|test accuracy, mean ± std (n)|best public solution|seconds on a GPU|minutes on two cores"
    return table(heads.split("|"), rows)


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table between empty lines."""
    head, *lines = (f"| {' | '.join(map(str, cells))} |" for cells in (heads, *rows))
    return "\n".join(["", head, "|" + "---|" * len(heads), *lines, ""])


def fill_section(text: str, name: str, content: str) -> str:
    """Replace the text between ``<!-- name -->`` and ``<!-- /name -->``."""
    head, rest = text.split(f"<!-- {name} -->\n", 1)
    return f"{head}<!-- {name} -->\n{content}\n<!-- /{name} -->{rest.split(f'<!-- /{name} -->', 1)[1]}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tools.publish", description="Publish a finished run.")
    parser.add_argument("session", type=int, choices=SESSIONS)
    session = parser.parse_args().session
    with one_line_errors("not published"):
        publish(session)
        print(f"Published: the notebook, static/session{session}/ and the README's results.")
