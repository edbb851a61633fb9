"""Where the images come from, and the message if they are not available."""

import hashlib
import io
import os
import re
import stat
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from utils import data as data_module
from utils.data import is_cifar10, load_data, load_folder
from utils.sources import image_folder
from utils.system.errors import DataError

SHAPES = {"train": 3, "test": 2}  # images per class


def picture(seed: int, size=(32, 32), mode="RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def folder(tmp_path):
    """train and test with the classes cat and dog, 3 and 2 images each."""
    for split, count in SHAPES.items():
        for label, name in enumerate(["cat", "dog"]):
            where = tmp_path / "pets" / split / name
            where.mkdir(parents=True)
            for i in range(count):
                picture(100 * label + 10 * count + i).save(where / f"{i:04}.png")
    return tmp_path / "pets"


def pack(folder, kind, prefix=""):
    """An archive of ``folder`` beside it."""
    archive = folder.with_name(f"{folder.name}.{kind}")
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path in sorted(folder.rglob("*")):
                file.write(path, f"{prefix}{path.relative_to(folder)}")
    else:
        with tarfile.open(archive, f"w:{kind.partition('.')[2]}") as file:
            for path in sorted(folder.iterdir()):
                file.add(path, f"{prefix}{path.name}")
    return archive


def same(a, b):
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in
               ("train_images", "train_labels", "test_images", "test_labels"))  # fmt: skip


def error_of(path) -> str:
    """The error message, one line; nothing partial may be left beside the source."""
    with pytest.raises(DataError) as caught:
        load_folder(path)
    assert not list(path.parent.glob("*.cache.pt")) and not list(path.parent.glob("*.part"))
    assert not list(path.parent.glob(".*.part"))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_folder(folder):
    data = load_folder(folder)
    assert data.name == "pets (folder of images)" and data.classes == ("cat", "dog")
    assert data.train_images.shape == (6, 3, 32, 32) and data.test_images.shape == (4, 3, 32, 32)
    assert data.train_images.dtype == torch.uint8 and data.train_labels.dtype == torch.int64
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1] and data.test_labels.tolist() == [0, 0, 1, 1]
    expected = np.asarray(Image.open(folder / "train/dog/0001.png")).transpose(2, 0, 1)
    assert np.array_equal(data.train_images[4], expected)
    pixels = data.train_images.double() / 255
    assert data.mean == pytest.approx(pixels.mean(dim=(0, 2, 3)).tolist())
    assert data.std == pytest.approx(pixels.std(dim=(0, 2, 3), correction=0).tolist())


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "zip"])
@pytest.mark.parametrize("prefix", ["", "wrapped/"])
def test_archive_equals_folder(folder, kind, prefix):
    assert same(load_folder(pack(folder, kind, prefix)), load_folder(folder))


def test_grayscale_images_and_hidden_files(folder):
    picture(0, mode="L").save(folder / "train/cat/0009.png")
    (folder / "train/cat/._0009.png").write_bytes(b"what a file manager leaves")
    (folder / "train/cat/notes.txt").write_text("no image")
    (folder / "__MACOSX/train/fish").mkdir(parents=True)
    data = load_folder(folder)
    assert len(data.train_labels) == 7
    assert torch.equal(data.train_images[3, 0], data.train_images[3, 2])


@pytest.mark.parametrize("suffix, kind", [("jpg", "JPEG"), ("png", "altered")])
def test_a_copy_of_cifar10_is_recognised_by_classes_and_counts(monkeypatch, tmp_path, suffix, kind):
    """The name requires the ten classes and all 60,000 images. A fake decoder keeps the test fast."""
    names = [f"{split}/{name}/{i:04}.{suffix}" for split, count in (("train", 5000), ("test", 1000))
             for name in data_module.CIFAR10_CLASSES for i in range(count)]  # fmt: skip
    pixels = np.asarray(picture(0))
    monkeypatch.setattr(image_folder, "decode_image", lambda name, content: pixels)
    for wanted, listed in ((f"CIFAR-10 ({kind} copy)", names), ("copy (folder of images)", names[1:])):
        found = image_folder.decode(tmp_path / "copy", listed, lambda names: ((name, b"") for name in names))
        monkeypatch.setattr(data_module, "read_images", lambda path, found=found: found)
        data = load_folder(tmp_path / "copy")
        assert data.name == wanted and is_cifar10(data.name) == (listed is names)
        if is_cifar10(data.name):
            assert data.mean == (0.4914, 0.4822, 0.4465) and data.std == (0.2470, 0.2435, 0.2616)


