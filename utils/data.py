"""The images, from CIFAR-10's archive, a folder or the embedded digits, and the loaders that serve them in batches."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from utils.recipes import Recipe
from utils.system.errors import DataError
from utils.system.graphs import GraphedFunction
from utils.system.settings import data_root, data_source, smoke
from utils.transforms import Compose, CutOut, Normalize, RandomCrop, RandomHorizontalFlip

CIFAR10_MEAN: tuple[float, ...] = (0.4914, 0.4822, 0.4465)
CIFAR10_STD: tuple[float, ...] = (0.2470, 0.2435, 0.2616)
SMOKE_DIGITS = 40, 24  # training and test images in smoke mode


@dataclass(frozen=True)
class ImageData:
    """Training and test images of one data set, as bytes.

    Shapes: images uint8 ``(N, 3, 32, 32)``, labels int64 ``(N,)``. ``mean`` and ``std`` are per channel, on the scale
    0 to 1. ``name`` appears in all logs, pictures and pages. Only runs on CIFAR-10 itself are published or handed in.
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

    def __str__(self) -> str:
        images = f"{len(self.train_labels):,} training and {len(self.test_labels):,} test images"
        return f"{self.name}: {images} of {len(self.classes)} classes ({', '.join(self.classes)})"


def load_data(source: str | Path | None = None) -> ImageData:
    """Training and test images of ``source``; DataError, with a remedy, if they are not available or not usable.

    ``source`` is ``"cifar10"`` (in ``$DATA_ROOT``, downloaded if absent), ``"digits"``, the path of a folder or archive
    of images, or ``"auto"``: CIFAR-10 if it is available, else the digits, with a message. Default: the environment
    variable ``DATA``, else ``"auto"``; in smoke mode always a few of the digits.
    """
    if source is None:
        if smoke():
            return load_digits(*SMOKE_DIGITS)
        source = data_source()
    if source == "digits":
        return load_digits()
    if source in ("cifar10", "auto"):
        try:
            return load_cifar10()
        except DataError as error:
            if source == "cifar10":
                raise
            frame = "#" * 100
            print(frame, "NOT CIFAR-10: TRAINING ON HANDWRITTEN DIGITS INSTEAD", textwrap.fill(str(error), 100),
                  "All logs, figures and pictures that follow are about the digits.", frame, sep="\n\n", flush=True)  # fmt: skip
            return load_digits()
    if "://" in str(source):
        raise DataError(f"{source} is a URL, which is not supported: download the file and set DATA to its path.")
    return load_folder(Path(source).expanduser())


def load_cifar10() -> ImageData:
    """CIFAR-10 from its archive, read by torchvision."""
    from torchvision.datasets import CIFAR10  # here, because its import takes a second

    from utils.sources.cifar10 import MIRRORS, fetch_cifar10
    from utils.sources.image_folder import as_tensor

    root = data_root()
    try:
        found = fetch_cifar10(root)
    except DataError as error:
        raise DataError(
            f"CIFAR-10 is not available: {error} Remedies: (1) download {MIRRORS[0]} by other means and put it "
            f"into {root}/; (2) git clone https://github.com/cyizhuo/CIFAR-10-dataset and set DATA=CIFAR-10-dataset; "
            "(3) set DATA=digits to train on handwritten digits."
        ) from error
    if found != root:
        return load_folder(found)
    train, test = CIFAR10(root, train=True), CIFAR10(root, train=False)
    images = as_tensor(train.data), torch.tensor(train.targets), as_tensor(test.data), torch.tensor(test.targets)
    return ImageData("CIFAR-10", tuple(train.classes), *images, CIFAR10_MEAN, CIFAR10_STD, is_cifar10=True)


