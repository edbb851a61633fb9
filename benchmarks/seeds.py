"""Accuracy over seeds: ``python -m benchmarks.seeds ours --seeds 0 1 2``, also ``--session 8``.

It trains a variant once per seed and appends the runs to seeds.csv; those that are there already
are not repeated. Whole runs of session 9 on CIFAR-10 become two tables and the first picture of the
README.
"""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.results import (
    SEEDS,
    accuracy,
    append,
    fill_section,
    one_per_seed,
    read,
    row_of,
    table,
)
from models.model9 import TransformerModel
from utils.data import ImageData, load_data
from utils.errors import TrainingError
from utils.files import write_text
from utils.plots import accuracy_curves, style
from utils.runs.run import SMOKE_EPOCHS, Run
from utils.sessions import SESSIONS, Session, train_session
from utils.settings import smoke

ROOT = Path(__file__).parents[1]
# The runs that the README shows.
PUBLISHED = {"session": "9", "data": "CIFAR-10", "epochs": "24"}
CURVES = {
    "a8": "ours, a = 8",
    "ours": "ours, a = 32",
    "lr": "PyTorch's initialization, LR finder",
    "reference": "PyTorch's initialization, max LR 0.001",
}


def without_blocks() -> nn.Module:
    """ULTIMUS, a = 8, but the features of the convolutions go straight to the last layer."""
    model = TransformerModel(a=8)
    model.ultimus_blocks = nn.Sequential()  # the identity
    return model


@dataclass(frozen=True)
class Variant:
    """A row of the README's tables. What is not given is the session's."""

    text: str  # "+" adds to the row above
    changes: dict[str, Any] = field(default_factory=dict)  # of the recipe
    network: Callable[..., nn.Module] | None = None
    max_lr: float | None = None  # None: the LR finder's


LARGE = {"batch_size": 512}
COURSE = LARGE | {"crop_padding": 4, "cutout": 8, "weight_decay": 0.0}
UNCLIPPED = COURSE | {"max_grad_norm": None}
PYTORCH = partial(TransformerModel, init="pytorch")
BLOCKS = partial(TransformerModel, init="near_isometry")
PYTORCH_A8 = partial(TransformerModel, init="pytorch", a=8)
BLOCKS_A8 = partial(TransformerModel, init="near_isometry", a=8)
A8 = partial(TransformerModel, a=8)

LADDER = {
    "reference": Variant("PyTorch's initialization, max LR 0.001", UNCLIPPED, PYTORCH, 0.001),
    "lr": Variant("+ max LR from the LR finder, gradients clipped to norm 1", COURSE, PYTORCH),
    "init": Variant("+ our initialization of the blocks", COURSE, BLOCKS),
    "large": Variant("+ little augmentation, weight decay for the convolutions", LARGE, BLOCKS),
    "ours": Variant("+ cosine filters, batches of 128: **ours**"),
    "a8_pytorch": Variant("a = 8, PyTorch's initialization, batches of 512", LARGE, PYTORCH_A8),
    "a8_large": Variant("+ our initialization of the blocks", LARGE, BLOCKS_A8),
    "a8": Variant("+ cosine filters, batches of 128: **ours**, a = 8", network=A8),
    # At about the max LR of a8: the LR finder would suggest 0.4 or more, because only the blocks
    # diverge below 1.
    "a8_no_blocks": Variant("the same without the blocks", network=without_blocks, max_lr=0.01),
}
MAX_LRS = {
    f"a8_{max_lr}": Variant("a = 8", network=A8, max_lr=max_lr) for max_lr in (0.003, 0.04, 0.1)
}
VARIANTS = LADDER | MAX_LRS


