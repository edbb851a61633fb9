"""Training batches are shuffled and augmented as the recipe says; test batches come in order, as they are."""

import pytest
import torch

from tests.small import DIGITS, RECIPE
from utils.data import make_loaders, train_transform
from utils.recipes import SESSION7, SESSION8, SESSION9
from utils.transforms import Compose, CutOut, Normalize, RandomCrop, RandomHorizontalFlip


@pytest.mark.parametrize(
    "recipe, padding, cutout",
    [(SESSION7, 4, [CutOut(16, fill=DIGITS.mean)]), (SESSION8, 4, [CutOut(8, fill=DIGITS.mean)]), (SESSION9, 1, [])],
)
def test_augmentation_is_that_of_the_recipe(recipe, padding, cutout):
    flip, normalize = RandomHorizontalFlip(p=0.5), Normalize(DIGITS.mean, DIGITS.std)
    assert train_transform(DIGITS, recipe) == Compose([RandomCrop(32, padding), flip, *cutout, normalize])


def test_training_images_are_shuffled_and_augmented_and_test_images_come_in_order():
    torch.manual_seed(0)
    train_loader, test_loader = make_loaders(DIGITS, RECIPE, torch.device("cpu"))
    assert train_loader.dataset.transform == train_transform(DIGITS, RECIPE)
    epochs = [torch.cat([labels for _, labels in train_loader]) for _ in range(2)]
    for labels, before in zip(epochs, (DIGITS.train_labels, epochs[0])):
        assert not torch.equal(labels, before) and torch.equal(labels.bincount(), before.bincount())
    images, labels = zip(*test_loader)
    assert torch.equal(torch.cat(images), DIGITS.normalize(DIGITS.test_images))
    assert torch.equal(torch.cat(labels), DIGITS.test_labels)
    assert len(labels[0]) == len(next(iter(train_loader))[1]) == RECIPE.batch_size
