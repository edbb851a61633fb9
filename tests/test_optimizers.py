"""Which weights decay."""

import torch

from models.model9 import TransformerModel
from utils.optimizers import decay_convolutions


def test_convolutions_decay_and_nothing_else():
    model = TransformerModel()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(decay_convolutions(model, weight_decay=0.5), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        decayed = name in ("conv_block.0.weight", "conv_block.4.weight", "conv_block.8.weight")
        torch.testing.assert_close(parameter.detach(), before[name] * (0.95 if decayed else 1.0))
