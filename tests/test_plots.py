"""Every picture shows its run."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from models.model9 import TransformerModel
from utils import explain, plots
from utils.data import ImageData
from utils.schedule import LRSearch
from utils.sessions import SESSIONS
from utils.training import History

CLASSES = tuple(f"class {i}" for i in range(10))


@pytest.fixture
def run():
    """A stand-in for a run: 100 test images, the first 30 misclassified as the next class."""
    torch.manual_seed(0)
    images, labels = torch.randint(256, (100, 3, 32, 32), dtype=torch.uint8), torch.arange(100) % 10
    data = ImageData("digits", CLASSES, images, labels, images, labels, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    epochs = [0.01, 0.001], [2.0, 1.5], [20.0, 40.0], [1.9, 1.6], [25.0, 41.0], [3.0, 3.0]
    history = History(*epochs, step_lr=[0.005, 0.01, 0.005, 0.001])
    return SimpleNamespace(
        session=SESSIONS[9], data=data, history=history, predictions=predictions(labels, 30), model=TransformerModel(),
        sample=(data.normalize(images), labels), normalized=lambda indices: data.normalize(images[indices]),
    )  # fmt: skip


def predictions(labels, wrong: int):
    predicted = torch.where(torch.arange(len(labels)) < wrong, (labels + 1) % 10, labels)
    return 5 * F.one_hot(predicted, 10).float(), labels


def test_sample_training_images(run):
    figure = plots.sample_training_images(run)
    assert [ax.get_title() for ax in figure.axes] == [CLASSES[i % 10] for i in range(20)]
    assert "digits" in figure.get_suptitle()
    shown = torch.tensor(figure.axes[3].images[0].get_array())
    torch.testing.assert_close(shown, run.data.test_images[3].permute(1, 2, 0) / 255, rtol=0, atol=1e-6)


def test_misclassified_images(run):
    figure = plots.misclassified_images(run)
    assert figure.get_suptitle() == "20 of 30 misclassified of 100 test images · digits"
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[0] == "class 1\n(true: class 0)" and titles[-1] == "class 0\n(true: class 9)"
    shown = torch.tensor(figure.axes[0].images[0].get_array())
    assert torch.equal(shown, run.data.test_images[0].permute(1, 2, 0) / 255)
    assert plots.misclassified(*run.predictions, count=4).tolist() == [0, 9, 19, 29]  # spread over all
    run.session = SESSIONS[7]
    assert len(plots.misclassified_images(run).axes) == 10


@pytest.mark.parametrize("wrong", [0, 1, 3])
def test_few_misclassified_images(run, wrong, monkeypatch):
    """Grad-CAM explains the predicted class in the middle and the true class on the right."""
    run.predictions = predictions(run.data.test_labels, wrong)
    assert sum(bool(ax.images) for ax in plots.misclassified_images(run).axes) == wrong
    cold_for_odd = lambda *arguments: (1.0 - arguments[-1] % 2)[:, None, None].expand(-1, 32, 32)  # noqa: E731
    monkeypatch.setattr(explain, "grad_cam", cold_for_odd)
    figure = plots.grad_cam(run)
    figure.canvas.draw()
    shown = [ax for ax in figure.axes if ax.images]
    assert len(shown) == 3 * wrong and "digits" in figure.get_suptitle()
    if wrong:
        titles = [ax.get_title() for ax in shown[:3]]
        assert titles == ["", "predicted: class 1\n94.3%", "true: class 0\n0.6%"]
        plain, predicted, true = (torch.tensor(ax.images[0].get_array()).double() for ax in shown[:3])
        assert torch.equal(plain, (run.data.test_images[0].permute(1, 2, 0) / 255).double())
        blue, red = predicted.mean((0, 1)), true.mean((0, 1))
        assert blue[2] > blue[0] + 0.2 and red[0] > red[2] + 0.2


def test_curves(run):
    losses, accuracies = plots.loss_and_accuracy_graphs(run).axes
    assert [line.get_ydata().tolist() for line in losses.lines] == [[2.0, 1.5], [1.9, 1.6]]
    assert [line.get_ydata().tolist() for line in accuracies.lines] == [[20.0, 40.0], [25.0, 41.0]]
    steps, top = plots.lr_history_plot(run).axes[0].lines
    assert steps.get_ydata().tolist() == run.history.step_lr and top.get_xdata() == [1]
    figure = plots.accuracy_curves({"ours": [20.0, 40.5], "theirs": [10.0, 10.0]}, "digits")
    ours, theirs = figure.axes[0].lines
    assert ours.get_ydata().tolist() == [20.0, 40.5] and ours.get_xdata().tolist() == [1, 2]
    assert (ours.get_label(), theirs.get_label()) == ("ours: 40.5%", "theirs: 10.0%")


@pytest.mark.parametrize("search, labels", [
    (LRSearch([1e-3, 1e-2, 1e-1], [2.3, 2.0, 2.6], 0.06, True, 0.02), ["0.0600", "0.0200, 1/3 of it"]),
    (LRSearch([1e-3, 1e-2, 1e-1], [2.3, 2.0, 2.6], 0.06, True, 0.01), ["0.0600", "0.0100, 1/6 of it"]),
    (LRSearch([1e-3, 1.0, 10.0], [2.3, 2.0, 2.1], 1.0, False, 1.0), ["1.0000; the search ended at 10.0000", "1.0000"]),
])  # fmt: skip
def test_lr_finder_plot(run, search, labels):
    run.search = search
    curve, rise, suggestion = plots.lr_finder_plot(run).axes[0].lines
    assert curve.get_xdata().tolist() == search.lrs and curve.get_ydata().tolist() == search.losses
    assert rise.get_xdata() == [search.divergence_lr] * 2 and suggestion.get_xdata() == [search.suggestion] * 2
    assert rise.get_label().endswith(labels[0]) and suggestion.get_label().endswith(labels[1])


def test_confusion_matrix(run):
    cells = plots.confusion_matrix(run).axes[0].images[0].get_array()  # row: true class, column: predicted class
    assert cells[0, 0] == 7 and cells[0, 1] == 3 and cells.sum() == 100


def test_signal_rank(run):
    figure = plots.signal_rank(run)
    titles = ["PyTorch's initialization", "the same, trained on CIFAR-10", "our initialization", "the same, trained"]
    assert [ax.get_title() for ax in figure.axes] == titles
    expected = explain.signal_spectra(run.model, run.normalized(torch.arange(100)))  # of the run's network
    for line, row in zip(figure.axes[3].lines, expected):
        torch.testing.assert_close(torch.tensor(line.get_ydata()), row[:8].clamp(min=1e-6))


def test_attention_maps(run):
    figure = plots.attention_maps(run)
    images = [ax.images[0].get_array() for ax in figure.axes[:30]]
    maps = explain.attention_maps(run.model, run.normalized(torch.tensor([0, 16])))
    assert torch.equal(torch.tensor(images[5]), run.data.test_images[16].permute(1, 2, 0))
    torch.testing.assert_close(torch.tensor(images[6].data), maps[1, 0])
