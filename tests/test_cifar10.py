"""CIFAR-10's archive: found locally, or downloaded from good and bad servers on this machine."""

import contextlib
import hashlib
import http.server
import pickle
import shutil
import tarfile
import threading
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from tests.test_image_folder import CIFAR10_CLASSES, pack, picture, write_images
from utils import data
from utils.sources import cifar10, image_folder
from utils.system.errors import DataError


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """The bytes of a small archive in CIFAR-10's format, which torchvision accepts as the real one."""
    rng, folder = np.random.default_rng(0), tmp_path / "make" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    for name in names:
        batch = {"data": rng.integers(0, 256, (20, 3072), dtype=np.uint8), "labels": [i % 10 for i in range(20)]}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": CIFAR10_CLASSES}))
    with tarfile.open(tmp_path / "made.tar.gz", "w:gz") as file:
        file.add(folder, folder.name)
    content = (tmp_path / "made.tar.gz").read_bytes()
    sums = [(name, md5((folder / name).read_bytes())) for name in names]
    monkeypatch.setattr(CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(CIFAR10, "test_list", sums[5:])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5((folder / "batches.meta").read_bytes())})
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(content))
    monkeypatch.setattr(cifar10, "TIMEOUT_S", 0.5)
    return content


@pytest.fixture
def png_archives(tmp_path, monkeypatch):
    """Three archives of PNG files: one that counts as CIFAR-10 here, one with another image, and a truncated one."""
    top = tmp_path / "pngs"
    folder = write_images(top / "CIFAR-10-dataset-a828d74", CIFAR10_CLASSES, (("train", 1), ("test", 1)))
    whole, digests = pack(top, "gztar").read_bytes(), image_folder.read_images(top)["digests"]
    for module in (image_folder, cifar10):
        monkeypatch.setattr(module, "CIFAR10_DIGESTS", digests)
    picture(7).save(folder / "test/truck/0.png")
    return {"pngs": whole, "pngs-altered": pack(top, "gztar").read_bytes(), "pngs-half": whole[:-200]}


