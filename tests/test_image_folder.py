"""Unusual and malicious folders and archives of images."""

import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.test_checkpoint import Evil
from utils.data import load_folder
from utils.system.errors import DataError


def write_images(folder: Path, classes: list[str], pixel=None) -> Path:
    for split in ("train", "test"):
        for number, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            color = pixel or (number * 20, 255 - number * 20, 7)
            Image.new("RGB", (32, 32), color).save(folder / split / name / "0.png")
    return folder


def test_many_classes_are_rejected_before_decoding(tmp_path, monkeypatch):
    photos = write_images(tmp_path / "photos", [f"class{i:03}" for i in range(300)])
    monkeypatch.setattr("utils.sources.image_folder.decode_image", lambda *_: pytest.fail("decoded"))
    with pytest.raises(DataError, match=r"photos has 300 classes, but these networks distinguish 10"):
        load_folder(photos)


def test_more_classes_than_the_networks_have(tmp_path):
    photos = write_images(tmp_path / "photos", [f"class{i:02}" for i in range(11)])
    with pytest.raises(DataError, match=r"photos has 11 classes, but these networks distinguish 10: remove the others"):
        load_folder(photos)
    shutil.rmtree(photos / "train/class10")
    shutil.rmtree(photos / "test/class10")
    assert len(load_folder(photos).classes) == 10


def test_images_of_one_color(tmp_path, monkeypatch, folder):
    photos = write_images(tmp_path / "black", ["cat", "dog"], pixel=(0, 0, 0))
    with pytest.raises(DataError, match=r"black: all training images have a single color: give images that differ"):
        load_folder(photos)


def test_16_bit_grayscale_images_are_scaled(tmp_path):
    photos = write_images(tmp_path / "photos", ["cat", "dog"])
    levels = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) * 64  # 0 to 65,472
    Image.fromarray(levels).save(photos / "train/cat/1.png")
    assert Image.open(photos / "train/cat/1.png").mode == "I;16"
    found = load_folder(photos).train_images[1]
    assert np.array_equal(found.numpy(), np.broadcast_to(levels // 256, (3, 32, 32)))


def test_dangling_link_in_a_folder(tmp_path):
    photos = write_images(tmp_path / "photos", ["cat", "dog"])
    (photos / "train/cat/1.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"photos cannot be read \(No such file or directory\)"):
        load_folder(photos)


def test_archive_with_a_password(tmp_path, monkeypatch):
    photos = write_images(tmp_path / "photos", ["cat", "dog"])
    shutil.make_archive(str(photos), "zip", photos)
    archive = bytearray((tmp_path / "photos.zip").read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag "encrypted" of every entry
        for found in re.finditer(re.escape(mark), bytes(archive)):
            archive[found.start() + offset] |= 1
    (tmp_path / "photos.zip").write_bytes(archive)
    with pytest.raises(
        DataError, match=r"photos.zip is truncated or not an archive of its kind \(.*encrypted.*: download it again"
    ):
        load_folder(tmp_path / "photos.zip")


def test_archive_of_a_device(tmp_path):
    photos = write_images(tmp_path / "photos", ["cat", "dog"])
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        archive.add(photos / "train", "train")
        archive.add(photos / "test", "test")
        odd = tarfile.TarInfo("train/cat/9.png")
        odd.type = tarfile.CHRTYPE
        archive.addfile(odd)
    assert len(load_folder(tmp_path / "photos.tar").train_labels) == 2


def test_malicious_cache_is_not_run(tmp_path, monkeypatch):
    photos = write_images(tmp_path / "photos", ["cat", "dog"])
    load_folder(photos)
    monkeypatch.chdir(tmp_path)
    torch.save({"mark": Evil(), "found": {}}, tmp_path / "photos.cache.pt")
    assert load_folder(photos).classes == ("cat", "dog")
    assert not (tmp_path / "hacked").exists()
