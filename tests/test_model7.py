"""Session 7's network: the assignment's layers and parameter counts."""

import pytest
import torch
from torch import nn

from models.model7 import ResNet18, ResNet34


@pytest.mark.parametrize("network, parameters, convolutions", [(ResNet18, 11_173_962, 17), (ResNet34, 21_282_122, 33)])
def test_size_is_the_assignments(network, parameters, convolutions):
    model = network()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    threes = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)]
    assert len(threes) == convolutions and all(layer.bias is None for layer in threes)


def test_shapes_through_every_stage():
    model, x = ResNet18().eval(), torch.rand(2, 64, 32, 32)
    for layer, shape in (
        (model.layer1, (2, 64, 32, 32)),
        (model.layer2, (2, 128, 16, 16)),
        (model.layer3, (2, 256, 8, 8)),
        (model.layer4, (2, 512, 4, 4)),
        (model.gap, (2, 512, 1, 1)),
    ):
        x = layer(x)
        assert x.shape == shape
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert not any(isinstance(layer, (nn.Softmax, nn.MaxPool2d)) for layer in model.modules())


@torch.no_grad()
@pytest.mark.parametrize("stage, block", [("layer1", 0), ("layer1", 1), ("layer3", 0)])
def test_blocks_add_to_what_they_read(stage, block):
    block = getattr(ResNet18().eval(), stage)[block]
    block.bn2.weight.zero_()  # then the two convolutions add nothing
    x = torch.rand(2, block.conv1.in_channels, 8, 8)
    assert torch.equal(block(x), block.shortcut(x).relu())
    if stage == "layer1":
        assert torch.equal(block(x), x)


@pytest.mark.parametrize("seed", range(3))
def test_bears_the_learning_rates_of_its_kind(seed):
    torch.manual_seed(seed)
    model = ResNet18().to(memory_format=torch.channels_last)
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    losses = []
    for _ in range(4):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)  # without the logit scale, it rises to 10 within six steps
