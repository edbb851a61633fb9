"""Batched transforms against torchvision's per-image functions, given the same draws."""

import pytest
import torch
from torchvision.transforms.v2 import functional as TV

from utils.transforms import Compose, CutOut, Normalize, RandomCrop, RandomHorizontalFlip

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@pytest.fixture
def images():
    return torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_crop(images):
    torch.manual_seed(1)
    top, left = torch.randint(9, (2, 64))
    got = RandomCrop(32, padding=4).apply(images, top, left)
    for image, crop, i, j in zip(images, got, top.tolist(), left.tolist()):
        assert torch.equal(crop, TV.crop(TV.pad(image, [4], padding_mode="reflect"), i, j, 32, 32))


def test_flip(images):
    torch.manual_seed(1)
    flip = torch.rand(64) < 0.5
    got = RandomHorizontalFlip().apply(images, flip)
    for image, flipped, yes in zip(images, got, flip.tolist()):
        assert torch.equal(flipped, TV.horizontal_flip(image) if yes else image)


def test_cutout(images):
    torch.manual_seed(1)
    top, left = torch.randint(-4, 28, (2, 64))
    got = CutOut(8, fill=MEAN).apply(images, top, left)
    fill = torch.tensor([125, 123, 114], dtype=torch.uint8)[:, None, None]  # 255 × MEAN, rounded
    for image, cut, i, j in zip(images, got, top.tolist(), left.tolist()):
        inside = max(i, 0), max(j, 0), min(i + 8, 32) - max(i, 0), min(j + 8, 32) - max(j, 0)
        assert torch.equal(cut, TV.erase(image, *inside, fill))


def test_normalize(images):
    got = Normalize(MEAN, STD)(images)
    for image, normal in zip(images, got):
        torch.testing.assert_close(normal, TV.normalize(TV.to_dtype(image, torch.float32, scale=True), MEAN, STD))
    torch.testing.assert_close(Normalize(MEAN, STD).inverse(got), images / 255, rtol=0, atol=1e-6)
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_each_image_has_its_own_draw_over_the_whole_range():
    torch.manual_seed(0)
    count = 4000
    images = torch.arange(1, 32 * 32 + 1).reshape(1, 1, 32, 32).to(torch.float32).expand(count, 3, -1, -1)
    crops = RandomCrop(32, padding=4)(images)[:, 0]
    middle = crops[:, 16, 16].long() - 1  # in every crop; its value shows the crop's position
    rows, columns = middle // 32, middle % 32
    assert sorted(rows.unique().tolist()) == sorted(columns.unique().tolist()) == list(range(12, 21))
    flipped = (RandomHorizontalFlip()(images)[:, 0, 0, 0] == 32).float().mean()
    assert 0.45 < flipped < 0.55
    cut = CutOut(8, fill=(0, 0, 0))(images)[:, 0] == 0  # (count, 32, 32)
    ends = [(int(rows[0]), int(rows[-1])) for rows in (square.any(dim=1).nonzero() for square in cut)]
    assert set(ends) == {(max(center - 4, 0), min(center + 3, 31)) for center in range(32)}
    assert set(cut.sum(dim=(1, 2)).tolist()) == {high * wide for high in range(4, 9) for wide in range(4, 9)}


def test_cutout_hides_no_pixel_more_often_than_one_in_the_middle(images):
    torch.manual_seed(0)
    hidden = (CutOut(16, fill=(0, 0, 0))(torch.ones(4000, 1, 32, 32)) == 0).float().mean(dim=(0, 1))  # (32, 32)
    assert hidden[16, 16] == pytest.approx(1 / 4, abs=0.03)  # (16 of 32 centers)²; 0.87 for squares kept inside
    assert hidden[0, 0] == pytest.approx((9 / 32) ** 2, abs=0.02)


def test_cutout_is_nearly_zero_after_normalize(images):
    chain = Compose([CutOut(64, fill=MEAN), Normalize(MEAN, STD)])  # it covers everything, wherever its center is
    assert chain(images).abs().max() < 0.01


def test_zero_padding_and_zero_size_change_nothing(images):
    assert torch.equal(RandomCrop(32, padding=0)(images), images)
    assert torch.equal(CutOut(0, fill=MEAN)(images), images)
