"""CIFAR-10's archive: found locally, or downloaded from good and bad servers on this machine."""

import contextlib
import hashlib
import http.server
import os
import pickle
import shutil
import socket
import tarfile
import threading
import urllib.request
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from filelock import FileLock
from torchvision.datasets import CIFAR10

from tests.test_image_folder import CIFAR10_CLASSES
from utils import cifar10, data
from utils.errors import DataError

ARCHIVE = "cifar-10-python.tar.gz"
BATCHES = "cifar-10-batches-py"
NO_SPACE = OSError(28, "No space left on device")
READ_ONLY = OSError(30, "Read-only file system")


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """The bytes of a small archive in CIFAR-10's format, with MD5s that torchvision accepts."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "make" / BATCHES
    folder.mkdir(parents=True)
    md5s = []
    for name, _ in CIFAR10.train_list + CIFAR10.test_list:
        batch = {
            "data": rng.integers(0, 256, (20, 3072), dtype=np.uint8),
            "labels": [i % 10 for i in range(20)],
        }
        content = pickle.dumps(batch)
        (folder / name).write_bytes(content)
        md5s.append((name, md5(content)))
    meta = pickle.dumps({"label_names": CIFAR10_CLASSES})
    (folder / "batches.meta").write_bytes(meta)
    with tarfile.open(tmp_path / "made.tar.gz", "w:gz") as file:
        file.add(folder, folder.name)
    content = (tmp_path / "made.tar.gz").read_bytes()
    monkeypatch.setattr(CIFAR10, "train_list", md5s[:5])
    monkeypatch.setattr(CIFAR10, "test_list", md5s[5:])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5(meta)})
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(content))
    return content


@pytest.fixture
def mirrors(archive, monkeypatch):
    """Choose the mirrors: paths of a server (good, missing, half, stalls) or a closed port.

    Returns: a function of their names, which returns a list of the paths that are asked for.
    """
    requests = []
    end = threading.Event()
    bodies = {"good": archive, "half": archive[: len(archive) // 2], "stalls": archive[:1000]}

    class Mirror(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            kind = self.path.split("/")[1]
            requests.append(kind)
            if kind == "missing":
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(archive)))
            self.end_headers()
            with contextlib.suppress(OSError):  # the client closed the connection
                self.wfile.write(bodies[kind])
                if kind == "stalls":
                    end.wait(10)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def use(*kinds):
        urls = []
        for kind in kinds:
            if kind == "closed":
                urls.append(f"http://127.0.0.1:1/{ARCHIVE}")
            else:
                urls.append(f"http://127.0.0.1:{server.server_port}/{kind}/{ARCHIVE}")
        monkeypatch.setattr(cifar10, "MIRRORS", tuple(urls))
        return requests

    monkeypatch.setattr(cifar10, "TIMEOUT_S", 0.5)
    yield use
    end.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def archive_in_root(root, archive):
    root.mkdir()
    (root / ARCHIVE).write_bytes(archive)


def names_in(root):
    """Names in ``root``, except the lock's."""
    if not root.exists():
        return []
    return sorted(path.name for path in root.iterdir() if path.name != ".lock")


def error_of(source: str) -> str:
    """The error message, which is one line."""
    with pytest.raises(DataError) as caught:
        data.load_data(source)
    message = str(caught.value)
    assert "\n" not in message
    return message


def make_read_only(monkeypatch):
    """Root may write everywhere, so the functions that write stand in for the file system."""
    monkeypatch.setattr(FileLock, "acquire", Mock(side_effect=READ_ONLY))
    monkeypatch.setattr(Path, "mkdir", Mock(side_effect=READ_ONLY))
    for name in ("mkdir", "replace", "rename"):
        monkeypatch.setattr(os, name, Mock(side_effect=READ_ONLY))