@pytest.fixture
def mirrors(archive, png_archives, monkeypatch):
    """A server whose paths are mirrors: good, missing, half, stalls, and PNG files; and one that is closed."""
    asked, leave = [], threading.Event()
    bodies = {"good": archive, "half": archive[: len(archive) // 2], "stalls": archive[:1000], **png_archives}

    class Mirror(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            kind = self.path.split("/")[1]
            asked.append(kind)
            if kind == "missing":
                return self.send_error(404)
            self.send_response(200)
            if kind not in png_archives:  # which GitHub sends without Content-Length
                self.send_header("Content-Length", str(len(archive)))
            self.end_headers()
            with contextlib.suppress(OSError):  # the client closed the connection
                self.wfile.write(bodies[kind])
                if kind == "stalls":
                    leave.wait(10)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def use(*kinds):
        base, urls = f"http://127.0.0.1:{server.server_port}", []
        for kind in kinds:
            name = "a828d74.tar.gz" if kind.startswith("pngs") else CIFAR10.filename
            urls.append(f"http://127.0.0.1:1/{name}" if kind == "closed" else f"{base}/{kind}/{name}")
        monkeypatch.setattr(cifar10, "MIRRORS", tuple(urls))
        return asked

    yield use
    leave.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    return tmp_path / "data"


def left_over(root):
    """Names in ``root``, except the locks."""
    names = (path.name for path in root.iterdir()) if root.exists() else ()
    return sorted(name for name in names if not name.endswith(".lock"))


def test_archive_or_unpacked_folder_found(root, archive, mirrors):
    asked = mirrors("good")
    root.mkdir()
    (root / "cifar-10-python.tar.gz").write_bytes(archive)
    found = data.load_data("cifar10")
    assert found.name == "CIFAR-10" and found.is_cifar10 and found.classes == tuple(CIFAR10_CLASSES)
    assert found.train_images.shape == (100, 3, 32, 32) and found.train_images.dtype == torch.uint8
    assert found.test_images.shape == (20, 3, 32, 32) and found.test_labels.dtype == torch.int64
    assert (found.mean, found.std) == ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    image, label = CIFAR10(root, train=False)[3]
    assert np.array_equal(found.test_images[3], np.asarray(image).transpose(2, 0, 1)) and label == found.test_labels[3]
    (root / "cifar-10-python.tar.gz").unlink()
    assert torch.equal(data.load_data("cifar10").test_images, found.test_images) and asked == []


@pytest.mark.parametrize("bad, reason", [
    ("missing", "127.0.0.1: HTTP Error 404: Not Found"),
    ("half", "127.0.0.1: File not found or corrupted"),
    ("stalls", "127.0.0.1: timed out"),
    ("pngs-altered", "127.0.0.1: its images are not those of CIFAR-10"),
    ("pngs-half", "CIFAR-10-dataset.tar.gz cannot be unpacked ("),
])  # fmt: skip
def test_next_mirror_when_one_fails(root, mirrors, capsys, bad, reason):
    mirrors(bad, "good")
    assert data.load_data("cifar10").name == "CIFAR-10"
    assert reason in capsys.readouterr().out
    assert left_over(root) == ["cifar-10-batches-py", "cifar-10-python.tar.gz"]


def test_no_mirror_serves_it(root, mirrors, capsys):
    """Then "auto" falls back to the digits and says so."""
    mirrors("closed", "missing", "half")
    with pytest.raises(DataError) as caught:
        data.load_data("cifar10")
    told = "CIFAR-10 is not available; Connection refused; HTTP Error 404; corrupted; (1) download; (2) git clone"
    for part in (*told.split("; "), "(3) set DATA=digits"):
        assert part in str(caught.value) and "\n" not in str(caught.value)
    assert left_over(root) == [] and "DIGITS" not in capsys.readouterr().out
    assert data.load_data("auto").name == "digits"
    shown = capsys.readouterr().out
    assert "NOT CIFAR-10: TRAINING ON HANDWRITTEN DIGITS INSTEAD" in shown and "Connection refused" in shown


def test_wrong_archive_is_replaced_and_a_damaged_folder_unpacked_again(root, archive, mirrors, capsys):
    mirrors("good")
    root.mkdir()
    (root / "cifar-10-python.tar.gz").write_bytes(archive[:-100])
    assert data.load_data("cifar10").name == "CIFAR-10"
    assert "its MD5 differs" in capsys.readouterr().out
    mirrors("closed")
    for name in ("data_batch_3", "batches.meta"):
        (root / "cifar-10-batches-py" / name).write_bytes(b"half")
        assert data.load_data("cifar10").classes == tuple(CIFAR10_CLASSES)


@pytest.mark.parametrize("where", ["download", "unpack"])
def test_full_or_read_only_disk(root, mirrors, monkeypatch, where):
    mirrors("good", "good")
    full = Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr(*((cifar10, "download_url") if where == "download" else (shutil, "unpack_archive")), full)
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\): set DATA_ROOT"):
        data.load_data("cifar10")
    assert left_over(root) == ([] if where == "download" else ["cifar-10-python.tar.gz"])


def test_png_files_where_no_mirror_serves_the_archive(root, mirrors):
    asked = mirrors("missing", "pngs", "good")
    images = data.load_data("cifar10")
    assert (images.name, len(images.train_labels), images.mean) == ("CIFAR-10", 10, data.CIFAR10_MEAN)
    assert images.is_cifar10 and "good" not in asked
    assert left_over(root) == ["CIFAR-10-dataset.tar.gz", "CIFAR-10-dataset.tar.gz.cache.pt"]
    asked.clear()
    assert torch.equal(data.load_data("cifar10").train_images, images.train_images) and asked == []


def test_three_processes_at_once_download_once_and_use_the_same_images(root, mirrors):
    """Threads stand in for processes: each opens the lock's file anew."""
    asked, found = mirrors("good"), []
    threads = [threading.Thread(target=lambda: found.append(cifar10.fetch_cifar10(root))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [root] * 3 and asked == ["good", "good"]  # a redirect is looked for, then the file is read
