"""What a trained network does with an image: how much of the signal survives, and where attention lies."""

import copy

import torch
from torch import Tensor

from models.model9 import TransformerModel


@torch.inference_mode()
def signal_spectra(model: TransformerModel, images: Tensor) -> Tensor:
    """How many directions of the signal survive each stage: singular values, the batch's mean removed.

    Args:
        images: normalised, ``(N, 3, 32, 32)``, N at least 48.

    Returns: ``(5, 48)``, falling in each row: of X after the convolutions (pooled) and after each of
    the four ULTIMUS blocks. A row with one value far above the rest is a batch on a line.
    BatchNorm takes these images' own statistics, as in training: an untrained network has no others.
    """
    model = copy.deepcopy(model).train()  # a copy, because BatchNorm also notes what it sees
    stages = [model.features(images)]  # (N, 48)
    for block in model.ultimus_blocks:
        stages.append(block(stages[-1]))
    return torch.stack([torch.linalg.svdvals(stage - stage.mean(dim=0)) for stage in stages]).cpu()


@torch.inference_mode()
def attention_maps(model: TransformerModel, images: Tensor) -> Tensor:
    """AM of every block for every image: normalised ``(N, 3, 32, 32)`` → ``(N, 4, 8, 8)``, rows sum to 1/√8."""
    model.eval()
    x = model.features(images)  # (N, 48)
    maps = []
    for block in model.ultimus_blocks:
        maps.append(block.attention(x))
        x = block(x)
    return torch.stack(maps, dim=1).cpu()
