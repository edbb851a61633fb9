"""The hyperparameters of each session, shared by the notebooks and all scripts."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from utils.errors import TrainingError

PRECISIONS = ("auto", "float32", "bfloat16", "float16")

# Smallest and largest sensible value of each number in a recipe.
RANGES: dict[str, tuple[float, float]] = {
    "epochs": (1, 10_000),
    "batch_size": (1, 1_000_000),
    "crop_padding": (0, 31),  # an image of 32 pixels can be reflected by 31
    "cutout": (0, 64),
    "weight_decay": (0.0, 1.0),
    "max_grad_norm": (1e-6, 1e6),
    "label_smoothing": (0.0, 0.99),
    "start_div": (1.0, 1e6),
    "end_div": (1.0, 1e9),
    "seed": (0, 2**32 - 1),
}


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of one training run. Epochs count from 1; sizes are in pixels or images.

    ``replace`` makes a recipe with other values: ``SESSION9.replace(epochs=12, batch_size=64)``.
    Raises TrainingError: a value is out of its range.
    """

    session: int
    epochs: int
    top_epoch: int  # the learning rate peaks at the end of this epoch
    batch_size: int
    crop_padding: int  # 0: no crop
    cutout: int  # side of the square; 0: no cutout
    weight_decay: float  # of the convolutions
    max_grad_norm: float | None = None  # gradients are clipped to this norm; None: they are not
    label_smoothing: float = 0.0
    start_div: float = 10.0  # the learning rate starts at max LR / start_div …
    end_div: float = 10_000.0  # … and ends at max LR / end_div
    seed: int = 0
    # How it is computed. Both change the time, and the last digits of the results.
    compile: bool = False
    precision: str = "auto"  # "float32", "bfloat16", "float16", or "auto"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = plain_number(getattr(self, field.name))
            object.__setattr__(self, field.name, value)  # the dataclass is frozen
        ranges = RANGES | {"top_epoch": (1, self.epochs)}
        for name, (low, high) in ranges.items():
            if name == "max_grad_norm" and self.max_grad_norm is None:
                continue
            check_range(name, getattr(self, name), low, high)
        for name in ("epochs", "top_epoch", "batch_size", "crop_padding", "cutout", "seed"):
            if not isinstance(getattr(self, name), int):
                raise TrainingError(
                    f"{name} is {getattr(self, name)!r}: it must be a whole number."
                )
        if not isinstance(self.compile, bool):
            raise TrainingError(f"compile is {self.compile!r}: it must be True or False.")
        if self.precision not in PRECISIONS:
            raise TrainingError(
                f"precision is {self.precision!r}: it must be one of {', '.join(PRECISIONS)}."
            )

    def __str__(self) -> str:
        """A table, one value per line."""
        values = dataclasses.asdict(self)
        width = max(map(len, values))
        return "\n".join(f"{name:<{width}}  {value}" for name, value in values.items())

    def replace(self, **changes) -> "Recipe":
        """The recipe with some other values. Without a ``top_epoch``, it moves with ``epochs``.

        Raises TrainingError: a name is misspelled, or a value is out of its range.
        """
        names = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in names:
                raise TrainingError(f"a recipe has no {name}: choose among {', '.join(names)}.")
        epochs = plain_number(changes.get("epochs", self.epochs))
        check_range("epochs", epochs, *RANGES["epochs"])
        if "top_epoch" not in changes:
            changes["top_epoch"] = max(1, round(self.top_epoch * epochs / self.epochs))
        return dataclasses.replace(self, **changes)

    def for_images(self, count: int) -> "Recipe":
        """The recipe for ``count`` training images: an epoch has at least 20 batches.

        So small sets are trained in smaller batches. CIFAR-10 leaves the recipe as it is.
        """
        return self.replace(batch_size=max(1, min(self.batch_size, count // 20)))


def plain_number(value: Any) -> Any:
    """NumPy's numbers and one-element tensors as Python's, which checkpoints can hold."""
    if not hasattr(value, "item"):
        return value
    try:
        return value.item()
    except (ValueError, RuntimeError):  # several numbers
        return value


def check_range(name: str, value: Any, low: float, high: float) -> None:
    """Raise TrainingError unless ``value`` is a number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        kind = type(value).__name__
        raise TrainingError(f"{name} is of type {kind}: it must be a number.")
    if not low <= value <= high:
        raise TrainingError(f"{name} is {value}: it must be from {low} to {high}.")


SESSION9 = Recipe(
    session=9,
    epochs=24,
    top_epoch=5,
    # The assignment leaves the batch size open. The network underfits, and batches of 128 make
    # four times as many steps as batches of 512.
    batch_size=128,
    # With crop padding 4 and cutout 8×8, the training accuracy stays below the test accuracy.
    crop_padding=1,
    cutout=0,
    weight_decay=3e-4,
    # At the peak of the cycle, one bad batch can move the attention so far that the loss never
    # recovers.
    max_grad_norm=1.0,
    # With so few channels, half of a CPU's time goes into BatchNorm and ReLU, which the compiler
    # fuses.
    compile=True,
)

SESSION8 = Recipe(
    session=8,
    epochs=24,
    top_epoch=5,
    batch_size=512,
    crop_padding=4,
    cutout=8,
    weight_decay=5e-4,
    label_smoothing=0.2,
    # The assignment asks for no annihilation: the cycle ends at LRMIN, where it started.
    start_div=100.0,
    end_div=100.0,
)

SESSION7 = Recipe(
    session=7,
    epochs=20,
    top_epoch=5,
    batch_size=128,  # as in the paper; the assignment leaves it open
    crop_padding=4,
    cutout=16,
    weight_decay=5e-4,
    label_smoothing=0.1,
    compile=True,  # less time on a CPU with fast bfloat16
)
