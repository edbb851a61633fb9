"""The training loop: steps, log lines, precisions, statistics of BatchNorm, and its errors."""

import csv
import itertools
import math
import re
import warnings
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ConstantLR, LambdaLR
from torch.utils.data import DataLoader, TensorDataset

from tests.small import RECIPE, cells_of
from utils import training
from utils.data import BatchDataset
from utils.errors import TrainingError
from utils.optimizers import sgd
from utils.progress import progress
from utils.schedule import one_cycle
from utils.training import History, TrainingStep, fit, predict, refresh_batchnorm, train

TRAIN_LINE = re.compile(
    r"EPOCH = (?P<epoch>\d+) \| LR = (?P<lr>\d\.\d{7}) \| Loss = (?P<loss>\d+\.\d\d) \| "
    r"Batch = (?P<batch>\d+) \| Accuracy = (?P<accuracy>\d+\.\d\d): "
    r"100%\|█{10}\| (?P<done>\d+)/(?P<batches>\d+) \[\d\d:\d\d<00:00, .*(it/s|s/it)\]"
)
TEST_LINE = re.compile(
    r"Test set: Average loss: (?P<loss>\d+\.\d{4}), "
    r"Accuracy: (?P<hits>\d+)/(?P<images>\d+) \((?P<accuracy>\d+\.\d\d)%\)"
)

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
every_precision = pytest.mark.parametrize("precision", DTYPES)
first_step_may_be_skipped = pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step")


def as_floats(images):
    return images / 255


def random_images(count):
    """Images ``(count, 3, 4, 4)`` and their labels, always the same."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 4, 4), dtype=torch.uint8, generator=generator)
    return images, torch.arange(count) % 10


def loader_of(count, batch_size, transform=as_floats):
    """Batches of random images, in order."""
    data_set = BatchDataset(*random_images(count), transform)
    return DataLoader(data_set, batch_size, collate_fn=tuple)


def linear_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 10))


def normalized_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 4 * 4, 10))


def step_of(model, criterion=F.cross_entropy, lr=0.1, **options):
    """A step of SGD at a learning rate that stays."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return TrainingStep(model, criterion, optimizer, ConstantLR(optimizer, 1), **options)


def weights_of(model):
    """All weights as one vector."""
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def output_dtypes(layer):
    """The dtypes of what the layer returns from now on."""
    dtypes = []
    layer.register_forward_hook(lambda layer, inputs, output: dtypes.append(output.dtype))
    return dtypes


class LossTimes:
    """Cross-entropy; the losses of the first batches are multiplied by ``factors``."""

    def __init__(self, *factors):
        self.factors = itertools.chain(factors, itertools.repeat(1.0))

    def __call__(self, logits, labels):
        return next(self.factors) * F.cross_entropy(logits, labels)


def do_nothing(history):
    """For ``after_epoch``."""


# One step


def test_train_computes_what_a_plain_loop_computes():
    model = linear_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = loader_of(count=50, batch_size=20)
    for images, labels in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels, label_smoothing=0.2).backward()
        optimizer.step()
    expected = weights_of(model)

    model = linear_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.2)
    train(TrainingStep(model, criterion, optimizer, ConstantLR(optimizer, 1)), loader, epoch=1)
    assert torch.equal(weights_of(model), expected)


def test_train_trains_in_training_mode():
    model = linear_network().eval()
    train(step_of(model), loader_of(count=10, batch_size=10), epoch=1)
    assert model.training


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_gradients_are_clipped_after_they_are_unscaled_and_before_the_step(precision):
    model = linear_network()
    step = step_of(model, lr=1.0, precision=precision, max_grad_norm=0.001)
    before = weights_of(model)
    step(*next(iter(loader_of(count=20, batch_size=20))))
    change = (weights_of(model) - before).norm().item()
    assert change == pytest.approx(0.001, rel=1e-2)


def test_gradients_are_not_clipped_without_a_norm():
    def large_loss(logits, labels):
        return 1000 * F.cross_entropy(logits, labels)

    model = linear_network()
    before = weights_of(model)
    step_of(model, large_loss, lr=1.0)(*next(iter(loader_of(count=20, batch_size=20))))
    assert (weights_of(model) - before).norm() > 100


