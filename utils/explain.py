"""Looking into a network: table of layers, Grad-CAM, singular values, attention maps."""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from torchinfo import summary
from torchinfo.enums import Units

from models.model9 import TransformerModel

STUCK_WEIGHTS = (
    Path(__file__).parents[1] / "static/session9/pytorch_init.pt"
)  # trained from PyTorch's initialization


def model_table(model: nn.Module, batch_size: int = 20) -> str:
    """torchinfo's table for a batch of 3×32×32 images: kernels, shapes, parameters, mult-adds."""
    table = summary(
        copy.deepcopy(model).cpu(),  # a copy: the model keeps its device and mode
        (batch_size, 3, 32, 32),
        col_names=("kernel_size", "output_size", "num_params", "mult_adds"),
        col_width=17,
        row_settings=("var_names",),
        device="cpu",
        verbose=0,
    )
    text = str(table)
    for unit in Units:  # since Python 3.11 torchinfo prints "Units.MEGABYTES" where it means "M"
        text = text.replace(str(unit), unit.value)
    return text


def grad_cam(model: nn.Module, layer: str, images: Tensor, classes: Tensor) -> Tensor:
    """Grad-CAM: where in each image ``layer``, such as ``"layer3.0"``, finds evidence for a class.

    Normalized images ``(N, 3, H, W)`` and one class for each, ``(N,)`` → heat maps ``(N, H, W)``,
    each from 0 to 1. Raises ValueError: the layer's feature map is smaller than 5×5 pixels.

    Source: Selvaraju et al., https://arxiv.org/abs/1610.02391, as implemented in the package
    grad-cam.
    """
    from pytorch_grad_cam import GradCAM  # here, because session 9 does not need it
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    # A copy, because Grad-CAM changes the mode, the gradients and the hooks. It computes in
    # float32, because it uses NumPy.
    model = copy.deepcopy(model).float()
    if len(images) == 0:  # nothing is misclassified
        return images.new_zeros(images[:, 0].shape)
    cam = GradCAM(model, [model.get_submodule(layer)])
    heat = cam(images, [ClassifierOutputTarget(index) for index in classes.tolist()])
    height, width = cam.activations_and_grads.activations[0].shape[-2:]
    if min(height, width) < 5:  # a coarser map says little, and the assignment does not allow it
        raise ValueError(
            f"{layer}'s map is {height}×{width}, but Grad-CAM needs 5×5 or more: "
            "use an earlier layer"
        )
    return torch.from_numpy(heat)


@torch.inference_mode()
def signal_spectra(model: TransformerModel, images: Tensor) -> Tensor:
    """Singular values of the signal after each stage, with the mean over the batch removed.

    If one value is far larger than the rest, the batch lies on a line. Normalized images ``(N, 3,
    32, 32)`` → ``(5, min(N, 48))``, each row in descending order: of X after global average pooling
    and after each ULTIMUS block. BatchNorm uses the statistics of these images, as in training,
    because an untrained network has no others.
    """
    model = copy.deepcopy(model).train()  # a copy, because BatchNorm updates its running averages
    stages = [model.features(images)]  # (N, 48)
    for block in model.ultimus_blocks:
        stages.append(block(stages[-1]))
    # on the CPU, because older versions of PyTorch cannot do it on MPS
    return torch.stack(
        [torch.linalg.svdvals((stage - stage.mean(dim=0)).cpu()) for stage in stages]
    )


def initial_networks() -> dict[str, TransformerModel]:
    """ULTIMUS from PyTorch's initialization, untrained and trained, and from ours, untrained."""
    stuck = TransformerModel(init="pytorch")
    stuck.load_state_dict(torch.load(STUCK_WEIGHTS, weights_only=True)["model"])
    return {
        "PyTorch's initialization": TransformerModel(init="pytorch"),
        "the same, trained on CIFAR-10": stuck,
        "our initialization": TransformerModel(),
    }


@torch.inference_mode()
def attention_maps(model: TransformerModel, images: Tensor) -> Tensor:
    """AM of every block: normalized images ``(N, 3, 32, 32)`` → ``(N, 4, 8, 8)``.

    Each row sums to 1/√8.
    """
    model.eval()
    x = model.features(images)  # (N, 48)
    maps = []
    for block in model.ultimus_blocks:
        maps.append(block.attention(x))
        x = block(x)
    return torch.stack(maps, dim=1).cpu()
