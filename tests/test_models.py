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

CONV = ["Conv2d", "BatchNorm2d", "ReLU"]
POOLED_CONV = ["Conv2d", "MaxPool2d", "BatchNorm2d", "ReLU"]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def parameters_of(model):
    return sum(parameter.numel() for parameter in model.parameters())


def names_of(layers):
    return [type(layer).__name__ for layer in layers]


# Session 7


@torch.no_grad()
@pytest.mark.parametrize("network, torchvisions", [(ResNet18, resnet18), (ResNet34, resnet34)])
def test_resnets_are_torchvisions_with_a_3x3_stem_and_a_quarter_of_its_logits(
    network, torchvisions
):
    model = network()
    reference = torchvisions(num_classes=10)
    reference.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    reference.maxpool = nn.Identity()
    weights = {
        name.replace("shortcut", "downsample"): weight
        for name, weight in model.state_dict().items()
    }
    reference.load_state_dict(weights)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(images), reference(images) / 4)


@pytest.mark.parametrize("network, count", [(ResNet18, 11_173_962), (ResNet34, 21_282_122)])
def test_resnets_have_the_assigned_number_of_parameters(network, count):
    assert parameters_of(network()) == count


# Session 8


def test_custom_resnet_has_the_assigned_order_of_layers():
    layers = [layer for layer in CustomResNet().modules() if not list(layer.children())]
    assert names_of(layers) == [
        *CONV,
        *POOLED_CONV,  # layer 1 and its residual block
        *CONV,
        *CONV,
        *POOLED_CONV,  # layer 2
        *POOLED_CONV,  # layer 3 and its residual block
        *CONV,
        *CONV,
        "MaxPool2d",
        "Linear",
    ]


def test_custom_resnet_has_no_bias_before_batchnorm():
    convolutions = [layer for layer in CustomResNet().modules() if isinstance(layer, nn.Conv2d)]
    assert all(layer.bias is None for layer in convolutions)


def test_custom_resnet_has_the_assigned_number_of_parameters():
    assert parameters_of(CustomResNet()) == 6_573_130


@torch.no_grad()
def test_layers_of_the_custom_resnet_have_the_assigned_shapes():
    model = CustomResNet()
    x = model.prep_layer(torch.randn(4, 3, 32, 32))
    assert x.shape == (4, 64, 32, 32)
    x = model.layer1(x)
    assert x.shape == (4, 128, 16, 16)
    x = model.layer2(x)
    assert x.shape == (4, 256, 8, 8)
    x = model.layer3(x)
    assert x.shape == (4, 512, 4, 4)


@torch.no_grad()
def test_residual_layers_add_to_their_x():
    layer = ResLayer(64, 128)
    images = torch.randn(4, 64, 32, 32)
    x = layer.x(images)
    assert torch.equal(layer(images), x + layer.res_block(x))


def test_first_and_third_layer_of_the_custom_resnet_are_residual():
    model = CustomResNet()
    assert isinstance(model.layer1, ResLayer)
    assert not isinstance(model.layer2, ResLayer)
    assert isinstance(model.layer3, ResLayer)


@torch.no_grad()
def test_logits_of_the_custom_resnet_are_an_eighth_of_the_last_layers():
    model = CustomResNet()
    images = torch.randn(4, 3, 32, 32)
    x = model.layer3(model.layer2(model.layer1(model.prep_layer(images))))
    torch.testing.assert_close(model(images), model.fc(x.amax(dim=(2, 3))) / 8)


# Session 9


@pytest.mark.parametrize("a, pool", [(32, []), (8, ["MaxPool2d"])])
def test_three_convolutions_with_pooling_after_the_first_two_if_a_is_8(a, pool):
    layers = names_of(TransformerModel(a).conv_block)
    without_dropout = [name for name in layers if name != "Dropout"]
    assert without_dropout == [*CONV, *pool, *CONV, *pool, *CONV]


@pytest.mark.parametrize("a", [32, 8])
def test_last_feature_map_is_a_pixels_wide(a):
    maps = TransformerModel(a).conv_block(torch.rand(2, 3, 32, 32))
    assert maps.shape == (2, 48, a, a)


@pytest.mark.parametrize("a", [32, 8])
def test_ultimus_has_26064_parameters(a):
    assert parameters_of(TransformerModel(a)) == 26_064


@torch.no_grad()
def test_features_are_the_averages_of_the_last_maps():
    model = TransformerModel().eval()
    images = torch.rand(2, 3, 32, 32)
    averages = model.conv_block(images).mean(dim=(2, 3))
    torch.testing.assert_close(model.features(images), averages)


