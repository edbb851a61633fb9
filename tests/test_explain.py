"""The spectra and maps are those of the forward pass."""

import copy

import pytest
import torch
from torch import nn

from models.model7 import ResNet18
from models.model8 import CustomResNet
from models.model9 import TransformerModel
from utils import plots
from utils.explain import attention_maps, grad_cam, signal_spectra
from utils.system.device import make_accelerator


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TransformerModel()


def test_spectra_are_those_of_the_forward_pass(model):
    images, seen = torch.randn(64, 3, 32, 32), []
    hooks = [block.register_forward_hook(lambda _b, _i, out: seen.append(out)) for block in model.ultimus_blocks]
    copy.deepcopy(model).train()(images)  # hooks are copied as well
    for hook in hooks:
        hook.remove()
    before = copy.deepcopy(model.eval().state_dict())
    spectra = signal_spectra(model, images)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()) and not model.training
    assert spectra.shape == (5, 48)
    for row, out in zip(spectra[1:], seen):
        torch.testing.assert_close(row, torch.linalg.svdvals((out - out.mean(0)).detach()), rtol=1e-3, atol=1e-5)


def test_spectra_tell_a_dead_network_from_a_living_one(model):
    images = torch.randn(64, 3, 32, 32)
    living = signal_spectra(model, images)
    dead = signal_spectra(TransformerModel(init="pytorch"), images)
    assert living[4, 6] > living[4, 0] / 50  # seven directions within a factor of 50
    assert dead[4, 0] < living[4, 0] / 1000


def test_attention_maps_are_those_of_the_blocks(model):
    images = torch.randn(3, 3, 32, 32)
    maps = attention_maps(model, images)
    assert maps.shape == (3, 4, 8, 8)
    torch.testing.assert_close(maps.sum(-1), torch.full((3, 4, 8), 8**-0.5))
    x = model.eval().gap(model.conv_block(images)).flatten(1)
    x = model.ultimus_blocks[1](model.ultimus_blocks[0](x))
    torch.testing.assert_close(maps[:, 2], model.ultimus_blocks[2].attention(x).detach())


def test_pictures(model):
    images = torch.randn(64, 3, 32, 32)
    figure = plots.signal_rank({"ours": signal_spectra(model, images), "theirs": torch.zeros(5, 48)}, "digits")
    assert [ax.get_title() for ax in figure.axes] == ["ours", "theirs"] and len(figure.axes[0].lines) == 5
    figure.canvas.draw()
    figure = plots.attention_maps(attention_maps(model, images[:2]), images[:2].sigmoid(), ["a", "b"], "digits")
    assert sum(bool(ax.images) for ax in figure.axes) >= 10
    figure.canvas.draw()


class TwoColours(nn.Module):
    """Class 0 is red, class 1 is blue: the mean of that channel over the image."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.ReLU(), nn.AvgPool2d(4))  # (B, 2, 8, 8)
        self.small = nn.AvgPool2d(2)  # (B, 2, 4, 4)
        with torch.no_grad():
            self.layer[0].weight.copy_(torch.tensor([[1.0, 0, 0], [0, 0, 1.0]])[:, :, None, None])

    def forward(self, images):
        return self.small(self.layer(images)).mean(dim=(2, 3))


@pytest.fixture
def quadrants():
    """Two images, red in one quadrant and blue in the opposite one: upper left and lower right, then the others."""
    images = torch.zeros(2, 3, 32, 32)
    images[0, 0, :16, :16] = images[0, 2, 16:, 16:] = 1
    images[1, 0, 16:, :16] = images[1, 2, :16, 16:] = 1
    return images


@pytest.mark.parametrize(
    "classes, corners", [((0, 0), [(0, 0), (16, 0)]), ((1, 0), [(16, 16), (16, 0)]), ((0, 1), [(0, 0), (0, 16)])]
)
def test_heat_lies_in_the_quadrant_that_decides(quadrants, classes, corners):
    heat = grad_cam(TwoColours(), "layer", quadrants, torch.tensor(classes))
    assert heat.shape == (2, 32, 32) and heat.min() == 0 and 0.999 < heat.max() <= 1
    for map, (top, left) in zip(heat, corners):
        assert map[top : top + 16, left : left + 16].sum() > 0.85 * map.sum()
        assert map[top + 4 : top + 12, left + 4 : left + 12].min() > 0.9


@pytest.mark.parametrize("network, layer", [(ResNet18, "layer3"), (CustomResNet, "layer2")])
def test_grad_cam_leaves_the_model_as_it_was(network, layer):
    torch.manual_seed(0)
    model, images = network().train(), torch.randn(2, 3, 32, 32)
    model(images).sum().backward()
    before = copy.deepcopy(model.state_dict())
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    heat = grad_cam(model, layer, images, torch.tensor([3, 5]))
    assert heat.shape == (2, 32, 32) and heat.isfinite().all()
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(parameter.grad, kept) for parameter, kept in zip(model.parameters(), gradients))
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


def test_grad_cam_sees_a_model_that_was_trained_in_half_precision():
    torch.manual_seed(0)
    model, images = ResNet18().eval(), torch.randn(2, 3, 32, 32)
    plain = grad_cam(model, "layer3", images, torch.tensor([3, 5]))
    make_accelerator(cpu=True, precision="bfloat16").prepare(model)
    assert torch.equal(grad_cam(model, "layer3", images, torch.tensor([3, 5])), plain)


@pytest.mark.parametrize(
    "network, layer, message",
    [
        (TwoColours, "small", "small's map is 4×4: Grad-CAM needs 5×5 or more"),
        (ResNet18, "layer4", "layer4's map is 4×4"),
        (CustomResNet, "layer3", "layer3's map is 4×4"),
        (ResNet18, "layer5", "no layer 'layer5': it has conv1, bn1, layer1, layer2, layer3, layer4, gap, fc"),
    ],
)
def test_grad_cam_rejects_layers_that_say_nothing(network, layer, message):
    with pytest.raises(ValueError, match=message):
        grad_cam(network(), layer, torch.rand(1, 3, 32, 32), torch.tensor([0]))