def test_cifar10_is_called_by_its_content(monkeypatch, folder):
    """Names and order of the files do not matter; a single different pixel or label does."""
    images = load_folder(folder)
    digests = [image_folder.digest(images.train_images, images.train_labels),
               image_folder.digest(images.test_images, images.test_labels)]  # fmt: skip
    each = [hashlib.sha256(bytes([label]) + image.numpy().tobytes()).digest()
            for image, label in zip(images.test_images, images.test_labels.tolist())]  # fmt: skip
    assert digests[1] == hashlib.sha256(b"".join(sorted(each))).hexdigest()
    monkeypatch.setattr(image_folder, "CIFAR10_DIGESTS", digests)
    (folder / "train/cat/0001.png").rename(folder / "train/cat/another.png")
    shuffled = load_folder(folder)
    assert shuffled.name == "CIFAR-10" and not same(shuffled, images)
    assert load_folder(pack(folder, "tar.xz")).name == load_folder(pack(folder, "zip", "wrapped/")).name == "CIFAR-10"
    (folder / "test/dog/0000.png").rename(folder / "test/cat/9.png")
    assert load_folder(folder).name == "pets (folder of images)"
    (folder / "test/cat/9.png").rename(folder / "test/dog/0000.png")
    assert load_folder(folder).name == "CIFAR-10"
    changed = np.array(Image.open(folder / "test/dog/0000.png"))
    changed[0, 0, 0] ^= 1
    Image.fromarray(changed).save(folder / "test/dog/0000.png")
    assert load_folder(folder).name == "pets (folder of images)"


def test_a_tar_is_read_forwards(folder, monkeypatch):
    """Members in any order are read in one pass. Seeking back would decompress the archive from its start."""
    paths = sorted(path for path in folder.rglob("*.png"))
    np.random.default_rng(0).shuffle(paths)
    archive = folder.with_name("shuffled.tar.gz")
    with tarfile.open(archive, "w:gz") as file:
        for path in paths:
            file.add(path, str(path.relative_to(folder)))
    places, real = [], tarfile.TarFile.extractfile
    monkeypatch.setattr(tarfile.TarFile, "extractfile", lambda tar, m: places.append(m.offset) or real(tar, m))
    assert same(load_folder(archive), load_folder(folder))
    assert len(places) == 10 and places == sorted(places)


def test_cache_is_used_until_the_source_changes(folder, monkeypatch):
    archive = pack(folder, "tar.gz")
    first = {source: load_folder(source) for source in (folder, archive)}
    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "decode", lambda *_: pytest.fail("decoded again"))
        for source, data in first.items():
            assert same(load_folder(source), data)
    picture(7).save(folder / "train/cat/0001.png")
    pack(folder, "tar.gz")
    for source, data in first.items():
        changed = load_folder(source)
        assert not torch.equal(changed.train_images[1], data.train_images[1])


def test_broken_cache_is_replaced(folder):
    data = load_folder(folder)
    cache = folder.with_name("pets.cache.pt")
    cache.write_bytes(cache.read_bytes()[:1000])
    assert same(load_folder(folder), data)
    cache.write_bytes(b"")
    assert same(load_folder(folder), data)


def test_cache_that_cannot_be_written_gives_a_message_only(folder, monkeypatch, capsys):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    assert len(load_folder(folder).train_labels) == 6
    told = capsys.readouterr().out
    assert "could not be cached and will be decoded again next time: " in told
    assert "pets.cache.pt cannot be written (No space left on device)" in told
    assert not list(folder.parent.glob(".*.part"))


def test_missing_folder(tmp_path):
    assert "nowhere does not exist: set DATA to" in error_of(tmp_path / "nowhere")


def test_no_archive(tmp_path):
    (tmp_path / "photo.rar").write_bytes(b"x")
    assert "photo.rar is not a readable archive: give a folder or one of .tar" in error_of(tmp_path / "photo.rar")


def test_no_split(folder):
    (folder / "test").rename(folder / "validation")
    assert re.search(r"pets has no test/<class>/ inside: expected train/<class>/", error_of(folder))


def test_empty_class(folder):
    (folder / "test/bird").mkdir()
    assert "class test/bird is empty: add .png or .jpg images or remove it" in error_of(folder)


def test_different_classes(folder):
    (folder / "test/dog").rename(folder / "test/wolf")
    assert "same classes, only one of them has dog, wolf" in error_of(folder)


