"""The plan of a run: what it describes of each object, and how it names a difference."""

import importlib
import json
import sys
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR
from torchvision.transforms import v2

from models.model9 import TransformerModel
from tests.small import RECIPE, cells_of
from utils.optimizers import adam
from utils.runs.plan import (
    NetworkInfo,
    arguments_of,
    describe_object,
    describe_optimizer,
    describe_schedule,
    differences,
    is_plain,
    plan_of_search,
    plan_of_training,
)
from utils.schedule import one_cycle
from utils.transforms import Compose, RandomCrop, RandomHorizontalFlip


def through_json(description: dict) -> dict:
    """As it is read again in another process."""
    return json.loads(json.dumps(description))


def brighten(images):
    return images + 1


def darken(images):
    return images - 1


@dataclass(frozen=True)
class Shift:
    """A transform of one's own."""

    pixels: int

    def __call__(self, images):
        return images.roll(self.pixels, -1)


@dataclass(frozen=True)
class Scale:
    """A transform with an array."""

    factors: np.ndarray

    def __call__(self, images):
        return images * torch.from_numpy(self.factors)


def test_arguments_of_a_class_are_none():
    assert arguments_of(TransformerModel) == {}


def test_arguments_have_their_names():
    assert arguments_of(partial(TransformerModel, 8, init="pytorch")) == {"a": 8, "init": "pytorch"}


def test_arguments_of_numpy_are_plain():
    arguments = arguments_of(partial(TransformerModel, a=np.int64(8)))
    assert type(arguments["a"]) is int


def layers_of(*widths):
    """A network whose arguments have no names."""
    return nn.Sequential(*(nn.Linear(width, width) for width in widths))


def test_arguments_without_names_are_unknown():
    """A saved network is built again by the names of its arguments."""
    assert arguments_of(partial(layers_of, 8, 16)) is None


def test_arguments_without_names_still_make_a_difference():
    one = NetworkInfo.of(partial(layers_of, 8)).described_arguments
    other = NetworkInfo.of(partial(layers_of, 16)).described_arguments
    assert one != other


def test_arguments_that_are_no_plain_values_are_unknown():
    assert arguments_of(partial(nn.Sequential, nn.ReLU())) is None


def test_title_is_the_network_as_one_would_write_it():
    assert NetworkInfo.of(partial(TransformerModel, a=8)).title == "TransformerModel(a=8)"


def test_plain_values_can_be_nested():
    assert is_plain({"a": [1, (2.0, None)], "b": "text"})


def test_tensors_are_not_plain():
    assert not is_plain([torch.ones(1)])


OBJECTS = {
    "crop padding": (RandomCrop(32, padding=1), RandomCrop(32, padding=2)),
    "number of transforms": (Compose([RandomHorizontalFlip()]), Compose([])),
    "function": (brighten, darken),
    "function in Compose": (Compose([brighten]), Compose([darken])),
    "transform of one's own": (Compose([Shift(1)]), Compose([Shift(2)])),
    "torchvision's transform": (
        v2.Compose([v2.RandomCrop(32, padding=4)]),
        v2.Compose([v2.RandomCrop(32, padding=3)]),
    ),
    "label smoothing": (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)),
    "class weights": (
        nn.CrossEntropyLoss(weight=torch.ones(10)),
        nn.CrossEntropyLoss(weight=torch.arange(10.0)),
    ),
    "argument of a function": (
        partial(F.cross_entropy, label_smoothing=0.1),
        partial(F.cross_entropy, label_smoothing=0.2),
    ),
    "array": (Scale(np.ones(3)), Scale(np.arange(3.0))),
    "class of a criterion": (nn.CrossEntropyLoss(), nn.MultiMarginLoss()),
}


@pytest.mark.parametrize("objects", OBJECTS.values(), ids=OBJECTS)
def test_other_objects_have_other_descriptions(objects):
    one, other = objects
    assert through_json(describe_object(one)) != through_json(describe_object(other))


def make_function():
    def transform(images):
        return images / 255

    return transform