def load_folder(path: Path) -> ImageData:
    """A folder ``train/<class>/*`` and ``test/<class>/*`` of 32×32 images, or an archive of one.

    The data set is named "CIFAR-10" if its images and labels are exactly those of CIFAR-10, else after the folder.
    """
    from utils.sources.image_folder import CIFAR10_DIGESTS, printable, read_images

    images = read_images(path)
    if images.pop("digests") == CIFAR10_DIGESTS:
        return ImageData("CIFAR-10", mean=CIFAR10_MEAN, std=CIFAR10_STD, is_cifar10=True, **images)
    mean, std = channel_statistics(images["train_images"])
    return ImageData(f"{printable(path.resolve().name)} (folder of images)", mean=mean, std=std, **images)


def load_digits(train_count: int = 1437, test_count: int = 360) -> ImageData:
    """scikit-learn's 1,797 handwritten digits or some of them, 8×8 gray → 32×32 RGB, split with a fixed seed."""
    from sklearn.datasets import load_digits as sklearn_digits
    from sklearn.model_selection import train_test_split

    digits = sklearn_digits()
    gray = torch.tensor(digits.images, dtype=torch.float32)[:, None] * (255 / 16)  # (1797, 1, 8, 8)
    gray = F.interpolate(gray, size=(32, 32), mode="bilinear")  # (1797, 1, 32, 32)
    images = gray.round().to(torch.uint8).repeat(1, 3, 1, 1)  # (1797, 3, 32, 32)
    labels = torch.tensor(digits.target)
    train, test = train_test_split(
        torch.arange(len(labels)), train_size=train_count, test_size=test_count, random_state=0, stratify=labels
    )
    mean, std = channel_statistics(images[train])
    classes = tuple(str(name) for name in digits.target_names)
    return ImageData("digits", classes, images[train], labels[train], images[test], labels[test], mean, std)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, 0 to 1, of each channel of uint8 ``(N, 3, H, W)``; 1 for that of a constant channel."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]).double()
    mean, square = (counts @ values / counts.sum(1) for values in (levels, levels**2))  # (3,)
    std = (square - mean**2).clamp(min=0).sqrt()
    std[std < 1e-6] = 1  # Normalize divides by it
    return tuple(mean.tolist()), tuple(std.tolist())


class BatchDataset(Dataset):
    """Returns B images ``(B, 3, 32, 32)`` and labels ``(B,)`` at once, which a DataLoader asks for by ``__getitems__``.

    To transform 512 images at once costs less than to transfer them from a worker process.
    """

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable[[Tensor], Tensor]) -> None:
        self.images, self.labels, self.transform = images, labels, transform
        self.batch = GraphedFunction(self.make_batch)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> Sequence[Tensor]:
        return self.batch(torch.tensor(indices).to(self.labels.device, non_blocking=True))

    def make_batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.transform(self.images[indices]), self.labels[indices]


def train_transform(data: ImageData, recipe: Recipe) -> Compose:
    """Crop, flip, cutout and normalize, each if the recipe asks for it."""
    crop = [RandomCrop(32, padding=recipe.crop_padding)] if recipe.crop_padding else []
    cutout = [CutOut(recipe.cutout, fill=data.mean)] if recipe.cutout else []
    return Compose([*crop, RandomHorizontalFlip(), *cutout, data.normalize])


def make_loaders(data: ImageData, recipe: Recipe, device: torch.device) -> tuple[DataLoader, DataLoader]:
    """Training batches, shuffled and augmented, and test batches in order, both on ``device``."""
    train_set = BatchDataset(data.train_images.to(device), data.train_labels.to(device), train_transform(data, recipe))
    train_loader = DataLoader(train_set, recipe.batch_size, shuffle=True, collate_fn=tuple)  # they are batches already
    # Large test batches take a tenth of the time on a GPU, and twice the time on a CPU. Processes can still share them.
    batches = max(1, 1024 // recipe.batch_size) if device.type == "cuda" else 1
    return train_loader, make_test_loader(data, data.normalize, batches * recipe.batch_size, device)


def make_test_loader(data: ImageData, normalize: Normalize, batch_size: int, device: torch.device) -> DataLoader:
    """Test batches in order on ``device``."""
    test_set = BatchDataset(data.test_images.to(device), data.test_labels.to(device), normalize)
    return DataLoader(test_set, batch_size, collate_fn=tuple)
