"""The three sessions: everything that differs between them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.optim import Optimizer

from models.model7 import ResNet18
from models.model8 import CustomResNet
from models.model9 import TransformerModel
from utils.optimizers import adam, sgd
from utils.recipes import SESSION7, SESSION8, SESSION9, Recipe
from utils.transforms import memory_format


@dataclass(frozen=True)
class Session:
    """One assignment; pictures are functions of ``utils.plots``."""

    recipe: Recipe
    network: Callable[..., nn.Module]
    optimizer: Callable[[nn.Module, float], Optimizer]  # of the model and the weight decay
    pictures: tuple[str, ...]
    answers: tuple[str, ...]  # what the assignment page asks for, in its order; see utils/runs/report.py
    misclassified: int = 20  # images to show

    def build(self, device: torch.device) -> tuple[nn.Module, Optimizer]:
        """The network on ``device`` and its optimizer."""
        model = self.network().to(device).to(memory_format=memory_format(device))
        return model, self.optimizer(model, self.recipe.weight_decay)


PICTURES = (
    *("sample_training_images", "lr_finder_plot", "loss_and_accuracy_graphs", "lr_history_plot"),
    *("misclassified_images", "confusion_matrix"),
)
SESSIONS = {
    7: Session(
        SESSION7,
        ResNet18,
        partial(sgd, bias_lr=8.0),  # +0.4 points on held-out images; session 8 gains nothing
        pictures=(*PICTURES, "grad_cam"),
        answers=("repository", "network", "log", "loss_and_accuracy_graphs", "misclassified_images", "grad_cam"),
        misclassified=10,
    ),
    8: Session(
        SESSION8,
        CustomResNet,
        sgd,
        pictures=PICTURES,
        answers=("repository", "network", "learning_rates", "log", "accuracy"),
    ),
    9: Session(
        SESSION9,
        TransformerModel,
        adam,
        pictures=(*PICTURES, "signal_rank", "attention_maps"),
        answers=("repository", "network", "log", "loss_and_accuracy_graphs"),
    ),
}