SAME_OBJECTS = {
    "transforms": (Compose([RandomCrop(32, 1)]), Compose([RandomCrop(32, 1)])),
    "function": (make_function(), make_function()),
    "function in Compose": (Compose([make_function()]), Compose([make_function()])),
    "torchvision's transform": (v2.RandomCrop(32, padding=4), v2.RandomCrop(32, padding=4)),
    "criterion": (nn.CrossEntropyLoss(), nn.CrossEntropyLoss()),
    "class weights": (
        nn.CrossEntropyLoss(weight=torch.ones(10)),
        nn.CrossEntropyLoss(weight=torch.ones(10)),
    ),
}


@pytest.mark.parametrize("objects", SAME_OBJECTS.values(), ids=SAME_OBJECTS)
def test_equal_objects_have_equal_descriptions(objects):
    """Addresses in memory, for example, differ between processes."""
    one, other = objects
    assert through_json(describe_object(one)) == through_json(describe_object(other))


def test_networks_with_other_classes_as_arguments_differ():
    """They are no plain values, but decide what is trained."""
    plans = []
    for layer in (nn.ReLU, nn.GELU):
        network = NetworkInfo.of(partial(nn.Sequential, layer()))
        optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))])
        plans.append(search_plan(network, optimizer))
    assert plans[0] != plans[1]


def search_plan(network: NetworkInfo, optimizer) -> dict:
    images = nn.Module()
    images.name, images.digest = "digits", "0"
    loader = nn.Module()
    loader.dataset, loader.batch_size = None, 2
    return through_json(plan_of_search(network, optimizer, RECIPE, images, loader))


@pytest.fixture
def model():
    return TransformerModel(a=8)


def test_optimizer_has_its_settings_and_its_number_of_weights(model):
    description = describe_optimizer(adam(model, weight_decay=0.01))
    assert description["class"] == "Adam"
    assert description["group 0"]["weight_decay"] == 0.01
    assert description["group 0"]["weights"] == 18864
    assert description["group 1"]["weight_decay"] == 0.0


def test_optimizer_has_no_learning_rate_because_the_schedule_sets_it(model):
    optimizer = adam(model, weight_decay=0.01)
    before = describe_optimizer(optimizer)
    one_cycle(optimizer, 0.01, RECIPE, steps_per_epoch=20)
    assert describe_optimizer(optimizer) == before


def test_step_in_the_opposite_direction_is_another_one(model):
    one = torch.optim.Adam(model.parameters())
    other = torch.optim.Adam(model.parameters(), maximize=True)
    assert describe_optimizer(one) != describe_optimizer(other)


def test_how_the_device_computes_is_no_setting(model):
    one = torch.optim.Adam(model.parameters(), foreach=True)
    other = torch.optim.Adam(model.parameters(), fused=True)
    assert describe_optimizer(one) == describe_optimizer(other)


OWN_CLASSES = """
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR


class OwnOptimizer(SGD):
    def step(self, closure=None):
        return super().step(closure)


class OwnSchedule(LambdaLR):
    def get_lr(self):
        return [1.0 * lr for lr in super().get_lr()]
"""


