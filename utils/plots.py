"""One function per picture: each takes what it draws and returns a Figure.

``Run.show`` saves it as ``<function>.png``. ``data`` names the images in every title.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib.style
import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from models.model9 import TransformerModel
from utils import explain
from utils.data import ImageData, sample_batch
from utils.schedule import LRSearch
from utils.training import History

TRAIN = "tab:blue"
TEST = "tab:orange"
Predictions = tuple[Tensor, Tensor]  # logits (N, 10) and labels (N,) of the test images


@contextmanager
def style() -> Iterator[None]:
    """Draw alike whatever matplotlibrc says; characters that the font lacks become boxes."""
    with matplotlib.style.context("default"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield


def escaped(text: str) -> str:
    """``text`` escaped: between two dollar signs, matplotlib reads mathematics."""
    return text.replace("$", r"\$")


def figure(
    rows: int, columns: int, size: tuple[float, float], title: str
) -> tuple[Figure, list[Axes]]:
    """A figure with a title, and its axes row by row. ``size`` is in inches.

    It is made without pyplot: it needs no backend, and a notebook shows it only on demand.
    """
    fig = Figure(figsize=size, dpi=150, layout="constrained")
    axes = fig.subplots(rows, columns, squeeze=False)
    fig.suptitle(escaped(title))
    return fig, list(axes.flat)


def line_plot(ax: Axes, **labels: str) -> None:
    """Axis labels, a grid and the legend of a plot of lines."""
    ax.set(**labels)
    if labels["xlabel"] == "epoch":
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.3)
    ax.legend()


def gallery(
    images: Sequence[Tensor], titles: Sequence[str], title: str, columns: int = 5
) -> Figure:
    """Images ``(3, H, W)`` on the scale 0 to 1 with their titles."""
    rows = max(1, -(-len(images) // columns))
    fig, axes = figure(rows, columns, (1.85 * columns, 0.4 + 2.1 * rows), title)
    for ax in axes:
        ax.axis("off")
    for ax, image, text in zip(axes, images, titles, strict=False):  # some axes may stay empty
        ax.imshow(image.permute(1, 2, 0).cpu().numpy())  # (H, W, 3)
        ax.set_title(escaped(text), fontsize=8)
    return fig


def sample_training_images(loader: DataLoader, data: ImageData) -> Figure:
    """20 training images as the network sees them, augmented, but with their colors again."""
    images, labels = sample_batch(loader)
    titles = [data.classes[label] for label in labels[:20].tolist()]
    title = f"Training images after augmentation · {data.name}"
    return gallery(list(data.normalize.inverse(images[:20])), titles, title)


def misclassified(predictions: Predictions, count: int = 10) -> Tensor:
    """Indices of up to ``count`` misclassified images, evenly spaced among all of them."""
    logits, labels = predictions
    wrong = (logits.argmax(dim=1) != labels).nonzero().flatten().cpu()
    return wrong[torch.linspace(0, len(wrong) - 1, min(count, len(wrong))).long()]


def misclassified_images(predictions: Predictions, data: ImageData, count: int = 10) -> Figure:
    """Up to ``count`` misclassified test images."""
    logits, labels = predictions
    chosen = misclassified(predictions, count)
    wrong = int((logits.argmax(dim=1) != labels).sum())
    title = f"{len(chosen)} of {wrong:,} misclassified of {len(labels):,} test images · {data.name}"
    images = data.test_images[chosen] / 255
    return gallery(list(images), predicted_and_true(predictions, data, chosen), title)


def predicted_and_true(predictions: Predictions, data: ImageData, indices: Tensor) -> list[str]:
    """Titles for some test images: the predicted class with its probability, and the true one."""
    logits, labels = predictions
    titles = []
    for index in indices.tolist():
        probabilities = logits[index].softmax(dim=0)
        predicted = int(probabilities.argmax())
        titles.append(
            f"predicted {data.classes[predicted]} ({100 * probabilities[predicted]:.0f}%)\n"
            f"true {data.classes[labels[index]]}"
        )
    return titles


def grad_cam(model: nn.Module, predictions: Predictions, data: ImageData) -> Figure:
    """Ten misclassified images with Grad-CAM's heat maps for the predicted and the true class."""
    from pytorch_grad_cam.utils.image import show_cam_on_image  # here: only session 7 needs it

    ten = misclassified(predictions)
    logits = predictions[0][ten].cpu()
    labels = predictions[1][ten].cpu()
    classes_of = {"predicted": logits.argmax(dim=1), "true": labels}
    inputs = network_inputs(model, data, ten)
    heats = {
        role: explain.grad_cam(model, "layer3", inputs, classes)
        for role, classes in classes_of.items()
    }
    probabilities = 100 * logits.softmax(dim=1)
    images = []
    titles = []
    for i, image in enumerate(data.test_images[ten] / 255):
        images.append(image)
        titles.append("")
        for role, classes in classes_of.items():
            pixels = image.permute(1, 2, 0).numpy()  # (H, W, 3)
            overlay = show_cam_on_image(pixels, heats[role][i].numpy(), use_rgb=True)
            images.append(torch.from_numpy(overlay).permute(2, 0, 1) / 255)  # (3, H, W)
            name = data.classes[classes[i]]
            titles.append(f"{role}: {name}\n{probabilities[i, classes[i]]:.1f}%")
    title = f"Grad-CAM for the predicted and the true class · {data.name}"
    return gallery(images, titles, title, columns=6)


