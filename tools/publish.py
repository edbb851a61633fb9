"""Publish a finished run in the repository: ``python -m tools.publish 9``.

It copies the executed notebook, the log and the pictures into the repository, adds the run to
benchmarks/seeds.csv and writes the results into the README. Only complete runs on CIFAR-10 are
accepted.
"""

import argparse
import json
import re
import shutil
from functools import partial
from pathlib import Path

import nbformat

from benchmarks.results import SEEDS, accuracy, append, fill_section, read, row_of, table
from tools.colab import LINK
from utils.errors import UserError, one_line_errors
from utils.files import replace_file, write_text
from utils.sessions import SESSIONS
from utils.settings import runs_folder

BEST_PUBLIC = {  # the best public solution as assigned
    9: "[62.25%](https://github.com/abhyuditjain/eva-8/blob/adf545ae77/session9/README.md)",
    8: "[92.10%](https://github.com/ajinkyakhadilkar/EVA-8/blob/39f6322e91/Assignment8/README.md)",
    7: "[92.00%](https://github.com/partha-goswami/EVA8/blob/f5ee357385/Session7/README.md)",
}


def published_files(session: int) -> list[str]:
    """The files of a run of ``session`` that are published, besides its notebook."""
    pictures = [f"{name}.png" for name in SESSIONS[session].pictures]
    # Session 9's weights are small, and the default of `main.py classify`.
    weights = ["weights.pt"] if session == 9 else []
    return ["run.json", "history.csv", "training_log.txt", *pictures, *weights]


def publish(session: int, root: Path = Path()) -> None:
    """Copy ``runs/session<N>/`` under ``root`` into the repository, if the run is complete."""
    name = f"session{session}"
    notebook = f"{name}_assignment.ipynb"
    run = root / runs_folder() / name
    static = root / "static" / name
    check(run, session, root / notebook)
    static.mkdir(parents=True, exist_ok=True)
    for file in published_files(session):
        replace_file(static / file, partial(shutil.copyfile, run / file))
    replace_file(root / notebook, partial(shutil.copyfile, run / notebook))
    append(root / SEEDS, row_of(run))
    readme = (root / "README.md").read_text("utf-8")
    readme = fill_section(readme, "results", results_table(root / SEEDS))
    if f"<!-- {name}-log -->" in readme:
        log = (run / "training_log.txt").read_text("utf-8")
        readme = fill_section(readme, f"{name}-log", f"\n```text\n{log}```\n")
    write_text(root / "README.md", readme)


def check(run: Path, session: int, notebook: Path) -> None:
    """Raise UserError unless the run is a complete one on CIFAR-10 with the current notebook."""
    again = f"run `make session{session}` again"
    missing = [
        name for name in (*published_files(session), notebook.name) if not (run / name).exists()
    ]
    if missing:
        raise UserError(
            f"{run} is missing {', '.join(missing)}: finish `make session{session}` first"
        )
    facts = json.loads((run / "run.json").read_text("utf-8"))
    if not facts["is_cifar10"]:
        raise UserError(
            f"{run} was trained on {facts['data']}, not on CIFAR-10: {again} with DATA=cifar10"
        )
    epochs = len(read(run / "history.csv"))
    wanted = SESSIONS[session].recipe.epochs
    if epochs < wanted:
        raise UserError(f"{run} has {epochs} of {wanted} epochs: {again}")
    check_notebook(run / notebook.name, notebook, again)


def check_notebook(executed: Path, notebook: Path, again: str) -> None:
    """Raise UserError unless ``executed`` is ``notebook`` after a whole run without errors."""
    if sources(executed) != sources(notebook):
        raise UserError(f"{notebook.name} has changed since the run in {executed.parent}: {again}")
    cells = [cell for cell in read_cells(executed) if cell.cell_type == "code"]
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        raise UserError(f"{executed} was not executed whole, from top to bottom: {again}")
    outputs = [output for cell in cells for output in cell.outputs]
    if any(output.output_type == "error" for output in outputs):
        raise UserError(f"{executed} shows an error: fix it and {again}")


def read_cells(notebook: Path) -> list:
    return nbformat.read(notebook, as_version=4).cells


def sources(notebook: Path) -> list[str]:
    """The text of all cells, without the repository's addresses, which `make colab` may change."""
    cells = [LINK.sub("", cell.source) for cell in read_cells(notebook)]
    return [re.sub('REPOSITORY = ".*"', "", source) for source in cells]


def results_table(seeds: Path) -> str:
    """The README's table of results, with the times of our newest run on such hardware."""
    rows = []
    for session, best in BEST_PUBLIC.items():
        epochs = SESSIONS[session].recipe.epochs
        runs = read(seeds, session=str(session), data="CIFAR-10", epochs=str(epochs))
        timed = [row for row in runs if "ours" in row["variant"] and row["seconds_per_epoch"]]
        mean = accuracy([row for row in runs if row["variant"] == "ours"])
        rows.append(
            (
                f"{session}: {SESSIONS[session].title}",
                f"**{mean}**",
                best,
                f"{epochs * newest_time(timed, 'NVIDIA'):.0f}",
                f"{epochs * newest_time(timed, '2 threads') / 60:.0f}",
            )
        )
    heads = (
        "session",
        "test accuracy, mean ± std (n)",
        "best public solution",
        "seconds on a GPU",
        "minutes on two cores",
    )
    return table(heads, rows)


def newest_time(rows: list[dict[str, str]], hardware: str) -> float:
    """Seconds per epoch of the last row with such hardware."""
    times = [float(row["seconds_per_epoch"]) for row in rows if hardware in row["hardware"]]
    return times[-1]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.publish", description="Publish a finished run."
    )
    parser.add_argument("session", type=int, choices=SESSIONS)
    session = parser.parse_args().session
    with one_line_errors("not published"):
        publish(session)
        print(f"Published: the notebook, static/session{session}/ and the README's results.")


if __name__ == "__main__":
    main()
