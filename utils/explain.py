"""What a network is made of and what it does: its layers, Grad-CAM, the singular values of its signal, attention maps."""

import copy

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torchinfo import summary
from torchinfo.enums import Units

from models.model9 import TransformerModel

COLUMNS = ("kernel_size", "output_size", "num_params", "mult_adds")
SMALLEST_MAP = 5  # pixels a side: on a coarser map Grad-CAM says little, and the assignment forbids it


def model_table(model: nn.Module, batch_size: int = 20) -> str:
    """torchinfo's table for a batch of 3×32×32 images: kernels, shapes, parameters, mult-adds."""
    table = summary(
        model,
        input_size=(batch_size, 3, 32, 32),
        col_names=COLUMNS,
        row_settings=("var_names",),
        col_width=17,
        device="cpu",
        verbose=0,
    )
    text = str(table)
    for unit in Units:  # since Python 3.11 torchinfo prints "Units.MEGABYTES" where it means "M"
        text = text.replace(str(unit), unit.value)
    return text


def grad_cam(model: nn.Module, layer: str, images: Tensor, classes: Tensor) -> Tensor:
    """Where in each image the evidence for a class lies, as ``layer`` sees it.

    Args:
        layer: its name in the model, as in ``"layer3"`` or ``"layer3.0"``.
        images: normalised, ``(N, 3, H, W)``.
        classes: ``(N,)``, the class each image is searched for.

    Returns: heat ``(N, H, W)``; in each image 0 is the least and 1 the most.

    Source: Selvaraju et al., https://arxiv.org/abs/1610.02391, as built in the package grad-cam.

    Raises:
        ValueError: the model has no such layer, or the layer's map has fewer than 5 pixels a side.
    """
    from pytorch_grad_cam import GradCAM  # here, because session 9 does without that package
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    # A copy, because Grad-CAM sets the mode, the gradients and hooks; in float32, because it works in NumPy.
    model = extract_model_from_parallel(copy.deepcopy(model), keep_fp32_wrapper=False).float()
    layers = dict(model.named_modules())
    if layer not in layers:
        raise ValueError(
            f"the model has no layer {layer!r}: it has {', '.join(name for name, _ in model.named_children())}"
        )
    if len(images) == 0:  # a network that never errs has nothing to explain
        return images.new_zeros(images[:, 0].shape)
    cam = GradCAM(model, [layers[layer]])
    heat = cam(images, [ClassifierOutputTarget(number) for number in classes.tolist()])
    height, width = cam.activations_and_grads.activations[0].shape[-2:]
    if min(height, width) < SMALLEST_MAP:
        raise ValueError(
            f"{layer}'s map is {height}×{width}: Grad-CAM needs {SMALLEST_MAP}×{SMALLEST_MAP} or more, so take an earlier layer"
        )
    return torch.from_numpy(heat)


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
