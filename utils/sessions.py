"""The three sessions: what makes each, and the set-up that the notebooks spell out."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from models.model7 import ResNet18
from models.model8 import CustomResNet
from models.model9 import TransformerModel
from utils.data import ImageData
from utils.loaders import make_loaders
from utils.optimizers import adam, sgd
from utils.pictures import Picture, accuracy_by_class, attention_maps, common, grad_cam, signal_rank
from utils.recipes import SESSION7, SESSION8, SESSION9, Recipe


@dataclass(frozen=True)
class Session:
    """What makes a session: its numbers, its network, its optimizer, its pictures by name."""

    recipe: Recipe
    network: Callable[[], nn.Module]
    optimizer: Callable[[nn.Module, Recipe], Optimizer]
    pictures: dict[str, Picture]
    flip_averaged: bool  # whether the accuracy of that trick is reported as well, apart


SESSIONS = {
    7: Session(
        SESSION7,
        ResNet18,
        sgd,
        common(misclassified=10) | {"accuracy_by_class": accuracy_by_class, "grad_cam": grad_cam},
        flip_averaged=True,
    ),
    8: Session(
        SESSION8,
        CustomResNet,
        sgd,
        common(misclassified=20) | {"accuracy_by_class": accuracy_by_class},
        flip_averaged=True,
    ),
    9: Session(
        SESSION9,
        TransformerModel,
        adam,
        common(misclassified=20) | {"signal_rank": signal_rank, "attention_maps": attention_maps},
        flip_averaged=False,
    ),
}


def set_up(
    session: Session, data: ImageData, accelerator: Accelerator
) -> tuple[nn.Module, Optimizer, tuple[DataLoader, DataLoader]]:
    """The network, its optimizer and the loaders for training and test, seeded as in the session's notebook.

    Of several processes each draws its own augmentation; the network is the first one's in the end.
    """
    recipe = session.recipe
    set_seed(recipe.seed)
    loaders = make_loaders(data, recipe, accelerator.device)
    set_seed(recipe.seed, device_specific=True)
    model = session.network().to(accelerator.device).to(memory_format=torch.channels_last)
    return model, session.optimizer(model, recipe), loaders
