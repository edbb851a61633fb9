"""The optimizers, and which weights they decay: those of which only the direction counts."""

from torch import nn
from torch.optim import SGD, Adam


def adam(model: nn.Module, weight_decay: float) -> Adam:
    """Session 9's optimizer, as its assignment asks."""
    return Adam(parameter_groups(model, weight_decay))


def sgd(model: nn.Module, weight_decay: float) -> SGD:
    """Sessions 7 and 8: SGD with Nesterov momentum. The schedule sets the learning rate before the first step."""
    return SGD(parameter_groups(model, weight_decay), momentum=0.9, nesterov=True)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Parameter groups for an optimizer: weight decay on the convolutions' weights, none on anything else.

    A BatchNorm follows every convolution, so the size of its weights changes nothing that the network
    computes. It changes what a step does: weights that have grown are turned less by it. Training lets
    them grow; decay keeps them small and turning. Everything else means what it says, and is left alone.

    Source: van Laarhoven, https://arxiv.org/abs/1706.05350
    """
    convolutions = [parameter for parameter in model.parameters() if parameter.ndim == 4]
    others = [parameter for parameter in model.parameters() if parameter.ndim != 4]
    return [{"params": convolutions, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
