"""A folder of images, or an archive of one, decoded once into tensors that are cached beside it.

The layout is that of torchvision's ``ImageFolder``, for each split: ``train/<class>/*.png`` and ``test/<class>/*.png``
(or .jpg, .webp and others), at the top or inside one or more enclosing folders.
"""

import hashlib
import os
import re
from contextlib import nullcontext, suppress
from pathlib import Path
from textwrap import shorten

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from utils.sources.archive import unpacked
from utils.system.errors import DataError, FileError
from utils.system.files import one_process_at_a_time, save_tensors
from utils.system.progress import progress

SPLITS = ("train", "test")
UNREADABLE = (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError)  # by Pillow

CIFAR10_DIGESTS = [  # of the training and of the test images
    "55a61f79a40ece2ceda9fb5f9f7078f6ea2fc4952489cef56682bcf92cfcc260",
    "325704b01eb92e1e2a6215ae6a916bb7db7de054af0c496be1c7be2e0fcfbf5f",
]


def read_images(source: Path) -> dict:
    """Read the images of ``source``, a folder or an archive, or the cache beside it if that is up to date.

    Returns: ``classes``, ``train_images`` uint8 ``(N, 3, 32, 32)``, ``train_labels`` int64 ``(N,)``, ``test_images``,
    ``test_labels``, and ``digests`` of both sets, which are ``CIFAR10_DIGESTS`` only for CIFAR-10 itself. Raises DataError.
    """
    try:
        if not source.exists():
            raise DataError(f"{source} does not exist: set DATA to cifar10, digits, auto, or a folder of images.")
        source = source.resolve()
        cache = source.with_name(f"{source.name}.cache.pt")
        with one_process_at_a_time(source.with_name(f".{source.name}.lock"), f"reading {source}"):
            key = fingerprint(source)
            images = load_cache(cache, key)
            if images is None:
                with nullcontext(source) if source.is_dir() else unpacked(source) as folder:
                    images = decode(folder, source)
                try:
                    save_tensors(cache, {"key": key, "images": images})
                except FileError as error:
                    print(f"The decoded images are not cached and will be decoded again next time: {error}", flush=True)
            return images
    except BrokenPipeError:  # from the progress bar, not from the images
        raise
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{source} cannot be read ({reason}): check its permissions and disk.") from error