@torch.no_grad()
def test_logits_are_those_of_four_blocks_on_the_features():
    model = TransformerModel().eval()
    images = torch.rand(2, 3, 32, 32)
    assert names_of(model.ultimus_blocks) == ["UltimusBlock"] * 4
    x = model.features(images)
    for block in model.ultimus_blocks:
        x = block(x)
    torch.testing.assert_close(model(images), x @ model.final_fc.weight.T)


@torch.no_grad()
def test_each_image_gets_the_attention_of_the_assignment():
    block = UltimusBlock().double()
    images = torch.randn(6, 48, dtype=torch.float64)
    attentions = block.attention(images)
    outputs = block(images)
    for x, attention, output in zip(images, attentions, outputs, strict=True):
        am = torch.outer(block.fc_q(x), block.fc_k(x)).softmax(dim=1) / math.sqrt(8)
        torch.testing.assert_close(attention, am)
        torch.testing.assert_close(output, block.fc_out(block.fc_v(x) @ am))


def test_blocks_compute_in_full_precision_under_autocast():
    model = TransformerModel()
    dtypes = []

    def note_dtype(_block, _inputs, output):
        dtypes.append(output.dtype)

    model.ultimus_blocks[3].register_forward_hook(note_dtype)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.rand(2, 3, 32, 32))
    assert dtypes == [torch.float32]
    assert logits.dtype == torch.float32


@pytest.fixture
def blocks():
    return TransformerModel().ultimus_blocks.double()


@pytest.fixture
def read(blocks):
    """The eight directions that the first block reads, as rows."""
    return blocks[0].fc_k.weight.detach() / 3


@pytest.fixture
def write(blocks):
    """The eight directions that the last block writes, as columns."""
    return blocks[3].fc_out.weight.detach() / math.sqrt(8)


def test_first_block_reads_and_last_block_writes_orthonormal_directions(read, write):
    identity = torch.eye(8).double()
    torch.testing.assert_close(read @ read.T, identity, atol=1e-6, rtol=0)
    torch.testing.assert_close(write.T @ write, identity, atol=1e-6, rtol=0)


@torch.no_grad()
def test_small_signals_pass_the_four_blocks_unchanged_but_for_their_mean(blocks, read, write):
    x = 1e-5 * torch.randn(100, 48, dtype=torch.float64)
    before = x @ read.T
    after = blocks(x) @ write
    expected = before - before.mean(dim=1, keepdim=True)
    found = after - after.mean(dim=1, keepdim=True)
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=0)


@torch.no_grad()
def test_blocks_add_hardly_anything_to_a_signal_of_zero(blocks):
    assert blocks(torch.zeros(1, 48).double()).abs().max() < 1e-6


def test_first_convolution_starts_from_the_leading_cosines_in_either_sign():
    leading = [  # frequencies of color, row and column
        (0, 0, 0),
        (1, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
        (2, 0, 0),
        (0, 1, 1),
        (0, 2, 0),
        (0, 0, 2),
    ]
    frequencies = np.zeros((8, 3, 3, 3), dtype=np.float32)
    for cube, place in zip(frequencies, leading, strict=True):
        cube[place] = 1
    filters = 0.3 * torch.from_numpy(idctn(frequencies, axes=(1, 2, 3), norm="ortho"))
    found = TransformerModel().conv_block[0].weight.detach()
    torch.testing.assert_close(found, torch.cat([filters, -filters]))


@pytest.mark.parametrize("init, no_bias", [("ours", True), ("near_isometry", False)])
def test_only_our_first_convolution_starts_without_bias(init, no_bias):
    bias = TransformerModel(init=init).conv_block[0].bias
    assert (not bias.any()) is no_bias


@pytest.mark.parametrize("init, share", [("ours", 0.3), ("near_isometry", 0.3), ("pytorch", 1)])
def test_weights_of_q_and_v_start_at_a_share_of_pytorchs(init, share):
    """They let the attention differ between images from the start."""
    largest_of_pytorch = 1 / math.sqrt(48)
    for block in TransformerModel(init=init).ultimus_blocks:
        for linear in (block.fc_q, block.fc_v):
            largest = linear.weight.abs().max() / largest_of_pytorch
            assert 0.95 * share < largest <= share


@pytest.mark.parametrize(
    "wrong, key_words",
    [
        ({"a": 16}, r"a is 16.*32.*8"),
        ({"init": "xavier"}, r"init is 'xavier'.*ours.*near_isometry.*pytorch"),
    ],
)
def test_unknown_arguments_are_rejected(wrong, key_words):
    with pytest.raises(ValueError, match=key_words):
        TransformerModel(**wrong)