@pytest.fixture
def own_classes(tmp_path, monkeypatch):
    """A function that imports a source file as a new kernel would."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def import_own(source: str):
        (tmp_path / "own_classes.py").write_text(source)
        importlib.invalidate_caches()
        sys.modules.pop("own_classes", None)
        return importlib.import_module("own_classes")

    yield import_own
    sys.modules.pop("own_classes", None)


def describe_own_optimizer(module) -> dict:
    return describe_optimizer(module.OwnOptimizer([nn.Parameter(torch.ones(1))], lr=0.1))


def describe_own_schedule(module) -> dict:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    return describe_schedule(module.OwnSchedule(optimizer, falling))


def test_other_code_of_an_own_optimizer_makes_a_difference(own_classes):
    before = describe_own_optimizer(own_classes(OWN_CLASSES))
    changed = OWN_CLASSES.replace("return super().step", "super().step")
    assert describe_own_optimizer(own_classes(changed)) != before


def test_other_code_of_an_own_schedule_makes_a_difference(own_classes):
    before = describe_own_schedule(own_classes(OWN_CLASSES))
    changed = OWN_CLASSES.replace("1.0 * lr", "2.0 * lr")
    assert describe_own_schedule(own_classes(changed)) != before


def test_comment_in_an_own_schedule_makes_no_difference(own_classes):
    before = describe_own_schedule(own_classes(OWN_CLASSES))
    changed = OWN_CLASSES.replace("1.0 * lr", "1.0 * lr  # as it is\n       ")
    assert describe_own_schedule(own_classes(changed)) == before


def test_classes_of_pytorch_have_no_code_so_that_a_run_survives_its_update():
    assert "code" not in describe_object(nn.CrossEntropyLoss())


def schedules() -> dict:
    def optimizer():
        return torch.optim.Adam([nn.Parameter(torch.ones(1))], lr=0.1)

    steps = {"total_steps": 40}
    return {
        "one-cycle": OneCycleLR(optimizer(), 0.01, **steps),
        "max LR": OneCycleLR(optimizer(), 0.02, **steps),
        "share of the rise": OneCycleLR(optimizer(), 0.01, pct_start=0.5, **steps),
        "form": OneCycleLR(optimizer(), 0.01, anneal_strategy="linear", **steps),
        "more steps": OneCycleLR(optimizer(), 0.01, total_steps=41),
        "cosine": CosineAnnealingLR(optimizer(), 40),
        "function": LambdaLR(optimizer(), falling),
        "other function": LambdaLR(optimizer(), constant),
    }


def falling(step):
    return 1 / (step + 1)


def constant(step):
    return 1.0


def test_schedules_that_differ_have_other_descriptions():
    descriptions = [json.dumps(describe_schedule(thing)) for thing in schedules().values()]
    assert len(set(descriptions)) == len(descriptions)


def test_equal_schedules_have_equal_descriptions():
    for one, other in zip(schedules().values(), schedules().values(), strict=True):
        assert describe_schedule(one) == describe_schedule(other)


def test_differences_name_the_value_before_and_now():
    line = "recipe epochs (24, now 12)"
    assert differences({"recipe": {"epochs": 24}}, {"recipe": {"epochs": 12}}) == [line]


def test_difference_of_code_shows_no_digest():
    (line,) = differences({"network": {"code": "1f"}}, {"network": {"code": "2e"}})
    assert line == "the network's code has changed"


def test_differences_name_nested_settings():
    before = {"optimizer": {"group 0": {"weight_decay": 0.1}}}
    now = {"optimizer": {"group 0": {"weight_decay": 0.2}}}
    assert differences(before, now) == ["optimizer group 0 weight_decay (0.1, now 0.2)"]


def test_what_only_one_plan_has_is_a_difference():
    assert differences({}, {"criterion": {"class": "Mine"}}) == ["criterion class (None, now Mine)"]


def test_equal_plans_have_no_differences():
    assert differences({"recipe": {"seed": 0}}, {"recipe": {"seed": 0}}) == []


def test_max_lr_is_among_the_first_three_differences(model):
    """The line about a run that is moved aside names no more."""
    optimizer = adam(model, 0.0)
    before = {"schedule": describe_schedule(one_cycle(optimizer, 0.04, RECIPE, 20))}
    now = {"schedule": describe_schedule(one_cycle(optimizer, 0.01, RECIPE, 20))}
    assert "schedule max_lr ([0.04, 0.04], now [0.01, 0.01])" in differences(before, now)[:3]


def test_plan_is_json_that_keeps_its_content(tmp_path):
    cells = cells_of(tmp_path / "run")
    cells.make_schedule()
    run = cells.run
    search = plan_of_search(run.network, cells.optimizer, run.recipe, run.data, cells.train_loader)
    plan = plan_of_training(search, cells.criterion, cells.scheduler, run.recipe)
    assert differences(through_json(plan), through_json(plan)) == []
    assert plan["recipe"]["epochs"] == 2
    assert plan["network"]["arguments"] == {"a": 8}


def test_compilation_is_not_part_of_the_plan(tmp_path):
    """It changes nothing but the time."""
    cells = cells_of(tmp_path / "run")
    cells.make_schedule()
    plan = plan_of_training({}, cells.criterion, cells.scheduler, RECIPE)
    assert "compile" not in plan["recipe"]
