"""The optimizers, and which weights they decay."""

import pytest
import torch

from models.model9 import TransformerModel
from utils.optimizers import adam, sgd


@pytest.mark.parametrize("make, kind", [(adam, torch.optim.Adam), (sgd, torch.optim.SGD)])
def test_convolutions_decay_and_nothing_else(make, kind):
    model = TransformerModel()
    optimizer = make(model, weight_decay=0.5)
    assert type(optimizer) is kind
    decay = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.5 if parameter.ndim == 4 else 0), name
    assert list(decay.values()).count(0.5) == 3
    if kind is torch.optim.SGD:
        assert optimizer.defaults["momentum"] == 0.9 and optimizer.defaults["nesterov"]
        assert optimizer.defaults["dampening"] == 0
