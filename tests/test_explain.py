"""What the pictures of a network's inside show is what its forward pass computes."""

import copy

import pytest
import torch
from torch import nn

from models.model7 import ResNet18
from models.model9 import TransformerModel
from utils.device import choose_device
from utils.explain import attention_maps, grad_cam, initial_networks, model_table, signal_spectra


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TransformerModel()


@pytest.fixture
def resnet():
    torch.manual_seed(0)
    return ResNet18()


@pytest.fixture
def images():
    torch.manual_seed(1)
    return torch.randn(64, 3, 32, 32)


def assert_unchanged(model, before):
    """``model`` has the state, the device and the modes of its copy ``before``."""
    state = model.state_dict()
    for name, value in before.state_dict().items():
        assert torch.equal(state[name], value)
        assert state[name].device == value.device
    modes = [module.training for module in model.modules()]
    assert modes == [module.training for module in before.modules()]


# The table of layers


def test_table_shows_kernels_shapes_parameters_and_mult_adds(resnet):
    words = " ".join(model_table(resnet).split())
    assert "Kernel Shape Output Shape Param # Mult-Adds" in words
    assert "(shortcut)" in words
    assert "Total params: 11,173,962" in words
    assert "Total mult-adds (G): 11.11" in words  # of 20 images


def test_table_fits_on_a_page(resnet):
    lines = model_table(resnet).splitlines()
    assert max(len(line) for line in lines) <= 110


def test_table_has_units_without_the_name_of_their_class(resnet):
    assert "Units." not in model_table(resnet)


def test_table_is_returned_and_not_printed(model, capsys):
    model_table(model)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("training", [True, False])
def test_table_leaves_the_model_alone(model, training):
    model.to(choose_device()).train(training)
    before = copy.deepcopy(model)
    model_table(model)
    assert_unchanged(model, before)


def test_table_leaves_frozen_layers_frozen(model):
    model.train()
    model.conv_block.eval()
    before = copy.deepcopy(model)
    model_table(model)
    assert_unchanged(model, before)


# The spectra


@torch.no_grad()
def stages_of(model, images):
    """The input of the first block and the output of each, in training mode, from hooks."""
    stages = []
    model = copy.deepcopy(model).train()

    def note_input(_blocks, inputs):
        stages.append(inputs[0])

    def note_output(_block, _inputs, output):
        stages.append(output)

    model.ultimus_blocks.register_forward_pre_hook(note_input)
    for block in model.ultimus_blocks:
        block.register_forward_hook(note_output)
    model(images)
    return stages


def test_spectra_are_those_of_the_signal_in_training_mode(model, images):
    spectra = signal_spectra(model.eval(), images)
    for row, stage in zip(spectra, stages_of(model, images), strict=True):
        expected = torch.linalg.svdvals(stage - stage.mean(dim=0))
        torch.testing.assert_close(row, expected, rtol=1e-3, atol=1e-5)


def test_spectra_leave_the_model_alone(model, images):
    before = copy.deepcopy(model.eval())
    signal_spectra(model, images)
    assert_unchanged(model, before)


def test_seven_directions_pass_the_blocks_from_our_initialization(model, images):
    last = signal_spectra(model, images)[4]
    assert last[6] > last[0] / 50


def test_hardly_anything_passes_the_blocks_from_pytorchs_initialization(model, images):
    theirs = signal_spectra(TransformerModel(init="pytorch"), images)
    ours = signal_spectra(model, images)
    assert theirs[4, 0] < ours[4, 0] / 1000


def test_networks_to_compare_with_are_three():
    networks = initial_networks()
    assert len(networks) == 3
    assert all(isinstance(network, TransformerModel) for network in networks.values())


# The attention maps


def test_attention_maps_are_those_of_the_blocks_in_evaluation_mode(model, images):
    maps = attention_maps(model.train(), images[:3])
    model.eval()
    x = model.features(images[:3])
    for index, block in enumerate(model.ultimus_blocks):
        torch.testing.assert_close(maps[:, index], block.attention(x).detach())
        x = block(x)


def test_attention_maps_have_a_matrix_for_each_block(model, images):
    assert attention_maps(model, images[:3]).shape == (3, 4, 8, 8)


# Grad-CAM


