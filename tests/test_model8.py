"""Session 8's network: the assignment's layers."""

import torch
from torch import nn

from models.model8 import CustomResNet, ResLayer


def test_layers_have_the_assigned_order_and_number_of_parameters():
    layers = [layer for layer in CustomResNet().modules() if not list(layer.children())]
    conv, pooled = ["Conv2d", "BatchNorm2d", "ReLU"], ["Conv2d", "MaxPool2d", "BatchNorm2d", "ReLU"]
    order = [*conv, *pooled, *conv, *conv, *pooled, *pooled, *conv, *conv, "MaxPool2d", "Linear"]
    assert [type(layer).__name__ for layer in layers] == order
    assert all(layer.bias is None for layer in layers if isinstance(layer, nn.Conv2d))
    assert sum(parameter.numel() for parameter in CustomResNet().parameters()) == 6_573_130


@torch.no_grad()
def test_residual_layers_add_to_their_x_and_the_logits_are_an_eighth_of_the_last_layers():
    torch.manual_seed(0)
    model, images = CustomResNet(), torch.randn(4, 3, 32, 32)
    x = model.prep_layer(images)
    assert x.shape == (4, 64, 32, 32)
    shapes = (4, 128, 16, 16), (4, 256, 8, 8), (4, 512, 4, 4)
    for layer, shape in zip((model.layer1, model.layer2, model.layer3), shapes):
        if layer is not model.layer2:
            inner = layer.x(x)
            assert isinstance(layer, ResLayer) and torch.equal(layer(x), inner + layer.res_block(inner))
        x = layer(x)
        assert x.shape == shape
    torch.testing.assert_close(model(images), model.fc(x.amax(dim=(2, 3))) / 8)
