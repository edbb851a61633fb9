"""The LR finder leaves no trace; the one-cycle policy starts, peaks and ends where it should."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch_lr_finder.lr_finder
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.terminal import FIND_LR, exit_message, stop_in_the_second_epoch
from utils.recipes import SESSION8, SESSION9
from utils.schedule import find_divergence, find_lr, find_plateau, one_cycle
from utils.system.device import make_accelerator
from utils.system.errors import TrainingError


@pytest.fixture
def problem():
    """A small network with BatchNorm and Dropout, and three separable classes."""
    torch.manual_seed(0)
    labels = torch.arange(600) % 3
    points = torch.randn(600, 3) + 3 * nn.functional.one_hot(labels, 3)
    model = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))
    return model, DataLoader(TensorDataset(points, labels), batch_size=50, shuffle=True)


@pytest.mark.parametrize("training", [True, False])
def test_finder_puts_everything_back(problem, training):
    model, loader = problem
    model.train(training)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.123)
    before, settings = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    random_state, bar = torch.get_rng_state(), torch_lr_finder.lr_finder.tqdm
    search = find_lr(model, optimizer, loader, make_accelerator())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.training is training
    assert torch_lr_finder.lr_finder.tqdm is bar  # restored for other users of the package
    assert optimizer.state_dict() == settings
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    one_cycle(optimizer, search.suggestion, SESSION9, batches=3)  # fails if a schedule left its values in the optimizer


def test_finder_tries_rates_from_1e_minus_5_upwards(problem, capsys):
    model, loader = problem
    search = find_lr(model, torch.optim.Adam(model.parameters()), loader, make_accelerator())
    shown = capsys.readouterr().out
    assert "LR finder:   0%" in shown and not shown.split("\r")[-1].strip() and "finished" not in shown  # only the bar
    assert search.lrs[0] == pytest.approx(1e-5) and 20 * math.log10(search.lrs[99] / search.lrs[0]) == pytest.approx(
        99, 0.02
    )
    assert search.diverges and search.divergence_lr <= search.lrs[-1] <= 10 and len(search.lrs) <= 120
    text = f"The loss falls, rises and is back at its start at LR {search.divergence_lr:.4f}. Suggested max LR: "
    assert str(search).startswith(text) and ", 1/10 of it: a third" in str(search)  # batches of 50, Adam


@pytest.mark.parametrize(
    "optimizer, size, share",
    [
        (torch.optim.Adam, 512, 1 / 3),
        (torch.optim.Adam, 1024, 1 / 3),
        (torch.optim.Adam, 128, 1 / 6),
        (torch.optim.Adam, 32, 1 / 12),
        (torch.optim.SGD, 512, 1 / 3),
        (torch.optim.SGD, 1024, 1 / 3),
        (torch.optim.SGD, 128, 1 / 12),
    ],
)
def test_suggestion_is_a_third_of_the_divergence_rate_and_less_for_small_batches(optimizer, size, share):
    torch.manual_seed(0)
    guesses = TensorDataset(10 * torch.randn(2400, 3), torch.randint(3, (2400,)))  # nothing to learn: large steps hurt
    model = nn.Linear(3, 3)
    search = find_lr(model, optimizer(model.parameters()), DataLoader(guesses, size), make_accelerator())
    assert search.diverges and search.suggestion == pytest.approx(share * search.divergence_lr)


@pytest.mark.parametrize(
    "losses, rate",
    [
        ([2.0] * 10 + [1.5, 1.0, 1.5, 1.95, 2.05, 9.0], 15),  # falls, then rises above its start
        ([2.0] * 10 + [2.15, 2.05, 1.9, 2.05, 1.95, 9.0], 16),  # a noisy plateau that hardly falls
        ([2.0] * 10 + [1.5, 1.0, 0.8, 0.7, 0.6, 0.5], 16),  # never rises: the last rate
        ([2.0] * 5 + [2.5] + [2.0] * 4 + [1.5, 1.0, 1.5, 2.4, 2.5, 9.0], 14),  # a spike before the minimum
    ],
)
def test_divergence_is_where_the_loss_rises_again(losses, rate):
    assert find_divergence(list(range(1, 17)), losses) == rate


def test_finder_is_not_misled_by_a_loss_that_becomes_nan(problem):
    model, loader = problem

    class Fragile(nn.Module):
        """Returns NaN once its weights have moved far, as after divergence."""

        def __init__(self):
            super().__init__()
            self.net, self.start = model, model[0].weight.detach().clone()

        def forward(self, x):
            return self.net(x) / ((self.net[0].weight - self.start).abs().max() < 1).float().log().exp()

    fragile = Fragile()
    search = find_lr(fragile, torch.optim.Adam(fragile.parameters()), loader, make_accelerator())
    assert torch.tensor(search.losses).isfinite().all()
    assert len(search.losses) < 100 and search.divergence_lr == search.lrs[-1] and search.diverges


def test_finder_says_that_the_data_are_wrong():
    loader = DataLoader(TensorDataset(torch.full((40, 3), float("nan")), torch.zeros(40).long()), batch_size=20)
    model = nn.Linear(3, 2)
    with pytest.raises(TrainingError, match="infinite after 0 of 120 steps: check the images"):
        find_lr(model, torch.optim.Adam(model.parameters()), loader, make_accelerator())


def test_finder_covers_the_same_rates_in_fewer_steps(problem):
    model, loader = problem
    search = find_lr(model, torch.optim.Adam(model.parameters()), loader, make_accelerator(), steps=24)
    assert len(search.lrs) <= 24 and search.lrs[1] / search.lrs[0] == pytest.approx(10 ** (6 / 23))


def test_a_search_that_ends_before_the_loss_rises_says_so():
    """A network that no learning rate changes."""
    images, labels = torch.randn(100, 3), torch.arange(100) % 3
    model = nn.Sequential(nn.Linear(3, 3), nn.Hardtanh(-1e-3, 1e-3))
    loader = DataLoader(TensorDataset(images, labels), batch_size=50)
    search = find_lr(model, torch.optim.SGD(model.parameters(), lr=0.1), loader, make_accelerator())
    assert not search.diverges and search.lrs[-1] == pytest.approx(10)
    plateau_lr = find_plateau(search.lrs, search.losses)
    assert search.divergence_lr == search.suggestion == plateau_lr
    assert str(search).startswith(
        f"The loss does not rise again: the search ended at LR 10.0000. It stops falling at LR {plateau_lr:.4f}. Suggested "
    )


def test_the_plateau_starts_before_the_lowest_loss():
    losses = [2.0] * 10 + [1.5, 1.05, 1.2, 1.0, 1.3]
    assert find_plateau([float(lr) for lr in range(15)], losses) == 11


def learning_rates(optimizer, scheduler, steps):
    """What each of ``steps`` steps uses, and what one more would use."""
    lrs = []
    for _ in range(steps):
        lrs.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return [*lrs, scheduler.get_last_lr()[0]]


@pytest.mark.parametrize("epochs, top_epoch, batches", [(24, 5, 98), (2, 1, 21), (20, 1, 3), (3, 2, 1)])
def test_one_cycle(epochs, top_epoch, batches):
    recipe = replace(SESSION9, epochs=epochs, top_epoch=top_epoch)
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    scheduler = one_cycle(optimizer, max_lr=0.02, recipe=recipe, batches=batches)
    lrs = learning_rates(optimizer, scheduler, epochs * batches)
    top = top_epoch * batches - 1
    assert max(range(len(lrs)), key=lrs.__getitem__) == top
    assert lrs[top] == pytest.approx(0.02)
    if top:
        assert lrs[0] == pytest.approx(0.002)
        rises = torch.tensor(lrs[: top + 1]).double().diff()
        torch.testing.assert_close(rises, torch.full_like(rises, (0.02 - 0.002) / top))
    falls = torch.tensor(lrs[top:]).double().diff()
    torch.testing.assert_close(falls, falls.mean().expand_as(falls), rtol=1e-4, atol=1e-9)
    assert lrs[-1] == pytest.approx(2e-6) and min(lrs) > 0
    assert all(group["betas"] == (0.9, 0.999) for group in optimizer.param_groups)


def test_session_8_ends_where_it_began():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = one_cycle(optimizer, max_lr=0.4, recipe=SESSION8, batches=98)
    lrs = learning_rates(optimizer, scheduler, 24 * 98)
    assert lrs[0] == pytest.approx(0.004) and lrs[-1] == pytest.approx(0.004)
    assert max(lrs) == lrs[5 * 98 - 1] == pytest.approx(0.4)


def test_damaged_result_of_the_lr_finder(folder, monkeypatch):
    stop_in_the_second_epoch(monkeypatch, FIND_LR)
    (folder / "lr_finder.json").write_text('{"lrs": [')
    told = exit_message(*FIND_LR)
    assert "lr_finder.json cannot be read: remove it, and the LR finder runs again" in told
