"""The optimizers, and which weights they decay."""

import pytest
import torch

from models.model9 import TransformerModel
from utils.optimizers import adam, parameter_groups, sgd
from utils.recipes import SESSION8, SESSION9


def test_convolutions_decay_and_nothing_else():
    model = TransformerModel()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(parameter_groups(model, weight_decay=0.5), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        decayed = name in ("conv_block.0.weight", "conv_block.4.weight", "conv_block.8.weight")
        torch.testing.assert_close(parameter.detach(), before[name] * (0.95 if decayed else 1.0))


@pytest.mark.parametrize("make, recipe", [(adam, SESSION9), (sgd, SESSION8)])
def test_optimizers_decay_as_told(make, recipe):
    decaying, others = make(TransformerModel(), recipe.weight_decay).param_groups
    assert decaying["weight_decay"] == recipe.weight_decay > 0 and others["weight_decay"] == 0
    assert len(decaying["params"]) == 3
