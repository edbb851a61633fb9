"""Folders and archives of images: what is read, and one line for what cannot be read."""

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from queue import Queue
from threading import Thread

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from tests.test_checkpoint import Evil
from utils.data import channel_statistics, load_folder
from utils.sources import image_folder
from utils.system import files
from utils.system.errors import DataError

CLASSES = [f"class{i}" for i in range(10)]
CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()


def picture(seed: int, size=(32, 32), mode="RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def write_images(folder: Path, classes: list[str] = CLASSES, counts=(("train", 3), ("test", 2))) -> Path:
    """A folder of noise, ``counts`` images of each class."""
    for split, count in counts:
        for label, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                picture(100 * label + 10 * count + i).save(folder / split / name / f"{i}.png")
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path / "pets")


def pack(folder: Path, kind: str) -> Path:
    return Path(shutil.make_archive(str(folder), kind, folder))


def same(a, b) -> bool:
    names = ("train_images", "train_labels", "test_images", "test_labels")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


def error_of(path: Path) -> str:
    """The error message, one line; nothing is left beside the source but its lock."""
    before = {path.name for path in path.parent.iterdir()}
    with pytest.raises(DataError) as caught:
        load_folder(path)
    assert {path.name for path in path.parent.iterdir()} <= before | {f".{path.name}.lock"}
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    return str(caught.value)


