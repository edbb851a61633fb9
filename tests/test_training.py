"""The training loop: its log, its files, its reproducibility, and its error when the loss is not finite."""

import csv
import re
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from tests.small import DIGITS, RECIPE, small_run
from utils import training
from utils.data import BatchDataset
from utils.device import make_accelerator
from utils.errors import TrainingError
from utils.files import load_tensors

TRAIN_LINE = re.compile(
    r"EPOCH = (\d+) \| LR = (\d\.\d{7}) \| Loss = (\d+\.\d\d) \| Batch = (\d+) \| Accuracy = (\d+\.\d\d): "
    r"100%\|█{10}\| (\d+)/(\d+) \[\d\d:\d\d<00:00, .*(it/s|s/it)\]"
)
TEST_LINE = re.compile(r"Test set: Average loss: (\d+\.\d{4}), Accuracy: (\d+)/(\d+) \((\d+\.\d\d)%\)")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run = small_run(folder)
    return folder, run.model, run.fit(max_lr=0.003)


def test_log_is_the_one_that_students_paste(finished):
    folder, _, history = finished
    lines = (folder / "training_log.txt").read_text("utf-8").splitlines()
    assert len(lines) == 2 * RECIPE.epochs and len(history.step_lr) == 21 * RECIPE.epochs
    assert history.lr == history.step_lr[20::21]  # of each epoch's last batch
    for epoch in range(RECIPE.epochs):
        train, test = TRAIN_LINE.fullmatch(lines[2 * epoch]), TEST_LINE.fullmatch(lines[2 * epoch + 1])
        loss, accuracy = f"{history.train_loss[epoch]:.2f}", f"{history.train_accuracy[epoch]:.2f}"
        assert train.groups()[:3] == (str(epoch + 1), f"{history.lr[epoch]:.7f}", loss)
        assert train.groups()[3:7] == ("20", accuracy, "21", "21")
        assert float(test[1]) == pytest.approx(history.test_loss[epoch], abs=1e-4)
        assert int(test[3]) == 360 and 100 * int(test[2]) / 360 == pytest.approx(history.test_accuracy[epoch])


