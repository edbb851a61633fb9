"""A folder of images in the layout of torchvision's ``ImageFolder``, for each of two splits.

``train/<class>/*.png`` and ``test/<class>/*.png`` (or .jpg, .webp and others), 32×32 pixels each.
Nothing is written beside the images: they may be on a read-only file system.
"""

import hashlib
import os
import stat
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from textwrap import shorten

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from utils.errors import DataError
from utils.files import printable
from utils.progress import progress

# What Pillow raises for a file that it cannot read.
UNREADABLE = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    SyntaxError,
    ValueError,
)

CIFAR10_DIGESTS = [  # of the training and of the test images
    "55a61f79a40ece2ceda9fb5f9f7078f6ea2fc4952489cef56682bcf92cfcc260",
    "325704b01eb92e1e2a6215ae6a916bb7db7de054af0c496be1c7be2e0fcfbf5f",
]


def read_folder(
    folder: Path,
) -> tuple[tuple[str, ...], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Read ``folder/train`` and ``folder/test``, which have the same ten classes.

    Returns: the sorted names of the classes, the training set and the test set. A set is its
    images, uint8 ``(N, 3, 32, 32)``, and its labels, int64 ``(N,)``. Raises DataError.
    """
    try:
        check_layout(folder)
        train_files = list_images(folder / "train")
        test_files = list_images(folder / "test")
    except OSError as error:
        raise unreadable(error.filename or folder, error) from error
    check_classes(folder, train_files, test_files)
    classes = tuple(printable(name) for name in sorted(train_files))
    return classes, decode(train_files, "Reading train/"), decode(test_files, "Reading test/")


# Folders that file systems, file managers and archivers leave for themselves.
SYSTEM_FOLDERS = (
    "lost+found",
    "__MACOSX",
    "@eaDir",
    "#recycle",
    "@Recycle",
    "@__thumb",
    "$RECYCLE.BIN",
    "System Volume Information",
)


def unreadable(path: str | Path, error: OSError) -> DataError:
    """The error for a file or folder that the system cannot read."""
    remedy = "check its permissions and disk"
    if os.path.islink(path) and not os.path.exists(path):
        remedy = "remove this link, or restore what it points to"
    return DataError(f"{printable(path)} cannot be read ({error.strerror or error}): {remedy}.")


def check_layout(folder: Path) -> None:
    """Raise DataError if ``folder`` has no ``train/`` and ``test/``; OSError."""
    name = printable(folder)
    try:
        os.stat(folder)
    except (FileNotFoundError, ValueError) as error:  # the latter for a null character
        raise DataError(
            f"{name} does not exist: set DATA to cifar10, digits, auto, or a folder of images."
        ) from error
    if folder.is_file() and folder.name.startswith("cifar-10-python"):
        raise DataError(
            f"{name} is CIFAR-10's own archive: put it into data/ (or $DATA_ROOT) "
            "as cifar-10-python.tar.gz and set DATA=cifar10."
        )
    if not is_folder(folder):
        raise DataError(
            f"{name} is not a folder, and archives are not read: unpack it and set DATA to the "
            "folder that contains train/ and test/."
        )
    batches = [folder / "data_batch_1", folder / "cifar-10-batches-py" / "data_batch_1"]
    if any(batch.exists() for batch in batches):
        raise DataError(
            f"{name} contains CIFAR-10's own files: put their folder, cifar-10-batches-py, into "
            "data/ (or $DATA_ROOT) and set DATA=cifar10."
        )
    missing = [f"{split}/" for split in ("train", "test") if not is_folder(folder / split)]
    if missing:
        raise DataError(
            f"{name} does not contain {' and '.join(missing)}: set DATA to the folder that "
            "contains train/<class>/*.png and test/<class>/*.png."
        )


def is_folder(path: Path) -> bool:
    """Whether ``path`` is a folder; OSError if the system does not say, as for a broken link."""
    if not os.path.lexists(path):
        return False
    return stat.S_ISDIR(os.stat(path).st_mode)


def list_images(split: Path) -> dict[str, list[str]]:
    """The image files of each class, as ``ImageFolder`` finds them, but without hidden ones.

    File systems store an accent as part of its letter or after it (NFC or NFD); here, a name in
    either form is the same class. Raises DataError if a split has both; OSError.
    """
    files: dict[str, list[str]] = {}
    for folder in split.iterdir():
        if not is_visible(folder.name) or not is_folder(folder):
            continue
        name = unicodedata.normalize("NFC", folder.name)
        if name in files:
            raise DataError(
                f"{printable(split)} has two folders named {printable(name)}, whose accents "
                "are stored differently: merge them."
            )
        files[name] = image_files(folder)
    return files


def image_files(folder: Path) -> list[str]:
    """The visible images in ``folder`` and its subfolders, sorted. Raises OSError."""
    from torchvision.datasets.folder import is_image_file  # here, as its import takes a second

    def stop(error: OSError) -> None:  # os.walk would skip a folder that cannot be listed
        raise error

    files = []
    for place, subfolders, names in os.walk(folder, onerror=stop, followlinks=True):
        check_link(Path(place))
        subfolders[:] = filter(is_visible, subfolders)
        for name in filter(is_visible, names):
            if is_image_file(name):
                files.append(os.path.join(place, name))
    return sorted(files)


def check_link(folder: Path) -> None:
    """Raise DataError if ``folder`` is a link to a folder that contains it: it would never end."""
    if folder.is_symlink():
        parents = [os.path.realpath(parent) for parent in folder.absolute().parents]
        if os.path.realpath(folder) in parents:
            raise DataError(
                f"{printable(folder)} is a link to a folder that contains it: remove the link."
            )


def is_visible(name: str) -> bool:
    """False for what file managers, archivers and notebooks leave for themselves."""
    return not name.startswith(".") and name not in SYSTEM_FOLDERS


def check_classes(folder: Path, train: dict[str, list[str]], test: dict[str, list[str]]) -> None:
    """Raise DataError if the splits do not have the same ten classes, with images of each."""
    name = printable(folder)
    all_classes = sorted(train.keys() | test.keys())
    empty = [c for c in all_classes if not train.get(c) and not test.get(c)]
    hint = "".join(f"; {printable(c)} contains no image: remove it" for c in empty[:3])

    differences = []
    if train.keys() - test.keys():
        differences.append(f"only train/ has {join(train.keys() - test.keys())}")
    if test.keys() - train.keys():
        differences.append(f"only test/ has {join(test.keys() - train.keys())}")
    remedy = ": rename the folders alike, or remove those that are no classes"
    if differences:
        raise DataError(
            f"{name}: train/ and test/ must have the same classes, but "
            f"{' and '.join(differences)}{hint or remedy}."
        )
    if len(train) != 10:
        raise DataError(
            f"{name} has {len(train)} classes, but these networks distinguish 10"
            f"{hint or ': give train/ and test/ ten folders of images'}. "
            f"Found: {join(train) or 'none'}."
        )
    for split, files in (("train", train), ("test", test)):
        without_images = [c for c in files if not files[c]]
        if without_images:
            raise DataError(
                f"{name}/{split} has no image of {join(without_images)}: add .png or .jpg files, "
                "or remove the folder if it is no class."
            )


def join(names: Iterable[str]) -> str:
    """The names, sorted, in one line of 300 characters at most."""
    return shorten(", ".join(printable(name) for name in sorted(names)), 300, placeholder=" …")


def decode(files: dict[str, list[str]], title: str) -> tuple[Tensor, Tensor]:
    """Images, uint8 ``(N, 3, 32, 32)``, and labels, int64 ``(N,)``, class by class."""
    paths = []
    labels = []
    for label, name in enumerate(sorted(files)):
        paths += files[name]
        labels += [label] * len(files[name])
    pixels = np.empty((len(paths), 32, 32, 3), dtype=np.uint8)
    for i, path in enumerate(progress(paths, desc=title, unit=" images")):
        pixels[i] = read_image(path)
    return as_tensor(pixels), torch.tensor(labels)


def read_image(path: str) -> np.ndarray:
    """One 32×32 image as uint8 ``(32, 32, 3)``. Raises DataError."""
    name = printable(path)
    try:
        image = read_rgb(path)
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.strerror:
            raise unreadable(path, error) from error
        raise DataError(f"{name} is not a readable image: replace or remove it.") from error
    if image.size != (32, 32):
        width, height = image.size
        raise DataError(f"{name} is {width}×{height} pixels: resize all images to 32×32 first.")
    return np.asarray(image)


def read_rgb(path: str | Path) -> Image.Image:
    """An image file, upright, with three channels of 8 bits.

    Transparent pixels are shown on white. 16 bits are scaled to 8. Raises one of ``UNREADABLE``.
    """
    with Image.open(path) as file:
        file.load()
        image: Image.Image = file
        with suppress(Exception):  # damaged metadata say nothing about the pixels
            image = ImageOps.exif_transpose(file)
        if image.mode == "F" or (image.mode == "I" and file.format == "TIFF"):
            raise ValueError("32 bits have no known white")
        if image.mode.startswith("I"):  # 16 bits, which Pillow's convert would clip to white
            image = eight_bits(image)
        if "A" in image.getbands() or "transparency" in image.info:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return image.convert("RGB")


def eight_bits(image: Image.Image) -> Image.Image:
    """A grayscale image of 16 bits with 8 bits, and white for its transparent level."""
    levels = np.asarray(image).astype(np.int64)
    scaled = (levels >> 8).clip(0, 255)
    if "transparency" in image.info:
        scaled[levels == image.info["transparency"]] = 255
    return Image.fromarray(scaled.astype(np.uint8))


def digest(images: Tensor, labels: Tensor) -> str:
    """SHA-256 of the sorted SHA-256 digests of each image's label and pixels.

    It does not depend on the order of the images.
    """
    digests = []
    for pixels, label in zip(images.flatten(1).numpy(), labels.tolist(), strict=True):
        digests.append(hashlib.sha256(bytes([label]) + pixels.tobytes()).digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def as_tensor(images: np.ndarray) -> Tensor:
    """NumPy uint8 ``(N, 32, 32, 3)`` → tensor uint8 ``(N, 3, 32, 32)``."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