def test_schedule_is_stepped_after_each_batch():
    model = linear_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = LambdaLR(optimizer, lambda step: 1 + step)
    step = TrainingStep(model, F.cross_entropy, optimizer, scheduler)
    meter = train(step, loader_of(count=50, batch_size=20), epoch=1)
    assert meter.lrs == pytest.approx([0.1, 0.2, 0.3])
    assert step.lr == pytest.approx(0.4)
    assert "LR = 0.3000000" in meter.line


def test_logged_learning_rate_is_not_that_of_the_biases():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 10, 4), nn.BatchNorm2d(10), nn.Flatten())
    optimizer = sgd(model, 5e-4, bias_lr=8)
    scheduler = one_cycle(optimizer, 0.01, RECIPE, steps_per_epoch=2)
    step = TrainingStep(model, F.cross_entropy, optimizer, scheduler)
    assert optimizer.param_groups[2]["lr"] == pytest.approx(8 * 0.001)
    meter = train(step, loader_of(count=40, batch_size=20), epoch=1)
    assert meter.lrs == pytest.approx([0.001, 0.01])


# The log of an epoch


def test_loss_and_accuracy_count_images_and_not_batches():
    model = linear_network()
    images, labels = next(iter(loader_of(count=4, batch_size=4)))
    labels = (model(images).argmax(1) + torch.tensor([0, 0, 0, 1])) % 10  # three hits
    batches = [(images[:3], labels[:3]), (images[3:], labels[3:])]
    criterion = nn.CrossEntropyLoss(label_smoothing=0.2)
    meter = train(step_of(model, criterion, lr=0.0), batches, epoch=1)
    assert meter.loss == pytest.approx(criterion(model(images), labels).item())
    assert meter.accuracy == pytest.approx(75)


def test_progress_is_seen_before_the_end_of_the_epoch(monkeypatch, capsys):
    def always_drawn(*arguments, **options):
        return progress(*arguments, **(options | {"mininterval": 0}))

    monkeypatch.setattr(training, "progress", always_drawn)
    train(step_of(linear_network()), loader_of(count=50, batch_size=10), epoch=3)
    output = capsys.readouterr().out
    assert re.search(r"EPOCH = 3 \| LR = 0\.1000000 \| Loss = \d\.\d\d \| Batch = 0 ", output)
    assert "Batch = 2 " in output


def test_log_line_is_complete_in_a_narrow_terminal(monkeypatch, capsys):
    monkeypatch.setattr(training, "progress", partial(progress, ncols=40))
    meter = train(step_of(linear_network()), loader_of(count=50, batch_size=10), epoch=1)
    assert TRAIN_LINE.fullmatch(meter.line)
    assert meter.line in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("factor, text", [(math.nan, "nan"), (math.inf, "inf")])
def test_loss_that_is_not_finite_stops_the_training(factor, text):
    model = linear_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    scheduler = LambdaLR(optimizer, lambda step: 1 + step)
    step = TrainingStep(model, LossTimes(1, factor), optimizer, scheduler)
    with pytest.raises(TrainingError) as caught:
        train(step, loader_of(count=30, batch_size=10), epoch=4)
    message = str(caught.value)
    assert f"became {text}" in message
    assert "epoch 4" in message
    assert "batch 1" in message
    assert "0.0020000" in message


# Testing


def test_predictions_are_logits_in_order_and_in_evaluation_mode():
    model = nn.Sequential(linear_network(), nn.Dropout(0.9)).train()
    loader = loader_of(count=5, batch_size=2)
    logits, labels = predict(model, loader)
    torch.testing.assert_close(logits, model[0](loader.dataset.images / 255))
    assert torch.equal(labels, loader.dataset.labels)


def test_test_loss_is_the_mean_over_the_images():
    model = linear_network()
    loader = loader_of(count=25, batch_size=10)
    loss, accuracy, line = training.test(model, loader)
    logits = model(loader.dataset.images / 255)
    hits = int((logits.argmax(1) == loader.dataset.labels).sum())
    assert loss == pytest.approx(F.cross_entropy(logits, loader.dataset.labels).item())
    assert accuracy == pytest.approx(100 * hits / 25)
    assert TEST_LINE.fullmatch(line)["hits"] == str(hits)
    assert TEST_LINE.fullmatch(line)["images"] == "25"


# Precision


@every_precision
def test_training_computes_in_the_precision(precision):
    model = linear_network()
    dtypes = output_dtypes(model[1])
    train(step_of(model, precision=precision), loader_of(count=20, batch_size=10), epoch=1)
    assert dtypes == 2 * [DTYPES[precision]]


