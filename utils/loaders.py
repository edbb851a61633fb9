"""Batches of transformed images, made where the images lie, behind a standard DataLoader."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from utils.data import ImageData
from utils.recipes import Recipe
from utils.transforms import Compose, CutOut, Normalize, RandomCrop, RandomHorizontalFlip


class BatchDataset(Dataset):
    """Answers B indices at once with images ``(B, 3, 32, 32)`` and labels ``(B,)``.

    A DataLoader asks a data set that has ``__getitems__`` for whole batches. Making 512 images at
    once costs less than handing them over from one worker process.
    """

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable[[Tensor], Tensor]) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self.transform(self.images[indices]), self.labels[indices]


def train_transform(data: ImageData, recipe: Recipe) -> Compose:
    """Crop, flip, cutout, normalise, as far as the recipe asks for them."""
    crop = [RandomCrop(32, padding=recipe.crop_padding)] if recipe.crop_padding else []
    cutout = [CutOut(recipe.cutout, fill=data.mean)] if recipe.cutout else []
    return Compose([*crop, RandomHorizontalFlip(), *cutout, Normalize(data.mean, data.std)])


def make_loaders(data: ImageData, recipe: Recipe, device: torch.device) -> tuple[DataLoader, DataLoader]:
    """Training batches, shuffled and augmented, and test batches in order, both on ``device``."""
    train_set = BatchDataset(data.train_images.to(device), data.train_labels.to(device), train_transform(data, recipe))
    train_loader = DataLoader(train_set, recipe.batch_size, shuffle=True, collate_fn=as_is)
    return train_loader, make_test_loader(data, Normalize(data.mean, data.std), recipe.batch_size, device)


def make_test_loader(data: ImageData, normalize: Normalize, batch_size: int, device: torch.device) -> DataLoader:
    """Test batches in order on ``device``."""
    test_set = BatchDataset(data.test_images.to(device), data.test_labels.to(device), normalize)
    return DataLoader(test_set, batch_size, collate_fn=as_is)


def as_is(batch: Any) -> tuple[Tensor, Tensor]:
    """The batch was whole when it was fetched: nothing is left to collate."""
    return batch
