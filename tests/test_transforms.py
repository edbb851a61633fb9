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
    flip = torch.arange(64) % 3 == 0
    for image, flipped, yes in zip(images, RandomHorizontalFlip().apply(images, flip), flip):
        assert torch.equal(flipped, TV.horizontal_flip(image) if yes else image)


def test_cutout(images):
    torch.manual_seed(1)
    top, left = torch.randint(-4, 28, (2, 64))
    got = CutOut(8, fill=MEAN).apply(images, top, left)
    fill = torch.tensor([125, 123, 114], dtype=torch.uint8)[:, None, None]  # 255 × MEAN, rounded
    for image, cut, i, j in zip(images, got, top.tolist(), left.tolist()):
        inside = max(i, 0), max(j, 0), min(i + 8, 32) - max(i, 0), min(j + 8, 32) - max(j, 0)
        assert torch.equal(cut, TV.erase(image, *inside, fill))


def test_normalize_and_its_inverse(images):
    got = Normalize(MEAN, STD)(images)
    for image, normal in zip(images, got):
        torch.testing.assert_close(normal, TV.normalize(TV.to_dtype(image, torch.float32, scale=True), MEAN, STD))
    inverse = Normalize(MEAN, STD).inverse
    torch.testing.assert_close(inverse(got), images / 255, rtol=0, atol=1e-6)
    assert inverse(9 * got).min() == 0 and inverse(9 * got).max() == 1  # beyond black and white
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_each_image_has_its_own_draw_over_the_whole_range():
    torch.manual_seed(0)
    images = torch.arange(1, 32 * 32 + 1).reshape(1, 1, 32, 32).to(torch.float32).expand(4000, 3, -1, -1)
    crops = RandomCrop(32, padding=4)(images)[:, 0]
    middle = crops[:, 16, 16].long() - 1  # in every crop; its value shows the crop's position
    for position in (middle // 32, middle % 32):
        assert position.unique().tolist() == list(range(12, 21))
    flipped = (RandomHorizontalFlip(p=0.3)(images)[:, 0, 0, 0] == 32).float().mean()
    assert 0.25 < flipped < 0.35
    cut = CutOut(8, fill=(0, 0, 0))(images)[:, 0] == 0  # (4000, 32, 32)
    ends = [(int(rows[0]), int(rows[-1])) for rows in (square.any(dim=1).nonzero() for square in cut)]
    assert set(ends) == {(max(center - 4, 0), min(center + 3, 31)) for center in range(32)}
    assert set(cut.sum(dim=(1, 2)).tolist()) == {high * wide for high in range(4, 9) for wide in range(4, 9)}


def test_transforms_are_applied_in_their_order_and_leave_their_input_alone(images):
    before = images.clone()
    covered = Compose([RandomCrop(32, 4), RandomHorizontalFlip(), CutOut(64, fill=MEAN), Normalize(MEAN, STD)])(images)
    assert covered.abs().max() < 0.01  # the square, which covers everything, has the mean color
    assert torch.equal(images, before)


def test_figures_are_printed_with_four_digits():
    shown = str(Compose([RandomHorizontalFlip(), Normalize((0.30535409, 0.5, 1.0), (0.123449, 0.25, 0.5))]))
    assert shown == "RandomHorizontalFlip(p=0.5)\nNormalize(mean=(0.3054, 0.5, 1.0), std=(0.1234, 0.25, 0.5))"
