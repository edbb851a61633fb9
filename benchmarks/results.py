"""The file of all measured runs, benchmarks/seeds.csv, and what the README shows of it."""

import csv
import io
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from utils.files import one_process_at_a_time, write_text

SEEDS = Path("benchmarks/seeds.csv")
COLUMNS = (
    "session",
    "variant",
    "data",
    "seed",
    "epochs",
    "max_lr",
    "train_accuracy",
    "test_accuracy",
    "seconds_per_epoch",
    "hardware",
    "torch",
    "commit",
    "curve",  # the test accuracy of each epoch
)


def row_of(run: Path, variant: str = "ours") -> dict[str, str]:
    """The row of ``SEEDS`` for the finished run in the folder ``run``."""
    facts = json.loads((run / "run.json").read_text("utf-8"))
    facts["variant"] = variant
    facts["curve"] = " ".join(epoch["test_accuracy"] for epoch in read(run / "history.csv"))
    row = {}
    for name in COLUMNS:
        value = facts.get(name, "")
        row[name] = f"{value:.6g}" if isinstance(value, float) else str(value)
    return row


def read(path: Path, **wanted: str) -> list[dict[str, str]]:
    """The rows of a CSV file that have the ``wanted`` values."""
    rows = csv.DictReader(path.read_text("utf-8").splitlines())
    return [row for row in rows if wanted.items() <= row.items()]


def append(path: Path, row: dict[str, str]) -> None:
    """Add a row to ``SEEDS``, in place of that of an earlier run of the same seed and hardware.

    Benchmarks may run side by side: only one process at a time writes.
    """
    same = ("session", "variant", "data", "seed", "epochs", "hardware")
    run = {name: row.get(name, "") for name in same}
    with one_process_at_a_time(path.with_name(f".{path.name}.lock"), f"writing {path}"):
        others = [old for old in read(path) if not run.items() <= old.items()]
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*others, row])
        write_text(path, text.getvalue())


def one_per_seed(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The newest run of each seed: the same seed on two machines is one seed."""
    return list({row["seed"]: row for row in rows}.values())


def accuracy(rows: list[dict[str, str]]) -> str:
    """Test accuracy of some runs: mean ± std (n), where n counts distinct seeds."""
    values = [float(row["test_accuracy"]) for row in one_per_seed(rows)]
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}% ({len(values)})"


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table between empty lines."""
    lines = ["", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        lines.append(f"| {' | '.join(map(str, row))} |")
    return "\n".join([*lines, ""])


def fill_section(text: str, name: str, content: str) -> str:
    """Replace the text between ``<!-- name -->`` and ``<!-- /name -->``."""
    head, rest = text.split(f"<!-- {name} -->\n", 1)
    _, tail = rest.split(f"<!-- /{name} -->", 1)
    return f"{head}<!-- {name} -->\n{content}\n<!-- /{name} -->{tail}"
