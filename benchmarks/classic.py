"""The classic pipeline, as students usually write it, for comparison in the throughput benchmark.

torchvision's transforms for one PIL image at a time in a DataLoader with one worker per core, float32,
contiguous memory, ``.item()`` for every batch.
"""

import os
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from utils.data import CIFAR10_MEAN, CIFAR10_STD, ImageData
from utils.sessions import Session

WORKERS = os.cpu_count() or 1


class PILImages(Dataset):
    """Labeled PIL images, transformed one by one, as in torchvision's CIFAR10."""

    def __init__(self, images: np.ndarray, labels: list[int], transform: Callable) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def classic_loaders(data: ImageData, session: Session) -> tuple[DataLoader, DataLoader]:
    """torchvision's counterparts of the recipe's augmentation, with one worker per core."""
    recipe = session.recipe
    end = [transforms.ToTensor(), transforms.Normalize(CIFAR10_MEAN, CIFAR10_STD)]
    crop = [transforms.RandomCrop(32, padding=recipe.crop_padding)] if recipe.crop_padding else []
    area = (recipe.cutout / 32) ** 2
    cutout = [transforms.RandomErasing(p=1.0, scale=(area, area), ratio=(1.0, 1.0))] if recipe.cutout else []
    augment = transforms.Compose([*crop, transforms.RandomHorizontalFlip(), *end, *cutout])
    loader = partial(
        DataLoader, batch_size=recipe.batch_size, num_workers=WORKERS, pin_memory=torch.cuda.is_available()
    )
    train_set, test_set = (
        PILImages(images.permute(0, 2, 3, 1).numpy(), labels.tolist(), transform)
        for images, labels, transform in (
            (data.train_images, data.train_labels, augment),
            (data.test_images, data.test_labels, transforms.Compose(end)),
        )
    )
    return loader(train_set, shuffle=True), loader(test_set)


class Classic:
    """The training loop of the course."""

    def __init__(self, session: Session, data: ImageData) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.train_loader, self.test_loader = classic_loaders(data, session)
        self.model = session.network().to(self.device)
        self.optimizer = session.optimizer(self.model, session.recipe.weight_decay)

    def train(self) -> None:
        self.model.train()
        correct, losses = 0, []
        for images, labels in self.train_loader:
            images, labels = images.to(self.device), labels.to(self.device)
            self.optimizer.zero_grad()
            logits = self.model(images)
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
            correct += (logits.argmax(dim=1) == labels).sum().item()

    @torch.no_grad()
    def test(self) -> None:
        self.model.eval()
        loss, correct = 0.0, 0
        for images, labels in self.test_loader:
            images, labels = images.to(self.device), labels.to(self.device)
            logits = self.model(images)
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            correct += (logits.argmax(dim=1) == labels).sum().item()