@every_precision
def test_loss_is_computed_in_float32(precision):
    dtypes = []

    def criterion(logits, labels):
        dtypes.append(logits.dtype)
        return F.cross_entropy(logits, labels)

    step = step_of(linear_network(), criterion, precision=precision)
    train(step, loader_of(count=10, batch_size=10), epoch=1)
    assert dtypes == [torch.float32]


@every_precision
def test_testing_computes_in_the_precision(precision):
    model = linear_network()
    dtypes = output_dtypes(model[1])
    training.test(model, loader_of(count=20, batch_size=10), precision)
    assert dtypes == 2 * [DTYPES[precision]]


@every_precision
def test_predictions_are_float32(precision):
    logits, _ = predict(linear_network(), loader_of(count=20, batch_size=10), precision)
    assert logits.dtype == torch.float32


@every_precision
def test_statistics_of_batchnorm_are_computed_in_the_precision(precision):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    dtypes = output_dtypes(model[0])
    refresh_batchnorm(model, loader_of(20, 10), precision)
    assert dtypes == 2 * [DTYPES[precision]]


@every_precision
def test_fit_computes_everything_in_the_precision_again_and_again(precision):
    model = normalized_network()
    dtypes = output_dtypes(model[2])
    loader = loader_of(count=20, batch_size=10)
    step = step_of(model, precision=precision)
    fit(step, loader, loader, 1, History(), do_nothing)
    in_one_fit = len(dtypes)
    fit(step, loader, loader, 1, History(), do_nothing)
    fit(step_of(model, precision=precision), loader, loader, 1, History(), do_nothing)
    assert len(dtypes) == 3 * in_one_fit
    assert set(dtypes) == {DTYPES[precision]}


# Scaling of the loss in float16


@first_step_may_be_skipped
def test_step_that_overflows_leaves_the_weights_alone():
    model = linear_network()
    step = step_of(model, LossTimes(math.inf), precision="float16")
    images, labels = next(iter(loader_of(count=20, batch_size=20)))
    before = weights_of(model)
    scale = step.scaler.get_scale()
    step(images, labels)
    assert torch.equal(weights_of(model), before)
    assert step.scaler.get_scale() == scale / 2


@first_step_may_be_skipped
def test_training_goes_on_after_a_step_that_overflows():
    model = linear_network()
    step = step_of(model, LossTimes(math.inf), precision="float16")
    images, labels = next(iter(loader_of(count=20, batch_size=20)))
    before = weights_of(model)
    step(images, labels)
    step(images, labels)
    assert not torch.equal(weights_of(model), before)
    assert weights_of(model).isfinite().all()
    assert step.scheduler.last_epoch == 2


def test_first_step_that_overflows_is_no_reason_for_a_warning():
    """The loss itself stays finite, as it does in practice."""
    step = step_of(linear_network(), LossTimes(1e4), precision="float16")
    loader = loader_of(count=20, batch_size=10)
    scale = step.scaler.get_scale()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(step, loader, loader, 1, History(), do_nothing)
    assert step.scaler.get_scale() == scale / 2


@first_step_may_be_skipped
def test_new_step_has_a_new_scale():
    model = linear_network()
    step = step_of(model, LossTimes(math.inf), precision="float16")
    scale = step.scaler.get_scale()
    step(*next(iter(loader_of(count=20, batch_size=20))))
    assert step_of(model, precision="float16").scaler.get_scale() == scale


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_only_float16_scales_the_loss(precision):
    assert not step_of(linear_network(), precision=precision).scaler.is_enabled()


# Statistics of BatchNorm


class Recording(BatchDataset):
    """Random images, transformed by random factors; it records what it was asked for."""

    def __init__(self, count):
        super().__init__(*random_images(count), self.brighten)
        self.indices = []
        self.transformed = []

    def __getitems__(self, indices):
        self.indices.append(indices)
        return super().__getitems__(indices)

    def brighten(self, images):
        images = images / 255 * torch.rand(len(images), 1, 1, 1)
        self.transformed.append(images)
        return images


def batches_of(train_set: BatchDataset, batch_size: int) -> DataLoader:
    return DataLoader(train_set, batch_size, shuffle=True, collate_fn=tuple)


