"""The spectra and maps are those of the forward pass."""

import copy

import pytest
import torch

from models.model9 import TransformerModel
from utils import plots
from utils.explain import attention_maps, signal_spectra


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
