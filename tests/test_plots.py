"""Every picture shows what it is given."""

import struct
import sys
import warnings

import IPython.display
import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.model9 import TransformerModel
from tests.conftest import SESSION9
from tests.small import FEW_DIGITS
from utils import explain, plots
from utils.data import ImageData, make_loaders, sample_batch
from utils.runs.run import Run, as_png
from utils.schedule import LRSearch
from utils.training import History

CLASSES = tuple(f"class {i}" for i in range(10))
HISTORY = History(
    lr=[0.01, 0.001],
    train_loss=[2.0, 1.5],
    train_accuracy=[20.0, 40.0],
    test_loss=[1.9, 1.6],
    test_accuracy=[25.0, 41.0],
    seconds=[3.0, 3.0],
    step_lr=[0.005, 0.01, 0.005, 0.001],
)
DIVERGES = LRSearch([1e-3, 1e-2, 1e-1], [2.3, 2.0, 2.6], 0.06, True, 0.02)
DIVERGES_LATE = LRSearch([1e-3, 1e-2, 1e-1], [2.3, 2.0, 2.6], 0.06, True, 0.01)
NEVER_DIVERGES = LRSearch([1e-3, 1.0, 10.0], [2.3, 2.0, 2.1], 1.0, False, 1.0)


@pytest.fixture
def data():
    """100 images of noise, whose labels count from 0 to 9 and again."""
    torch.manual_seed(0)
    images = torch.randint(256, (100, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(100) % 10
    mean = (0.5, 0.4, 0.3)
    std = (0.2, 0.2, 0.2)
    return ImageData("digits", CLASSES, images, labels, images, labels, mean, std)


@pytest.fixture
def predictions(data):
    """The first 30 images are misclassified as the next class."""
    return predictions_with(30, data)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TransformerModel()


def predictions_with(wrong, data, strength=5.0):
    """Logits in favor of the true class or, in the first ``wrong`` images, of the next one."""
    labels = data.test_labels
    is_wrong = torch.arange(len(labels)) < wrong
    predicted = torch.where(is_wrong, (labels + 1) % 10, labels)
    return strength * F.one_hot(predicted, 10).float(), labels


def titles_of(figure):
    return [ax.get_title() for ax in figure.axes]


def labels_of(ax):
    """The texts of the legend."""
    return [text.get_text() for text in ax.get_legend().get_texts()]


def curves_of(ax):
    return [line.get_ydata().tolist() for line in ax.lines]


def shown_in(ax):
    """The image that ``ax`` shows, as a tensor."""
    return torch.tensor(ax.images[0].get_array().tolist(), dtype=torch.float64)


def pixels_of(image):
    """``(3, H, W)`` bytes as matplotlib shows them: ``(H, W, 3)``, from 0 to 1."""
    return (image.permute(1, 2, 0) / 255).double()


# Galleries of images


@pytest.fixture
def loader(data):
    train_loader, _ = make_loaders(data, data.normalize, 25, torch.device("cpu"))
    return train_loader


def test_sample_training_images_are_named_by_their_classes(loader, data):
    _, labels = sample_batch(loader)
    titles = titles_of(plots.sample_training_images(loader, data))
    assert titles == [CLASSES[label] for label in labels[:20]]


def test_sample_training_images_have_their_colors_again(loader, data):
    images, _ = sample_batch(loader)
    figure = plots.sample_training_images(loader, data)
    colors = data.normalize.inverse(images[3]).permute(1, 2, 0).double()
    torch.testing.assert_close(shown_in(figure.axes[3]), colors, rtol=0, atol=1e-6)


def test_misclassified_images_are_counted(predictions, data):
    figure = plots.misclassified_images(predictions, data, 20)
    assert figure.get_suptitle() == "20 of 30 misclassified of 100 test images · digits"
    assert len(figure.axes) == 20


def test_misclassified_images_are_ten_by_default(predictions, data):
    assert len(plots.misclassified_images(predictions, data).axes) == 10


def test_misclassified_images_are_titled_by_predicted_and_true_class(predictions, data):
    titles = titles_of(plots.misclassified_images(predictions, data, 20))
    assert titles[0] == "predicted class 1 (94%)\ntrue class 0"
    assert titles[-1] == "predicted class 0 (94%)\ntrue class 9"


def test_misclassified_images_are_titled_by_the_probability(data):
    logits = torch.full((1, 10), -100.0)
    logits[0, 1] = 0.2819  # of 1 and 2, 57% and 43%
    logits[0, 2] = 0.0
    titles = titles_of(plots.misclassified_images((logits, torch.tensor([0])), data))
    assert titles[0] == "predicted class 1 (57%)\ntrue class 0"


def test_misclassified_images_are_the_test_images(predictions, data):
    figure = plots.misclassified_images(predictions, data, 20)
    assert torch.equal(shown_in(figure.axes[0]), pixels_of(data.test_images[0]))
    assert torch.equal(shown_in(figure.axes[-1]), pixels_of(data.test_images[29]))


def test_misclassified_images_are_chosen_among_all(predictions):
    assert plots.misclassified(predictions, count=4).tolist() == [0, 9, 19, 29]


@pytest.mark.parametrize("wrong", [0, 1, 3])
def test_few_misclassified_images_leave_places_empty(data, wrong):
    figure = plots.misclassified_images(predictions_with(wrong, data), data)
    assert sum(len(ax.images) for ax in figure.axes) == wrong


@pytest.fixture
def cold_for_odd_classes(monkeypatch):
    """Heat maps of ones for even and of zeros for odd classes."""

    def grad_cam(model, layer, images, classes):
        assert layer == "layer3"
        return (1.0 - classes % 2)[:, None, None].expand(-1, 32, 32)

    monkeypatch.setattr(explain, "grad_cam", grad_cam)


@pytest.mark.parametrize("wrong", [0, 1, 3])
def test_grad_cam_shows_three_images_each(cold_for_odd_classes, model, data, wrong):
    figure = plots.grad_cam(model, predictions_with(wrong, data), data)
    as_png(figure)  # that of no images can be drawn, too
    assert sum(len(ax.images) for ax in figure.axes) == 3 * wrong


def test_grad_cam_is_titled_by_class_and_probability(
    cold_for_odd_classes, model, predictions, data
):
    titles = titles_of(plots.grad_cam(model, predictions, data))
    assert titles[:3] == ["", "predicted: class 1\n94.3%", "true: class 0\n0.6%"]


def test_grad_cam_shows_the_image_first(cold_for_odd_classes, model, predictions, data):
    figure = plots.grad_cam(model, predictions, data)
    assert torch.equal(shown_in(figure.axes[0]), pixels_of(data.test_images[0]))


def test_grad_cam_shows_the_predicted_class_before_the_true_one(
    cold_for_odd_classes, model, predictions, data
):
    figure = plots.grad_cam(model, predictions, data)
    predicted = shown_in(figure.axes[1]).mean(dim=(0, 1))
    true = shown_in(figure.axes[2]).mean(dim=(0, 1))
    assert predicted[2] > predicted[0] + 0.2  # class 1 is cold: blue
    assert true[0] > true[2] + 0.2  # class 0 is hot: red


def test_grad_cam_explains_the_network_on_its_inputs(monkeypatch, model, predictions, data):
    calls = []

    def grad_cam(*arguments):
        calls.append(arguments)
        return torch.zeros(10, 32, 32)

    monkeypatch.setattr(explain, "grad_cam", grad_cam)
    plots.grad_cam(model, predictions, data)
    for explained, _, inputs, _ in calls:
        assert explained is model
        torch.testing.assert_close(inputs[0], data.normalize(data.test_images[:1])[0])


# Curves


def test_losses_and_accuracies_are_those_of_the_history(data):
    losses, accuracies = plots.loss_and_accuracy_graphs(HISTORY, data).axes
    assert curves_of(losses) == [HISTORY.train_loss, HISTORY.test_loss]
    assert curves_of(accuracies) == [HISTORY.train_accuracy, HISTORY.test_accuracy]


def test_epochs_count_from_1(data):
    losses, _ = plots.loss_and_accuracy_graphs(HISTORY, data).axes
    assert losses.lines[0].get_xdata().tolist() == [1, 2]


def test_legend_shows_the_last_values(data):
    losses, accuracies = plots.loss_and_accuracy_graphs(HISTORY, data).axes
    assert labels_of(losses) == ["train (augmented), last 1.5", "test, last 1.6"]
    assert labels_of(accuracies) == ["train (augmented), last 40", "test, last 41"]


def test_legend_names_the_label_smoothing_of_the_training_loss(data):
    losses, accuracies = plots.loss_and_accuracy_graphs(HISTORY, data, 0.2).axes
    with_smoothing = [text for text in labels_of(losses) if "label smoothing 0.2" in text]
    assert with_smoothing == [labels_of(losses)[0]]
    assert "smoothing" not in " ".join(labels_of(accuracies))


def test_learning_rates_are_those_of_the_steps(data):
    (ax,) = plots.lr_history_plot(HISTORY, data).axes
    assert curves_of(ax)[0] == HISTORY.step_lr


def test_highest_learning_rate_is_marked(data):
    (ax,) = plots.lr_history_plot(HISTORY, data).axes
    assert ax.lines[1].get_xdata() == [1]
    assert labels_of(ax) == ["maximum: 0.0100 at step 2"]


def test_accuracy_curves_are_drawn_and_labeled():
    curves = {"ours": [20.0, 40.5], "theirs": [10.0, 10.0]}
    (ax,) = plots.accuracy_curves(curves, "digits").axes
    assert curves_of(ax) == list(curves.values())
    assert ax.lines[0].get_xdata().tolist() == [1, 2]
    assert labels_of(ax) == ["ours: 40.5%", "theirs: 10.0%"]


@pytest.mark.parametrize("search", [DIVERGES, NEVER_DIVERGES])
def test_lr_finder_plot_shows_the_search(data, search):
    (ax,) = plots.lr_finder_plot(search, data).axes
    curve, divergence, suggestion = ax.lines
    assert curve.get_xdata().tolist() == search.lrs
    assert curve.get_ydata().tolist() == search.losses
    assert divergence.get_xdata() == [search.limit_lr] * 2
    assert suggestion.get_xdata() == [search.suggestion] * 2


@pytest.mark.parametrize(
    "search, divergence, suggestion",
    [
        (DIVERGES, "0.0600", "0.0200, 1/3 of it"),
        (DIVERGES_LATE, "0.0600", "0.0100, 1/6 of it"),
        (NEVER_DIVERGES, "1.0000; the search ended at 10.0000", "1.0000"),
    ],
)
def test_lr_finder_plot_is_labeled(data, search, divergence, suggestion):
    (ax,) = plots.lr_finder_plot(search, data).axes
    first, second = labels_of(ax)
    assert first.endswith(divergence)
    assert second.endswith(suggestion)


# Matrices


def test_confusion_matrix_has_a_row_for_each_true_class(predictions, data):
    (ax,) = plots.confusion_matrix(predictions, data).axes
    counts = shown_in(ax)
    assert counts[0, 0] == 7
    assert counts[0, 1] == 3  # of class 0, predicted as class 1
    assert counts.sum() == 100


def test_confusion_matrix_shows_classes_without_images(predictions, data):
    logits, labels = predictions
    (ax,) = plots.confusion_matrix((logits[:5], labels[:5]), data).axes
    assert shown_in(ax).shape == (10, 10)


def test_signal_rank_has_a_panel_for_each_network(model, data):
    assert titles_of(plots.signal_rank(model, data)) == [
        "PyTorch's initialization",
        "the same, trained on CIFAR-10",
        "our initialization",
        "the same, trained",
    ]


def test_signal_rank_shows_the_spectra_of_the_network(model, data):
    figure = plots.signal_rank(model, data)
    spectra = explain.signal_spectra(model, data.normalize(data.test_images))
    for curve, row in zip(curves_of(figure.axes[3]), spectra, strict=True):
        torch.testing.assert_close(torch.tensor(curve), row[:8].clamp(min=1e-6))


def test_attention_maps_are_those_of_three_images(model, predictions, data):
    figure = plots.attention_maps(model, predictions, data)
    chosen = [0, 33, 66]
    maps = explain.attention_maps(model, data.normalize(data.test_images[chosen]))
    for row, index in enumerate(chosen):
        first, *blocks = figure.axes[5 * row : 5 * row + 5]
        assert torch.equal(shown_in(first), data.test_images[index].permute(1, 2, 0).double())
        for block, ax in enumerate(blocks):
            torch.testing.assert_close(shown_in(ax).float(), maps[row, block])


def test_attention_maps_are_titled_by_predicted_and_true_class(model, predictions, data):
    titles = titles_of(plots.attention_maps(model, predictions, data))
    assert titles[:5] == [
        "predicted class 1 (94%)\ntrue class 0",
        "block 1",
        "block 2",
        "block 3",
        "block 4",
    ]


def test_signal_rank_rejects_networks_without_ultimus_blocks(data):
    with pytest.raises(ValueError, match="ULTIMUS"):
        plots.signal_rank(nn.Linear(1, 1), data)


def test_attention_maps_reject_networks_without_ultimus_blocks(predictions, data):
    with pytest.raises(ValueError, match="ULTIMUS"):
        plots.attention_maps(nn.Linear(1, 1), predictions, data)


# All pictures


def test_titles_name_the_images(cold_for_odd_classes, loader, model, predictions, data):
    figures = [
        plots.sample_training_images(loader, data),
        plots.misclassified_images(predictions, data),
        plots.grad_cam(model, predictions, data),
        plots.loss_and_accuracy_graphs(HISTORY, data),
        plots.accuracy_curves({"ours": [1.0]}, data.name),
        plots.lr_finder_plot(DIVERGES, data),
        plots.lr_history_plot(HISTORY, data),
        plots.confusion_matrix(predictions, data),
        plots.signal_rank(model, data),
        plots.attention_maps(model, predictions, data),
    ]
    for figure in figures:
        assert "digits" in figure.get_suptitle()


def test_dollar_signs_are_no_mathematics():
    figure = plots.accuracy_curves({"ours": [1.0]}, "a$b$c")
    assert figure.get_suptitle().endswith(r"a\$b\$c")


def test_figures_are_unknown_to_pyplot_so_that_no_notebook_shows_them_twice(data):
    plots.lr_history_plot(HISTORY, data)
    assert plt.get_fignums() == []


def size_of(png):
    """Width and height in pixels, from the head of a PNG file."""
    return struct.unpack(">II", png[16:24])


def test_pictures_have_150_pixels_an_inch(data):
    assert size_of(as_png(plots.lr_history_plot(HISTORY, data))) == (7 * 150, 4 * 150)


USERS_STYLE = {
    "lines.linewidth": 20,
    "font.size": 30,
    "text.usetex": True,
    "axes.facecolor": "black",
    "savefig.dpi": 40,
}


def drawn_in_style(data):
    with plots.style():
        return as_png(plots.lr_history_plot(HISTORY, data))


def test_style_is_the_same_whatever_the_users_is(data):
    undisturbed = drawn_in_style(data)
    with mpl.rc_context(USERS_STYLE):
        assert drawn_in_style(data) == undisturbed


def test_style_is_the_users_again_afterwards():
    with mpl.rc_context(USERS_STYLE):
        with plots.style():
            pass
        assert mpl.rcParams["lines.linewidth"] == 20


def test_names_that_the_font_lacks_are_drawn_without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with plots.style():
            as_png(plots.accuracy_curves({"猫": [1.0]}, "狗"))


# A run shows its pictures


@pytest.fixture
def run(folder):
    return Run.open(folder.name, SESSION9.recipe, FEW_DIGITS, cpu=True)


@pytest.fixture
def displayed(monkeypatch):
    """What a notebook displays."""
    images = []
    monkeypatch.setattr(IPython.display, "display", images.append)
    return images


def test_run_saves_a_picture_by_its_name(run, folder, data):
    run.show(plots.lr_history_plot, HISTORY, data)
    assert (folder / "lr_history_plot.png").read_bytes() == drawn_in_style(data)


def test_run_saves_pictures_in_the_projects_style(run, folder, data):
    undisturbed = drawn_in_style(data)
    with mpl.rc_context(USERS_STYLE):
        run.show(plots.lr_history_plot, HISTORY, data)
    assert (folder / "lr_history_plot.png").read_bytes() == undisturbed


def test_notebook_displays_the_saved_picture(run, folder, data, displayed, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    run.show(plots.lr_history_plot, HISTORY, data)
    (image,) = displayed
    assert isinstance(image, IPython.display.Image)
    assert image.data == (folder / "lr_history_plot.png").read_bytes()


def test_terminal_displays_nothing(run, data, displayed, monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    run.show(plots.lr_history_plot, HISTORY, data)
    assert displayed == []