@pytest.mark.parametrize(
    "count, batch_size, wanted",
    [
        (400, 3, 40),  # a tenth of them
        (400, 10, 100),  # ten batches
        (88, 20, 88),  # all there are
    ],
)
def test_statistics_are_those_of_a_tenth_of_the_images_or_ten_batches(count, batch_size, wanted):
    torch.manual_seed(0)
    train_set = Recording(count)
    refresh_batchnorm(nn.BatchNorm2d(3), batches_of(train_set, batch_size))
    order = list(itertools.chain(*train_set.indices))
    assert len(order) == wanted
    assert len(set(order)) == wanted
    assert order != sorted(order)
    assert len(train_set.indices[0]) == batch_size


def test_statistics_are_means_over_the_augmented_images_with_a_last_batch_of_eight():
    torch.manual_seed(0)
    train_set = Recording(count=88)
    norm = nn.BatchNorm2d(3)
    norm.running_mean += 100  # is forgotten
    refresh_batchnorm(norm, batches_of(train_set, 20))
    parts = train_set.transformed
    sizes = [len(part) for part in parts]
    assert sizes == [20, 20, 20, 20, 8]
    torch.testing.assert_close(norm.running_mean, torch.cat(parts).mean(dim=(0, 2, 3)))
    variances = torch.stack([len(part) * part.var(dim=(0, 2, 3)) for part in parts])
    torch.testing.assert_close(norm.running_var, variances.sum(dim=0) / 88)


def test_statistics_of_batchnorm1d_are_recomputed_too():
    torch.manual_seed(0)
    train_set = Recording(count=88)
    norm = nn.BatchNorm1d(48)
    refresh_batchnorm(nn.Sequential(nn.Flatten(), norm), batches_of(train_set, 20))
    images = torch.cat(train_set.transformed)
    torch.testing.assert_close(norm.running_mean, images.flatten(1).mean(dim=0))


def test_statistics_leave_random_state_and_momentum_as_they_were():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=0.3), nn.BatchNorm2d(3), nn.Dropout(0.5))
    before = torch.get_rng_state()
    refresh_batchnorm(model, batches_of(Recording(count=88), 20))
    assert torch.equal(torch.get_rng_state(), before)
    assert model[0].momentum == 0.3
    assert model[1].momentum == 0.1


def test_statistics_that_are_interrupted_leave_the_momentum_as_it_was():
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=0.3), nn.Identity())
    model[1].register_forward_hook(press_stop)
    with pytest.raises(KeyboardInterrupt):
        refresh_batchnorm(model, batches_of(Recording(count=88), 20))
    assert model[0].momentum == 0.3


def press_stop(module, inputs, output):
    raise KeyboardInterrupt


def test_statistics_come_from_a_dataset_of_single_images_too():
    """As a TensorDataset or torchvision's datasets are."""
    images, labels = random_images(count=88)
    loader = DataLoader(TensorDataset(images / 255, labels), batch_size=20)
    norm = nn.BatchNorm2d(3)
    refresh_batchnorm(norm, loader)
    torch.testing.assert_close(norm.running_mean, images.div(255).mean(dim=(0, 2, 3)))


