"""What each session trains with: one value a session, read by the notebook and by every script."""

import math
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Recipe:
    """The numbers of one training run. Epochs are counted from 1, sizes are in pixels or images."""

    session: int
    epochs: int
    top_epoch: int  # the learning rate is highest at the end of this epoch
    batch_size: int
    crop_padding: int  # 0: no crop
    cutout: int  # side of the square; 0: no cutout
    weight_decay: float  # of the convolutions
    max_grad_norm: float = math.inf  # longer gradients are cut to this length
    label_smoothing: float = 0.0
    start_div: float = 10.0  # the learning rate starts at max LR / start_div …
    end_div: float = 10_000.0  # … and ends at max LR / end_div
    seed: int = 0
    # What changes how long it takes, not what is learned:
    compile: bool = field(default=False, repr=False)
    precision: str = field(default="auto", repr=False)  # "float32", "bfloat16", or the faster of them here

    @property
    def name(self) -> str:
        return f"session{self.session}"

    def for_images(self, count: int) -> "Recipe":
        """The recipe for ``count`` training images: at least 20 steps an epoch, however few they are.

        CIFAR-10 keeps its batch size; the 1,437 digits would otherwise get three steps an epoch.
        """
        return replace(self, batch_size=max(1, min(self.batch_size, count // 20)))

    def for_epochs(self, epochs: int) -> "Recipe":
        """The recipe over ``epochs`` epochs, the top of its cycle at the same share of them."""
        return replace(self, epochs=epochs, top_epoch=max(1, round(self.top_epoch * epochs / self.epochs)))


SESSION9 = Recipe(
    session=9,
    epochs=24,
    top_epoch=5,
    batch_size=128,  # the assignment names none; four times the steps of 512, and a network that underfits needs them
    # 26,064 parameters underfit: with the usual crop of 4 and cutout of 8 the training accuracy stays below
    # the test accuracy.
    crop_padding=1,
    cutout=0,
    weight_decay=3e-4,
    # At the top of the cycle one bad batch can throw the attention so far that the loss never comes back.
    max_grad_norm=1.0,
    # Its convolutions are so thin that half of a CPU's time goes into BatchNorm and ReLU, which the compiler fuses.
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
    # The assignment wants no annihilation: the cycle ends where it began, at its LRMIN.
    start_div=100.0,
    end_div=100.0,
)

SESSION7 = Recipe(
    session=7,
    epochs=20,
    top_epoch=5,
    batch_size=128,  # as in the paper; the assignment names none
    crop_padding=4,
    cutout=16,
    weight_decay=5e-4,
    label_smoothing=0.1,
)