def network_inputs(model: nn.Module, data: ImageData, indices: Tensor) -> Tensor:
    """Some test images as the network sees them: ``(N, 3, 32, 32)``, on its device."""
    device = next(model.parameters()).device
    return data.normalize(data.test_images[indices].to(device))


def loss_and_accuracy_graphs(
    history: History,
    data: ImageData,
    label_smoothing: float = 0.0,
) -> Figure:
    """Training and test loss and accuracy per epoch.

    ``label_smoothing`` is that of the training loss, which it raises; the test loss has none.
    """
    fig, (left, right) = figure(1, 2, (11, 4), f"Loss and accuracy · {data.name}")
    smoothed = f", label smoothing {label_smoothing:g}" if label_smoothing else ""
    train_and_test(left, history.train_loss, history.test_loss, smoothed)
    line_plot(left, xlabel="epoch", ylabel="mean cross-entropy")
    train_and_test(right, history.train_accuracy, history.test_accuracy)
    line_plot(right, xlabel="epoch", ylabel="accuracy in %")
    return fig


def train_and_test(
    ax: Axes,
    train: Sequence[float],
    test: Sequence[float],
    remark: str = "",
) -> None:
    """The curves of one measure over training and test images; ``remark`` is on the training's."""
    epochs = range(1, len(train) + 1)
    train_label = f"train (augmented{remark}), last {train[-1]:.4g}"
    ax.plot(epochs, train, color=TRAIN, marker=".", label=train_label)
    ax.plot(epochs, test, color=TEST, marker=".", label=f"test, last {test[-1]:.4g}")


def accuracy_curves(curves: Mapping[str, Sequence[float]], data_name: str) -> Figure:
    """Test accuracy in percent per epoch, one curve per run: ``{label: accuracies}``."""
    fig, (ax,) = figure(1, 1, (7, 4.5), f"Test accuracy · {data_name}")
    for label, accuracies in curves.items():
        epochs = range(1, len(accuracies) + 1)
        ax.plot(epochs, accuracies, marker=".", label=f"{label}: {accuracies[-1]:.1f}%")
    line_plot(ax, xlabel="epoch", ylabel="test accuracy in %")
    return fig


def lr_finder_plot(search: LRSearch, data: ImageData) -> Figure:
    """The loss of the range test, where it rises or stops falling, and the suggested max LR."""
    fig, (ax,) = figure(1, 1, (7, 4), f"LR finder · {data.name}")
    ax.plot(search.lrs, search.losses, color=TRAIN)
    suggested = f"suggested max LR: {search.suggestion:.4f}"
    if search.diverges:
        label = f"back at its start at {search.limit_lr:.4f}"
        suggested += f", 1/{search.limit_lr / search.suggestion:.0f} of it"
    else:
        label = f"stops falling at {search.limit_lr:.4f}; the search ended at {search.lrs[-1]:.4f}"
    ax.axvline(search.limit_lr, color="gray", linestyle=":", label=label)
    ax.axvline(search.suggestion, color=TEST, label=suggested)
    # The losses after divergence would flatten the interesting part.
    start = search.losses[0]
    lowest = min(search.losses)
    ax.set_ylim(lowest - 0.1, start + (start - lowest) / 2 + 0.1)
    line_plot(ax, xscale="log", xlabel="learning rate", ylabel="training loss (smoothed)")
    return fig


