"""The LR finder leaves no trace; the one-cycle policy starts, peaks and ends where it should."""

import copy
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch_lr_finder.lr_finder
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.small import FIND_LR, call, stop_in_the_second_epoch
from utils.data import BatchDataset
from utils.recipes import SESSION8, SESSION9
from utils.schedule import LRSearch, batch_share, find_divergence, find_lr, find_plateau, one_cycle
from utils.device import make_accelerator
from utils.errors import TrainingError


@pytest.mark.parametrize("training", [True, False])
def test_finder_puts_everything_back(training, capsys):
    model = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Dropout(0.1), nn.Linear(16, 3)).train(training)
    loader = DataLoader(TensorDataset(torch.randn(60, 3), torch.arange(60) % 3), batch_size=20, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.123)
    before, settings = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    random_state, bar = torch.get_rng_state(), torch_lr_finder.lr_finder.tqdm
    find_lr(model, optimizer, loader, make_accelerator(cpu=True), steps=24)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.training is training
    assert torch_lr_finder.lr_finder.tqdm is bar  # restored for other users of the package
    assert optimizer.state_dict() == settings
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    shown = capsys.readouterr().out
    assert "LR finder:   0%" in shown and not shown.split("\r")[-1].strip() and "finished" not in shown  # only the bar


class Scripted(nn.Module):
    """Its losses are the given ones, one per batch, whatever the learning rate."""

    def __init__(self, losses):
        super().__init__()
        self.zero, self.losses = nn.Parameter(torch.zeros(())), iter(losses)

    def forward(self, images):
        other = math.log(math.expm1(next(self.losses)))
        return torch.stack([0 * self.zero, 0 * self.zero + other]).expand(len(images), 2)


def search(losses, optimizer=torch.optim.SGD, batch_size=512, **options) -> LRSearch:
    """The result of ``find_lr`` on a network with these losses; all labels are 0."""
    model = Scripted(losses)
    images = BatchDataset(torch.zeros(batch_size, 1), torch.zeros(batch_size).long(), lambda images: images)
    loader = DataLoader(images, batch_size, collate_fn=tuple)
    return find_lr(model, optimizer(model.parameters()), loader, make_accelerator(cpu=True), **options)


def test_finder_smooths_the_losses_at_rates_from_1e_minus_5_to_10():
    found = search([2.0, 1.0, *([0.5] * 22)], steps=24)
    assert found.losses[:4] == pytest.approx([2, 1.8, 1.54, 1.332])  # a fifth of each new loss
    assert found.lrs == pytest.approx(np.logspace(-5, 1, 24))
    assert len(search([2.0] * 120).lrs) == 120


def test_suggestion_is_a_third_of_the_rate_at_which_the_loss_rises_again():
    found = search([2.0] * 12 + [1.0] * 4 + [4.0] * 8, steps=24)
    assert found.divergence_lr == find_divergence(found.lrs, found.losses) == found.lrs[17]
    assert found.diverges and found.suggestion == pytest.approx(found.divergence_lr / 3)
    rates = f"{found.divergence_lr:.4f}. Suggested max LR: {found.suggestion:.4f}, 1/3 of it: a third, "
    assert str(found).startswith(f"The loss falls, rises and is back at its start at LR {rates}")
    # A search that stops as the loss jumps has found the divergence.
    found = search([2.0] * 15 + [90.0] * 9, steps=24)
    assert len(found.lrs) == 16 and found.diverges and found.divergence_lr == found.lrs[-1]


def test_suggestion_is_the_plateau_if_the_loss_never_rises_again():
    found = search([2.0] * 10 + [1.0] * 14, steps=24)
    assert not found.diverges
    assert found.divergence_lr == found.suggestion == find_plateau(found.lrs, found.losses) < found.lrs[-1]
    rates = f"{found.divergence_lr:.4f}. Suggested max LR: {found.divergence_lr:.4f}."
    assert str(found) == f"The loss does not rise again: the search ended at LR 10.0000. It stops falling at LR {rates}"


@pytest.mark.parametrize("name, size, share", [("Adam", 1024, 1), ("SGD", 1024, 1), ("Adam", 128, 1 / 2), ("SGD", 128, 1 / 4)])  # fmt: skip
def test_small_batches_get_a_share_of_the_suggestion(name, size, share):
    optimizer = getattr(torch.optim, name)
    assert batch_share(optimizer([torch.zeros(1)]), size) == share
    found = search([2.0] * 12 + [4.0] * 12, optimizer, size, steps=24)
    assert found.suggestion == pytest.approx(found.divergence_lr / 3 * share)