def test_history_and_final_weights_are_saved(finished):
    folder, model, history = finished
    with open(folder / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds"]
    assert [int(row["epoch"]) for row in rows] == [1, 2]
    for name in list(rows[0])[1:]:
        assert [float(row[name]) for row in rows] == pytest.approx(getattr(history, name), rel=1e-5)
    saved = load_tensors(folder / "checkpoint.pt")["model"]
    torch.testing.assert_close(saved, dict(model.cpu().state_dict()), rtol=0, atol=0)
    assert history.test_accuracy[-1] > 20  # chance is 10


def test_each_step_clips_the_gradients_before_it_and_moves_the_learning_rate_after_it(capsys):
    """The mean loss and the accuracy count images, not batches, and those of the other processes as well."""
    torch.manual_seed(0)
    model, calls = nn.Linear(2, 10).eval(), []
    images = torch.randn(4, 2)
    labels = (model(images).argmax(1) + torch.tensor([0, 0, 0, 1])) % 10  # three hits
    optimizer = SimpleNamespace(zero_grad=lambda: calls.append("zero_grad"), step=lambda: calls.append("step"))
    next_lr = lambda: calls.append("next LR")  # noqa: E731
    scheduler = SimpleNamespace(get_last_lr=lambda: [0.5 + calls.count("next LR")], step=next_lr)
    accelerator = SimpleNamespace(
        is_main_process=True,
        device=torch.device("cpu"),
        backward=lambda loss: calls.append("backward"),
        clip_grad_norm_=lambda parameters, norm: calls.append(f"clip {len(list(parameters))} gradients to {norm}"),
        reduce=lambda sums: sums + torch.tensor([12.0, 3.0, 6.0]),  # loss, hits and images of another process
        print=lambda line, flush: calls.append(line),
    )
    recipe = replace(RECIPE, max_grad_norm=0.7, label_smoothing=0.2)
    batches = [(images[:3], labels[:3]), (images[3:], labels[3:])]
    step = partial(training.forward_backward, model, accelerator, recipe)
    loss, accuracy, lrs, line = training.train(model, step, batches, optimizer, scheduler, accelerator, recipe, epoch=3)
    assert calls == 2 * ["zero_grad", "backward", "clip 2 gradients to 0.7", "step", "next LR"] + [line]
    own = F.cross_entropy(model(images), labels, label_smoothing=0.2).item()
    assert loss == pytest.approx((4 * own + 12) / 10)
    assert accuracy == pytest.approx(100 * (3 + 3) / 10)
    assert model.training and lrs == [0.5, 1.5] and line.startswith("EPOCH = 3 | LR = 1.5000000 | ")
    assert "EPOCH = 3" in capsys.readouterr().out
    accelerator.is_main_process = False
    accelerator.clip_grad_norm_ = None  # no norm: nothing is clipped
    recipe = replace(recipe, max_grad_norm=None)
    training.train(model, step, batches, optimizer, scheduler, accelerator, recipe, epoch=4)
    assert not capsys.readouterr().out


def test_loss_that_is_not_finite_stops_the_training():
    losses, lrs = torch.tensor([2.0, float("nan"), 2.0]).unbind(), [0.001, 0.0027273, 0.003]
    with pytest.raises(TrainingError, match=r"loss became nan in epoch 2, batch 1, at LR 0\.0027273: try a quarter"):
        training.totals(list(losses), list(torch.ones(3)), [1, 1, 1], lrs, epoch=2)


def test_predictions_come_in_order_and_from_all_processes_of_which_one_shows_a_bar(capsys):
    gather = lambda pair: [torch.cat([part] * 2) for part in pair]  # noqa: E731
    twice = SimpleNamespace(is_main_process=False, gather_for_metrics=gather)
    images = torch.eye(3)[..., None, None].bfloat16().requires_grad_()
    logits, labels = training.predict(nn.Flatten(), [(images, torch.arange(3))], accelerator=twice)
    assert len(logits) == 6 and labels.tolist() == 2 * [0, 1, 2] and not capsys.readouterr().out
    batches = [(images[1:], torch.tensor([1, 2])), (images[:1], torch.tensor([0]))]
    logits, labels = training.predict(nn.Flatten(), batches)
    assert logits.dtype == torch.float32 and not logits.requires_grad
    assert logits.argmax(1).tolist() == labels.tolist() == [1, 2, 0]


@pytest.mark.parametrize("batch_size, processes, count", [(12, 1, 143), (70, 1, 700), (70, 2, 350)])
def test_statistics_are_those_of_a_tenth_of_the_training_images_or_ten_batches(batch_size, processes, count):
    torch.manual_seed(0)
    seen, reduced = [], []

    class Recording(BatchDataset):
        def __getitems__(self, indices):
            seen.append(indices)
            return super().__getitems__(indices)

    train_set = Recording(DIGITS.train_images, DIGITS.train_labels, lambda images: images.float())
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5)).eval()
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), num_processes=processes, reduce=lambda value, how: reduced.append(how) or value + 1
    )
    before = torch.get_rng_state()
    training.refresh_batchnorm(model, train_set, batch_size, accelerator)
    assert torch.equal(torch.get_rng_state(), before)
    order = [index for indices in seen for index in indices]
    assert len(set(order)) == len(order) == count and order != sorted(order)
    assert len(seen[0]) == batch_size // processes
    norm = model[0]
    assert norm.momentum == 0.1  # as before
    parts = [DIGITS.train_images[indices].float() for indices in seen]
    mean, var = (torch.stack([f(part, dim=(0, 2, 3)) for part in parts]).mean(0) for f in (torch.mean, torch.var))
    torch.testing.assert_close((norm.running_mean, norm.running_var), (mean + 1, var + 1))
    assert reduced == ["mean", "mean"]  # over the processes


def test_each_epoch_is_tested_with_statistics_of_training_batches_not_with_running_averages(capsys):
    """The running averages lag behind: after ten batches, they are at two thirds of the way."""
    norm, seen = nn.BatchNorm2d(3), []
    norm.register_forward_pre_hook(lambda norm, _: None if norm.training else seen.append(norm.running_mean.clone()))
    model = nn.Sequential(norm, nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    images, labels = DIGITS.train_images[:100], DIGITS.train_labels[:100]
    loader = DataLoader(BatchDataset(images, labels, lambda images: images / 255), 10, collate_fn=tuple)
    optimizer, accelerator = torch.optim.SGD(model.parameters()), make_accelerator(cpu=True, precision="float32")
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, 1)
    history, start = training.History(), time.perf_counter()
    for epochs in (2, 3):  # the third epoch resumes
        recipe = replace(RECIPE, epochs=epochs, batch_size=10)
        training.fit(model, optimizer, scheduler, (loader, loader), recipe, accelerator, history)
    assert len(seen) == 3 * 10
    for mean in seen:
        torch.testing.assert_close(mean, (images / 255).mean((0, 2, 3)))
    shown = capsys.readouterr().out
    assert len(history.log) == 2 * 3 and all(line in shown for line in history.log)
    assert len(history.seconds) == 3 and sum(history.seconds) < time.perf_counter() - start