class TwoColors(nn.Module):
    """Class 0 is red, class 1 is blue: the mean of that channel over the image."""

    def __init__(self):
        super().__init__()
        conv = nn.Conv2d(3, 2, 1, bias=False)
        red_and_blue = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        with torch.no_grad():
            conv.weight.copy_(red_and_blue[:, :, None, None])
        self.layer = nn.Sequential(conv, nn.ReLU(), nn.AvgPool2d(4))  # (B, 2, 8, 8)
        self.small = nn.AvgPool2d(2)  # (B, 2, 4, 4)

    def forward(self, images):
        return self.small(self.layer(images)).mean(dim=(2, 3))


@pytest.fixture
def red_and_blue():
    """Two images with red in one quadrant and blue in the opposite one."""
    images = torch.zeros(2, 3, 32, 32)
    images[0, 0, :16, :16] = 1  # red: upper left
    images[0, 2, 16:, 16:] = 1  # blue: lower right
    images[1, 0, 16:, :16] = 1  # red: lower left
    images[1, 2, :16, 16:] = 1  # blue: upper right
    return images


@pytest.mark.parametrize(
    "classes, corners",
    [
        ((0, 0), [(0, 0), (16, 0)]),
        ((1, 0), [(16, 16), (16, 0)]),
        ((1, 1), [(16, 16), (0, 16)]),
    ],
)
def test_heat_lies_in_the_quadrant_that_decides(red_and_blue, classes, corners):
    heat = grad_cam(TwoColors(), "layer", red_and_blue, torch.tensor(classes))
    for heat_map, (top, left) in zip(heat, corners, strict=True):
        quadrant = heat_map[top : top + 16, left : left + 16]
        assert quadrant.sum() > 0.85 * heat_map.sum()
        assert quadrant[4:12, 4:12].min() > 0.9


def test_heat_is_from_0_to_1_for_each_pixel(red_and_blue):
    heat = grad_cam(TwoColors(), "layer", red_and_blue, torch.tensor([0, 1]))
    assert heat.shape == (2, 32, 32)
    assert heat.min() == 0
    assert 0.999 < heat.max() <= 1


def test_grad_cam_computes_in_float32_in_a_model_of_half_precision(red_and_blue):
    classes = torch.tensor([0, 1])
    heat = grad_cam(TwoColors(), "layer", red_and_blue, classes)
    assert torch.equal(grad_cam(TwoColors().bfloat16(), "layer", red_and_blue, classes), heat)
    assert torch.equal(grad_cam(TwoColors().half(), "layer", red_and_blue, classes), heat)


def test_grad_cam_of_a_compiled_model_is_that_of_the_model(red_and_blue):
    classes = torch.tensor([0, 1])
    heat = grad_cam(TwoColors(), "layer", red_and_blue, classes)
    compiled = TwoColors()
    compiled.compile(backend="eager")
    compiled(red_and_blue)
    assert torch.equal(grad_cam(compiled, "layer", red_and_blue, classes), heat)


def test_grad_cam_of_no_images_is_empty():
    no_images = torch.rand(0, 3, 32, 32)
    assert grad_cam(TwoColors(), "layer", no_images, torch.tensor([])).shape == (0, 32, 32)


def test_grad_cam_accepts_a_map_of_5x5_pixels():
    images = torch.rand(1, 3, 20, 20)
    assert grad_cam(TwoColors(), "layer.2", images, torch.tensor([0])).shape == (1, 20, 20)


def test_grad_cam_rejects_a_map_of_4x4_pixels():
    images = torch.rand(1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"small.*4×4.*5×5"):
        grad_cam(TwoColors(), "small", images, torch.tensor([0]))


@pytest.mark.parametrize("training", [True, False])
def test_grad_cam_leaves_the_model_alone(resnet, images, training):
    resnet.train(training)
    before = copy.deepcopy(resnet)
    grad_cam(resnet, "layer3", images[:2], torch.tensor([3, 5]))
    assert_unchanged(resnet, before)


def test_grad_cam_leaves_the_gradients_alone(resnet, images):
    resnet(images[:2]).sum().backward()
    before = [parameter.grad.clone() for parameter in resnet.parameters()]
    grad_cam(resnet, "layer3", images[:2], torch.tensor([3, 5]))
    for parameter, gradient in zip(resnet.parameters(), before, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_grad_cam_leaves_no_hooks(resnet, images):
    grad_cam(resnet, "layer3", images[:2], torch.tensor([3, 5]))
    for module in resnet.modules():
        assert not module._forward_hooks
        assert not module._backward_hooks
