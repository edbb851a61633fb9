"""The three sessions: the recipe, the network, the optimizer, the pictures and the points to hand in of each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim import Optimizer

from models.model7 import ResNet18
from models.model8 import CustomResNet
from models.model9 import TransformerModel
from utils import explain, plots
from utils.data import ImageData
from utils.optimizers import adam, sgd
from utils.recipes import SESSION7, SESSION8, SESSION9, Recipe
from utils.schedule import LRSearch
from utils.training import History

STUCK_WEIGHTS = Path(__file__).parents[1] / "static/session9/pytorch_init.pt"  # trained from PyTorch's initialization


class Run(Protocol):
    """What a picture can show of a run; ``utils.runs.run.Run`` is one."""

    model: nn.Module
    data: ImageData
    history: History
    search: LRSearch | None  # None: the max LR was given

    @property
    def sample(self) -> tuple[Tensor, Tensor]:
        """One batch of augmented training images ``(B, 3, 32, 32)`` and their labels ``(B,)``."""

    @property
    def predictions(self) -> tuple[Tensor, Tensor]:
        """Logits ``(N, 10)`` and labels ``(N,)`` of the test images."""


Picture = Callable[[Run], Figure]


def sample_training_images(run: Run) -> Figure:
    images, labels = run.sample
    return plots.sample_images(run.data.normalize.inverse(images), labels, run.data.classes, run.data.name)


def lr_finder_plot(run: Run) -> Figure:
    assert run.search is not None
    return plots.lr_finder(**vars(run.search), data_name=run.data.name)


def loss_and_accuracy_graphs(run: Run) -> Figure:
    return plots.loss_and_accuracy(run.history, run.data.name)


def lr_history_plot(run: Run) -> Figure:
    return plots.lr_history(run.history, run.data.name)


def misclassified_images(run: Run, count: int) -> Figure:
    data = run.data
    return plots.misclassified_images(data.test_images / 255, *run.predictions, data.classes, data.name, count)


def confusion_matrix(run: Run) -> Figure:
    return plots.confusion_matrix(*run.predictions, run.data.classes, run.data.name)


def accuracy_by_class(run: Run) -> Figure:
    return plots.accuracy_by_class(*run.predictions, run.data.classes, run.data.name)


def grad_cam(run: Run) -> Figure:
    """Ten misclassified images, with the evidence for the predicted and for the true class."""
    logits, labels = run.predictions
    ten = plots.misclassified(logits, labels, 10)
    images, logits, labels = run.data.test_images[ten], logits[ten], labels[ten]
    some = normalized(images, run)
    heats = (
        explain.grad_cam(run.model, "layer3", some, logits.argmax(dim=1)),
        explain.grad_cam(run.model, "layer3", some, labels),
    )
    return plots.grad_cam(images / 255, heats, logits, labels, run.data.classes, run.data.name)


def signal_rank(run: Run) -> Figure:
    assert isinstance(run.model, TransformerModel)
    stuck = TransformerModel(init="pytorch")
    stuck.load_state_dict(torch.load(STUCK_WEIGHTS, weights_only=True)["model"])
    networks = {
        "PyTorch's initialization": TransformerModel(init="pytorch"),
        "the same, trained on CIFAR-10": stuck,
        "our initialization": TransformerModel(),
        "the same, trained": run.model,
    }
    some = normalized(run.data.test_images[:: max(1, len(run.data.test_labels) // 500)], run)
    spectra = {title: explain.signal_spectra(network.to(some.device), some) for title, network in networks.items()}
    return plots.signal_rank(spectra, run.data.name)


def attention_maps(run: Run) -> Figure:
    assert isinstance(run.model, TransformerModel)
    logits, labels = run.predictions
    six = torch.arange(6) * (len(labels) // 6)
    images, classes = run.data.test_images[six], run.data.classes
    predicted = logits[six].argmax(dim=1).tolist()
    titles = [f"{classes[i]}\n(true: {classes[j]})" for i, j in zip(predicted, labels[six].tolist())]
    maps = explain.attention_maps(run.model, normalized(images, run))
    return plots.attention_maps(maps, images / 255, titles, run.data.name)


def normalized(images: Tensor, run: Run) -> Tensor:
    """uint8 images, normalized, on the device of the run's model."""
    return run.data.normalize(images.to(next(run.model.parameters()).device))


@dataclass(frozen=True)
class Session:
    """Everything that differs between the sessions."""

    recipe: Recipe
    network: Callable[..., nn.Module]
    optimizer: Callable[[nn.Module, float], Optimizer]  # of the model and the weight decay
    pictures: dict[str, Picture]  # by the name of their file
    points: tuple[str, ...]  # what the assignment page asks for, in its order
    flip_averaged: bool  # whether flip-averaged test accuracy is reported as well

    def build(self, device: torch.device) -> tuple[nn.Module, Optimizer]:
        """The network on ``device``, channels-last in memory, and its optimizer."""
        model = self.network().to(device).to(memory_format=torch.channels_last)
        return model, self.optimizer(model, self.recipe.weight_decay)


def common_pictures(misclassified: int) -> dict[str, Picture]:
    """The pictures of every session; ``misclassified`` is how many misclassified images to show."""
    return {
        "sample_training_images": sample_training_images,
        "lr_finder_plot": lr_finder_plot,
        "loss_and_accuracy_graphs": loss_and_accuracy_graphs,
        "lr_history_plot": lr_history_plot,
        "misclassified_images": partial(misclassified_images, count=misclassified),
        "confusion_matrix": confusion_matrix,
    }


SESSIONS = {
    7: Session(
        SESSION7,
        ResNet18,
        sgd,
        common_pictures(misclassified=10) | {"accuracy_by_class": accuracy_by_class, "grad_cam": grad_cam},
        ("repository", "network", "log", "loss_and_accuracy_graphs", "misclassified_images", "grad_cam"),
        flip_averaged=True,
    ),
    8: Session(
        SESSION8,
        CustomResNet,
        sgd,
        common_pictures(misclassified=20) | {"accuracy_by_class": accuracy_by_class},
        ("repository", "network", "learning_rates", "log", "accuracy"),
        flip_averaged=True,
    ),
    9: Session(
        SESSION9,
        TransformerModel,
        adam,
        common_pictures(misclassified=20) | {"signal_rank": signal_rank, "attention_maps": attention_maps},
        ("repository", "network", "log", "loss_and_accuracy_graphs"),
        flip_averaged=False,
    ),
}
