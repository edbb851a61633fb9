"""What DATA can name, the digits, and the statistics and digest of the images."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.test_image_folder import same, write_images
from utils.data import channel_statistics, load_data
from utils.errors import DataError
from utils.settings import data_root, runs_folder


def test_digits():
    data = load_data("digits")
    assert data.name == "digits"
    assert not data.is_cifar10
    assert data.train_images.shape == (1437, 3, 32, 32)
    assert data.train_images.dtype == torch.uint8
    assert data.train_images.max() == 255
    assert data.test_images.shape == (360, 3, 32, 32)


def test_digits_are_split_evenly_and_always_in_the_same_way():
    data = load_data("digits")
    assert torch.bincount(data.test_labels).tolist() == pytest.approx([36] * 10, abs=2)
    assert same(data, load_data("digits"))


def test_normalized_digits_have_mean_0_and_standard_deviation_1():
    data = load_data("digits")
    normal = (data.train_images / 255 - data.mean[0]) / data.std[0]
    assert abs(normal.mean()) < 1e-5
    assert abs(normal.std() - 1) < 1e-3


def test_smoke_mode_reads_a_few_digits_whatever_data_says(monkeypatch):
    monkeypatch.setenv("DATA", "/nowhere")
    data = load_data()
    assert data.name == "digits"
    assert len(data.train_labels) == 40
    assert len(data.test_labels) == 24


def test_few_digits_are_of_all_classes():
    data = load_data()
    assert set(data.train_labels.tolist()) == set(range(10))
    assert set(data.test_labels.tolist()) == set(range(10))


def test_smoke_mode_reads_all_digits_if_asked_for_them():
    assert len(load_data("digits").test_labels) == 360


def test_data_names_the_source(full, monkeypatch, tmp_path):
    monkeypatch.setenv("DATA", str(write_images(tmp_path / "CIFAR-100")))
    data = load_data()
    assert data.name == "CIFAR-100 (folder of images)"
    assert not data.is_cifar10


def test_url_is_not_supported():
    with pytest.raises(DataError, match=r"^https://host/cifar.zip is a URL, .*: download and unp"):
        load_data("https://host/cifar.zip")


@pytest.mark.parametrize("source", ["", " "])
def test_empty_source_is_not_the_current_folder(source):
    with pytest.raises(DataError, match=r"^the name of the images is empty: set DATA or --data to"):
        load_data(source)


def test_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RUNS", "~/runs")
    monkeypatch.setenv("DATA_ROOT", "~/data")
    assert runs_folder() == tmp_path / "runs"
    assert data_root() == tmp_path / "data"
    write_images(tmp_path / "pets")
    assert load_data("~/pets").name == "pets (folder of images)"


def test_tilde_without_a_home_is_a_name(monkeypatch):
    """As in a shell; Path.expanduser would raise a RuntimeError."""
    monkeypatch.setenv("RUNS", "~nobody-of-this-name/runs")
    monkeypatch.setenv("DATA_ROOT", "~nobody-of-this-name/data")
    assert runs_folder() == Path("~nobody-of-this-name/runs")
    assert data_root() == Path("~nobody-of-this-name/data")
    with pytest.raises(DataError, match=r"^~nobody-of-this-name/pets does not exist: set DATA"):
        load_data("~nobody-of-this-name/pets")


def test_digest_is_that_of_all_bytes():
    data = load_data()
    content = hashlib.sha256(b"0\n1\n2\n3\n4\n5\n6\n7\n8\n9")
    content.update(bytes(data.train_images.flatten().tolist()))
    for label in data.train_labels.tolist():
        content.update(label.to_bytes(8, "little"))
    content.update(bytes(data.test_images.flatten().tolist()))
    for label in data.test_labels.tolist():
        content.update(label.to_bytes(8, "little"))
    assert data.digest == content.hexdigest()


@pytest.mark.parametrize("name", ["train_images", "train_labels", "test_images", "test_labels"])
def test_digest_tells_the_order_of_images_and_labels(name):
    data = load_data()
    turned = replace(data, **{name: getattr(data, name).flip(0)})
    assert turned.digest != data.digest


def test_digest_tells_the_classes():
    data = load_data()
    assert replace(data, classes=data.classes[::-1]).digest != data.digest


def test_statistics_are_those_of_the_pixels():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8, generator=generator)
    mean, std = channel_statistics(images)
    pixels = images.numpy() / 255
    assert mean == pytest.approx(pixels.mean((0, 2, 3)))
    assert std == pytest.approx(pixels.std((0, 2, 3)))


def test_standard_deviation_of_a_constant_channel_is_given_as_1():
    images = torch.full((5, 3, 32, 32), 7, dtype=torch.uint8)
    mean, std = channel_statistics(images)
    assert mean == pytest.approx([7 / 255] * 3)
    assert std == (1, 1, 1)