def train(session: Session, name: str, seed: int, data: ImageData, epochs: int) -> dict[str, str]:
    """Train one seed of a variant; returns its row.

    A run whose loss is not finite has the accuracy of chance.
    """
    variant = VARIANTS[name]
    recipe = session.recipe.replace(epochs=epochs, seed=seed, **variant.changes)
    session = session.replace(network=variant.network or session.network)
    run = Run.open(f"seeds/{session.name}-{name}-{seed}", recipe, data)
    try:
        train_session(session, run, variant.max_lr)
    except TrainingError as error:
        print(error)
        max_lr = variant.max_lr or (run.search.suggestion if run.search else float("nan"))
        return {"max_lr": f"{max_lr:.6g}", "test_accuracy": f"{100 / len(data.classes):.2f}"}
    run.finish()
    return row_of(run.folder.path, name)


def hold_out(data: ImageData, count: int = 5_000) -> ImageData:
    """Hold out ``count`` training images to choose recipes by, in place of the test images."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(data.train_labels), generator=generator)
    held_out = order[:count]
    rest = order[count:]
    return ImageData(
        f"{data.name}, validation split",
        data.classes,
        data.train_images[rest],
        data.train_labels[rest],
        data.train_images[held_out],
        data.train_labels[held_out],
        data.mean,
        data.std,
    )


def table_of(variants: Iterable[str]) -> str:
    """A Markdown table with one row per variant."""
    rows = []
    for name in variants:
        runs = one_per_seed(read(ROOT / SEEDS, variant=name, **PUBLISHED))
        lrs = sorted(float(row["max_lr"]) for row in runs if row["max_lr"])
        span = dict.fromkeys(f"{lr:.2g}" for lr in (lrs[0], lrs[-1]))
        rows.append((VARIANTS[name].text, accuracy(runs), " to ".join(span)))
    return table(("variant", "test accuracy, mean ± std (n)", "max LR"), rows)


def write_readme() -> None:
    """Write both tables between their marks, and draw the curves of seed 0."""
    text = (ROOT / "README.md").read_text("utf-8")
    text = fill_section(text, "ladder", table_of(LADDER))
    text = fill_section(text, "max-lr", table_of(MAX_LRS))
    write_text(ROOT / "README.md", text)
    runs = read(ROOT / SEEDS, seed="0", **PUBLISHED)
    # Of two runs of one variant, the newer one.
    curves_of = {row["variant"]: row["curve"].split() for row in runs if row["curve"]}
    curves = {}
    for name, label in CURVES.items():
        curves[label] = [float(value) for value in curves_of[name]]
    with style():
        figure = accuracy_curves(curves, "CIFAR-10, seed 0")
        figure.savefig(ROOT / "static/session9/test_accuracy.png")


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description="Accuracy over seeds.")
    parser.add_argument(
        "variants", nargs="*", choices=[*VARIANTS, []], help="none: only update the README"
    )
    parser.add_argument(
        "--session", type=int, choices=SESSIONS, default=9, help="7 and 8 have no variant but ours"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, help="default: the recipe's")
    parser.add_argument(
        "--validation", action="store_true", help="test on held-out training images"
    )
    return parser.parse_args()


def train_seeds(
    session: Session, variant: str, seeds: list[int], data: ImageData, epochs: int
) -> None:
    """Train those seeds of a variant that are not in seeds.csv yet, and print their accuracy."""
    columns = {
        "session": str(session.recipe.session),
        "variant": variant,
        "data": data.name,
        "epochs": str(epochs),
    }
    for seed in seeds:
        print(f"\n{session.name}, {variant}, seed {seed}", flush=True)
        if not read(ROOT / SEEDS, **columns, seed=str(seed)):
            row = train(session, variant, seed, data, epochs)
            append(ROOT / SEEDS, columns | {"seed": str(seed)} | row)
    print(f"\n{data.name}, {epochs} epochs: {accuracy(read(ROOT / SEEDS, **columns))}")


def main() -> None:
    options = parse()
    session = SESSIONS[options.session]
    epochs = options.epochs or session.recipe.epochs
    if smoke():
        epochs = min(epochs, SMOKE_EPOCHS)
    for variant in options.variants:
        data = load_data()
        if options.validation:
            data = hold_out(data)
        train_seeds(session, variant, options.seeds, data, epochs)
    write_readme()


if __name__ == "__main__":
    main()