def fingerprint(source: Path) -> str:
    """A digest of the names, sizes and modification times of ``source`` and all files in it."""

    def stop(error: OSError) -> None:  # os.walk would skip a folder that cannot be read
        raise error

    walk = os.walk(source, onerror=stop, followlinks=True) if source.is_dir() else ()
    digest = hashlib.sha256()
    for file in sorted([source, *(Path(folder, name) for folder, _, names in walk for name in names)]):
        status = file.stat()
        name = os.fsencode(file.relative_to(source.parent))
        digest.update(name + f"|{status.st_size}|{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def load_cache(cache: Path, key: str) -> dict | None:
    """The cached images, or None if the cache is missing, outdated or damaged."""
    with suppress(Exception):  # whatever is wrong with the cache, the images can be decoded again
        content = torch.load(cache, weights_only=True, mmap=True)
        return content["images"] if content["key"] == key else None
    return None


def decode(folder: Path, source: Path) -> dict:
    """Decode all images in ``folder``, class by class in alphabetical order; errors name ``source``."""
    # ImageFolder's own functions; here, because the import takes a second
    from torchvision.datasets.folder import find_classes, is_image_file, make_dataset

    def visible(name: str) -> bool:  # others were left by file managers and Jupyter
        return not os.path.basename(name).startswith(".")

    top = find_splits(folder, source)
    train, test = (list(filter(visible, find_classes(top / split)[0])) for split in SPLITS)
    odd, names = (shorten(", ".join(some), 300, placeholder=" …") for some in (sorted({*train} ^ {*test}), train))
    if odd:
        raise DataError(f"{source}: train and test must have the same classes, only one of them has {odd}.")
    if len(train) != 10:
        raise DataError(f"{source} has {len(train)} classes, but these networks distinguish 10: {names}.")
    labels_of, samples = {name: label for label, name in enumerate(train)}, {}
    for split in SPLITS:
        try:
            shown = lambda path: visible(path) and is_image_file(path)  # noqa: E731
            samples[split] = make_dataset(top / split, labels_of, is_valid_file=shown)
        except FileNotFoundError as error:  # it lists the classes
            raise DataError(f"{source}: {split}: {str(error).strip()} Add .png or .jpg images.") from error
    images: dict = {"classes": tuple(map(printable, train)), "digests": []}
    count, title = sum(map(len, samples.values())), f"Decoding {printable(source.name)}"
    with progress(total=count, desc=title, unit=" images") as bar:
        for split in SPLITS:
            pixels = np.empty((len(samples[split]), 32, 32, 3), dtype=np.uint8)
            for i, (path, _) in enumerate(samples[split]):
                pixels[i] = decode_image(path, printable(f"{source}: {os.path.relpath(path, top)}"))
                bar.update()
            pair = as_tensor(pixels), torch.tensor([label for _, label in samples[split]])
            images |= {f"{split}_images": pair[0], f"{split}_labels": pair[1]}
            images["digests"].append(digest(*pair))
    return images


def printable(name: str) -> str:
    """A file's name with escapes for bytes that are not UTF-8, which cannot be printed or saved."""
    return os.fsencode(name).decode(errors="backslashreplace")


def find_splits(folder: Path, source: Path) -> Path:
    """The folder that contains ``train/`` and ``test/``: ``folder`` or one inside it."""
    if any(folder.rglob("data_batch_1")):
        raise DataError(f"{source} is CIFAR-10's own archive: put it into data/ (or $DATA_ROOT) and set DATA=cifar10.")
    pairs = [train for train in folder.rglob("train") if train.is_dir() and train.with_name("test").is_dir()]
    tops = [train.parent for train in pairs if not re.search(r"/(\.|__MACOSX)", f"/{train.relative_to(folder)}")]
    if len(tops) == 1:
        return tops[0]
    if tops:
        raise DataError(f"{source} contains train/ and test/ {len(tops)} times: give the path of one of the copies.")
    raise DataError(f"{source} has no images as train/<class>/*.png and test/<class>/*.png: arrange them like this.")


def decode_image(path: str, name: str) -> np.ndarray:
    """One 32×32 image as uint8 ``(32, 32, 3)``; grayscale and palette images become RGB."""
    try:
        image = read_rgb(path)
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.strerror:
            raise DataError(f"{name} cannot be read ({error.strerror}): check its permissions and disk.") from error
        raise DataError(f"{name} is not a readable image: replace or remove it.") from error
    if image.size != (32, 32):
        width, height = image.size
        raise DataError(f"{name} is {width}×{height} pixels: resize all images to 32×32 first.")
    return np.asarray(image)


def read_rgb(path: str | Path) -> Image.Image:
    """An image file, upright, with three channels of 8 bits. Raises one of ``UNREADABLE``."""
    with Image.open(path) as file:
        file.load()
        image: Image.Image = file
        with suppress(Exception):  # damaged metadata say nothing about the pixels
            image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I"):  # 16 bits, which Pillow's convert would clip to white
            image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
        return image.convert("RGB")


def digest(images: Tensor, labels: Tensor) -> str:
    """SHA-256 of the sorted SHA-256 digests of each image's label and pixels, which does not depend on their order."""
    pixels = images.flatten(1).numpy()
    each = (hashlib.sha256(bytes([label]) + row.tobytes()).digest() for label, row in zip(labels.tolist(), pixels))
    return hashlib.sha256(b"".join(sorted(each))).hexdigest()


def as_tensor(images: np.ndarray) -> Tensor:
    """NumPy uint8 ``(N, 32, 32, 3)`` → tensor uint8 ``(N, 3, 32, 32)``."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