@pytest.mark.parametrize("steps, first", [(24, 10), (120, 24)])
def test_finder_judges_the_losses_before_the_first_nan(steps, first):
    found = search([2.0] * first + [math.nan] * steps, steps=steps)
    assert found.losses == pytest.approx([2.0] * first) and found.diverges and found.divergence_lr == found.lrs[-1]
    with pytest.raises(TrainingError, match=f"infinite after {first - 1} of {steps} steps"):
        search([2.0] * (first - 1) + [math.nan] * steps, steps=steps)
    with pytest.raises(TrainingError, match="infinite after 0 of 120 steps: check the images"):
        search([math.nan] * 120)


@pytest.mark.parametrize("precision, dtype", [("no", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_finder_computes_in_the_precision_of_the_training(precision, dtype):
    """In float16, the loss is scaled so that small gradients do not vanish."""
    torch.manual_seed(0)
    model, dtypes, gradients = nn.Linear(3, 2), set(), []

    def record(_model, _inputs, output):
        dtypes.add(output.dtype)
        output.register_hook(lambda gradient: gradients.append(gradient.abs().max()))

    model.register_forward_hook(record)
    loader = DataLoader(TensorDataset(torch.randn(8, 3), torch.zeros(8).long()), 8)
    accelerator = SimpleNamespace(device=torch.device("cpu"), mixed_precision=precision)
    find_lr(model, torch.optim.SGD(model.parameters()), loader, accelerator, steps=12)
    assert dtypes == {dtype} and (gradients[0] > 1) == (precision == "fp16")


@pytest.mark.parametrize("losses, rate", [
    ([2.9] + [1.9] * 9 + [1.5, 1.0, 1.5, 1.95, 2.05, 9.0], 15),  # falls, then rises above the mean of its start
    ([2.0] * 10 + [2.15, 2.05, 1.9, 2.05, 1.95, 9.0], 16),  # a noisy plateau that hardly falls
    ([2.0] * 10 + [1.5, 1.0, 0.8, 0.7, 0.6, 0.5], 16),  # never rises: the last rate
    ([2.0] * 5 + [2.5] + [2.0] * 4 + [1.5, 1.0, 1.5, 2.4, 2.5, 9.0], 14),  # a spike before the minimum
])  # fmt: skip
def test_divergence_is_where_the_loss_rises_again(losses, rate):
    assert find_divergence(list(range(1, 17)), losses) == rate


def test_plateau_starts_where_the_loss_has_made_nine_tenths_of_its_fall():
    assert find_plateau(list(range(15)), [2.0] * 10 + [1.15, 1.05, 1.2, 1.0, 1.3]) == 11
    assert find_plateau(list(range(12)), [0.1] * 12) == 0


@pytest.mark.parametrize("recipe, first, last", [(SESSION8, 2e-4, 2e-4), (SESSION9, 2e-3, 2e-6)])
@pytest.mark.parametrize("epochs, top_epoch, batches", [(24, 5, 98), (20, 1, 3), (3, 2, 1), (2, 1, 1)])
def test_learning_rate_rises_and_falls_on_straight_lines(recipe, first, last, epochs, top_epoch, batches):
    recipe = replace(recipe, epochs=epochs, top_epoch=top_epoch)
    optimizer = torch.optim.Adam([{"params": nn.Parameter(torch.zeros(1)), "lr_factor": factor} for factor in (1, 8)])
    scheduler, lrs = one_cycle(optimizer, 0.02, recipe, batches), []
    for _ in range(epochs * batches):
        lrs.append(scheduler.get_last_lr()[0])
        assert scheduler.get_last_lr()[1] == pytest.approx(8 * lrs[-1])
        optimizer.step()
        scheduler.step()
    lrs.append(scheduler.get_last_lr()[0])  # of one step more
    top = max(1, top_epoch * batches - 1)  # the last step of the top epoch, but not the first of all
    assert lrs == pytest.approx(np.interp(range(len(lrs)), [0, top, epochs * batches], [first, 0.02, last]))
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_damaged_result_of_the_lr_finder_is_found_again(folder, monkeypatch, capsys):
    stop_in_the_second_epoch(monkeypatch, FIND_LR)
    (folder / "lr_finder.json").write_text('{"lrs": [')
    call(*FIND_LR)
    assert json.loads((folder / "lr_finder.json").read_text())["lrs"]
    assert "Resuming after epoch 1" in capsys.readouterr().out
