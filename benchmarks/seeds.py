"""Accuracy over seeds: ``python -m benchmarks.seeds ours --seeds 0 1 2``, also with ``--session 8`` or ``7``.

It trains a variant once per seed and appends the runs to seeds.csv; those that are there already are not repeated. Whole
runs of session 9 on CIFAR-10 become two tables and the first picture of the README.
"""

import argparse
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from models.model9 import TransformerModel
from tools.publish import SEEDS, accuracy, append, fill_section, read, row_of, table
from utils.data import ImageData, load_data
from utils.plots import accuracy_curves
from utils.runs.run import Run
from utils.sessions import SESSIONS, Session
from utils.errors import TrainingError
from utils.files import write_text

ROOT = Path(__file__).parents[1]
WHOLE = {"session": "9", "data": "CIFAR-10", "epochs": "24"}  # the runs that the README shows
CURVES = {
    "a8": "ours, a = 8 (variant)",
    "ours": "ours, a = 32 (as assigned)",
    "lr": "PyTorch's initialization, LR finder",
    "reference": "public reference's recipe",
}


def without_blocks() -> nn.Module:
    """ULTIMUS, a = 8, but the features of the convolutions go straight to the last layer."""
    model = TransformerModel(a=8)
    model.ultimus_blocks = nn.Sequential()  # the identity
    return model


LARGE = {"batch_size": 512}
COURSE = LARGE | {"crop_padding": 4, "cutout": 8, "weight_decay": 0.0}
UNCLIPPED = COURSE | {"max_grad_norm": None}
PYTORCH = partial(TransformerModel, init="pytorch")
BLOCKS = partial(TransformerModel, init="near_isometry")
A8 = partial(TransformerModel, a=8)
# Text, where "+" adds to the row above; changes of the recipe; network, and max LR, if not the session's and the finder's
LADDER: dict[str, tuple] = {
    "reference": ("public reference's recipe", UNCLIPPED, PYTORCH, 0.001),
    "lr": ("+ max LR from the LR finder, gradients clipped to norm 1", COURSE, PYTORCH, None),
    "init": ("+ our initialization of the blocks", COURSE, BLOCKS, None),
    "large": ("+ little augmentation, weight decay for the convolutions", LARGE, BLOCKS, None),
    "ours": ("+ cosine filters, batches of 128: **ours**", {}, None, None),
    "a8_pytorch": ("a = 8, PyTorch's initialization, batches of 512", LARGE, partial(PYTORCH, a=8), None),
    "a8_large": ("+ our initialization of the blocks", LARGE, partial(BLOCKS, a=8), None),
    "a8": ("+ cosine filters, batches of 128: **ours**, a = 8", {}, A8, None),
    # At about the max LR of a8: the LR finder would suggest 0.4 or more, because only the blocks diverge below 1.
    "a8_no_blocks": ("the same without the blocks", {}, without_blocks, 0.01),
}
MAX_LRS: dict[str, tuple] = {f"a8_{lr}": ("a = 8", {}, A8, lr) for lr in (0.003, 0.04, 0.1)}
VARIANTS = LADDER | MAX_LRS


def train(session: Session, name: str, seed: int, data: ImageData, epochs: int) -> dict[str, str]:
    """Train one seed of a variant; returns its row. A run whose loss is not finite has the accuracy of chance."""
    _, changes, network, max_lr = VARIANTS[name]
    recipe = replace(session.recipe, **changes)
    session = replace(session, recipe=recipe, network=network or session.network)
    run = Run.open(session, data, max_lr, name=f"seeds/{recipe.name}-{name}-{seed}", epochs=epochs, seed=seed)
    max_lr = max_lr or run.find_lr().suggestion
    try:
        run.fit(max_lr)
    except TrainingError as error:
        print(error)
        return {"max_lr": f"{max_lr:.6g}", "test_accuracy": f"{100 / len(data.classes):.2f}"}
    run.finish()
    return row_of(run.folder, name)


def hold_out(data: ImageData, count: int = 5_000) -> ImageData:
    """Hold out ``count`` training images to choose recipes by, in place of the test images."""
    order = torch.randperm(len(data.train_labels), generator=torch.Generator().manual_seed(0))
    held, rest = ((data.train_images[part], data.train_labels[part]) for part in (order[:count], order[count:]))
    return ImageData(f"{data.name}, validation split", data.classes, *rest, *held, data.mean, data.std)


def table_of(variants: Iterable[str]) -> str:
    """A Markdown table with one row per variant."""
    rows = []
    for name in variants:
        runs = read(ROOT / SEEDS, variant=name, **WHOLE)
        lrs = sorted(float(row["max_lr"]) for row in runs if row["max_lr"])
        span = " to ".join(dict.fromkeys(f"{lr:.2g}" for lr in (lrs[0], lrs[-1])))
        rows.append((VARIANTS[name][0], accuracy(runs), span))
    return table(("variant", "test accuracy, mean ± std (n)", "max LR"), rows)


def write_readme() -> None:
    """Write both tables between their marks, and draw the curves of seed 0; of two runs, the newer one."""
    text = fill_section((ROOT / "README.md").read_text("utf-8"), "ladder", table_of(LADDER))
    write_text(ROOT / "README.md", fill_section(text, "max-lr", table_of(MAX_LRS)))
    runs = {row["variant"]: row["curve"].split() for row in read(ROOT / SEEDS, seed="0", **WHOLE) if row["curve"]}
    curves = {label: [float(value) for value in runs[name]] for name, label in CURVES.items()}
    accuracy_curves(curves, "CIFAR-10, seed 0").savefig(ROOT / "static/session9/test_accuracy.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="*", choices=[*VARIANTS, []], help="none: only update the README")
    parser.add_argument("--session", type=int, choices=SESSIONS, default=9, help="7 and 8 have no variant but ours")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, help="default: the recipe's")
    parser.add_argument("--validation", action="store_true", help="test on held-out training images")
    options = parser.parse_args()
    session = SESSIONS[options.session]
    epochs = options.epochs or session.recipe.epochs
    for name in options.variants:
        data = hold_out(load_data()) if options.validation else load_data()
        about = {"session": str(options.session), "variant": name, "data": data.name, "epochs": str(epochs)}
        for seed in map(str, options.seeds):
            print(f"\nSession {options.session}, {name}, seed {seed}", flush=True)
            if not read(ROOT / SEEDS, **about, seed=seed):
                append(ROOT / SEEDS, about | {"seed": seed} | train(session, name, int(seed), data, epochs))
        print(f"\n{data.name}, {epochs} epochs: {accuracy(read(ROOT / SEEDS, **about))}")
    write_readme()


if __name__ == "__main__":
    main()
