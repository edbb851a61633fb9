"""Every picture shows its input."""

import pytest
import torch

from utils import plots
from utils.training import History

CLASSES = [f"class {i}" for i in range(10)]


@pytest.fixture
def answers():
    """100 images, 30 of them misclassified as the next class."""
    torch.manual_seed(0)
    labels = torch.arange(100) % 10
    predicted = torch.where(torch.arange(100) < 30, (labels + 1) % 10, labels)
    return torch.rand(100, 3, 32, 32), torch.nn.functional.one_hot(predicted, 10).float(), labels


@pytest.fixture
def history():
    return History(
        [0.01, 0.001], [2.0, 1.5], [20.0, 40.0], [1.9, 1.6], [25.0, 41.0], [3.0, 3.0], [0.005, 0.01, 0.005, 0.001]
    )


def test_sample_images(answers, tmp_path):
    images, _, labels = answers
    figure = plots.sample_images(images, labels, CLASSES, "digits")
    assert [ax.get_title() for ax in figure.axes] == [CLASSES[i % 10] for i in range(20)]
    assert "digits" in figure.get_suptitle()
    assert (figure.axes[3].images[0].get_array() == images[3].permute(1, 2, 0).numpy()).all()
    figure.savefig(tmp_path / "picture.png")


def test_misclassified_images(answers):
    images, logits, labels = answers
    figure = plots.misclassified_images(images, logits, labels, CLASSES, "digits")
    assert figure.get_suptitle() == "20 of 30 misclassified of 100 test images · digits"
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[0] == "class 1\n(true: class 0)" and titles[-1] == "class 0\n(true: class 9)"


def test_misclassified_are_spread_over_all_that_are_wrong(answers):
    _, logits, labels = answers
    assert plots.misclassified(logits, labels, 4).tolist() == [0, 9, 19, 29]


@pytest.mark.parametrize("count", [0, 1, 4])
def test_grad_cam(answers, count):
    images, logits, labels = (values[:count] for values in answers)
    heats = torch.zeros(count, 32, 32), torch.ones(count, 32, 32)
    figure = plots.grad_cam(images, heats, 5 * logits, labels, CLASSES, "digits")
    shown = [ax for ax in figure.axes if ax.images]
    assert len(shown) == 3 * count and "digits" in figure.get_suptitle()
    figure.canvas.draw()
    if count:
        titles = [ax.get_title() for ax in shown[:3]]
        assert titles == ["", "predicted: class 1\n94.3%", "true: class 0\n0.6%"]
        plain, answer, truth = (ax.images[0].get_array() for ax in shown[:3])
        assert (plain == images[0].permute(1, 2, 0).numpy()).all()
        blue, red = answer.astype(float).mean((0, 1)), truth.astype(float).mean((0, 1))  # cold and hot
        assert blue[2] > blue[0] + 50 and red[0] > red[2] + 50


@pytest.mark.parametrize("wrong", [0, 1, 7])
def test_few_misclassified_images(answers, wrong):
    images, _, labels = answers
    predicted = labels.clone()
    predicted[:wrong] = (labels[:wrong] + 1) % 10
    figure = plots.misclassified_images(images, torch.nn.functional.one_hot(predicted, 10), labels, CLASSES, "digits")
    assert sum(bool(ax.images) for ax in figure.axes) == wrong
    figure.canvas.draw()


def test_loss_and_accuracy(history):
    losses, accuracies = plots.loss_and_accuracy(history, "digits").axes
    assert [line.get_ydata().tolist() for line in losses.lines] == [[2.0, 1.5], [1.9, 1.6]]
    assert [line.get_ydata().tolist() for line in accuracies.lines] == [[20.0, 40.0], [25.0, 41.0]]


def test_lr_pictures(history):
    steps, top = plots.lr_history(history, "digits").axes[0].lines
    assert steps.get_ydata().tolist() == history.step_lr and top.get_xdata() == [1]
    curve, divergence, mark = (
        plots.lr_finder([1e-3, 1e-2, 1e-1], [2.3, 2.0, 2.6], 1e-1, True, 2e-2, "digits").axes[0].lines
    )
    assert curve.get_ydata().tolist() == [2.3, 2.0, 2.6]
    assert divergence.get_xdata() == [1e-1, 1e-1] and mark.get_xdata() == [2e-2, 2e-2]
    assert divergence.get_label() == "rises again at 0.1000"
    _, end, _ = plots.lr_finder([1e-3, 1.0, 10.0], [2.3, 2.0, 2.1], 1.0, False, 0.3, "digits").axes[0].lines
    assert end.get_label() == "stops falling at 1.0000; the search ended at 10.0000"


def test_accuracy_curves():
    figure = plots.accuracy_curves({"ours": [20.0, 40.5], "theirs": [10.0, 10.0]}, "digits")
    ours, theirs = figure.axes[0].lines
    assert ours.get_ydata().tolist() == [20.0, 40.5] and ours.get_xdata().tolist() == [1, 2]
    assert (ours.get_label(), theirs.get_label()) == ("ours: 40.5%", "theirs: 10.0%")


def test_confusion_matrix(answers):
    _, logits, labels = answers
    figure = plots.confusion_matrix(logits, labels, CLASSES, "digits")
    cells = figure.axes[0].images[0].get_array()  # row: true class, column: answer
    assert cells[0, 0] == 7 and cells[0, 1] == 3 and cells.sum() == 100


def test_accuracy_by_class(answers):
    _, logits, labels = answers
    labels = torch.where(torch.arange(100) < 10, 0, labels)  # ten more of class 0
    figure = plots.accuracy_by_class(logits, labels, CLASSES, "digits")
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    right = logits.argmax(dim=1) == labels
    assert widths == pytest.approx([100 * right[labels == i].float().mean().item() for i in range(10)])
    assert len(set(widths)) > 1 and figure.axes[0].yaxis_inverted()
    figure.canvas.draw()
