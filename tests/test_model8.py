"""Session 8's network: the assignment's layers and parameter counts."""

import math

import pytest
import torch
from torch import nn

from models.model8 import CustomResNet


def test_parameters_are_the_assignments():
    assert sum(parameter.numel() for parameter in CustomResNet().parameters()) == 6_573_130


def test_shapes_through_every_stage():
    model, x = CustomResNet().eval(), torch.rand(2, 3, 32, 32)
    for stage, shape in (
        (model.prep_layer, (2, 64, 32, 32)),
        (model.layer1, (2, 128, 16, 16)),
        (model.layer2, (2, 256, 8, 8)),
        (model.layer3, (2, 512, 4, 4)),
        (model.max_pool, (2, 512, 1, 1)),
    ):
        x = stage(x)
        assert x.shape == shape
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_layers_stand_in_the_assigned_order():
    names = [type(layer).__name__ for layer in CustomResNet().modules() if not list(layer.children())]
    conv, pooled = ["Conv2d", "BatchNorm2d", "ReLU"], ["Conv2d", "MaxPool2d", "BatchNorm2d", "ReLU"]
    assert names == [*conv, *pooled, *conv, *conv, *pooled, *pooled, *conv, *conv, "MaxPool2d", "Linear"]
    assert all(layer.bias is None for layer in CustomResNet().modules() if isinstance(layer, nn.Conv2d))


@torch.no_grad()
def test_residual_blocks_add_to_what_they_read():
    model, images = CustomResNet().eval(), torch.rand(2, 3, 32, 32)
    prepared = model.prep_layer(images)
    x = model.layer1.x(prepared)
    for layer in (model.layer1, model.layer3):
        layer.res_block[-2].weight.zero_()  # the last BatchNorm: R becomes relu(0) = 0
    assert torch.equal(model.layer1(prepared), x)


def test_answers_logits():
    assert not any(isinstance(layer, nn.Softmax) for layer in CustomResNet().modules())
    with torch.no_grad():
        logits = CustomResNet().eval()(torch.rand(4, 3, 32, 32))
    assert not torch.allclose(logits.sum(dim=1), torch.ones(4))


@pytest.mark.parametrize("seed", range(5))
def test_starts_undecided(seed):
    torch.manual_seed(seed)
    with torch.no_grad():
        logits = CustomResNet()(torch.randn(64, 3, 32, 32))
    loss = nn.functional.cross_entropy(logits, torch.arange(64) % 10).item()
    assert abs(loss - math.log(10)) < 0.2  # without the logit scale, it is 3 to 5