def test_two_copies(folder):
    archive = pack(folder, "zip", prefix="a/")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("b/train/cat/0000.png", b"")
    assert "contains train/ and test/ 2 times" in error_of(archive)


@pytest.mark.parametrize("content", [b"", b"no image", "half"])
def test_no_image(folder, content):
    path = folder / "train/dog/0002.png"
    path.write_bytes(path.read_bytes()[:500] if content == "half" else content)
    assert re.search(r"pets: train/dog/0002.png is not a readable image: replace or remove it", error_of(folder))


def test_other_size_is_rejected(folder):
    picture(0, size=(48, 32)).save(folder / "test/cat/0001.png")
    assert "test/cat/0001.png is 48×32 pixels: resize all images to 32×32 first" in error_of(folder)


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "zip"])
@pytest.mark.parametrize("share", [0.6, 0.01])
def test_truncated_archive(folder, kind, share):
    archive = pack(folder, kind)
    archive.write_bytes(archive.read_bytes()[: int(archive.stat().st_size * share)])
    assert re.search(
        rf"pets\.{kind} (is truncated or not an archive of its kind .*: download it again|cannot be read)",
        error_of(archive),
    )


def test_cifar10s_own_archive_as_data(tmp_path):
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.addfile(tarfile.TarInfo("cifar-10-batches-py/data_batch_1"), io.BytesIO())
    assert "is CIFAR-10's own archive: put it into data/" in error_of(archive)


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("name", ["../train/cat/evil.png", "/train/cat/evil.png", "train/cat/../../../evil.png"])
def test_path_that_leads_outside(folder, kind, name):
    archive = pack(folder, kind)
    if kind == "zip":
        with zipfile.ZipFile(archive, "a") as file:
            file.writestr(name, b"x")
    else:
        with tarfile.open(archive, "a") as file:
            file.addfile(tarfile.TarInfo(name))
    assert "contains a path that points outside it" in error_of(archive)


def test_link_in_an_archive_is_not_followed(folder):
    archive = pack(folder, "tar")
    with tarfile.open(archive, "a") as file:
        link = tarfile.TarInfo("train/fish/0000.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    assert load_folder(archive).classes == ("cat", "dog")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_image(folder):
    (folder / "train/cat/0000.png").chmod(stat.S_IWUSR)
    assert "cannot be read" in error_of(folder)


def test_digits():
    data = load_data("digits")
    assert data.name == "digits" and not is_cifar10(data.name)
    assert data.train_images.shape == (1437, 3, 32, 32) and data.test_images.shape == (360, 3, 32, 32)
    assert data.train_images.dtype == torch.uint8 and data.train_images.max() == 255
    assert torch.bincount(data.test_labels).tolist() == pytest.approx([36] * 10, abs=2)
    assert same(data, load_data("digits"))
    normal = (data.train_images / 255 - data.mean[0]) / data.std[0]
    assert abs(normal.mean()) < 1e-5 and abs(normal.std() - 1) < 1e-3


def test_smoke_mode_takes_the_digits_whatever_data_says(monkeypatch):
    monkeypatch.setenv("DATA", "/nowhere")
    assert load_data().name == "digits"


def test_data_names_the_source(monkeypatch, folder):
    monkeypatch.setenv("EVA8_SMOKE", "0")
    monkeypatch.setenv("DATA", str(folder))
    assert load_data().name == "pets (folder of images)"


@pytest.mark.skipif("TEST_CIFAR10" not in os.environ, reason="TEST_CIFAR10 names no folder or archive of CIFAR-10")
def test_a_real_copy():
    data = load_folder(image_folder.Path(os.environ["TEST_CIFAR10"]))
    assert is_cifar10(data.name)
    mean, std = data_module.channel_statistics(data.train_images)
    exact = data.name == "CIFAR-10"  # otherwise a copy, whose pixels differ slightly
    assert mean == pytest.approx(data.mean, abs=5e-5 if exact else 2e-3)
    assert std == pytest.approx(data.std, abs=5e-5 if exact else 5e-3)


def test_url_as_data():
    with pytest.raises(
        DataError, match=r"https://host/cifar.zip is a URL, which is not supported: download the file and"
    ):
        load_data("https://host/cifar.zip")


def test_smoke_mode_reads_a_few_digits(monkeypatch):
    few = load_data()
    assert (few.name, len(few.train_labels), len(few.test_labels)) == ("digits", 40, 24)
    assert set(few.train_labels.tolist()) == set(range(10)) == set(few.test_labels.tolist())
    assert len(load_data("digits").test_labels) == 360