def test_images_of_the_archive(root, archive_in_root):
    images = data.load_data("cifar10")
    assert images.train_images.shape == (100, 3, 32, 32)
    assert images.train_images.dtype == torch.uint8
    assert images.test_images.shape == (20, 3, 32, 32)
    image, label = CIFAR10(root, train=False)[3]
    assert np.array_equal(images.test_images[3], np.asarray(image).transpose(2, 0, 1))
    assert images.test_labels[3] == label
    assert images.test_labels.dtype == torch.int64


def test_name_classes_and_statistics_of_cifar10(archive_in_root):
    images = data.load_data("cifar10")
    assert images.name == "CIFAR-10"
    assert images.is_cifar10
    assert images.classes == tuple(CIFAR10_CLASSES)
    assert images.mean == (0.4914, 0.4822, 0.4465)
    assert images.std == (0.2470, 0.2435, 0.2616)


def test_archive_in_root_is_not_downloaded(archive_in_root, mirrors):
    requests = mirrors("good")
    data.load_data("cifar10")
    assert requests == []


def test_unpacked_files_are_enough(root, archive_in_root, mirrors):
    requests = mirrors("good")
    expected = data.load_data("cifar10")
    (root / ARCHIVE).unlink()
    assert torch.equal(data.load_data("cifar10").test_images, expected.test_images)
    assert requests == []


def test_download(root, mirrors):
    mirrors("good")
    assert data.load_data("cifar10").name == "CIFAR-10"
    assert names_in(root) == [BATCHES, ARCHIVE]


@pytest.mark.parametrize(
    "bad, reason",
    [
        ("closed", "127.0.0.1: urlopen error [Errno 111] Connection refused"),
        ("missing", "127.0.0.1: HTTP Error 404: Not Found"),
        ("half", "127.0.0.1: File not found or corrupted"),
        ("stalls", "127.0.0.1: timed out"),
    ],
)
def test_next_mirror_if_one_fails(root, mirrors, capsys, bad, reason):
    mirrors(bad, "good")
    assert data.load_data("cifar10").name == "CIFAR-10"
    assert reason in capsys.readouterr().out
    assert names_in(root) == [BATCHES, ARCHIVE]


def test_reasons_and_remedies_if_no_mirror_serves_it(root, mirrors):
    mirrors("closed", "missing", "half")
    message = error_of("cifar10")
    assert message.startswith("CIFAR-10 is not available: no mirror served it (127.0.0.1: ")
    for reason in ("Connection refused", "HTTP Error 404", "corrupted"):
        assert reason in message
    assert "(1) download http://127.0.0.1:1/cifar-10-python.tar.gz by other means" in message
    assert "(2) git clone https://github.com/cyizhuo/CIFAR-10-dataset and set DATA=" in message
    assert "(3) set DATA=digits" in message
    assert names_in(root) == []


def test_auto_falls_back_to_the_digits_with_a_message(root, mirrors, capsys):
    mirrors("closed")
    assert data.load_data("auto").name == "digits"
    output = capsys.readouterr().out
    assert "NOT CIFAR-10: TRAINING ON HANDWRITTEN DIGITS INSTEAD" in output
    assert "Connection refused" in output


def test_auto_is_cifar10_if_it_is_available(archive_in_root):
    assert data.load_data("auto").name == "CIFAR-10"


@pytest.mark.parametrize(
    "proxy, reason",
    [
        ("nonsense:port", "nonnumeric port: 'port'"),
        ("http:/proxy:3128", "proxy URL with no authority"),
        ("http://[", "urlopen error"),
    ],
)
def test_proxy_that_is_no_address_is_a_reason(root, mirrors, monkeypatch, proxy, reason):
    mirrors("good")
    monkeypatch.setattr(urllib.request, "_opener", None)  # it was built with the former proxy
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert f"no mirror served it (127.0.0.1: {reason}" in error_of("cifar10")
    assert data.load_data("auto").name == "digits"


@pytest.mark.parametrize("kind", ["good", "missing"])
def test_the_sockets_default_timeout_is_put_back(root, mirrors, kind):
    mirrors(kind)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(123)
    try:
        data.load_data("auto")
        assert socket.getdefaulttimeout() == 123
    finally:
        socket.setdefaulttimeout(before)


