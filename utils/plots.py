"""One function per picture: each takes tensors or lists and returns a matplotlib Figure."""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

from utils.training import History

TRAIN, TEST = "tab:blue", "tab:orange"


def figure(rows: int, columns: int, size: tuple[float, float], title: str) -> tuple[Figure, list]:
    """A figure with a title, and its axes row by row. It is closed, so that a notebook shows it only on demand."""
    fig, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", dpi=100)
    plt.close(fig)
    fig.suptitle(title)
    return fig, list(axes.flat)


def gallery(images: Tensor, titles: Sequence[str], title: str) -> Figure:
    """Images ``(N, 3, H, W)`` on the scale 0 to 1, in rows of five, with their titles."""
    rows = max(1, -(-len(images) // 5))
    fig, axes = figure(rows, 5, (8.5, 0.4 + 1.95 * rows), title)
    for ax in axes:
        ax.axis("off")
    for ax, image, text in zip(axes, images.cpu(), titles):
        ax.imshow(image.permute(1, 2, 0).numpy())  # (H, W, 3)
        ax.set_title(text, fontsize=9)
    return fig


def sample_images(images: Tensor, labels: Tensor, classes: Sequence[str], data_name: str) -> Figure:
    """The first 20 images of a batch as the network sees them, but denormalized: ``(B, 3, H, W)``, 0 to 1."""
    titles = [classes[label] for label in labels[:20].tolist()]
    return gallery(images[:20], titles, f"Training images after augmentation · {data_name}")


def misclassified(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """Indices of up to ``count`` misclassified images, evenly spaced among all misclassified images."""
    wrong = (logits.argmax(dim=1) != labels).nonzero().flatten().cpu()
    return wrong[torch.linspace(0, len(wrong) - 1, min(count, len(wrong))).long()]


def misclassified_images(
    images: Tensor, logits: Tensor, labels: Tensor, classes: Sequence[str], data_name: str, count: int = 20
) -> Figure:
    """Up to ``count`` misclassified images: images ``(N, 3, H, W)``, 0 to 1, logits ``(N, C)``, labels ``(N,)``."""
    some, predicted = misclassified(logits, labels, count), logits.argmax(dim=1)
    titles = [
        f"{classes[answer]}\n(true: {classes[truth]})"
        for answer, truth in zip(predicted[some].tolist(), labels[some].tolist())
    ]
    wrong = int((predicted != labels).sum())
    title = f"{len(some)} of {wrong:,} misclassified of {len(labels):,} test images · {data_name}"
    return gallery(images.cpu()[some], titles, title)


def grad_cam(
    images: Tensor, heats: tuple[Tensor, Tensor], logits: Tensor, labels: Tensor, classes: Sequence[str], data_name: str
) -> Figure:
    """Each image, with Grad-CAM's heat map for the predicted class and for the true class.

    Images ``(N, 3, H, W)``, 0 to 1, two heat maps ``(N, H, W)`` of ``utils.explain.grad_cam``, logits
    ``(N, C)``, labels ``(N,)``. Two images per row.
    """
    from pytorch_grad_cam.utils.image import show_cam_on_image  # here, because session 9 does not need it

    rows = max(1, -(-len(images) // 2))
    fig, axes = figure(rows, 6, (10, 0.5 + 1.95 * rows), f"Grad-CAM for the predicted and the true class · {data_name}")
    for ax in axes:
        ax.axis("off")
    probabilities = logits.softmax(dim=1)
    for i, image in enumerate(images.cpu().permute(0, 2, 3, 1).numpy()):  # (H, W, 3)
        plain, *overlaid = axes[3 * i : 3 * i + 3]
        plain.imshow(image)
        indices = int(logits[i].argmax()), int(labels[i])
        for ax, heat, index, role in zip(overlaid, heats, indices, ("predicted", "true")):
            ax.imshow(show_cam_on_image(image, heat[i].numpy(), use_rgb=True))
            ax.set_title(f"{role}: {classes[index]}\n{100 * probabilities[i, index]:.1f}%", fontsize=9)
    return fig


def loss_and_accuracy(history: History, data_name: str) -> Figure:
    """Training and test loss and accuracy per epoch."""
    epochs = range(1, len(history.lr) + 1)
    fig, (left, right) = figure(1, 2, (11, 4), f"Loss and accuracy · {data_name}")
    for ax, train, test, name in (
        (left, history.train_loss, history.test_loss, "mean cross-entropy"),
        (right, history.train_accuracy, history.test_accuracy, "accuracy in %"),
    ):
        ax.plot(epochs, train, color=TRAIN, marker=".", label=f"train (augmented), last {train[-1]:.4g}")
        ax.plot(epochs, test, color=TEST, marker=".", label=f"test, last {test[-1]:.4g}")
        ax.set(xlabel="epoch", ylabel=name)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3)
        ax.legend()
    return fig


def accuracy_curves(curves: Mapping[str, Sequence[float]], data_name: str) -> Figure:
    """Test accuracy in percent per epoch, one curve per run: ``{label: accuracies}``."""
    fig, (ax,) = figure(1, 1, (9, 4.5), f"Test accuracy · {data_name}")
    for label, accuracies in curves.items():
        ax.plot(range(1, len(accuracies) + 1), accuracies, marker=".", label=f"{label}: {accuracies[-1]:.1f}%")
    ax.set(xlabel="epoch", ylabel="test accuracy in %")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(alpha=0.3)
    ax.legend()
    return fig


def lr_finder(
    lrs: Sequence[float],
    losses: Sequence[float],
    divergence_lr: float,
    diverges: bool,
    suggestion: float,
    data_name: str,
) -> Figure:
    """The loss of the range test, the learning rate where it rises again or stops falling, and the suggested max LR.

    See ``utils.schedule.LRSearch``.
    """
    fig, (ax,) = figure(1, 1, (7, 4), f"LR finder · {data_name}")
    ax.plot(lrs, losses, color=TRAIN)
    suggested = f"suggested max LR: {suggestion:.4f}"
    if diverges:
        label = f"rises again at {divergence_lr:.4f}"
        share = "a third" if math.isclose(divergence_lr, 3 * suggestion) else f"1/{divergence_lr / suggestion:.0f}"
        suggested += f", {share} of it"
    else:
        label = f"stops falling at {divergence_lr:.4f}; the search ended at {lrs[-1]:.4f}"
    ax.axvline(divergence_lr, color="gray", linestyle=":", label=label)
    ax.axvline(suggestion, color=TEST, label=suggested)
    # The losses after divergence would flatten the interesting part.
    ax.set_ylim(min(losses) - 0.1, losses[0] + (losses[0] - min(losses)) / 2 + 0.1)
    ax.set(xscale="log", xlabel="learning rate", ylabel="training loss (smoothed)")
    ax.grid(alpha=0.3)
    ax.legend()
    return fig


def lr_history(history: History, data_name: str) -> Figure:
    """The learning rate of each step."""
    fig, (ax,) = figure(1, 1, (7, 4), f"Learning rate of each step · {data_name}")
    ax.plot(history.step_lr, color=TRAIN)
    top = max(range(len(history.step_lr)), key=history.step_lr.__getitem__)
    ax.plot(
        top, history.step_lr[top], "o", color=TEST, label=f"maximum: {history.step_lr[top]:.4f} at step {top + 1:,}"
    )
    ax.set(xlabel=f"step ({len(history.step_lr):,} in {len(history.lr)} epochs)", ylabel="learning rate")
    ax.grid(alpha=0.3)
    ax.legend()
    return fig


def confusion_matrix(logits: Tensor, labels: Tensor, classes: Sequence[str], data_name: str) -> Figure:
    """Confusion matrix of the test images: logits ``(N, C)``, labels ``(N,)``."""
    from sklearn.metrics import ConfusionMatrixDisplay  # here, because its import takes a second

    fig, (ax,) = figure(1, 1, (8, 7), f"Confusion matrix of the test images · {data_name}")
    ConfusionMatrixDisplay.from_predictions(
        labels.cpu().numpy(),
        logits.argmax(dim=1).cpu().numpy(),
        labels=range(len(classes)),
        display_labels=classes,
        cmap="Blues",
        colorbar=False,
        xticks_rotation=45,
        ax=ax,
    )
    return fig


def accuracy_by_class(logits: Tensor, labels: Tensor, classes: Sequence[str], data_name: str) -> Figure:
    """Test accuracy of each class in percent: logits ``(N, C)``, labels ``(N,)``."""
    labels, hits = labels.cpu(), (logits.argmax(dim=1) == labels).cpu()
    accuracies = [100 * hits[labels == index].float().mean().item() for index in range(len(classes))]
    fig, (ax,) = figure(1, 1, (7, 4), f"Accuracy by class · {data_name}")
    ax.bar_label(ax.barh(classes, accuracies, color=TRAIN), fmt="%.1f%%", padding=3)
    ax.set(xlabel="test accuracy in %", xlim=(0, 112), xticks=range(0, 101, 20))
    ax.invert_yaxis()
    return fig


def signal_rank(spectra: dict[str, Tensor], data_name: str) -> Figure:
    """Singular values of the signal after each stage, one panel per network: ``{title: (5, 48)}``.

    See ``utils.explain.signal_spectra``. After a block, only the eight largest can be nonzero.
    """
    stages = ("convolutions", "block 1", "block 2", "block 3", "block 4")
    fig, axes = figure(1, len(spectra), (3.6 * len(spectra), 4), f"How much of the signal survives · {data_name}")
    for ax, (title, values) in zip(axes, spectra.items()):
        for stage, row, color in zip(stages, values[:, :8], plt.cm.viridis(torch.linspace(0, 0.9, 5).numpy())):
            ax.semilogy(range(1, 9), row.clamp(min=1e-6), color=color, marker=".", label=stage)
        ax.set(title=title, xlabel="direction", xticks=range(1, 9), ylim=(1e-6, 1e3))
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("singular value, mean removed")
    axes[-1].legend(fontsize=8, loc="lower left")
    return fig


def attention_maps(maps: Tensor, images: Tensor, titles: Sequence[str], data_name: str) -> Figure:
    """One row per image: the image ``(N, 3, H, W)``, 0 to 1, and its four AM ``(N, 4, 8, 8)`` with a common color scale."""
    fig, axes = figure(len(images), 5, (9, 0.5 + 1.8 * len(images)), f"Attention matrix AM of each block · {data_name}")
    shades = PowerNorm(0.5, vmin=0, vmax=float(maps.max()))  # uniform attention is 0.04: dark, but not black
    for i, (image, title) in enumerate(zip(images.cpu(), titles)):
        first, *others = axes[5 * i : 5 * i + 5]
        first.imshow(image.permute(1, 2, 0).numpy())
        first.set_title(title, fontsize=9)
        first.axis("off")
        for block, ax in enumerate(others):
            drawn = ax.imshow(maps[i, block], norm=shades, cmap="magma")
            ax.set(xticks=[], yticks=[])
            if i == 0:
                ax.set_title(f"block {block + 1}", fontsize=9)
    axes[1].set_ylabel("row: feature of Q", fontsize=8)
    axes[1].set_xlabel("column: feature of K", fontsize=8)
    fig.colorbar(drawn, ax=axes, shrink=0.5, label="attention (a row sums to 1/√8)")
    return fig