def lr_history_plot(history: History, data: ImageData) -> Figure:
    """The learning rate of each step."""
    lrs = history.step_lr
    top = lrs.index(max(lrs))
    fig, (ax,) = figure(1, 1, (7, 4), f"Learning rate of each step · {data.name}")
    ax.plot(lrs, color=TRAIN)
    ax.plot(top, lrs[top], "o", color=TEST, label=f"maximum: {lrs[top]:.4f} at step {top + 1:,}")
    steps = f"step ({len(lrs):,} in {history.epochs} epochs)"
    line_plot(ax, xlabel=steps, ylabel="learning rate")
    return fig


def confusion_matrix(predictions: Predictions, data: ImageData) -> Figure:
    """How many test images of each class (rows) are predicted as each class (columns)."""
    from sklearn import metrics  # here, because its import takes a second

    logits, labels = predictions
    fig, (ax,) = figure(1, 1, (8, 7), f"Confusion matrix of the test images · {data.name}")
    names = [escaped(name) for name in data.classes]
    counts = metrics.confusion_matrix(
        labels.cpu().numpy(), logits.argmax(1).cpu().numpy(), labels=range(len(names))
    )
    display = metrics.ConfusionMatrixDisplay(counts, display_labels=names)
    display.plot(cmap="Blues", ax=ax, xticks_rotation=45, colorbar=False)
    return fig


def check_ultimus(model: nn.Module, picture: str) -> None:
    """Raise ValueError unless ``model`` has ULTIMUS blocks to look into."""
    if not isinstance(model, TransformerModel):
        raise ValueError(f"{picture} is about ULTIMUS's blocks, which this network has not")


def signal_rank(model: TransformerModel, data: ImageData) -> Figure:
    """Singular values of the signal after each stage, one panel per network.

    After a block, at most eight of them are nonzero. Raises ValueError: no ULTIMUS network.
    """
    check_ultimus(model, "the signal's rank")
    count = len(data.test_labels)
    images = network_inputs(model, data, torch.arange(0, count, max(1, count // 500)))
    networks = explain.initial_networks() | {"the same, trained": model}
    stages = ("convolutions", "block 1", "block 2", "block 3", "block 4")
    colors = matplotlib.colormaps["viridis"](torch.linspace(0, 0.9, 5).numpy())
    title = f"How much of the signal survives · {data.name}"
    fig, axes = figure(2, 2, (6.4, 6.4), title)
    for ax, (name, network) in zip(axes, networks.items(), strict=True):
        spectra = explain.signal_spectra(network.to(images.device), images)  # (5, 48)
        for stage, row, color in zip(stages, spectra[:, :8], colors, strict=True):
            directions = range(1, len(row) + 1)
            ax.semilogy(directions, row.clamp(min=1e-6), color=color, marker=".", label=stage)
        ax.set(title=name, xticks=range(1, 9), ylim=(1e-6, 1e3))
        ax.grid(alpha=0.3)
    fig.supxlabel("direction")
    fig.supylabel("singular value, mean removed")
    axes[-1].legend(loc="lower left")
    return fig


def attention_maps(
    model: TransformerModel, predictions: Predictions, data: ImageData, count: int = 3
) -> Figure:
    """Some test images, each with the attention matrices AM of the four ULTIMUS blocks.

    Raises ValueError: no ULTIMUS network.
    """
    check_ultimus(model, "the attention")
    chosen = torch.arange(count) * (len(data.test_labels) // count)
    maps = explain.attention_maps(model, network_inputs(model, data, chosen))  # (count, 4, 8, 8)
    title = f"Attention matrix AM of each block · {data.name}"
    fig, axes = figure(count, 5, (9, 0.6 + 1.9 * count), title)
    # The square root of the scale shows differences among the small values.
    shades = PowerNorm(0.5, vmin=0, vmax=float(maps.max()))
    titles = predicted_and_true(predictions, data, chosen)
    drawn: Any = None
    for i, (image, text) in enumerate(zip(data.test_images[chosen], titles, strict=True)):
        first, *others = axes[5 * i : 5 * i + 5]
        first.imshow(image.permute(1, 2, 0).numpy())  # (H, W, 3)
        first.set_title(escaped(text), fontsize=8)
        first.axis("off")
        for block, ax in enumerate(others):
            drawn = ax.imshow(maps[i, block].numpy(), norm=shades, cmap="magma")
            ax.set(xticks=[], yticks=[])
            if i == 0:
                ax.set_title(f"block {block + 1}", fontsize=9)
    axes[1].set_ylabel("row: feature of Q", fontsize=8)
    axes[1].set_xlabel("column: feature of K", fontsize=8)
    fig.colorbar(drawn, ax=axes, shrink=0.8, label="attention (a row sums to 1/√8)")
    return fig
