"""Accuracy over seeds: ``python -m benchmarks.seeds ours --seeds 0 1 2``.

It trains a variant of session 9 once per seed in runs/seeds/<variant>-<seed>/ and appends the results to seeds.csv and
the accuracy of each epoch to histories.csv. Runs that are there already are not repeated. It prints a table per data
set and number of epochs, and writes the whole runs on CIFAR-10 into the README.
"""

import argparse
import csv
import math
import statistics
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from tools.publish import fill_section
from utils.data import ImageData, load_data
from utils.plots import accuracy_curves
from utils.runs.run import Run
from utils.sessions import SESSIONS
from utils.system.device import hardware_of
from utils.system.errors import TrainingError
from utils.system.files import write_text

SESSION = SESSIONS[9]
RESULTS = Path(__file__).with_name("seeds.csv")
HISTORIES = Path(__file__).with_name("histories.csv")
PICTURE = Path(__file__).parents[1] / "static/session9/test_accuracy.png"
CURVES = {
    "a8": "ours, a = 8 (variant)",
    "ours": "ours, a = 32 (as assigned)",
    "lr": "PyTorch's initialization, max LR from the LR finder",
    "reference": "public reference's recipe",
}
README = Path(__file__).parents[1] / "README.md"
COLUMNS = ["variant", "data", "seed", "epochs", "max_lr", "train_accuracy", "test_accuracy", "seconds_per_epoch",
           "hardware", "torch"]  # fmt: skip
HISTORY_COLUMNS = ["variant", "data", "seed", "epochs", "epoch", "train_accuracy", "test_accuracy"]
DIVERGED = 20.0  # a run that ends below this test accuracy in percent counts as diverged


@dataclass(frozen=True)
class Variant:
    """One row of the tables: what differs from the published recipe."""

    text: str  # a text that starts with "+" adds to the variant above it
    changes: dict = field(default_factory=dict)  # in the recipe
    a: int = 32
    init: str = "ours"
    blocks: bool = True  # False: the features of the convolutions go straight to the last layer
    max_lr: float | None = None  # None: found by the LR finder


LARGE = {"batch_size": 512}
COURSE = {**LARGE, "crop_padding": 4, "cutout": 8, "weight_decay": 0.0}
LADDER = {
    "reference": Variant(
        "public reference's recipe", {**COURSE, "max_grad_norm": math.inf}, init="pytorch", max_lr=0.001
    ),
    "lr": Variant("+ max LR from the LR finder, gradients clipped to norm 1", COURSE, init="pytorch"),
    "init": Variant("+ our initialization of the blocks", COURSE, init="near_isometry"),
    "large": Variant("+ little augmentation, weight decay for the convolutions", LARGE, init="near_isometry"),
    "ours": Variant("+ cosine filters, batches of 128: **ours**"),
    "a8_pytorch": Variant(
        "a = 8, as ours, but with PyTorch's initialization and batches of 512", LARGE, a=8, init="pytorch"
    ),
    "a8_large": Variant("+ our initialization of the blocks", LARGE, a=8, init="near_isometry"),
    "a8": Variant("+ cosine filters, batches of 128: **ours**, a = 8", a=8),
    # At about the max LR of a8: the LR finder would suggest 0.4 or more, because only the blocks diverge below 1.
    "a8_no_blocks": Variant("a = 8, as ours, but without the blocks", a=8, blocks=False, max_lr=0.01),
}
MAX_LRS = {
    "a8_0.003": Variant("max LR 0.003", a=8, max_lr=0.003),
    "a8": replace(LADDER["a8"], text="max LR from the LR finder"),
    "a8_0.04": Variant("max LR 0.04", a=8, max_lr=0.04),
    "a8_0.1": Variant("max LR 0.1", a=8, max_lr=0.1),
}
VARIANTS = LADDER | MAX_LRS | LADDER  # a8 is in both; here it has its place and its text of the ladder


def network(variant: Variant) -> nn.Module:
    """The variant's network, newly initialized."""
    model = SESSION.network(a=variant.a, init=variant.init)
    if not variant.blocks:
        model.ultimus_blocks = nn.Sequential()  # the identity
    return model