def test_wrong_archive_is_downloaded_again(root, archive, mirrors, capsys):
    mirrors("good")
    root.mkdir()
    (root / ARCHIVE).write_bytes(archive[:-100])
    assert data.load_data("cifar10").name == "CIFAR-10"
    assert "is not CIFAR-10's archive (its MD5 differs)" in capsys.readouterr().out
    assert (root / ARCHIVE).read_bytes() == archive


@pytest.mark.parametrize("name", ["data_batch_3", "batches.meta"])
def test_damaged_file_is_unpacked_again(root, archive_in_root, name):
    expected = data.load_data("cifar10")
    (root / BATCHES / name).write_bytes(b"half")
    assert torch.equal(data.load_data("cifar10").train_images, expected.train_images)


def test_rest_of_an_interrupted_download_is_not_used(root, archive, mirrors):
    mirrors("good")
    (root / ".download").mkdir(parents=True)
    (root / ".download" / ARCHIVE).write_bytes(archive[:1000])
    assert data.load_data("cifar10").name == "CIFAR-10"
    assert names_in(root) == [BATCHES, ARCHIVE]


def test_rest_of_an_interrupted_unpacking_is_not_used(root, archive_in_root):
    (root / ".unpacked" / BATCHES).mkdir(parents=True)
    (root / ".unpacked" / BATCHES / "data_batch_1").write_bytes(b"half")
    (root / ".unpacked" / BATCHES / "more").write_bytes(b"half")
    assert data.load_data("cifar10").name == "CIFAR-10"
    assert names_in(root) == [BATCHES, ARCHIVE]
    assert not (root / BATCHES / "more").exists()


def test_files_appear_only_when_all_are_unpacked(root, archive_in_root, monkeypatch):
    extract = cifar10.extract_archive

    def extract_half(source, target):
        extract(source, target)
        shutil.rmtree(Path(target) / BATCHES / "data_batch_5", ignore_errors=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(cifar10, "extract_archive", extract_half)
    with pytest.raises(KeyboardInterrupt):
        data.load_data("cifar10")
    assert names_in(root) == [ARCHIVE]


def test_full_disk_while_downloading(root, mirrors, monkeypatch):
    mirrors("good", "good")
    monkeypatch.setattr(cifar10, "download_url", Mock(side_effect=NO_SPACE))
    expected = f"{root} cannot be written (No space left on device): set DATA_ROOT to a writable"
    assert expected in error_of("cifar10")
    assert names_in(root) == []


def test_full_disk_while_unpacking(root, archive_in_root, monkeypatch):
    monkeypatch.setattr(cifar10, "extract_archive", Mock(side_effect=NO_SPACE))
    expected = f"{root} cannot be written (No space left on device): set DATA_ROOT to a writable"
    assert expected in error_of("cifar10")
    assert names_in(root) == [ARCHIVE]


def test_unpacked_files_on_a_read_only_file_system(root, archive_in_root, monkeypatch):
    data.load_data("cifar10")
    make_read_only(monkeypatch)
    assert data.load_data("cifar10").name == "CIFAR-10"


def test_archive_on_a_read_only_file_system(root, archive_in_root, monkeypatch):
    make_read_only(monkeypatch)
    assert error_of("cifar10") == (
        f"CIFAR-10 is not available: {root} cannot be written (Read-only file system): "
        "set DATA_ROOT to a writable folder with 400 MB free."
    )


def test_three_processes_at_once_download_and_unpack_once(root, mirrors, monkeypatch):
    """Threads stand in for processes: each opens the lock's file anew."""
    requests = mirrors("good")
    extract = Mock(side_effect=cifar10.extract_archive)
    monkeypatch.setattr(cifar10, "extract_archive", extract)
    threads = []
    for _ in range(3):
        threads.append(threading.Thread(target=cifar10.fetch_cifar10, args=(root,)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cifar10.is_unpacked(root)
    assert requests == ["good", "good"]  # a redirect is looked for, then the file is read
    assert extract.call_count == 1
