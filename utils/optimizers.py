"""The optimizers, with weight decay only for the weights whose scale does not matter."""

from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer


def adam(model: nn.Module, weight_decay: float) -> Adam:
    """Session 9's optimizer, as assigned."""
    return Adam(parameter_groups(model, weight_decay), fused=fused(model))


def sgd(model: nn.Module, weight_decay: float, bias_lr: float = 1.0) -> SGD:
    """The optimizer of sessions 7 and 8: SGD with Nesterov momentum 0.9.

    The learning rate of BatchNorm's biases is ``bias_lr`` times as high, as in Jordan,
    https://arxiv.org/abs/2404.00498. The schedule sets all of them before the first step.
    """
    decayed, others = parameter_groups(model, weight_decay)
    biases = batchnorm_biases(model)
    others["params"] = [parameter for parameter in others["params"] if parameter not in biases]
    groups = [decayed, others, others | {"params": list(biases), "lr_factor": bias_lr}]
    optimizer = SGD(groups, momentum=0.9, nesterov=True, fused=fused(model))
    for parameter in model.parameters():
        # A first step that overflows in float16 would leave fused SGD's momentum uninitialized.
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def batchnorm_biases(model: nn.Module) -> dict[nn.Parameter, None]:
    """The biases of all BatchNorm layers, in their order; a dict, because a set has none."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    return dict.fromkeys(norm.bias for norm in norms)


def fused(model: nn.Module) -> bool | None:
    """Whether the optimizer updates all weights with a few kernels; None: as PyTorch chooses."""
    return True if next(model.parameters()).is_cuda else None


def group_settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The settings of each parameter group, learning rates included, without the weights."""
    return [
        {name: value for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]


def restore_group_settings(optimizer: Optimizer, settings: list[dict[str, Any]]) -> None:
    """Put back what ``group_settings`` returned; settings that have been added since go."""
    for group, values in zip(optimizer.param_groups, settings, strict=True):
        weights = group["params"]
        group.clear()
        group.update(values, params=weights)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Parameter groups for an optimizer: weight decay for the convolutions' weights only.

    Every convolution is followed by BatchNorm, so the scale of its weights does not change the
    network's output. But it changes the effect of a step: the larger the weights, the less a step
    rotates them. Weights grow during training, and weight decay counteracts this. The scale of all
    other parameters matters, so they are not decayed.

    Source: van Laarhoven, https://arxiv.org/abs/1706.05350
    """
    convolutions = [parameter for parameter in model.parameters() if parameter.ndim == 4]
    others = [parameter for parameter in model.parameters() if parameter.ndim != 4]
    return [
        {"params": convolutions, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