def test_statistics_change_no_weight_and_no_gradient():
    model = normalized_network()
    before = weights_of(model)
    refresh_batchnorm(model, batches_of(Recording(count=88), 20))
    assert torch.equal(weights_of(model), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_each_epoch_is_tested_with_new_statistics():
    """The running averages would be at a fifth of the way, after two batches."""
    model = normalized_network()
    means = []

    def record_mean(norm, inputs):
        if not norm.training:
            means.append(norm.running_mean.clone())

    model[0].register_forward_pre_hook(record_mean)
    loader = loader_of(count=20, batch_size=10)
    fit(step_of(model), loader, loader, 2, History(), do_nothing)
    expected = (loader.dataset.images / 255).mean(dim=(0, 2, 3))
    assert len(means) == 2 * 2
    for mean in means:
        torch.testing.assert_close(mean, expected)


# A run of several epochs


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The cells of a finished run and its history."""
    cells = cells_of(tmp_path_factory.mktemp("runs") / "run")
    return cells, cells.train(max_lr=0.003)


def test_history_has_an_entry_for_each_epoch_and_step(finished):
    cells, history = finished
    batches = len(cells.train_loader)
    assert history.epochs == RECIPE.epochs
    assert len(history.step_lr) == batches * RECIPE.epochs
    assert history.lr == history.step_lr[batches - 1 :: batches]  # of each epoch's last batch


@pytest.mark.parametrize("epoch", range(RECIPE.epochs))
def test_training_line_is_the_one_that_students_paste(finished, epoch):
    cells, history = finished
    line = TRAIN_LINE.fullmatch(history.log[2 * epoch])
    batches = len(cells.train_loader)
    assert line["epoch"] == str(epoch + 1)
    assert line["lr"] == f"{history.lr[epoch]:.7f}"
    assert line["loss"] == f"{history.train_loss[epoch]:.2f}"
    assert line["accuracy"] == f"{history.train_accuracy[epoch]:.2f}"
    assert line["batch"] == str(batches - 1)
    assert line["done"] == line["batches"] == str(batches)


@pytest.mark.parametrize("epoch", range(RECIPE.epochs))
def test_test_line_is_the_one_that_students_paste(finished, epoch):
    cells, history = finished
    line = TEST_LINE.fullmatch(history.log[2 * epoch + 1])
    assert line["loss"] == f"{history.test_loss[epoch]:.4f}"
    assert line["accuracy"] == f"{history.test_accuracy[epoch]:.2f}"
    assert line["images"] == str(len(cells.run.data.test_labels))


@pytest.mark.parametrize("measure", training.MEASURES)
def test_history_is_saved_as_a_table(finished, measure):
    cells, history = finished
    with open(cells.run.folder.path / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    values = [float(row[measure]) for row in rows]
    assert values == pytest.approx(getattr(history, measure), rel=1e-5)


def test_log_lines_are_printed_as_they_are_saved(capsys):
    history = History()
    loader = loader_of(count=20, batch_size=10)
    fit(step_of(linear_network()), loader, loader, 2, history, do_nothing)
    lines = [line.split("\r")[-1] for line in capsys.readouterr().out.split("\n")]
    assert lines[:-1] == history.log
    assert len(history.log) == 4


def test_seconds_are_those_of_the_epoch(monkeypatch):
    clock = SimpleNamespace(perf_counter=itertools.count(step=3).__next__)
    monkeypatch.setattr(training, "time", clock)
    history = History()
    loader = loader_of(count=20, batch_size=10)
    fit(step_of(linear_network()), loader, loader, 2, history, do_nothing)
    assert history.seconds == [3, 3]


def test_history_of_a_resumed_run_continues():
    history = History()
    loader = loader_of(count=20, batch_size=10)
    step = step_of(linear_network())
    fit(step, loader, loader, 2, history, do_nothing)
    first_losses = list(history.train_loss)
    fit(step, loader, loader, 3, history, do_nothing)
    assert history.epochs == 3
    assert history.train_loss[:2] == first_losses
    assert history.train_loss[2] < first_losses[1]
    assert "EPOCH = 3 " in history.log[4]
    assert len(history.step_lr) == 6


def test_after_epoch_is_called_with_the_history_after_each_epoch():
    epochs = []

    def after_epoch(history):
        epochs.append((history.epochs, len(history.log)))

    loader = loader_of(count=20, batch_size=10)
    fit(step_of(linear_network()), loader, loader, 2, History(), after_epoch)
    assert epochs == [(1, 2), (2, 4)]


# Errors


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_out_of_memory_says_which_batch_size_to_try(error):
    def criterion(logits, labels):
        raise error

    loader = loader_of(count=20, batch_size=10)
    with pytest.raises(TrainingError) as caught:
        fit(step_of(linear_network(), criterion), loader, loader, 1, History(), do_nothing)
    message = str(caught.value)
    assert "out of memory" in message
    assert ".replace(batch_size=5)" in message
    assert "\n" not in message


def test_out_of_memory_in_the_test_is_explained_too():
    def fail_in_the_test(model, inputs):
        if not model.training:
            raise MemoryError

    model = linear_network()
    model.register_forward_pre_hook(fail_in_the_test)
    loader = loader_of(count=20, batch_size=10)
    with pytest.raises(TrainingError, match="out of memory"):
        fit(step_of(model), loader, loader, 1, History(), do_nothing)


def test_other_errors_stay_as_they_are():
    error = RuntimeError("shapes cannot be multiplied")

    def criterion(logits, labels):
        raise error

    loader = loader_of(count=20, batch_size=10)
    with pytest.raises(RuntimeError) as caught:
        fit(step_of(linear_network(), criterion), loader, loader, 1, History(), do_nothing)
    assert caught.value is error
