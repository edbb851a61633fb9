"""The hyperparameters of the sessions, how they adapt to other data, and what optimizers and loaders make of them."""

from dataclasses import astuple, fields

import pytest
import torch

from models.model9 import TransformerModel
from tests.small import DIGITS, RECIPE
from utils.data import make_loaders, train_transform
from utils.optimizers import adam, sgd
from utils.recipes import SESSION7, SESSION8, SESSION9, Recipe
from utils.sessions import SESSIONS
from utils.transforms import Compose, CutOut, Normalize, RandomCrop, RandomHorizontalFlip


def test_recipes_are_those_of_the_published_runs():
    names = "session epochs top_epoch batch_size crop_padding cutout weight_decay max_grad_norm label_smoothing".split()
    assert [field.name for field in fields(Recipe)][:12] == [*names, "start_div", "end_div", "seed"]
    assert astuple(SESSION7)[:12] == (7, 20, 5, 128, 4, 16, 5e-4, None, 0.1, 10, 10_000, 0)
    assert astuple(SESSION8)[:12] == (8, 24, 5, 512, 4, 8, 5e-4, None, 0.2, 100, 100, 0)
    assert astuple(SESSION9)[:12] == (9, 24, 5, 128, 1, 0, 3e-4, 1.0, 0, 10, 10_000, 0)
    assert [SESSIONS[number].build(torch.device("cpu"))[1].param_groups[2]["lr_factor"] for number in (7, 8)] == [8, 1]
    assert SESSION9.compile and SESSION7.compile and not SESSION8.compile  # those that gain


def test_recipes_adapt_to_the_numbers_of_images_processes_and_epochs():
    assert [SESSION9.for_images(count).batch_size for count in (50_000, 1437, 39, 3)] == [128, 71, 1, 1]  # 20 steps
    assert [SESSION9.for_processes(count).batch_size for count in (1, 3, 4, 200)] == [128, 126, 128, 200]
    recipes = map(SESSION9.for_epochs, (24, 72, 8, 1))
    assert [(recipe.epochs, recipe.top_epoch) for recipe in recipes] == [(24, 5), (72, 15), (8, 2), (1, 1)]


@pytest.mark.parametrize("make, kind", [(adam, torch.optim.Adam), (sgd, torch.optim.SGD)])
def test_convolutions_decay_and_nothing_else(make, kind):
    model = TransformerModel()
    optimizer = make(model, weight_decay=0.5)
    assert type(optimizer) is kind
    decay = {parameter: group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    assert decay == {parameter: 0.5 if parameter.ndim == 4 else 0 for parameter in model.parameters()}
    if kind is torch.optim.SGD:
        assert optimizer.defaults["momentum"] == 0.9 and optimizer.defaults["nesterov"]
        assert all((optimizer.state[parameter]["momentum_buffer"] == 0).all() for parameter in decay)
        norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        assert set(optimizer.param_groups[2]["params"]) == {norm.bias for norm in norms}


@pytest.mark.parametrize("recipe, padding, cutout", [(SESSION7, 4, [16]), (SESSION8, 4, [8]), (SESSION9, 1, [])])
def test_augmentation_is_that_of_the_recipe(recipe, padding, cutout):
    crop, squares = RandomCrop(32, padding), [CutOut(side, fill=DIGITS.mean) for side in cutout]
    normalize = Normalize(DIGITS.mean, DIGITS.std)
    assert train_transform(DIGITS, recipe) == Compose([crop, RandomHorizontalFlip(p=0.5), *squares, normalize])


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
