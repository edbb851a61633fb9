"""A folder of images or an archive of one, decoded once into tensors that are cached beside it.

The layout is that of CIFAR-10 on Kaggle and elsewhere: ``train/<class>/*.png|jpg`` and
``test/<class>/*.png|jpg``, at the top or inside one or more enclosing folders. Archives are read without
unpacking them.
"""

import hashlib
import io
import lzma
import os
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from utils.system.errors import DataError, FileError
from utils.system.files import save_tensors

SPLITS = ("train", "test")
SUFFIXES = (".png", ".jpg", ".jpeg")
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".zip")
LAYOUT = "expected train/<class>/*.png|jpg and test/<class>/*.png|jpg"
# What the readers of archives raise (RuntimeError: encrypted), and what Pillow raises
BROKEN = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, RuntimeError)
NO_IMAGE = (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError)

CIFAR10_DIGESTS = [  # of the training and of the test images
    "55a61f79a40ece2ceda9fb5f9f7078f6ea2fc4952489cef56682bcf92cfcc260",
    "325704b01eb92e1e2a6215ae6a916bb7db7de054af0c496be1c7be2e0fcfbf5f",
]

Names = list[str]
Reader = Callable[[Iterable[str]], Iterator[tuple[str, bytes]]]


@dataclass
class FolderOfImages:
    """The contents of a folder: images uint8 ``(N, 3, 32, 32)``, labels int64 ``(N,)``."""

    kind: str  # "JPEG" or "PNG"
    classes: list[str]
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    digests: list[str]  # of the training and of the test images

    @property
    def is_cifar10(self) -> bool:
        """Whether images and labels are exactly those of CIFAR-10, in whatever order and format."""
        return self.digests == CIFAR10_DIGESTS


def read_images(source: Path) -> FolderOfImages:
    """Read the images of ``source``, a folder or an archive, or the cache beside it if that is up to date.

    Raises:
        DataError: one line that names the file, the error and the remedy.
    """
    if not source.exists():
        raise DataError(f"{source} does not exist: set DATA to a folder or an archive of images.")
    if source.is_file() and not source.name.lower().endswith(ARCHIVES):
        raise DataError(f"{source} is not a readable archive: give a folder or one of {', '.join(ARCHIVES)}.")
    cache = cache_of(source)
    try:
        mark = fingerprint(source)
        cached = load_cache(cache, mark)
        if cached:
            return cached
        with open_source(source) as (names, read):
            found = decode(source, names, read)
    except BROKEN as error:
        reason = str(error).splitlines()[0].strip(":")
        raise DataError(
            f"{source} is truncated or not an archive of its kind ({reason}): download it again."
        ) from error
    except BrokenPipeError:  # from the progress bar, not from the images
        raise
    except OSError as error:
        raise DataError(
            f"{source} cannot be read ({error.strerror or error}): check its permissions and disk."
        ) from error
    try:
        save_tensors(cache, {"mark": mark, "found": vars(found)})
    except FileError as error:
        print(f"The decoded images could not be cached and will be decoded again next time: {error}", flush=True)
    return found


def cache_of(source: Path) -> Path:
    """The path of the cache for ``source``."""
    return source.resolve().with_name(source.resolve().name + ".cache.pt")


