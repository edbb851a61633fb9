"""The range test leaves no trace; the one-cycle policy starts, peaks and ends where it should."""

import copy
import math
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch_lr_finder.lr_finder
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.small import RECIPE, cells_of
from utils import schedule
from utils.data import BatchDataset
from utils.errors import TrainingError
from utils.recipes import SESSION8, SESSION9
from utils.schedule import (
    batch_share,
    find_divergence,
    find_lr,
    find_plateau,
    judge,
    one_cycle,
    project_progress_bar,
    range_test,
)


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Dropout(0.1), nn.Linear(16, 3))


def small_loader():
    """Three batches of 20, in a random order."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(60, 3, generator=generator)
    return DataLoader(TensorDataset(images, torch.arange(60) % 3), batch_size=20, shuffle=True)


# The range test puts everything back


@pytest.mark.parametrize("training", [True, False])
def test_range_test_restores_the_network(training):
    model = small_network().train(training)
    before = copy.deepcopy(model.state_dict())
    range_test(model, torch.optim.Adam(model.parameters()), small_loader(), "float32", steps=24)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert model.training is training


def test_range_test_restores_the_optimizer():
    model = small_network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.123)
    before = copy.deepcopy(optimizer.state_dict())
    range_test(model, optimizer, small_loader(), "float32", steps=24)
    assert optimizer.state_dict() == before


def test_range_test_restores_an_optimizer_that_has_a_schedule():
    """As when the cell runs a second time."""
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    one_cycle(optimizer, 0.5, RECIPE, steps_per_epoch=20)
    before = copy.deepcopy(optimizer.state_dict())
    range_test(model, optimizer, small_loader(), "float32", steps=24)
    assert optimizer.param_groups[0]["initial_lr"] == pytest.approx(0.05)
    assert optimizer.state_dict() == before


def test_range_test_does_not_disturb_a_schedule():
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = one_cycle(optimizer, 0.5, RECIPE, steps_per_epoch=20)
    range_test(model, optimizer, small_loader(), "float32", steps=24)
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05 + 0.45 / 19)


def test_range_test_restores_the_random_state():
    model = small_network()
    before = torch.get_rng_state()
    range_test(model, torch.optim.Adam(model.parameters()), small_loader(), "float32", steps=24)
    assert torch.equal(torch.get_rng_state(), before)


def test_range_test_that_fails_restores_the_network_and_the_optimizer():
    calls = []

    def fail_in_the_third_step(model, inputs):
        calls.append("called")
        if len(calls) == 3:
            raise ZeroDivisionError

    model = small_network()
    model.register_forward_pre_hook(fail_in_the_third_step)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.123)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ZeroDivisionError):
        range_test(model, optimizer, small_loader(), "float32", steps=24)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert optimizer.param_groups[0]["lr"] == 0.123


def test_search_whose_copy_of_the_weights_finds_no_memory_restores_the_optimizer(monkeypatch):
    """LRFinder copies the weights before the first step."""
    monkeypatch.setattr(schedule, "LRFinder", Mock(side_effect=torch.OutOfMemoryError("CUDA")))
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    one_cycle(optimizer, 0.5, RECIPE, steps_per_epoch=20)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(TrainingError, match="replace\\(batch_size="):
        range_test(model, optimizer, small_loader(), "float32", steps=24)
    assert optimizer.state_dict() == before


def test_progress_bar_of_the_package_is_restored():
    module = torch_lr_finder.lr_finder
    bar = module.tqdm
    with pytest.raises(ZeroDivisionError), project_progress_bar():
        assert module.tqdm is not bar
        raise ZeroDivisionError
    assert module.tqdm is bar
    assert not hasattr(module, "print")


def test_range_test_shows_the_projects_bar_and_nothing_else(capsys):
    model = small_network()
    range_test(model, torch.optim.Adam(model.parameters()), small_loader(), "float32", steps=24)
    output = capsys.readouterr().out
    assert "LR finder:   0%" in output
    assert output.split("\r")[-1].strip() == ""  # the bar is removed at the end
    assert "finished" not in output  # the package's own line


# What the range test measures


class Scripted(nn.Module):
    """Its losses are the given ones, one per batch, whatever the learning rate."""

    def __init__(self, losses):
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(()))
        self.losses = iter(losses)

    def forward(self, images):
        other = math.log(math.expm1(next(self.losses)))
        logits = torch.stack([0 * self.zero, 0 * self.zero + other])
        return logits.expand(len(images), 2)


def scripted_parts(losses, make_optimizer=torch.optim.SGD, batch_size=512):
    """Network, optimizer and loader with these losses; all labels are 0."""
    model = Scripted(losses)
    images = torch.zeros(batch_size, 1)
    labels = torch.zeros(batch_size, dtype=torch.long)
    data_set = BatchDataset(images, labels, torch.clone)
    loader = DataLoader(data_set, batch_size, collate_fn=tuple)
    return model, make_optimizer(model.parameters()), loader


def test_learning_rate_rises_evenly_from_1e_minus_5_to_10():
    lrs, _ = range_test(*scripted_parts([2.0] * 24), "float32", steps=24)
    assert lrs == pytest.approx(np.logspace(-5, 1, 24))


def test_losses_are_smoothed_with_a_fifth_of_each_new_one():
    parts = scripted_parts([2.0, 1.0, *([0.5] * 22)])
    _, losses = range_test(*parts, "float32", steps=24)
    assert losses[:4] == pytest.approx([2, 1.8, 1.54, 1.332])


def test_range_test_stops_when_the_loss_has_risen_fivefold():
    """Smoothed: 0.8 × 2 + 0.2 × 41 is less than five times 2, and 0.8 × 2 + 0.2 × 43 is more."""
    below = [2.0] * 15 + [41.0] + [2.0] * 8
    above = [2.0] * 15 + [43.0] + [2.0] * 8
    lrs_below, _ = range_test(*scripted_parts(below), "float32", steps=24)
    lrs_above, _ = range_test(*scripted_parts(above), "float32", steps=24)
    assert len(lrs_below) == 24
    assert len(lrs_above) == 16


@pytest.mark.parametrize(
    "precision, dtype, scaled",
    [
        ("float32", torch.float32, False),
        ("bfloat16", torch.bfloat16, False),
        ("float16", torch.float16, True),  # so that small gradients do not vanish
    ],
)
def test_range_test_computes_in_the_precision_of_the_training(precision, dtype, scaled):
    dtypes = set()
    gradients = []

    def record(model, inputs, output):
        dtypes.add(output.dtype)
        output.register_hook(lambda gradient: gradients.append(gradient.abs().max()))

    model = small_network()
    model[3].register_forward_hook(record)
    range_test(model, torch.optim.SGD(model.parameters()), small_loader(), precision, steps=12)
    assert dtypes == {dtype}
    assert (gradients[0] > 1) == scaled


def test_search_uses_the_given_precision():
    dtypes = set()
    model = small_network()
    model[3].register_forward_hook(lambda layer, inputs, output: dtypes.add(output.dtype))
    optimizer = torch.optim.Adam(model.parameters())
    find_lr(model, optimizer, small_loader(), "bfloat16", steps=24)
    assert dtypes == {torch.bfloat16}


def test_search_has_120_steps():
    assert len(find_lr(*scripted_parts([2.0] * 120)).lrs) == 120


def test_search_judges_what_the_range_test_measures():
    losses = [2.0] * 12 + [1.0] * 4 + [4.0] * 8
    search = find_lr(*scripted_parts(losses), steps=24)
    lrs, smoothed = range_test(*scripted_parts(losses), "float32", steps=24)
    assert search == judge(lrs, smoothed, steps=24, share=1.0)


def test_search_allows_for_small_batches():
    losses = [2.0] * 12 + [4.0] * 12
    search = find_lr(*scripted_parts(losses, batch_size=128), steps=24)
    assert search.suggestion == pytest.approx(search.limit_lr / 3 / 4)


def test_search_without_memory_says_which_batch_size_to_try():
    def fail(model, inputs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    model = small_network()
    model.register_forward_pre_hook(fail)
    with pytest.raises(TrainingError) as caught:
        find_lr(model, torch.optim.Adam(model.parameters()), small_loader())
    assert ".replace(batch_size=10)" in str(caught.value)


# The judgment: losses of 24 steps at the learning rates 1, 2, 3, …

STEPS = 24
LRS = [float(lr) for lr in range(1, STEPS + 1)]


def test_suggestion_is_a_third_of_the_lr_at_which_the_loss_is_back_at_its_start():
    losses = [2.0] * 12 + [1.0] * 5 + [2.5] * 7
    search = judge(LRS, losses, STEPS, share=1.0)
    assert search.diverges
    assert search.limit_lr == 18
    assert search.suggestion == pytest.approx(6)


def test_suggestion_of_a_loss_that_diverges_is_proportional_to_the_share():
    losses = [2.0] * 12 + [1.0] * 5 + [2.5] * 7
    assert judge(LRS, losses, STEPS, share=0.25).suggestion == pytest.approx(1.5)


def test_suggestion_is_the_plateau_if_the_loss_never_rises_again():
    losses = [2.0] * 10 + [1.5, 1.05] + [1.0] * 12
    search = judge(LRS, losses, STEPS, share=0.25)
    assert not search.diverges
    assert search.limit_lr == 12
    assert search.suggestion == 12


def test_search_that_stopped_early_has_found_the_divergence_at_its_end():
    losses = [2.0] * 14 + [1.9, 9.6]
    search = judge(LRS[:16], losses, STEPS, share=1.0)
    assert search.diverges
    assert search.limit_lr == 16


def test_losses_after_one_that_is_not_finite_do_not_count():
    losses = [2.0] * 10 + [1.0] * 6 + [math.nan] + [1.0] * 7
    search = judge(LRS, losses, STEPS, share=1.0)
    assert search.losses == losses[:16]
    assert search.lrs == LRS[:16]
    assert search.diverges
    assert search.limit_lr == 16


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("steps, fewest", [(24, 10), (120, 24)])
def test_losses_that_are_not_finite_too_early_cannot_be_judged(steps, fewest, bad):
    lrs = [float(lr) for lr in range(1, steps + 1)]
    enough = [2.0] * fewest + [bad] * (steps - fewest)
    assert len(judge(lrs, enough, steps, share=1.0).losses) == fewest
    too_few = [2.0] * (fewest - 1) + [bad] * (steps - fewest + 1)
    with pytest.raises(TrainingError) as caught:
        judge(lrs, too_few, steps, share=1.0)
    assert f"after {fewest - 1} of {steps} steps" in str(caught.value)
    assert "check the images" in str(caught.value)


def test_search_that_diverges_explains_its_suggestion():
    losses = [2.0] * 12 + [1.0] * 5 + [2.5] * 7
    text = str(judge(LRS, losses, STEPS, share=0.5))
    assert "back at its start at LR 18.0000" in text
    assert "Suggested max LR: 3.0000" in text
    assert "1/6 of it" in text


def test_search_that_does_not_diverge_explains_its_suggestion():
    losses = [2.0] * 10 + [1.5, 1.05] + [1.0] * 12
    text = str(judge(LRS, losses, STEPS, share=1.0))
    assert "does not rise again" in text
    assert "ended at LR 24.0000" in text
    assert "Suggested max LR: 12.0000" in text


@pytest.mark.parametrize(
    "losses, limit_lr",
    [
        # It falls, then rises above the mean of its first ten.
        ([2.9] + [1.9] * 9 + [1.5, 1.0, 1.5, 1.95, 2.05, 9.0], 15),
        # A noisy plateau: it must rise by a tenth of its start, from 1.9 to more than 2.1.
        ([2.0] * 10 + [1.9, 2.05, 2.09, 2.11, 2.3, 2.4], 14),
        # It never rises: the last one.
        ([2.0] * 10 + [1.5, 1.0, 0.8, 0.7, 0.6, 0.5], 16),
        # A spike before the minimum does not count.
        ([2.0] * 5 + [2.5] + [2.0] * 4 + [1.5, 1.0, 1.5, 2.4, 2.5, 9.0], 14),
    ],
)
def test_divergence_is_where_the_loss_rises_again(losses, limit_lr):
    assert find_divergence(LRS[:16], losses) == limit_lr


def test_plateau_starts_where_the_loss_has_made_nine_tenths_of_its_fall():
    losses = [2.0] * 10 + [1.15, 1.05, 1.2, 1.0, 1.3]
    assert find_plateau(LRS[:15], losses) == 12


def test_plateau_of_a_loss_that_never_falls_is_its_start():
    assert find_plateau(LRS[:12], [0.1] * 12) == 1


@pytest.mark.parametrize(
    "make_optimizer, batch_size, share",
    [
        (torch.optim.SGD, 1024, 1),
        (torch.optim.SGD, 512, 1),
        (torch.optim.SGD, 128, 1 / 4),
        (torch.optim.Adam, 1024, 1),
        (torch.optim.Adam, 128, 1 / 2),
        (torch.optim.AdamW, 128, 1 / 2),
    ],
)
def test_small_batches_get_a_share_of_the_learning_rate(make_optimizer, batch_size, share):
    optimizer = make_optimizer([nn.Parameter(torch.zeros(1))])
    assert batch_share(optimizer, batch_size) == share


# The one-cycle policy


def adam_with_two_groups():
    groups = [
        {"params": nn.Parameter(torch.zeros(1))},
        {"params": nn.Parameter(torch.zeros(1)), "lr_factor": 8},
    ]
    return torch.optim.Adam(groups)


@pytest.mark.parametrize(
    "recipe, first, last",
    [
        (SESSION8, 2e-4, 2e-4),
        (SESSION9, 2e-3, 2e-6),
    ],
)
@pytest.mark.parametrize(
    "epochs, top_epoch, batches",
    [
        (24, 5, 98),
        (20, 1, 3),
        (3, 2, 1),
        (2, 1, 1),
    ],
)
def test_learning_rate_rises_and_falls_on_straight_lines(
    recipe, first, last, epochs, top_epoch, batches
):
    recipe = recipe.replace(epochs=epochs, top_epoch=top_epoch)
    optimizer = adam_with_two_groups()
    scheduler = one_cycle(optimizer, 0.02, recipe, batches)
    lrs = [optimizer.param_groups[0]["lr"]]
    for _ in range(epochs * batches):
        optimizer.step()
        scheduler.step()
        lrs.append(optimizer.param_groups[0]["lr"])
    top = max(1, top_epoch * batches - 1)  # the last step of the top epoch, but not the first step
    expected = np.interp(range(len(lrs)), [0, top, epochs * batches], [first, 0.02, last])
    assert lrs == pytest.approx(expected)


def test_groups_with_a_factor_have_that_multiple_of_the_learning_rate():
    optimizer = adam_with_two_groups()
    scheduler = one_cycle(optimizer, 0.02, SESSION9.replace(epochs=3), steps_per_epoch=4)
    for _ in range(12):
        own, other = scheduler.get_last_lr()
        assert other == pytest.approx(8 * own)
        optimizer.step()
        scheduler.step()


def test_one_cycle_leaves_the_momentum_alone():
    optimizer = adam_with_two_groups()
    one_cycle(optimizer, 0.02, SESSION9, steps_per_epoch=4)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


@pytest.mark.parametrize("max_lr", [np.float64(0.02), np.float32(0.02), torch.tensor(0.02)])
def test_learning_rates_are_pythons_numbers(max_lr):
    """A checkpoint can hold them."""
    optimizer = adam_with_two_groups()
    scheduler = one_cycle(optimizer, max_lr, SESSION9, steps_per_epoch=4)
    optimizer.step()
    scheduler.step()
    for group in optimizer.param_groups:
        for name in ("lr", "max_lr", "min_lr", "initial_lr"):
            assert type(group[name]) is float


@pytest.mark.parametrize("max_lr", [0, -0.01, 1e7, math.nan, math.inf, "0.01", np.float64(-1)])
def test_max_lr_out_of_range_is_refused(max_lr):
    with pytest.raises(TrainingError, match="max LR is"):
        one_cycle(adam_with_two_groups(), max_lr, SESSION9, steps_per_epoch=4)


# The file of the LR finder


def test_damaged_result_of_the_lr_finder_is_found_again(tmp_path, monkeypatch):
    cells = cells_of(tmp_path / "run")
    monkeypatch.setenv("EVA8_SMOKE", "1")  # a short search
    arguments = cells.model, cells.optimizer, cells.train_loader
    first = cells.run.find_lr(*arguments)
    path = cells.run.folder.path / "lr_finder.json"
    undamaged = path.read_text()
    path.write_text('{"lrs": [')
    assert cells.run.find_lr(*arguments) == first
    assert path.read_text() == undamaged
