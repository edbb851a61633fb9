"""The pictures of a trained session, by name: each takes a ``Trained`` and answers a Figure."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader

from models.model9 import TransformerModel
from utils import explain, plots
from utils.checkpoint import load_weights
from utils.data import ImageData
from utils.history import History
from utils.schedule import LRSearch
from utils.transforms import Normalize

STUCK = Path(__file__).parents[1] / "static/session9/pytorch_init.pt"  # trained from PyTorch's initialisation


@dataclass(frozen=True)
class Trained:
    """What a training leaves behind: logits ``(N, 10)`` and labels ``(N,)`` are those of the test images."""

    model: nn.Module
    data: ImageData
    train_loader: DataLoader
    history: History
    search: LRSearch | None  # None: the learning rate was given
    logits: Tensor
    labels: Tensor

    @property
    def normalize(self) -> Normalize:
        return Normalize(self.data.mean, self.data.std)

    def on_its_device(self, images: Tensor) -> Tensor:
        """uint8 images, normalised, where the network is."""
        return self.normalize(images.to(next(self.model.parameters()).device))


Picture = Callable[[Trained], Figure]


def sample_training_images(run: Trained) -> Figure:
    images, labels = next(iter(run.train_loader))
    return plots.sample_images(run.normalize.inverse(images), labels, run.data.classes, run.data.name)


def lr_finder_plot(run: Trained) -> Figure:
    assert run.search is not None
    search = run.search
    return plots.lr_finder(search.lrs, search.losses, search.edge, search.suggestion, run.data.name, search.rises)


def loss_and_accuracy_graphs(run: Trained) -> Figure:
    return plots.loss_and_accuracy(run.history, run.data.name)


def lr_history_plot(run: Trained) -> Figure:
    return plots.lr_history(run.history, run.data.name)


def misclassified_images(run: Trained, count: int) -> Figure:
    data = run.data
    return plots.misclassified_images(data.test_images / 255, run.logits, run.labels, data.classes, data.name, count)


def confusion_matrix(run: Trained) -> Figure:
    return plots.confusion_matrix(run.logits, run.labels, run.data.classes, run.data.name)


def accuracy_by_class(run: Trained) -> Figure:
    return plots.accuracy_by_class(run.logits, run.labels, run.data.classes, run.data.name)


def grad_cam(run: Trained) -> Figure:
    """Of ten misclassified images: the evidence for the answer and for the true class."""
    ten = plots.misclassified(run.logits, run.labels, 10)
    images, logits, labels = run.data.test_images[ten], run.logits[ten], run.labels[ten]
    some = run.on_its_device(images)
    heats = (
        explain.grad_cam(run.model, "layer3", some, logits.argmax(dim=1)),
        explain.grad_cam(run.model, "layer3", some, labels),
    )
    return plots.grad_cam(images / 255, heats, logits, labels, run.data.classes, run.data.name)


def signal_rank(run: Trained) -> Figure:
    assert isinstance(run.model, TransformerModel)
    stuck = TransformerModel(init="pytorch")
    load_weights(STUCK, stuck)
    networks = {
        "PyTorch's initialisation": TransformerModel(init="pytorch"),
        "the same, trained on CIFAR-10": stuck,
        "our initialisation": TransformerModel(),
        "the same, trained": run.model,
    }
    some = run.on_its_device(run.data.test_images[:: max(1, len(run.labels) // 500)])
    spectra = {title: explain.signal_spectra(network.to(some.device), some) for title, network in networks.items()}
    return plots.signal_rank(spectra, run.data.name)


def attention_maps(run: Trained) -> Figure:
    assert isinstance(run.model, TransformerModel)
    six = torch.arange(6) * (len(run.labels) // 6)
    images, classes = run.data.test_images[six], run.data.classes
    answers = run.logits[six].argmax(dim=1).tolist()
    titles = [f"{classes[i]}\n(true: {classes[j]})" for i, j in zip(answers, run.labels[six].tolist())]
    maps = explain.attention_maps(run.model, run.on_its_device(images))
    return plots.attention_maps(maps, images / 255, titles, run.data.name)


def common(misclassified: int) -> dict[str, Picture]:
    """What every session shows; ``misclassified``: how many wrong answers."""
    return {
        "sample_training_images": sample_training_images,
        "lr_finder_plot": lr_finder_plot,
        "loss_and_accuracy_graphs": loss_and_accuracy_graphs,
        "lr_history_plot": lr_history_plot,
        "misclassified_images": partial(misclassified_images, count=misclassified),
        "confusion_matrix": confusion_matrix,
    }
