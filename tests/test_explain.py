"""What the pictures of a network's inside show is what its forward pass computes."""

import copy

import pytest
import torch
from torch import nn

from models.model7 import ResNet18
from models.model9 import TransformerModel
from utils.explain import attention_maps, grad_cam, model_table, signal_spectra
from utils.device import make_accelerator


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TransformerModel()


def test_table_of_layers_fits_on_a_page(capsys):
    table = model_table(ResNet18())
    words = " ".join(table.split())
    assert "(var_name)" in words and "Kernel Shape Output Shape Param # Mult-Adds" in words and "(shortcut)" in words
    assert "Total params: 11,173,962" in words and "Total mult-adds (G): 11.11" in words  # of 20 images
    assert "Units." not in words and max(map(len, table.splitlines())) <= 110 and not capsys.readouterr().out


def test_spectra_are_those_of_the_signal_in_training_mode(model):
    images, seen, reference = torch.randn(64, 3, 32, 32), [], copy.deepcopy(model).train()
    reference.ultimus_blocks.register_forward_pre_hook(lambda _blocks, inputs: seen.append(inputs[0]))
    for block in reference.ultimus_blocks:
        block.register_forward_hook(lambda _block, _inputs, output: seen.append(output))
    reference(images)
    before = copy.deepcopy(model.eval().state_dict())
    spectra = signal_spectra(model, images)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()) and not model.training
    for row, stage in zip(spectra, seen, strict=True):
        torch.testing.assert_close(row, torch.linalg.svdvals((stage - stage.mean(0)).detach()), rtol=1e-3, atol=1e-5)


def test_signal_passes_the_blocks_from_our_initialization_but_not_from_pytorchs(model):
    images = torch.randn(64, 3, 32, 32)
    ours, theirs = signal_spectra(model, images), signal_spectra(TransformerModel(init="pytorch"), images)
    assert ours[4, 6] > ours[4, 0] / 50  # seven directions within a factor of 50
    assert theirs[4, 0] < ours[4, 0] / 1000


def test_attention_maps_are_those_of_the_blocks_in_evaluation_mode(model):
    images = torch.randn(3, 3, 32, 32)
    maps = attention_maps(model.train(), images)
    assert maps.shape == (3, 4, 8, 8)
    x = model.eval().features(images)
    for index, block in enumerate(model.ultimus_blocks):
        torch.testing.assert_close(maps[:, index], block.attention(x).detach())
        x = block(x)


class TwoColors(nn.Module):
    """Class 0 is red, class 1 is blue: the mean of that channel over the image."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.ReLU(), nn.AvgPool2d(4))  # (B, 2, 8, 8)
        self.small = nn.AvgPool2d(2)  # (B, 2, 4, 4)
        with torch.no_grad():
            self.layer[0].weight.copy_(torch.tensor([[1.0, 0, 0], [0, 0, 1.0]])[:, :, None, None])

    def forward(self, images):
        return self.small(self.layer(images)).mean(dim=(2, 3))


@pytest.mark.parametrize("classes, corners", [((0, 0), [(0, 0), (16, 0)]), ((1, 0), [(16, 16), (16, 0)])])
def test_heat_lies_in_the_quadrant_that_decides(classes, corners):
    images = torch.zeros(2, 3, 32, 32)  # red in one quadrant and blue in the opposite one
    images[0, 0, :16, :16] = images[0, 2, 16:, 16:] = 1
    images[1, 0, 16:, :16] = images[1, 2, :16, 16:] = 1
    heat = grad_cam(TwoColors(), "layer", images, torch.tensor(classes))
    assert torch.equal(grad_cam(TwoColors().bfloat16(), "layer", images, torch.tensor(classes)), heat)
    assert heat.shape == (2, 32, 32) and heat.min() == 0 and 0.999 < heat.max() <= 1
    for map, (top, left) in zip(heat, corners):
        assert map[top : top + 16, left : left + 16].sum() > 0.85 * map.sum()
        assert map[top + 4 : top + 12, left + 4 : left + 12].min() > 0.9


def test_grad_cam_accepts_a_map_of_5x5_pixels_and_a_batch_without_images():
    assert grad_cam(TwoColors(), "layer.2", torch.rand(1, 3, 20, 20), torch.tensor([0])).shape == (1, 20, 20)
    assert grad_cam(TwoColors(), "layer", torch.rand(0, 3, 32, 32), torch.tensor([])).shape == (0, 32, 32)


def test_grad_cam_leaves_the_model_as_it_was():
    torch.manual_seed(0)
    model, images = ResNet18().train(), torch.randn(2, 3, 32, 32)
    model(images).sum().backward()
    before = copy.deepcopy(model.state_dict())
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    grad_cam(model, "layer3", images, torch.tensor([3, 5]))
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(parameter.grad, kept) for parameter, kept in zip(model.parameters(), gradients))
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


def test_grad_cam_computes_in_float32_after_training_in_bfloat16():
    torch.manual_seed(0)
    model, images = ResNet18().eval(), torch.randn(2, 3, 32, 32)
    plain = grad_cam(model, "layer3", images, torch.tensor([3, 5]))
    make_accelerator(cpu=True, precision="bfloat16").prepare(model, device_placement=[False])
    assert torch.equal(grad_cam(model, "layer3", images, torch.tensor([3, 5])), plain)


def test_grad_cam_rejects_layers_that_say_nothing():
    with pytest.raises(ValueError, match="small's map is 4×4, but Grad-CAM needs 5×5 or more: use an earlier layer"):
        grad_cam(TwoColors(), "small", torch.rand(1, 3, 32, 32), torch.tensor([0]))
