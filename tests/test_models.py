"""The networks are the assigned ones, and session 9's starts as near-isometries."""

import math

import numpy as np
import pytest
import torch
from scipy.fft import idctn
from torch import nn
from torchvision.models import resnet18, resnet34

from models.model7 import ResNet18, ResNet34
from models.model8 import CustomResNet, ResLayer
from models.model9 import TransformerModel, UltimusBlock


@torch.no_grad()
@pytest.mark.parametrize("network, reference, count", [(ResNet18, resnet18, 11_173_962), (ResNet34, resnet34, 21_282_122)])  # fmt: skip
def test_resnets_are_torchvisions_with_a_3x3_stem_and_a_quarter_of_its_logits(network, reference, count):
    torch.manual_seed(0)
    model, reference = network(), reference(num_classes=10)
    reference.conv1, reference.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    weights = model.state_dict().items()
    reference.load_state_dict({name.replace("shortcut", "downsample"): weight for name, weight in weights})
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(images), reference(images) / 4)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_custom_resnet_has_the_assigned_order_of_layers_and_number_of_parameters():
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


@pytest.mark.parametrize("a, pool", [(32, []), (8, ["MaxPool2d"])])
def test_three_convolutions_with_pooling_after_the_first_two_if_a_is_8(a, pool):
    model = TransformerModel(a)
    layers = [type(layer).__name__ for layer in model.conv_block if not isinstance(layer, nn.Dropout)]
    conv = ["Conv2d", "BatchNorm2d", "ReLU"]
    assert layers == [*conv, *pool, *conv, *pool, *conv]
    assert model.conv_block(torch.rand(2, 3, 32, 32)).shape == (2, 48, a, a)
    assert sum(parameter.numel() for parameter in model.parameters()) == 26_064


@torch.no_grad()
def test_logits_are_those_of_four_blocks_on_the_pooled_features():
    torch.manual_seed(0)
    model, images = TransformerModel().eval(), torch.rand(2, 3, 32, 32)
    x = model.conv_block(images).mean(dim=(2, 3))
    torch.testing.assert_close(model.features(images), x)
    assert len(model.ultimus_blocks) == 4 and all(isinstance(block, UltimusBlock) for block in model.ultimus_blocks)
    for block in model.ultimus_blocks:
        x = block(x)
    torch.testing.assert_close(model(images), x @ model.final_fc.weight.T)


@torch.no_grad()
def test_each_image_gets_the_attention_of_the_assignment():
    torch.manual_seed(0)
    block, images = UltimusBlock().double(), torch.randn(6, 48, dtype=torch.float64)
    for x, attention, output in zip(images, block.attention(images), block(images)):
        k, q, v = block.fc_k(x), block.fc_q(x), block.fc_v(x)
        am = torch.outer(q, k).softmax(dim=1) / math.sqrt(8)
        torch.testing.assert_close(attention, am)
        torch.testing.assert_close(output, block.fc_out(v @ am))


def test_blocks_compute_in_full_precision_under_autocast():
    model, seen = TransformerModel(), []
    model.ultimus_blocks[3].register_forward_hook(lambda _block, _inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.rand(2, 3, 32, 32))
    assert seen == [torch.float32] and logits.dtype == torch.float32


@torch.no_grad()
def test_small_signals_pass_the_four_blocks_unchanged_but_for_their_mean():
    """In the eight directions that the first block reads and the last one writes."""
    torch.manual_seed(0)
    blocks = TransformerModel().ultimus_blocks.double()
    read, write = blocks[0].fc_k.weight / 3, blocks[3].fc_out.weight / math.sqrt(8)
    torch.testing.assert_close(read @ read.T, torch.eye(8).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(write.T @ write, torch.eye(8).double(), atol=1e-6, rtol=0)
    x = 1e-5 * torch.randn(100, 48, dtype=torch.float64)
    entered, left = x @ read.T, blocks(x) @ write
    expected = entered - entered.mean(dim=1, keepdim=True)
    torch.testing.assert_close(left - left.mean(dim=1, keepdim=True), expected, atol=1e-8, rtol=0)
    assert blocks(torch.zeros(1, 48).double()).abs().max() < 1e-6


def test_first_convolution_starts_from_the_leading_cosines_in_either_sign():
    leading = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2, 0, 0), (0, 1, 1), (0, 2, 0), (0, 0, 2)]
    frequencies = np.zeros((8, 3, 3, 3), dtype=np.float32)  # of color, row and column
    for cube, place in zip(frequencies, leading):
        cube[place] = 1
    filters = 0.3 * torch.from_numpy(idctn(frequencies, axes=(1, 2, 3), norm="ortho"))
    started = TransformerModel().conv_block[0].weight.detach()
    torch.testing.assert_close(started, torch.cat([filters, -filters]))


@pytest.mark.parametrize("init, share, zeros", [("ours", 0.3, True), ("near_isometry", 0.3, False), ("pytorch", 1, False)])  # fmt: skip
def test_initializations_of_attention_and_first_convolution(init, share, zeros):
    """Weights in Q and V, 0.3 times PyTorch's, let the attention differ between images from the start."""
    torch.manual_seed(0)
    model = TransformerModel(init=init)
    assert (not model.conv_block[0].bias.any()) is zeros
    for block in model.ultimus_blocks:
        for linear in (block.fc_q, block.fc_v):
            assert 0.95 < linear.weight.abs().max() * math.sqrt(48) / share <= 1  # PyTorch's reach 1/√48


@pytest.mark.parametrize("wrong, message", [
    ({"a": 16}, r"a is 16: it must be 32 .* or 8"),
    ({"init": "xavier"}, r"init is 'xavier': it must be \"ours\", \"near_isometry\" or \"pytorch\""),
])  # fmt: skip
def test_unknown_arguments_are_rejected(wrong, message):
    with pytest.raises(ValueError, match=message):
        TransformerModel(**wrong)
