"""One function per picture: each takes a run (``utils/runs/run.py``) and returns a Figure, saved as ``<function>.png``."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

from utils import explain

TRAIN, TEST = "tab:blue", "tab:orange"


@contextmanager
def style() -> Iterator[None]:
    """Draw alike whatever the user's matplotlibrc says; characters that the font lacks become boxes."""
    with plt.rc_context({"text.usetex": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield


def plain(text: str) -> str:
    """``text`` as it is: between two dollar signs, matplotlib reads mathematics."""
    return text.replace("$", r"\$")


def figure(rows: int, columns: int, size: tuple[float, float], title: str) -> tuple[Figure, list]:
    """A figure with a title, and its axes row by row. It is closed, so that a notebook shows it only on demand."""
    fig, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", dpi=100)
    plt.close(fig)
    fig.suptitle(plain(title))
    return fig, list(axes.flat)


def line_plot(ax, **labels) -> None:
    """Axis labels, a grid and the legend of a plot of lines."""
    ax.set(**labels)
    if labels["xlabel"] == "epoch":
        ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(alpha=0.3)
    ax.legend()


def gallery(images: Sequence[Tensor], titles: Sequence[str], title: str, columns: int = 5) -> Figure:
    """Images ``(3, H, W)`` on the scale 0 to 1 with their titles."""
    rows = max(1, -(-len(images) // columns))
    fig, axes = figure(rows, columns, (1.7 * columns, 0.4 + 1.95 * rows), title)
    for ax in axes:
        ax.axis("off")
    for ax, image, text in zip(axes, images, titles):
        ax.imshow(image.permute(1, 2, 0).cpu().numpy())  # (H, W, 3)
        ax.set_title(plain(text), fontsize=9)
    return fig


def sample_training_images(run) -> Figure:
    """20 augmented training images as the network sees them, but denormalized."""
    images, labels = run.sample
    titles = [run.data.classes[label] for label in labels[:20].tolist()]
    images = run.data.normalize.inverse(images[:20])
    return gallery(images, titles, f"Training images after augmentation · {run.data.name}")


def misclassified(logits: Tensor, labels: Tensor, count: int = 10) -> Tensor:
    """Indices of up to ``count`` misclassified images, evenly spaced among all misclassified images."""
    wrong = (logits.argmax(dim=1) != labels).nonzero().flatten().cpu()
    return wrong[torch.linspace(0, len(wrong) - 1, min(count, len(wrong))).long()]


def misclassified_images(run) -> Figure:
    """Up to ``run.session.misclassified`` misclassified test images."""
    logits, labels = run.predictions
    chosen = misclassified(logits, labels, run.session.misclassified)
    wrong = int((logits.argmax(dim=1) != labels).sum())
    title = f"{len(chosen)} of {wrong:,} misclassified of {len(labels):,} test images · {run.data.name}"
    return gallery(run.data.test_images[chosen] / 255, predicted_and_true(run, chosen), title)


def predicted_and_true(run, indices: Tensor) -> list[str]:
    """Titles for some test images: the predicted and the true class."""
    logits, labels = (values[indices] for values in run.predictions)
    names = run.data.classes
    pairs = zip(logits.argmax(dim=1).tolist(), labels.tolist())
    return [f"{names[predicted]}\n(true: {names[true]})" for predicted, true in pairs]


def grad_cam(run) -> Figure:
    """Ten misclassified images, each with Grad-CAM's heat maps for the predicted and for the true class, two per row."""
    from pytorch_grad_cam.utils.image import show_cam_on_image  # here, because session 9 does not need it

    ten = misclassified(*run.predictions)
    logits, labels = (values[ten].cpu() for values in run.predictions)
    classes, inputs = {"predicted": logits.argmax(dim=1), "true": labels}, run.normalized(ten)
    heats = {role: explain.grad_cam(run.model, "layer3", inputs, indices) for role, indices in classes.items()}
    probabilities, images, titles = 100 * logits.softmax(dim=1), [], []
    for i, image in enumerate(run.data.test_images[ten] / 255):
        images.append(image)
        titles.append("")
        for role, indices in classes.items():
            overlay = show_cam_on_image(image.permute(1, 2, 0).numpy(), heats[role][i].numpy(), use_rgb=True)
            images.append(torch.from_numpy(overlay).permute(2, 0, 1) / 255)  # (3, H, W)
            titles.append(f"{role}: {run.data.classes[indices[i]]}\n{probabilities[i, indices[i]]:.1f}%")
    return gallery(images, titles, f"Grad-CAM for the predicted and the true class · {run.data.name}", columns=6)


def loss_and_accuracy_graphs(run) -> Figure:
    """Training and test loss and accuracy per epoch."""
    history = run.history
    epochs = range(1, len(history.lr) + 1)
    fig, (left, right) = figure(1, 2, (11, 4), f"Loss and accuracy · {run.data.name}")
    for ax, train, test, name in (
        (left, history.train_loss, history.test_loss, "mean cross-entropy"),
        (right, history.train_accuracy, history.test_accuracy, "accuracy in %"),
    ):
        ax.plot(epochs, train, color=TRAIN, marker=".", label=f"train (augmented), last {train[-1]:.4g}")
        ax.plot(epochs, test, color=TEST, marker=".", label=f"test, last {test[-1]:.4g}")
        line_plot(ax, xlabel="epoch", ylabel=name)
    return fig


def accuracy_curves(curves: Mapping[str, Sequence[float]], data_name: str) -> Figure:
    """Test accuracy in percent per epoch, one curve per run: ``{label: accuracies}``."""
    fig, (ax,) = figure(1, 1, (7, 4.5), f"Test accuracy · {data_name}")
    for label, accuracies in curves.items():
        ax.plot(range(1, len(accuracies) + 1), accuracies, marker=".", label=f"{label}: {accuracies[-1]:.1f}%")
    line_plot(ax, xlabel="epoch", ylabel="test accuracy in %")
    return fig


def lr_finder_plot(run) -> Figure:
    """The loss of the range test, the learning rate where it is back at its start or stops falling, and the suggested max LR."""
    search = run.search
    fig, (ax,) = figure(1, 1, (7, 4), f"LR finder · {run.data.name}")
    ax.plot(search.lrs, search.losses, color=TRAIN)
    suggested = f"suggested max LR: {search.suggestion:.4f}"
    if search.diverges:
        label = f"back at its start at {search.divergence_lr:.4f}"
        suggested += f", 1/{search.divergence_lr / search.suggestion:.0f} of it"
    else:
        label = f"stops falling at {search.divergence_lr:.4f}; the search ended at {search.lrs[-1]:.4f}"
    ax.axvline(search.divergence_lr, color="gray", linestyle=":", label=label)
    ax.axvline(search.suggestion, color=TEST, label=suggested)
    # The losses after divergence would flatten the interesting part.
    start, lowest = search.losses[0], min(search.losses)
    ax.set_ylim(lowest - 0.1, start + (start - lowest) / 2 + 0.1)
    line_plot(ax, xscale="log", xlabel="learning rate", ylabel="training loss (smoothed)")
    return fig


def lr_history_plot(run) -> Figure:
    """The learning rate of each step."""
    lrs = run.history.step_lr
    top = lrs.index(max(lrs))
    fig, (ax,) = figure(1, 1, (7, 4), f"Learning rate of each step · {run.data.name}")
    ax.plot(lrs, color=TRAIN)
    ax.plot(top, lrs[top], "o", color=TEST, label=f"maximum: {lrs[top]:.4f} at step {top + 1:,}")
    line_plot(ax, xlabel=f"step ({len(lrs):,} in {len(run.history.lr)} epochs)", ylabel="learning rate")
    return fig


def confusion_matrix(run) -> Figure:
    """How many test images of each class (rows) are predicted as each class (columns)."""
    from sklearn import metrics  # here, because its import takes a second

    logits, labels = run.predictions
    fig, (ax,) = figure(1, 1, (8, 7), f"Confusion matrix of the test images · {run.data.name}")
    names = list(map(plain, run.data.classes))
    counts = metrics.confusion_matrix(labels.cpu().numpy(), logits.argmax(1).cpu().numpy(), labels=range(len(names)))
    display = metrics.ConfusionMatrixDisplay(counts, display_labels=names)
    display.plot(cmap="Blues", ax=ax, xticks_rotation=45, colorbar=False)
    return fig


def signal_rank(run) -> Figure:
    """Singular values of the signal after each stage, one panel per network; after a block, at most eight are nonzero."""
    images = run.normalized(torch.arange(0, len(run.data.test_labels), max(1, len(run.data.test_labels) // 500)))
    networks = explain.initial_networks() | {"the same, trained": run.model}
    stages = ("convolutions", "block 1", "block 2", "block 3", "block 4")
    fig, axes = figure(2, 2, (6.4, 6.4), f"How much of the signal survives · {run.data.name}")
    for ax, (title, network) in zip(axes, networks.items()):
        spectra = explain.signal_spectra(network.to(images.device), images)  # (5, 48)
        for stage, row, color in zip(stages, spectra[:, :8], plt.cm.viridis(torch.linspace(0, 0.9, 5).numpy())):
            ax.semilogy(range(1, len(row) + 1), row.clamp(min=1e-6), color=color, marker=".", label=stage)
        ax.set(title=title, xticks=range(1, 9), ylim=(1e-6, 1e3))
        ax.grid(alpha=0.3)
    fig.supxlabel("direction")
    fig.supylabel("singular value, mean removed")
    axes[-1].legend(loc="lower left")
    return fig


def attention_maps(run) -> Figure:
    """Six test images, each with the attention matrices AM of the four ULTIMUS blocks, in a common color scale."""
    six = torch.arange(6) * (len(run.data.test_labels) // 6)
    maps = explain.attention_maps(run.model, run.normalized(six))  # (6, 4, 8, 8)
    fig, axes = figure(6, 5, (9, 11.3), f"Attention matrix AM of each block · {run.data.name}")
    shades = PowerNorm(0.5, vmin=0, vmax=float(maps.max()))  # uniform attention is 0.04: dark, but not black
    for i, (image, title) in enumerate(zip(run.data.test_images[six], predicted_and_true(run, six))):
        first, *others = axes[5 * i : 5 * i + 5]
        first.imshow(image.permute(1, 2, 0).numpy())  # (H, W, 3)
        first.set_title(plain(title), fontsize=9)
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