def test_folder(folder):
    data = load_folder(folder)
    assert data.name == "pets (folder of images)" and data.classes == tuple(CLASSES) and not data.is_cifar10
    assert data.train_images.shape == (30, 3, 32, 32) and data.test_images.shape == (20, 3, 32, 32)
    assert data.train_images.dtype == torch.uint8 and data.train_labels.dtype == torch.int64
    assert data.train_labels.tolist() == [i // 3 for i in range(30)]
    assert data.test_labels.tolist() == [i // 2 for i in range(20)]
    expected = np.asarray(Image.open(folder / "train/class1/2.png")).transpose(2, 0, 1)
    assert np.array_equal(data.train_images[5], expected)
    assert (data.mean, data.std) == channel_statistics(data.train_images)


@pytest.mark.parametrize("kind", ["tar", "gztar", "xztar", "zip"])
def test_archive_equals_folder(folder, kind):
    """The images may be inside enclosing folders; what is unpacked is removed."""
    expected = load_folder(folder)
    (folder.parent / "outer/inner").mkdir(parents=True)
    shutil.move(folder, folder.parent / "outer/inner")
    archive = pack(folder.parent / "outer", kind)
    assert same(load_folder(archive), expected)
    left = {path.name for path in folder.parent.iterdir()} - {"outer", ".pets.lock", "pets.cache.pt"}
    assert left == {archive.name, f"{archive.name}.cache.pt", f".{archive.name}.lock"}


def test_formats_links_and_hidden_files(folder):
    expected = load_folder(folder)
    cats, dogs = folder / "train/class0", folder / "train/class1"
    picture(7).save(cats / "9.webp", lossless=True)
    picture(8, mode="L").save(cats / "99.png")
    levels = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) * 64  # 0 to 65,472
    Image.fromarray(levels).save(cats / "999.png")
    (cats / "._9.png").write_bytes(b"what a file manager leaves")
    (cats / "notes.txt").write_text("no image")
    for hidden in ("__MACOSX/train/fish", "__MACOSX/test/fish", "train/.ipynb_checkpoints", "test/.ipynb_checkpoints"):
        (folder / hidden).mkdir(parents=True)
    shutil.move(dogs, folder.parent / "elsewhere")
    dogs.symlink_to(folder.parent / "elsewhere")
    data = load_folder(folder)
    assert data.classes == tuple(CLASSES) and len(data.train_labels) == 33
    assert np.array_equal(data.train_images[3], np.asarray(picture(7)).transpose(2, 0, 1))
    assert torch.equal(data.train_images[4, 0], data.train_images[4, 2])  # grayscale
    assert np.array_equal(data.train_images[5], np.broadcast_to(levels // 256, (3, 32, 32)))  # 16 bits are scaled
    assert torch.equal(data.train_images[6:], expected.train_images[3:])


def test_file_and_class_names_that_are_not_utf8(tmp_path):
    folder = write_images(tmp_path / os.fsdecode(b"caf\xe9"), [*CLASSES[:9], os.fsdecode(b"th\xe9")])
    picture(1).save(folder / "train/class0" / os.fsdecode(b"caf\xe9.png"))
    data = load_folder(folder)
    assert len(data.train_labels) == 31 and data.classes[9] == "th\\xe9"
    assert data.name == "caf\\xe9 (folder of images)" and str(data).encode()
    (folder / "train/class0" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"class0/caf\\xe9.png is not a readable image: replace or remove it"):
        load_folder(folder)


def test_cifar10_is_recognized_by_its_content(monkeypatch, folder):
    """Not by names or order of files, nor by the folder's name; a single different label is seen."""
    images = load_folder(folder)
    pairs = (images.train_images, images.train_labels), (images.test_images, images.test_labels)
    digests = [image_folder.digest(*pair) for pair in pairs]
    each = [hashlib.sha256(bytes([label]) + image.numpy().tobytes()).digest()
            for image, label in zip(images.test_images, images.test_labels.tolist())]  # fmt: skip
    assert digests[1] == hashlib.sha256(b"".join(sorted(each))).hexdigest()
    monkeypatch.setattr(image_folder, "CIFAR10_DIGESTS", digests)
    (folder / "train/class0/1.png").rename(folder / "train/class0/another.png")
    shuffled = load_folder(folder)
    assert shuffled.name == "CIFAR-10" and shuffled.is_cifar10 and not same(shuffled, images)
    assert (shuffled.mean, shuffled.std) == ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    (folder / "test/class1/0.png").rename(folder / "test/class0/9.png")
    folder.rename(folder.with_name("CIFAR-10"))
    other = load_folder(folder.with_name("CIFAR-10"))
    assert other.name == "CIFAR-10 (folder of images)" and not other.is_cifar10


def test_cache_is_used_until_the_source_changes(folder, monkeypatch):
    archive = pack(folder, "gztar")
    first = {source: load_folder(source) for source in (folder, archive)}
    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "decode", lambda *_: pytest.fail("decoded again"))
        for source, data in first.items():
            assert same(load_folder(source), data)
    picture(7).save(folder / "train/class0/1.png")
    pack(folder, "gztar")
    for source, data in first.items():
        assert not torch.equal(load_folder(source).train_images[1], data.train_images[1])


def test_damaged_or_malicious_cache_is_replaced(folder, monkeypatch):
    data, cache = load_folder(folder), folder.with_name("pets.cache.pt")
    whole = cache.read_bytes()
    monkeypatch.chdir(folder.parent)  # where Evil would create its file
    for content in (whole[:1000], b"", {"key": Evil(), "images": {}}):
        torch.save(content, cache) if isinstance(content, dict) else cache.write_bytes(content)
        assert same(load_folder(folder), data) and len(cache.read_bytes()) == len(whole)
    assert not (folder.parent / "hacked").exists()


def test_cache_that_cannot_be_written_gives_a_message_only(folder, capsys):
    folder.with_name("pets.cache.pt").mkdir()
    assert len(load_folder(folder).train_labels) == 30
    told = capsys.readouterr().out
    assert "are not cached and will be decoded again next time: " in told
    assert "pets.cache.pt cannot be written (Is a directory)" in told


def test_second_process_waits_and_uses_the_result(folder, monkeypatch):
    """A thread stands in for the process: it opens the lock's file anew."""
    second, told, cache = Thread(target=load_folder, args=(folder,)), Queue(), folder.with_name("pets.cache.pt")
    monkeypatch.setattr(files, "print", lambda line, flush: told.put(line), raising=False)
    with FileLock(folder.with_name(".pets.lock")):
        second.start()
        assert told.get(timeout=60) == f"Another process is reading {folder}: waiting for it."
        assert second.is_alive() and not cache.exists()
    second.join()
    assert cache.exists()


NO_IMAGE = "pets: train/class0/0.png is not a readable image: replace or remove it"


@pytest.mark.parametrize("command, message", [
    ("rm -r test", "has no images as train/<class>/*.png and test/<class>/*.png: arrange them like this"),
    ("rm test/class3/*", "test: Found no valid file for the classes class3. Add .png or .jpg images"),
    ("mv test/class9 test/wolf", "train and test must have the same classes, only one of them has class9, wolf"),
    ("rm -r */class4", "has 9 classes, but these networks distinguish 10: class0, class1, class2, class3, class5"),
    ("mkdir {train,test}/more{1..290}", "has 300 classes, but these networks distinguish 10: class0, class1"),
    ("mkdir one; mv t* one; cp -r one two", "contains train/ and test/ 2 times: give the path of one of the copies"),
    ("ln -sf gone.png train/class0/0.png", "cannot be read (No such file or directory): check its permissions and disk"),
    ("echo no image > train/class0/0.png", NO_IMAGE),
    ("truncate -s 500 train/class0/0.png", NO_IMAGE),
    ("cp ../wide.png train/class0/0.png", "train/class0/0.png is 48×32 pixels: resize all images to 32×32 first"),
    *((f"chmod -r {place}", "cannot be read (Permission denied)") for place in ("train/class0/0.png", "train/class0", ".")),
])  # fmt: skip
def test_unusable_folder(folder, command, message):
    picture(0, size=(48, 32)).save(folder.with_name("wide.png"))
    if "chmod" in command and os.geteuid() == 0:
        pytest.skip("root may read everything")
    subprocess.run(["bash", "-c", command], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    assert message in error_of(folder)


def test_path_that_is_neither_a_folder_nor_an_archive_of_images(tmp_path):
    assert "nowhere does not exist: set DATA to" in error_of(tmp_path / "nowhere")
    (tmp_path / "photo.rar").write_bytes(b"x")
    assert "photo.rar is not an archive: give a folder or one of .tar" in error_of(tmp_path / "photo.rar")
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as file:
        file.addfile(tarfile.TarInfo("cifar-10-batches-py/data_batch_1"), io.BytesIO())
    assert "is CIFAR-10's own archive: put it into data/" in error_of(tmp_path / "cifar-10-python.tar.gz")


@pytest.mark.parametrize("kind", ["tar", "gztar", "xztar", "zip"])
def test_truncated_archive(folder, kind):
    archive = pack(folder, kind)
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size * 3 // 5])
    assert "cannot be unpacked (" in error_of(archive)


def test_encrypted_archive(folder):
    archive = pack(folder, "zip")
    content = archive.read_bytes()
    for entry in (b"PK\x03\x04\x14\0", b"PK\x01\x02\x14\x03\x14\0"):  # the next byte says "encrypted"
        content = content.replace(entry + b"\0", entry + b"\1")
    archive.write_bytes(content)
    assert "encrypted" in error_of(archive)


def test_unsafe_archive(folder):
    with tarfile.open(pack(folder, "tar"), "a") as file:
        file.addfile(tarfile.TarInfo("../evil.png"))
    assert "cannot be unpacked (" in error_of(Path(file.name)) and not (folder.parent / "evil.png").exists()


@pytest.mark.skipif("TEST_CIFAR10" not in os.environ, reason="TEST_CIFAR10 names no folder or archive of CIFAR-10")
def test_real_cifar10():
    data = load_folder(Path(os.environ["TEST_CIFAR10"]))
    assert data.is_cifar10 and data.classes == tuple(CIFAR10_CLASSES)