def train(name: str, seed: int, data: ImageData, epochs: int) -> dict:
    """Train one seed of a variant and return its row; a run whose loss is not finite has the accuracy of chance."""
    variant = VARIANTS[name]
    recipe = replace(SESSION.recipe, **variant.changes)
    session = replace(SESSION, recipe=recipe, network=partial(network, variant))
    run = Run.open(session, data, variant.max_lr, name=f"seeds/{name}-{seed}", epochs=epochs, seed=seed)
    max_lr = variant.max_lr or run.find_lr().suggestion
    row = {"variant": name, "data": data.name, "seed": seed, "epochs": epochs, "max_lr": f"{max_lr:.6g}",
           "hardware": hardware_of(run.accelerator), "torch": torch.__version__}  # fmt: skip
    try:
        history = run.fit(max_lr)
    except TrainingError as error:
        print(error)
        return row | {"train_accuracy": "", "test_accuracy": 100 / len(data.classes), "seconds_per_epoch": ""}
    for epoch, accuracies in enumerate(zip(history.train_accuracy, history.test_accuracy), start=1):
        values = [name, data.name, seed, epochs, epoch, *(f"{accuracy:.2f}" for accuracy in accuracies)]
        append(HISTORIES, HISTORY_COLUMNS, dict(zip(HISTORY_COLUMNS, values)))
    last = dict(zip(("train_accuracy", "test_accuracy"), values[-2:]))
    return row | last | {"seconds_per_epoch": f"{statistics.median(history.seconds):.1f}"}


def hold_out(data: ImageData, count: int = 5_000) -> ImageData:
    """Hold out ``count`` training images to choose recipes by, in place of the test images."""
    order = torch.randperm(len(data.train_labels), generator=torch.Generator().manual_seed(0))
    held, rest = ((data.train_images[part], data.train_labels[part]) for part in (order[:count], order[count:]))
    name = f"{data.name}, validation split"
    return ImageData(name, data.classes, *rest, *held, data.mean, data.std)


def read(path: Path) -> list[dict]:
    return list(csv.DictReader(path.read_text("utf-8").splitlines())) if path.exists() else []


def append(path: Path, columns: list[str], row: dict) -> None:
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, columns)
        if file.tell() == 0:  # new
            writer.writeheader()
        writer.writerow(row)


def table(rows: list[dict], variants: dict[str, Variant]) -> str:
    """A Markdown table with one row per variant that has been run."""
    heads = "variant n mean std min max diverged max&nbsp;LR".split()
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, variant in variants.items():
        runs = [row for row in rows if row["variant"] == name]
        if not runs:
            continue
        accuracies = [float(row["test_accuracy"]) for row in runs]
        lrs = sorted(float(row["max_lr"]) for row in runs)
        spread = f"{statistics.stdev(accuracies):.2f}" if len(runs) > 1 else "–"
        lr = f"{lrs[0]:.2g}" if lrs[0] == lrs[-1] else f"{lrs[0]:.2g} to {lrs[-1]:.2g}"
        lines.append(
            f"| {variant.text} | {len(runs)} | {statistics.mean(accuracies):.2f}% | {spread} | "
            f"{min(accuracies):.2f}% | {max(accuracies):.2f}% | {sum(a < DIVERGED for a in accuracies)} | {lr} |"
        )
    return "\n".join(lines)


def select(rows: list[dict], data: str = "CIFAR-10", epochs: str = str(SESSION.recipe.epochs)) -> list[dict]:
    """The rows of runs on ``data`` with this number of epochs; the README shows the default ones."""
    return [row for row in rows if (row["data"], row["epochs"]) == (data, epochs)]


def write_readme(rows: list[dict]) -> None:
    """Write both tables between their marks in the README."""
    text = fill_section(README.read_text("utf-8"), "ladder", f"\n{table(select(rows), LADDER)}\n")
    write_text(README, fill_section(text, "max-lr", f"\n{table(select(rows), MAX_LRS)}\n"))


def draw_curves() -> None:
    """Draw the README's first picture, if there is a whole run of seed 0 on CIFAR-10 for each of its curves."""
    curves: dict[str, list[float]] = {label: [] for label in CURVES.values()}
    for row in select(read(HISTORIES)):
        if row["seed"] == "0" and row["variant"] in CURVES:
            curves[CURVES[row["variant"]]].append(float(row["test_accuracy"]))
    if all(curves.values()):
        accuracy_curves(curves, "CIFAR-10, seed 0").savefig(PICTURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="*", choices=[*VARIANTS, []], help="none: only update the tables")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=SESSION.recipe.epochs)
    parser.add_argument("--validation", action="store_true", help="test on held-out training images")
    arguments = parser.parse_args()
    for name in arguments.variants:
        data = hold_out(load_data()) if arguments.validation else load_data()
        for seed in arguments.seeds:
            key = (name, data.name, str(seed), str(arguments.epochs))
            if key in {(row["variant"], row["data"], row["seed"], row["epochs"]) for row in read(RESULTS)}:
                continue
            print(f"\n{name}, seed {seed}: {VARIANTS[name].text}", flush=True)
            append(RESULTS, COLUMNS, train(name, seed, data, arguments.epochs))
    rows = read(RESULTS)
    write_readme(rows)
    draw_curves()
    for data, epochs in sorted({(row["data"], row["epochs"]) for row in rows}):
        print(f"\n{data}, {epochs} epochs\n\n{table(select(rows, data, epochs), VARIANTS)}")


if __name__ == "__main__":
    main()
