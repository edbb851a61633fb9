"""The images (CIFAR-10, a folder or the digits) and the loaders that serve them in batches."""

import functools
import hashlib
import os
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from utils.device import forked_random_state
from utils.errors import DataError
from utils.files import printable
from utils.graphs import GraphedFunction
from utils.recipes import Recipe
from utils.settings import data_root, data_source, smoke
from utils.transforms import Compose, CutOut, Normalize, RandomCrop, RandomHorizontalFlip

CIFAR10_MEAN: tuple[float, ...] = (0.4914, 0.4822, 0.4465)
CIFAR10_STD: tuple[float, ...] = (0.2470, 0.2435, 0.2616)
SMOKE_DIGITS = 40, 24  # training and test images in smoke mode


@dataclass(frozen=True)
class ImageData:
    """Training and test images of one data set, as bytes.

    Shapes: images uint8 ``(N, 3, 32, 32)``, labels int64 ``(N,)``. ``mean`` and ``std`` are per
    channel, on the scale 0 to 1. ``name`` appears in all logs, pictures and pages. Only runs on
    CIFAR-10 itself are published or handed in.
    """

    name: str
    classes: tuple[str, ...]
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    is_cifar10: bool = False

    @property
    def normalize(self) -> Normalize:
        return Normalize(self.mean, self.std)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of classes, images and labels, by which a resumed run knows its images again."""
        content = hashlib.sha256("\n".join(self.classes).encode())
        for images, labels in (
            (self.train_images, self.train_labels),
            (self.test_images, self.test_labels),
        ):
            content.update(images.numpy().tobytes())
            content.update(labels.numpy().tobytes())
        return content.hexdigest()

    def __str__(self) -> str:
        images = f"{len(self.train_labels):,} training and {len(self.test_labels):,} test images"
        classes = ", ".join(self.classes)
        return f"{self.name}: {images} of {len(self.classes)} classes:\n{classes}"


def load_data(source: str | Path | None = None) -> ImageData:
    """Training and test images of ``source``; DataError, with a remedy, if there are none.

    ``source`` is ``"cifar10"`` (in ``$DATA_ROOT``, downloaded if absent), ``"digits"``, the path
    of a folder of images, or ``"auto"``: CIFAR-10 if it is available, else the digits, with a
    message. Default: the environment variable ``DATA``, else ``"auto"``; in smoke mode always a
    few of the digits.
    """
    if source is None:
        if smoke():
            return load_digits(*SMOKE_DIGITS)
        source = data_source()
    if source == "digits":
        return load_digits()
    if source == "cifar10":
        return load_cifar10()
    if source == "auto":
        return load_cifar10_or_digits()
    if not str(source).strip():
        raise DataError(
            "the name of the images is empty: set DATA or --data to cifar10, digits, auto, or a "
            "folder of images."
        )
    if "://" in str(source):
        raise DataError(
            f"{printable(source)} is a URL, which is not supported: download and unpack the file, "
            "and set DATA to the folder."
        )
    # Unlike Path.expanduser, this leaves "~" as it is if there is no home.
    return load_folder(Path(os.path.expanduser(source)))


def load_cifar10_or_digits() -> ImageData:
    """CIFAR-10, or the digits with a message that nobody can miss."""
    try:
        return load_cifar10()
    except DataError as error:
        frame = "#" * 100
        print(
            frame,
            "NOT CIFAR-10: TRAINING ON HANDWRITTEN DIGITS INSTEAD",
            textwrap.fill(str(error), 100),
            "All logs, figures and pictures that follow are about the digits.",
            frame,
            sep="\n\n",
            flush=True,
        )
        return load_digits()


def load_cifar10() -> ImageData:
    """CIFAR-10 in ``$DATA_ROOT``, downloaded if absent, read by torchvision."""
    from torchvision.datasets import CIFAR10  # here, because its import takes a second

    from utils.cifar10 import fetch_cifar10
    from utils.image_folder import as_tensor

    root = data_root()
    fetch_cifar10(root)
    train = CIFAR10(root, train=True)
    test = CIFAR10(root, train=False)
    return ImageData(
        "CIFAR-10",
        classes=tuple(train.classes),
        train_images=as_tensor(train.data),
        train_labels=torch.tensor(train.targets),
        test_images=as_tensor(test.data),
        test_labels=torch.tensor(test.targets),
        mean=CIFAR10_MEAN,
        std=CIFAR10_STD,
        is_cifar10=True,
    )


def load_folder(path: Path) -> ImageData:
    """A folder ``train/<class>/*`` and ``test/<class>/*`` of 32×32 images in ten classes.

    The data set is named "CIFAR-10" if its images and labels are exactly those of CIFAR-10, else
    after the folder.
    """
    from utils.image_folder import CIFAR10_DIGESTS, digest, read_folder

    classes, train, test = read_folder(path)
    is_cifar10 = [digest(*train), digest(*test)] == CIFAR10_DIGESTS
    if is_cifar10:
        name = "CIFAR-10"
        mean, std = CIFAR10_MEAN, CIFAR10_STD
    else:
        name = f"{printable(path.resolve().name)} (folder of images)"
        mean, std = channel_statistics(train[0])
    return ImageData(name, classes, *train, *test, mean, std, is_cifar10)


def load_digits(train_count: int = 1437, test_count: int = 360) -> ImageData:
    """scikit-learn's 1,797 handwritten digits or some of them, split with a fixed seed.

    8×8 gray pixels become 32×32 RGB.
    """
    from sklearn.datasets import load_digits as sklearn_digits
    from sklearn.model_selection import train_test_split

    digits = sklearn_digits()
    gray = torch.tensor(digits.images, dtype=torch.float32)[:, None] * (255 / 16)  # (1797, 1, 8, 8)
    gray = F.interpolate(gray, size=(32, 32), mode="bilinear")  # (1797, 1, 32, 32)
    images = gray.round().to(torch.uint8).repeat(1, 3, 1, 1)  # (1797, 3, 32, 32)
    labels = torch.tensor(digits.target)
    train, test = train_test_split(
        torch.arange(len(labels)),
        train_size=train_count,
        test_size=test_count,
        random_state=0,
        stratify=labels,
    )
    mean, std = channel_statistics(images[train])
    return ImageData(
        "digits",
        classes=tuple(str(name) for name in digits.target_names),
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
        mean=mean,
        std=std,
    )


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, 0 to 1, of each channel of uint8 ``(N, 3, H, W)``.

    The standard deviation of a constant channel is given as 1, as Normalize divides by it.
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    histograms = [torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]
    counts = torch.stack(histograms).double()  # (3, 256)
    pixels = counts.sum(1)  # (3,)
    mean = counts @ levels / pixels
    mean_square = counts @ levels**2 / pixels
    std = (mean_square - mean**2).clamp(min=0).sqrt()
    std[std < 1e-6] = 1
    return tuple(mean.tolist()), tuple(std.tolist())


class BatchDataset(Dataset):
    """Returns B images ``(B, 3, 32, 32)`` and labels ``(B,)`` at once.

    A DataLoader asks for them by ``__getitems__``. To transform 512 images at once costs less than
    to transfer them from a worker process.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, transform: Callable[[Tensor], Tensor]
    ) -> None:
        self.images = images
        self.labels = labels
        self.transform = transform
        self.graphed_batch = GraphedFunction(self.make_batch)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> Sequence[Tensor]:
        device = self.labels.device
        # Only CUDA is safe without waiting: MPS would read memory that is already freed
        # (https://github.com/pytorch/pytorch/issues/189690).
        on_device = torch.tensor(indices).to(device, non_blocking=device.type == "cuda")
        return self.graphed_batch(on_device)

    def make_batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.transform(self.images[indices]), self.labels[indices]


def train_transform(recipe: Recipe, data: ImageData) -> Compose:
    """Crop, flip, cutout and normalize, each if the recipe asks for it."""
    steps: list[Callable[[Tensor], Tensor]] = []
    if recipe.crop_padding:
        steps.append(RandomCrop(32, padding=recipe.crop_padding))
    steps.append(RandomHorizontalFlip())
    if recipe.cutout:
        steps.append(CutOut(recipe.cutout, fill=data.mean))
    steps.append(data.normalize)
    return Compose(steps)


def make_loaders(
    data: ImageData, transform: Callable[[Tensor], Tensor], batch_size: int, device: torch.device
) -> tuple[DataLoader, DataLoader]:
    """Training batches, shuffled and transformed, and test batches in order, both on ``device``.

    ``transform`` maps a uint8 batch ``(B, 3, 32, 32)`` to float32; test images are only normalized.
    """
    train_set = BatchDataset(data.train_images.to(device), data.train_labels.to(device), transform)
    train_loader = DataLoader(
        train_set,
        batch_size,
        shuffle=True,
        collate_fn=tuple,  # they are batches already
    )
    # Large test batches take a tenth of the time on a GPU, and twice the time on a CPU.
    test_batch_size = max(batch_size, 1024) if device.type == "cuda" else batch_size
    return train_loader, make_test_loader(data, data.normalize, test_batch_size, device)


def make_test_loader(
    data: ImageData, normalize: Normalize, batch_size: int, device: torch.device
) -> DataLoader:
    """Test batches in order on ``device``."""
    test_set = BatchDataset(data.test_images.to(device), data.test_labels.to(device), normalize)
    return DataLoader(test_set, batch_size, collate_fn=tuple)


def sample_batch(loader: DataLoader) -> tuple[Tensor, Tensor]:
    """One batch of training images and labels, always the same; the random state is restored."""
    labels = getattr(loader.dataset, "labels", torch.empty(0))
    with forked_random_state(labels.device):
        torch.manual_seed(0)
        return next(iter(loader))