def fingerprint(source: Path) -> str:
    """A digest of the names, sizes and modification times of all files."""
    files = [source] if source.is_file() else [source / name for name in walk(source) if not name.endswith("/")]
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(f"{file.relative_to(source.parent)}|{status.st_size}|{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def load_cache(cache: Path, mark: str) -> FolderOfImages | None:
    """The cached images, or None if the cache is missing, outdated or damaged."""
    if not cache.exists():
        return None
    try:
        content = torch.load(cache, weights_only=True, mmap=True)
        return FolderOfImages(**content["found"]) if content["mark"] == mark else None
    except Exception:  # whatever is wrong with the cache, the images can be decoded again
        return None


@contextmanager
def open_source(source: Path) -> Iterator[tuple[Names, Reader]]:
    """Names inside ``source`` (folders end in "/") and a function that yields the contents of some of them.

    A compressed tar archive can only be read forward: seeking back would decompress it from its start again.
    So the function yields the files in the order of the archive.
    """
    if source.is_dir():
        yield walk(source), lambda names: ((name, (source / name).read_bytes()) for name in names)
    elif source.name.lower().endswith(".zip"):
        with zipfile.ZipFile(source) as archive:
            yield archive.namelist(), lambda names: ((name, archive.read(name)) for name in names)
    else:
        with tarfile.open(source) as tar:
            members = {m.name + "/" * m.isdir(): m for m in tar.getmembers() if m.isfile() or m.isdir()}

            def read_forward(names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
                for name in sorted(names, key=lambda name: members[name].offset):
                    yield name, tar.extractfile(members[name]).read()  # type: ignore[union-attr]

            yield list(members), read_forward


def walk(folder: Path) -> Names:
    """Names of all folders and files below ``folder``, relative to it."""
    names = []
    for where, folders, files in os.walk(folder):
        base = Path(where).relative_to(folder)
        names += [f"{(base / name).as_posix()}/" for name in folders]
        names += [(base / name).as_posix() for name in files]
    return sorted(names)


def decode(source: Path, names: Names, read: Reader) -> FolderOfImages:
    """Decode all images below ``source``, class by class in alphabetical order."""
    files = classify(source, names)
    classes = sorted(files["train"])
    pixels: dict[str, np.ndarray] = {}
    labels: dict[str, Tensor] = {}
    places: dict[str, tuple[str, int]] = {}  # of each file: its split, and its index there
    for split in SPLITS:
        paths = [(path, label) for label, name in enumerate(classes) for path in sorted(files[split][name])]
        pixels[split] = np.empty((len(paths), 32, 32, 3), dtype=np.uint8)
        labels[split] = torch.tensor([label for _, label in paths])
        places |= {path: (split, i) for i, (path, _) in enumerate(paths)}
    with tqdm(total=len(places), desc=f"Decoding {source.name}", unit=" images", file=sys.stdout, ncols=100) as bar:
        for path, content in read(places):
            split, i = places[path]
            pixels[split][i] = decode_image(f"{source}: {path}", content)
            bar.update()
    train, test = (as_tensor(pixels[split]) for split in SPLITS)
    kind = "PNG" if all(path.lower().endswith(".png") for path in places) else "JPEG"
    digests = [digest(train, labels["train"]), digest(test, labels["test"])]
    return FolderOfImages(kind, classes, train, labels["train"], test, labels["test"], digests)


def digest(images: Tensor, labels: Tensor) -> str:
    """A digest of labeled images that does not depend on their order or file format.

    It is the SHA-256 of the sorted SHA-256 digests of each label's byte and pixels: images uint8
    ``(N, 3, 32, 32)``, labels int64 ``(N,)``.
    """
    pixels = images.flatten(1).numpy()
    each = (hashlib.sha256(bytes([label]) + row.tobytes()).digest() for label, row in zip(labels.tolist(), pixels))
    return hashlib.sha256(b"".join(sorted(each))).hexdigest()


def as_tensor(images: np.ndarray) -> Tensor:
    """NumPy uint8 ``(N, 32, 32, 3)`` → tensor uint8 ``(N, 3, 32, 32)``."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def classify(source: Path, names: Names) -> dict[str, dict[str, Names]]:
    """Sort names into ``{split: {class: [file, …]}}``; DataError if the layout is not the expected one."""
    files: dict[str, dict[str, Names]] = {split: {} for split in SPLITS}
    tops = set()  # the folders that enclose train/ and test/: () or ("cifar10",)
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise DataError(f"{source} contains a path that points outside it ({name}): do not use this archive.")
        if any(part.startswith((".", "__MACOSX")) for part in path.parts):
            continue  # files of file managers
        folder = path if name.endswith("/") else path.parent
        if len(folder.parts) < 2 or folder.parts[-2] not in SPLITS:
            continue
        *top, split, class_name = folder.parts
        tops.add(tuple(top))
        found = files[split].setdefault(class_name, [])
        if folder != path and path.suffix.lower() in SUFFIXES:
            found.append(name)
    if any(PurePosixPath(name).name == "data_batch_1" for name in names):
        raise DataError(f"{source} is CIFAR-10's own archive: put it into data/ (or $DATA_ROOT) and set DATA=cifar10.")
    count = len(files["train"] | files["test"])
    if count > 10:
        raise DataError(f"{source} has {count} classes, but these networks distinguish 10: remove the others.")
    if len(tops) > 1:
        raise DataError(f"{source} contains train/ and test/ {len(tops)} times: give the path of one of the copies.")
    for split in SPLITS:
        if not files[split]:
            raise DataError(f"{source} has no {split}/<class>/ inside: {LAYOUT}.")
        for class_name in sorted(files[split]):
            if not files[split][class_name]:
                raise DataError(f"{source}: class {split}/{class_name} is empty: add .png or .jpg images or remove it.")
    odd = sorted(set(files["train"]) ^ set(files["test"]))
    if odd:
        raise DataError(f"{source}: train and test must have the same classes, only one of them has {', '.join(odd)}.")
    return files


def to_rgb(image: Image.Image) -> Image.Image:
    """Three channels of 8 bits. 16-bit grayscale is scaled; Pillow's ``convert`` would clip it to white."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def decode_image(name: str, content: bytes) -> np.ndarray:
    """One 32×32 image as uint8 ``(32, 32, 3)``; grayscale and palette images become RGB."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.size != (32, 32):
                width, height = image.size
                raise DataError(f"{name} is {width}×{height} pixels: resize all images to 32×32 first.")
            return np.asarray(to_rgb(image))
    except NO_IMAGE as error:
        raise DataError(f"{name} is not a readable image: replace or remove it.") from error
