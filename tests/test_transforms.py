"""Batched transforms against torchvision's per-image functions, given the same draws."""

import pytest
import torch
from torchvision.transforms.v2 import functional as TV

from utils.transforms import (
    Compose,
    CutOut,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    reflect,
)

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8, generator=generator)


@pytest.fixture
def numbered():
    """4,000 equal images whose pixels are numbered from 1, row by row."""
    torch.manual_seed(0)
    pixels = torch.arange(1, 32 * 32 + 1).float()
    return pixels.reshape(1, 1, 32, 32).expand(4000, 3, -1, -1)


# Given draws


def test_crop_reflects_at_the_border(images):
    torch.manual_seed(1)
    top, left = torch.randint(9, (2, 64))
    crops = RandomCrop(32, padding=4).apply(images, top, left)
    draws = zip(images, crops, top.tolist(), left.tolist(), strict=True)
    for image, crop, image_top, image_left in draws:
        padded = TV.pad(image, [4], padding_mode="reflect")
        assert torch.equal(crop, TV.crop(padded, image_top, image_left, 32, 32))


def test_indices_are_reflected_at_the_first_and_the_last():
    assert reflect(torch.arange(-3, 8), 5).tolist() == [3, 2, 1, 0, 1, 2, 3, 4, 3, 2, 1]


def test_largest_padding_is_one_less_than_the_side(images):
    nothing = torch.zeros(64, dtype=torch.long)
    crops = RandomCrop(32, padding=31).apply(images, nothing, nothing)
    assert torch.equal(crops, images.flip(-1, -2))


def test_flip_is_horizontal(images):
    flip = torch.arange(64) % 3 == 0
    flipped = RandomHorizontalFlip().apply(images, flip)
    assert torch.equal(flipped[flip], TV.horizontal_flip(images[flip]))
    assert torch.equal(flipped[~flip], images[~flip])


def test_cutout_covers_the_part_of_the_square_that_is_inside(images):
    torch.manual_seed(1)
    top, left = torch.randint(-4, 28, (2, 64))
    covered = CutOut(8, fill=MEAN).apply(images, top, left)
    fill = torch.tensor([125, 123, 114], dtype=torch.uint8)[:, None, None]  # 255 × MEAN, rounded
    draws = zip(images, covered, top.tolist(), left.tolist(), strict=True)
    for image, result, square_top, square_left in draws:
        first_row = max(square_top, 0)
        first_column = max(square_left, 0)
        height = min(square_top + 8, 32) - first_row
        width = min(square_left + 8, 32) - first_column
        expected = TV.erase(image, first_row, first_column, height, width, fill)
        assert torch.equal(result, expected)


def test_normalize_is_that_of_torchvision(images):
    expected = TV.normalize(TV.to_dtype(images, torch.float32, scale=True), MEAN, STD)
    torch.testing.assert_close(Normalize(MEAN, STD)(images), expected)


def test_normalized_images_are_channels_last(images):
    normalized = Normalize(MEAN, STD)(images)
    assert normalized.is_contiguous(memory_format=torch.channels_last)


def test_inverse_restores_the_images(images):
    normalize = Normalize(MEAN, STD)
    restored = normalize.inverse(normalize(images))
    torch.testing.assert_close(restored, images / 255, rtol=0, atol=1e-6)


def test_inverse_stays_between_black_and_white(images):
    normalize = Normalize(MEAN, STD)
    restored = normalize.inverse(9 * normalize(images))
    assert restored.min() == 0
    assert restored.max() == 1


# Random draws


def test_rows_and_columns_of_the_crops_are_drawn_independently(numbered):
    crops = RandomCrop(32, padding=4)(numbered)[:, 0]
    middle = crops[:, 16, 16].long() - 1  # is never reflected, and tells the crop's position
    positions = {(int(pixel) // 32, int(pixel) % 32) for pixel in middle}
    assert positions == {(row, column) for row in range(12, 21) for column in range(12, 21)}


def test_crops_have_their_size(images):
    torch.manual_seed(0)
    crops = RandomCrop(24, padding=0)(images)
    assert crops.shape == (64, 3, 24, 24)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_flips_have_their_probability(numbered, probability):
    flipped = RandomHorizontalFlip(probability)(numbered)[:, 0, 0, 0] == 32
    assert flipped.float().mean() == pytest.approx(probability, abs=0.03)


def test_centers_of_cutout_are_all_pixels(numbered):
    """The squares are drawn independently over rows and columns, and may end outside."""
    covered = CutOut(8, fill=(0, 0, 0))(numbered)[:, 0] == 0  # (4000, 32, 32)
    rows = covered.any(dim=2)  # (4000, 32)
    columns = covered.any(dim=1)
    extents = {(max(center - 4, 0), min(center + 3, 31)) for center in range(32)}
    assert {extent(row) for row in rows} == extents
    assert {extent(column) for column in columns} == extents
    assert {(extent(row), extent(column)) for row, column in zip(rows, columns, strict=True)} > {
        (extent_of_rows, extent_of_rows) for extent_of_rows in extents
    }


def extent(covered):
    """The first and the last place that is true."""
    places = covered.nonzero()
    return int(places[0]), int(places[-1])


# Several transforms


@pytest.mark.parametrize(
    "transform",
    [
        RandomCrop(32, 4),
        RandomHorizontalFlip(),
        CutOut(8, fill=MEAN),
        Normalize(MEAN, STD),
    ],
)
def test_input_is_left_alone(images, transform):
    torch.manual_seed(0)
    before = images.clone()
    transform(images)
    assert torch.equal(images, before)


def test_transforms_are_applied_in_their_order(images):
    covers_everything = CutOut(64, fill=MEAN)
    transform = Compose([covers_everything, Normalize(MEAN, STD)])
    assert transform(images).abs().max() < 0.01  # the mean color


def test_transforms_are_printed_with_four_digits():
    normalize = Normalize((0.30535409, 0.5, 1.0), (0.123449, 0.25, 0.5))
    lines = str(Compose([RandomHorizontalFlip(), normalize])).splitlines()
    assert lines == [
        "RandomHorizontalFlip(p=0.5)",
        "Normalize(mean=(0.3054, 0.5, 1.0), std=(0.1234, 0.25, 0.5))",
    ]


def test_padding_of_the_crop_is_printed():
    assert "padding_mode='reflect'" in str(Compose([RandomCrop(32, 4)]))
