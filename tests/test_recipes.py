"""Recipes: their ranges, how they adapt, and what optimizers and loaders make of them."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from models.model9 import TransformerModel
from tests.small import DIGITS, RECIPE
from utils.data import make_loaders, train_transform
from utils.errors import TrainingError
from utils.optimizers import adam, sgd
from utils.recipes import SESSION7, SESSION8, SESSION9
from utils.transforms import CutOut, RandomCrop

RECIPES = [SESSION7, SESSION8, SESSION9]


# Values and their ranges


@pytest.mark.parametrize(
    "name, value",
    [
        ("epochs", 0),
        ("epochs", 2.5),
        ("top_epoch", 0),
        ("top_epoch", 99),
        ("batch_size", 0),
        ("batch_size", 64.0),
        ("crop_padding", 40),
        ("crop_padding", -1),
        ("cutout", -3),
        ("weight_decay", -1e-4),
        ("max_grad_norm", 0.0),
        ("label_smoothing", 2),
        ("label_smoothing", float("nan")),
        ("start_div", 0.5),
        ("end_div", 0.5),
        ("seed", -1),
        ("precision", "half"),
    ],
)
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(TrainingError) as caught:
        SESSION9.replace(**{name: value})
    message = str(caught.value)
    assert name in message
    assert str(value) in message
    assert "must be" in message


NUMBERS = [
    "epochs",
    "top_epoch",
    "batch_size",
    "crop_padding",
    "cutout",
    "weight_decay",
    "label_smoothing",
    "start_div",
    "end_div",
    "seed",
]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [None, True, np.ones(2), torch.ones(2), Fraction(1, 2)], ids=str)
def test_values_that_are_no_numbers_are_refused(name, value):
    with pytest.raises(TrainingError, match=f"{name} is of type .*: it must be a number"):
        SESSION9.replace(**{name: value})


@pytest.mark.parametrize("value", ["no", None, 1])
def test_compile_is_true_or_false(value):
    with pytest.raises(TrainingError, match=r"compile is .*: it must be True or False"):
        SESSION9.replace(compile=value)


def test_values_are_checked_without_replace_too():
    with pytest.raises(TrainingError, match="crop_padding is 40"):
        dataclasses.replace(SESSION9, crop_padding=40)


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 1},
        {"epochs": 3, "top_epoch": 3},
        {"crop_padding": 31},
        {"cutout": 0},
        {"max_grad_norm": None},
        {"label_smoothing": 0.0},
        {"seed": 2**32 - 1},
        {"precision": "float16"},
    ],
)
def test_values_at_the_ends_of_their_ranges_are_accepted(changes):
    recipe = SESSION9.replace(**changes)
    for name, value in changes.items():
        assert getattr(recipe, name) == value


def test_misspelled_names_are_refused():
    with pytest.raises(TrainingError) as caught:
        SESSION9.replace(batchsize=64)
    message = str(caught.value)
    assert "no batchsize" in message
    assert "batch_size" in message


@pytest.mark.parametrize("name", ["epochs", "top_epoch", "batch_size", "crop_padding", "seed"])
def test_whole_numbers_of_numpy_and_pytorch_become_pythons(name):
    numpy_value = getattr(SESSION9.replace(**{name: np.int64(3)}), name)
    tensor_value = getattr(SESSION9.replace(**{name: torch.tensor(3)}), name)
    assert type(numpy_value) is int
    assert type(tensor_value) is int
    assert numpy_value == tensor_value == 3


def test_fractions_of_numpy_become_pythons():
    value = SESSION9.replace(weight_decay=np.float32(0.5)).weight_decay
    assert type(value) is float
    assert value == 0.5


def test_recipe_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SESSION9.epochs = 12


# Adapting


@pytest.mark.parametrize("epochs, top_epoch", [(24, 5), (12, 2), (72, 15), (8, 2), (1, 1)])
def test_peak_moves_with_the_number_of_epochs(epochs, top_epoch):
    recipe = SESSION9.replace(epochs=epochs)
    assert recipe.epochs == epochs
    assert recipe.top_epoch == top_epoch


def test_peak_stays_where_it_is_asked_for():
    assert SESSION9.replace(epochs=12, top_epoch=7).top_epoch == 7


def test_replace_changes_nothing_else():
    recipe = SESSION8.replace(batch_size=64)
    assert recipe.batch_size == 64
    assert recipe.replace(batch_size=SESSION8.batch_size) == SESSION8


@pytest.mark.parametrize(
    "count, batch_size",
    [
        (50_000, 128),
        (2561, 128),
        (1437, 71),
        (39, 1),
        (3, 1),
    ],
)
def test_small_sets_get_twenty_batches_or_more(count, batch_size):
    assert SESSION9.for_images(count).batch_size == batch_size


def test_cifar10_leaves_all_recipes_as_they_are():
    assert [recipe.for_images(50_000) for recipe in RECIPES] == RECIPES


def test_recipe_is_printed_with_one_line_per_value():
    lines = str(SESSION9).splitlines()
    names = [field.name for field in dataclasses.fields(SESSION9)]
    assert [line.split()[0] for line in lines] == names
    values = [line.split()[1] for line in lines]
    assert values == [str(getattr(SESSION9, name)) for name in names]


# Optimizers


@pytest.mark.parametrize("make_optimizer", [adam, sgd])
def test_convolutions_decay_and_nothing_else(make_optimizer):
    model = TransformerModel()
    optimizer = make_optimizer(model, weight_decay=0.5)
    decay = {
        parameter: group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for parameter in model.parameters():
        assert decay.pop(parameter) == (0.5 if parameter.ndim == 4 else 0)
    assert not decay


def test_adam_is_adam():
    assert type(adam(TransformerModel(), 0.1)) is torch.optim.Adam


def test_sgd_has_nesterov_momentum():
    defaults = sgd(TransformerModel(), 0.1).defaults
    assert defaults["momentum"] == 0.9
    assert defaults["nesterov"]


def test_momentum_of_sgd_starts_at_zero():
    model = TransformerModel()
    optimizer = sgd(model, 0.1)
    for parameter in model.parameters():
        assert torch.equal(
            optimizer.state[parameter]["momentum_buffer"], torch.zeros_like(parameter)
        )


def test_biases_of_batchnorm_have_a_learning_rate_of_their_own():
    model = TransformerModel()
    groups = sgd(model, 0.1, bias_lr=8).param_groups
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert set(groups[2]["params"]) == {norm.bias for norm in norms}
    assert [group.get("lr_factor", 1) for group in groups] == [1, 1, 8]


# Loaders


@pytest.mark.parametrize("recipe", RECIPES)
def test_crop_and_cutout_are_those_of_the_recipe(recipe):
    steps = train_transform(recipe, DIGITS).transforms
    crops = [step.padding for step in steps if isinstance(step, RandomCrop)]
    squares = [step.size for step in steps if isinstance(step, CutOut)]
    assert crops == [recipe.crop_padding]
    assert squares == ([recipe.cutout] if recipe.cutout else [])


def test_no_crop_without_padding():
    steps = train_transform(SESSION9.replace(crop_padding=0), DIGITS).transforms
    assert not any(isinstance(step, RandomCrop) for step in steps)


def test_square_has_the_mean_color_and_is_covered_before_the_images_are_normalized():
    steps = train_transform(SESSION7, DIGITS).transforms
    assert steps[-2].fill == DIGITS.mean
    assert steps[-1] == DIGITS.normalize


@pytest.fixture
def loaders():
    torch.manual_seed(0)
    transform = train_transform(RECIPE, DIGITS)
    return make_loaders(DIGITS, transform, 70, torch.device("cpu"))


def test_training_images_are_shuffled_in_each_epoch(loaders):
    train_loader, _ = loaders
    first = torch.cat([labels for _, labels in train_loader])
    second = torch.cat([labels for _, labels in train_loader])
    assert not torch.equal(first, DIGITS.train_labels)
    assert not torch.equal(first, second)


def test_each_epoch_has_all_training_images(loaders):
    train_loader, _ = loaders
    labels = torch.cat([labels for _, labels in train_loader])
    assert torch.equal(labels.bincount(), DIGITS.train_labels.bincount())


def test_training_images_are_transformed(loaders):
    train_loader, _ = loaders
    assert train_loader.dataset.transform == train_transform(RECIPE, DIGITS)


def test_test_images_come_in_order_and_only_normalized(loaders):
    _, test_loader = loaders
    images, labels = zip(*test_loader, strict=True)
    assert torch.equal(torch.cat(images), DIGITS.normalize(DIGITS.test_images))
    assert torch.equal(torch.cat(labels), DIGITS.test_labels)


def test_batches_have_the_size_that_is_asked_for(loaders):
    for loader in loaders:
        _, labels = next(iter(loader))
        assert len(labels) == 70
