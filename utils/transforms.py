"""Augmentation of whole batches on the device they are on, with random parameters for each image.

torchvision's transforms draw their parameters once per batch. Applied image by image, they would
take more time than the training of these networks. Every transform here maps uint8 ``(B, C, H, W)``
to uint8 ``(B, C, H, W)``, except Normalize, the last one, which returns float32. Random numbers
come from PyTorch's generator of the images' device.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from utils.device import memory_format


@cache
def per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """``(C, 1, 1)`` on ``device``, made once: a copy to a GPU waits until its work is done."""
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]


@dataclass(frozen=True)
class RandomCrop:
    """Crop each image at a random position, up to ``padding`` pixels beyond its edge.

    The padding is the image reflected at its edge. A black border would shift the mean of the
    features, which is all that a network with global average pooling sees.
    """

    size: int
    padding: int  # in pixels; less than the image's side
    padding_mode: str = field(default="reflect", init=False)  # the only one; for the printed text

    def __call__(self, images: Tensor) -> Tensor:
        positions = images.shape[-1] + 2 * self.padding - self.size + 1  # in each direction
        top, left = torch.randint(positions, (2, len(images)), device=images.device)
        return self.apply(images, top, left)

    def apply(self, images: Tensor, top: Tensor, left: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        window = torch.arange(self.size, device=images.device) - self.padding
        rows = reflect(top[:, None, None] + window[:, None], height)  # (B, size, 1)
        columns = reflect(left[:, None, None] + window, width)  # (B, 1, size)
        batch = torch.arange(len(images), device=images.device)[:, None, None]
        crops = images[batch, :, rows, columns]  # (B, size, size, C)
        return crops.permute(0, 3, 1, 2)  # (B, C, size, size), channels-last in memory


def reflect(indices: Tensor, side: int) -> Tensor:
    """Indices outside 0 … ``side`` − 1, reflected at the first or the last one.

    −1 → 1, and ``side`` → ``side`` − 2.
    """
    last = side - 1
    return last - (last - indices.abs()).abs()


@dataclass(frozen=True)
class RandomHorizontalFlip:
    """Flip each image horizontally with probability ``p``."""

    p: float = 0.5

    def __call__(self, images: Tensor) -> Tensor:
        return self.apply(images, torch.rand(len(images), device=images.device) < self.p)

    def apply(self, images: Tensor, flip: Tensor) -> Tensor:
        return torch.where(flip[:, None, None, None], images.flip(-1), images)


@dataclass(frozen=True)
class CutOut:
    """Cover a square of ``size`` × ``size`` pixels in each image with ``fill``.

    Its center is a random pixel. As in the paper, part of the square may lie outside the image.
    (Always inside, a square of 16 would hide the center of nearly every 32×32 image.) It has the
    data set's mean color: about 0 after Normalize.

    Source: DeVries & Taylor, https://arxiv.org/abs/1708.04552
    """

    size: int
    fill: tuple[float, ...]  # per channel, on the scale 0 to 1

    def __call__(self, images: Tensor) -> Tensor:
        centers = torch.randint(images.shape[-1], (2, len(images)), device=images.device)
        top, left = centers - self.size // 2
        return self.apply(images, top, left)

    def apply(self, images: Tensor, top: Tensor, left: Tensor) -> Tensor:
        pixels = torch.arange(images.shape[-1], device=images.device)
        rows = (pixels >= top[:, None]) & (pixels < top[:, None] + self.size)  # (B, H)
        columns = (pixels >= left[:, None]) & (pixels < left[:, None] + self.size)  # (B, W)
        square = rows[:, None, :, None] & columns[:, None, None, :]  # (B, 1, H, W)
        fill = 255 * per_channel(self.fill, images.device)
        return torch.where(square, fill.round().to(images.dtype), images)


@dataclass(frozen=True)
class Normalize:
    """uint8 0..255 → float32 with mean 0 and standard deviation 1 per channel.

    The result has the device's memory format.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        mean = per_channel(self.mean, images.device)
        std = per_channel(self.std, images.device)
        images = images.to(torch.float32, memory_format=memory_format(images.device))
        return (images - 255 * mean) / (255 * std)

    def inverse(self, images: Tensor) -> Tensor:
        """Normalized images back to the scale 0 to 1, for pictures."""
        mean = per_channel(self.mean, images.device)
        std = per_channel(self.std, images.device)
        return (images * std + mean).clamp(0, 1)


@dataclass(frozen=True)
class Compose:
    """Apply one transform after the other."""

    transforms: Sequence[Callable[[Tensor], Tensor]]

    def __str__(self) -> str:
        """One transform a line, figures with four digits."""
        lines = "\n".join(repr(transform) for transform in self.transforms)
        return re.sub(r"\d\.\d{5,}", with_four_digits, lines)

    def __call__(self, images: Tensor) -> Tensor:
        for transform in self.transforms:
            images = transform(images)
        return images


def with_four_digits(number: re.Match) -> str:
    return f"{float(number[0]):.4f}"
