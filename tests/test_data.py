"""What DATA can name, the digits, and the statistics of the images. Folders: test_image_folder.py."""

import pytest
import torch

from tests.test_image_folder import same, write_images
from utils.data import channel_statistics, load_data
from utils.system.errors import DataError
from utils.system.settings import data_root, runs_folder


def test_digits():
    data = load_data("digits")
    assert data.name == "digits" and not data.is_cifar10
    assert data.train_images.shape == (1437, 3, 32, 32) and data.test_images.shape == (360, 3, 32, 32)
    assert data.train_images.dtype == torch.uint8 and data.train_images.max() == 255
    assert torch.bincount(data.test_labels).tolist() == pytest.approx([36] * 10, abs=2)
    assert same(data, load_data("digits"))
    normal = (data.train_images / 255 - data.mean[0]) / data.std[0]
    assert abs(normal.mean()) < 1e-5 and abs(normal.std() - 1) < 1e-3


def test_smoke_mode_reads_a_few_digits_whatever_data_says(monkeypatch):
    monkeypatch.setenv("DATA", "/nowhere")
    few = load_data()
    assert (few.name, len(few.train_labels), len(few.test_labels)) == ("digits", 40, 24)
    assert set(few.train_labels.tolist()) == set(range(10)) == set(few.test_labels.tolist())
    assert len(load_data("digits").test_labels) == 360


def test_data_names_the_source_but_no_url(full, monkeypatch, tmp_path):
    monkeypatch.setenv("DATA", str(write_images(tmp_path / "CIFAR-100")))
    data = load_data()
    assert data.name == "CIFAR-100 (folder of images)" and not data.is_cifar10
    with pytest.raises(DataError, match=r"https://host/cifar.zip is a URL, which is not supported: download the file"):
        load_data("https://host/cifar.zip")


def test_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RUNS", "~/runs")
    monkeypatch.setenv("DATA_ROOT", "~/data")
    assert (runs_folder(), data_root()) == (tmp_path / "runs", tmp_path / "data")
    write_images(tmp_path / "pets")
    assert load_data("~/pets").name == "pets (folder of images)"


def test_statistics_are_those_of_the_pixels():
    images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, 1] = 7  # a constant channel
    mean, std = channel_statistics(images)
    pixels = images.numpy() / 255
    red, _, blue = pixels.std((0, 2, 3))
    assert mean == pytest.approx(pixels.mean((0, 2, 3))) and std == pytest.approx((red, 1, blue))
