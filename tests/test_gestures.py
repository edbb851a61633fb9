"""The cells of a notebook in any order, interrupted anywhere.

Each gesture ends like the uninterrupted run, bit for bit and in the same precision, or with one
line.
"""

import itertools
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR

from tests.small import FEW_DIGITS, RECIPE, Cells, cells_of, interrupt_epoch
from utils import plots, schedule
from utils.errors import TrainingError, UserError
from utils.files import load_tensors
from utils.runs.folder import RunFolder

STEPS = (5, 30)  # in the first and in the second epoch, which have 20 steps each


@pytest.fixture(scope="module", params=["float32", "bfloat16", "float16"])
def precision(request):
    """A CPU emulates float16, with the scaling of a GPU."""
    return request.param


@pytest.fixture(scope="module")
def uninterrupted(precision, tmp_path_factory):
    """Two epochs from the first to the last step, in one kernel."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    cells = cells_of(folder, RECIPE.replace(precision=precision))
    cells.train()
    return cells


@pytest.fixture
def cells(precision, tmp_path):
    """The cells before the training, in each precision."""
    return cells_of(tmp_path / "run", RECIPE.replace(precision=precision))


@pytest.fixture(scope="module")
def uninterrupted32(tmp_path_factory):
    """The uninterrupted run in float32."""
    cells = cells_of(tmp_path_factory.mktemp("uninterrupted32") / "run")
    cells.train()
    return cells


@pytest.fixture
def cells32(tmp_path):
    """The cells before the training, in float32."""
    return cells_of(tmp_path / "run")


def assert_same_result(cells: Cells, expected: Cells) -> None:
    """The same weights and measurements, bit for bit."""
    assert cells.run.history.test_loss == expected.run.history.test_loss
    assert cells.run.history.step_lr == expected.run.history.step_lr
    weights = cells.model.state_dict()
    torch.testing.assert_close(weights, expected.model.state_dict(), rtol=0, atol=0)


def fit_with_an_event(cells: Cells, step: int, event: Callable[[Tensor], Tensor]) -> None:
    """Call ``fit``; in the given step, counted from 1, ``event`` gets the loss and returns one."""
    calls = itertools.count(1)

    def hook(criterion, inputs, loss):
        return event(loss) if next(calls) == step else loss

    handle = cells.criterion.register_forward_hook(hook)
    try:
        cells.fit()
    finally:
        handle.remove()


def press_stop(loss: Tensor) -> Tensor:
    raise KeyboardInterrupt


def become_nan(loss: Tensor) -> Tensor:
    return loss * float("nan")


def interrupt(cells: Cells, step: int) -> None:
    """Run the training cell and stop it in the given step."""
    cells.make_schedule()
    with pytest.raises(KeyboardInterrupt):
        fit_with_an_event(cells, step, press_stop)


def line_of(gesture: Callable[[], object]) -> str:
    """The one line with which a gesture ends."""
    with pytest.raises(TrainingError) as caught:
        gesture()
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("step", STEPS)
def test_training_cell_again_after_an_interruption(cells, uninterrupted, step):
    interrupt(cells, step)
    cells.train()
    assert_same_result(cells, uninterrupted)


@pytest.mark.parametrize("step", STEPS)
def test_fit_alone_again_with_the_same_schedule(cells, uninterrupted, step):
    interrupt(cells, step)
    cells.fit()
    assert_same_result(cells, uninterrupted)


def test_second_fit_computes_in_the_same_precision(cells, precision):
    interrupt(cells, 30)
    dtypes = set()
    convolution = cells.model.conv_block[0]
    convolution.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    cells.train()
    assert dtypes == {getattr(torch, precision)}


@pytest.mark.parametrize("step", STEPS)
def test_training_cell_again_with_a_smaller_max_lr_after_a_nan(
    cells32, uninterrupted32, step, capsys
):
    """As the message proposes."""
    cells32.make_schedule(max_lr=0.04)
    with pytest.raises(TrainingError, match="became nan in epoch"):
        fit_with_an_event(cells32, step, become_nan)
    cells32.train(max_lr=0.01)
    assert_same_result(cells32, uninterrupted32)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "was moved to" in line]
    assert "run-2/: " in line
    assert "schedule max_lr ([0.04, 0.04], now [0.01, 0.01])" in line


def test_training_cell_again_after_the_end_trains_nothing(cells32, uninterrupted32):
    cells32.train()
    cells32.run.finish()
    cells32.make_schedule()
    fit_with_an_event(cells32, 1, press_stop)  # which is never reached
    assert_same_result(cells32, uninterrupted32)
    assert (cells32.run.folder.path / "run.json").exists()


def test_stop_inside_a_step_that_overflows_in_float16(tmp_path, monkeypatch):
    """GradScaler then knows of an overflow, and the optimizer's gradients are not finite."""
    recipe = RECIPE.replace(precision="float16")
    expected = cells_of(tmp_path / "expected", recipe)
    expected.train()
    cells = cells_of(tmp_path / "run", recipe)
    clip = torch.nn.utils.clip_grad_norm_
    overflows = []

    def stop_if_not_finite(parameters, max_norm):
        norm = clip(parameters, max_norm)
        if not norm.isfinite():
            overflows.append(norm)
            raise KeyboardInterrupt

    cells.make_schedule()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch.nn.utils, "clip_grad_norm_", stop_if_not_finite)
        fit_with_an_event(cells, 3, overflow)
    assert len(overflows) == 1
    cells.fit()
    assert_same_result(cells, expected)


def overflow(loss: Tensor) -> Tensor:
    """A loss whose gradients are not finite in float16."""
    return loss * 1e9


def test_find_lr_again_after_the_schedule_exists(cells32, uninterrupted32):
    first = cells32.run.find_lr(cells32.model, cells32.optimizer, cells32.train_loader)
    interrupt(cells32, 5)
    (cells32.run.folder.path / "lr_finder.json").unlink()
    assert cells32.run.find_lr(cells32.model, cells32.optimizer, cells32.train_loader) == first
    cells32.fit()
    assert_same_result(cells32, uninterrupted32)


def test_find_lr_again_reads_its_result(cells32, monkeypatch):
    first = cells32.run.find_lr(cells32.model, cells32.optimizer, cells32.train_loader)
    monkeypatch.setattr(schedule, "find_lr", lambda *_: pytest.fail("searched again"))
    assert cells32.run.find_lr(cells32.model, cells32.optimizer, cells32.train_loader) == first


def test_find_lr_again_after_the_training_leaves_the_trained_network(cells32, uninterrupted32):
    cells32.run.find_lr(cells32.model, cells32.optimizer, cells32.train_loader)
    cells32.train()
    cells32.run.find_lr(cells32.model, cells32.optimizer, cells32.train_loader)
    assert_same_result(cells32, uninterrupted32)


def test_build_again_without_the_optimizer_cell(cells32):
    cells32.make_schedule()
    cells32.model = cells32.run.build(torch.nn.Identity)
    assert "optimizer holds the weights of another network" in line_of(cells32.fit)


def test_network_that_the_run_has_not_built(cells32):
    cells32.model = torch.nn.Flatten()
    assert "not the one that run.build made" in line_of(cells32.train)


def test_optimizer_of_another_network(cells32, tmp_path):
    cells32.optimizer = cells_of(tmp_path / "other").optimizer
    assert "optimizer holds the weights of another network" in line_of(cells32.train)


def test_lr_finder_with_the_optimizer_of_another_network(cells32, tmp_path):
    other = cells_of(tmp_path / "other").optimizer
    line = line_of(lambda: cells32.run.find_lr(cells32.model, other, cells32.train_loader))
    assert "optimizer holds the weights of another network" in line


def test_schedule_of_another_optimizer(cells32, tmp_path):
    other = cells_of(tmp_path / "other")
    other.make_schedule()
    cells32.scheduler = other.scheduler
    assert "schedule belongs to another optimizer" in line_of(cells32.fit)


def test_schedule_with_too_few_steps(cells32):
    one_epoch = RECIPE.replace(epochs=1)
    cells32.scheduler = schedule.one_cycle(cells32.optimizer, 0.01, one_epoch, steps_per_epoch=20)
    assert "21 steps, but 2 epochs have 40" in line_of(cells32.fit)


def test_line_before_the_training_changes_no_file(cells32, tmp_path):
    cells32.model = torch.nn.Flatten()
    line_of(cells32.train)
    assert not (tmp_path / "run").exists()


def not_trained(run) -> None:
    """Every cell after the training says that it comes too early."""
    assert "not trained to the end" in line_of(run.finish)
    assert "not trained to the end" in line_of(lambda: run.predictions)
    assert "no finished run" in line_of(run.submission)


def test_results_before_the_training(cells32):
    not_trained(cells32.run)


def test_results_after_an_interruption(cells32):
    interrupt(cells32, 30)
    not_trained(cells32.run)


def test_results_after_a_new_network(cells32):
    cells32.train()
    cells32.run.finish()
    cells32.run.build(cells32.run.network_function)
    not_trained(cells32.run)


def test_submission_before_finish(cells32):
    cells32.train()
    assert "no finished run" in line_of(cells32.run.submission)


def test_predictions_are_those_of_the_weights_as_they_are(cells32):
    cells32.train(max_lr=0.02)
    logits_before, _ = cells32.run.predictions
    cells32.train(max_lr=0.01)
    logits, labels = cells32.run.predictions
    assert not torch.equal(logits, logits_before)
    assert F.cross_entropy(logits, labels).item() == cells32.run.history.test_loss[-1]


def test_cosine_schedule_made_twice_starts_from_the_same_lr(cells32):
    cells32.optimizer = torch.optim.Adam(cells32.model.parameters(), lr=0.003)
    cells32.scheduler = CosineAnnealingLR(cells32.optimizer, T_max=40)
    first = cells32.fit().step_lr
    cells32.scheduler = CosineAnnealingLR(cells32.optimizer, T_max=40)
    assert first[0] == 0.003
    assert cells32.scheduler.get_last_lr() == [0.003]
    assert cells32.fit().step_lr == first


def test_schedule_after_another_one_starts_from_the_lr_of_the_optimizer(cells32):
    cells32.optimizer = torch.optim.AdamW(cells32.model.parameters(), lr=0.003)
    cells32.run.find_lr(cells32.model, cells32.optimizer, cells32.train_loader)
    cells32.train(max_lr=0.01)
    cells32.scheduler = CosineAnnealingLR(cells32.optimizer, T_max=40)
    assert cells32.fit().step_lr[0] == 0.003


def test_schedule_after_a_resumed_lr_search_starts_from_the_lr_of_the_optimizer(cells32):
    """The search then only reads its result."""
    optimizer = torch.optim.AdamW(cells32.model.parameters(), lr=0.003)
    cells32.run.find_lr(cells32.model, optimizer, cells32.train_loader)
    cells32.optimizer = torch.optim.AdamW(cells32.model.parameters(), lr=0.003)
    cells32.run.find_lr(cells32.model, cells32.optimizer, cells32.train_loader)
    cells32.train(max_lr=0.01)
    cells32.scheduler = CosineAnnealingLR(cells32.optimizer, T_max=40)
    assert cells32.fit().step_lr[0] == 0.003


def test_first_schedule_again_after_a_second_one(cells32, uninterrupted32):
    cells32.train()
    first = cells32.scheduler
    cells32.train(max_lr=0.02)
    cells32.scheduler = first
    cells32.fit()
    assert_same_result(cells32, uninterrupted32)


def test_training_removes_the_settings_that_the_schedule_added(cells32):
    before = set(cells32.optimizer.param_groups[0])
    cells32.run.find_lr(cells32.model, cells32.optimizer, cells32.train_loader)
    cells32.train()
    assert set(cells32.optimizer.param_groups[0]) == before


def test_max_lr_of_numpy_resumes_in_a_new_kernel(cells32, uninterrupted32, monkeypatch):
    cells32.make_schedule(np.float64(0.01))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_epoch(2, patch)
        cells32.fit()
    folder = cells32.run.folder.path
    assert len(load_tensors(folder / "checkpoint.pt")["history"]["lr"]) == 1
    in_new_kernel = cells_of(folder, cells32.run.recipe)
    in_new_kernel.train(np.float64(0.01))
    assert_same_result(in_new_kernel, uninterrupted32)


def test_picture_that_fails_costs_one_line(cells32, full, capsys):
    def wrong_picture():
        raise ZeroDivisionError("the reason\nand more")

    cells32.run.show(wrong_picture)
    message = "The picture wrong_picture cannot be drawn (ZeroDivisionError: the reason).\n"
    assert capsys.readouterr().out == message
    assert not (cells32.run.folder.path / "wrong_picture.png").exists()


def test_weights_are_saved_before_any_picture_and_the_end_is_marked_last(cells32, monkeypatch):
    names = []
    write = RunFolder.write

    def recording_write(folder, name, content):
        names.append(name)
        write(folder, name, content)

    monkeypatch.setattr(RunFolder, "write", recording_write)
    cells32.train()
    cells32.run.show(plots.lr_history_plot, cells32.run.history, cells32.run.data)
    cells32.run.finish()
    assert names[-3:] == ["weights.pt", "lr_history_plot.png", "run.json"]


ODD_CLASSES = ("Ke$$ha", "ca$h_$^", *"车鸟猫鹿狗蛙马船")


@pytest.fixture(scope="module")
def odd_run(tmp_path_factory):
    """A run on images whose names have dollar signs and Chinese characters."""
    few = replace(
        FEW_DIGITS,
        name="a $ and a $_^",
        classes=ODD_CLASSES,
        test_images=FEW_DIGITS.test_images[:7],
        test_labels=FEW_DIGITS.test_labels[:7],
    )
    cells = cells_of(tmp_path_factory.mktemp("odd") / "run", RECIPE.replace(epochs=1), few)
    cells.train()
    return cells


def test_odd_names_draw_without_a_warning(odd_run, monkeypatch):
    """A notebook draws the pictures again, to display them."""
    run = odd_run.run
    monkeypatch.setitem(sys.modules, "ipykernel", None)
    displayed = []
    monkeypatch.setattr("IPython.display.display", displayed.append)
    with warnings.catch_warnings(), mpl.rc_context({"text.usetex": True}):
        warnings.simplefilter("error", UserWarning)
        run.show(plots.sample_training_images, odd_run.train_loader, run.data)
        run.show(plots.confusion_matrix, run.predictions, run.data)
        run.show(plots.attention_maps, run.model, run.predictions, run.data)
    assert len(list(run.folder.path.glob("*.png"))) == 3
    assert len(displayed) == 3


def test_odd_names_are_drawn_literally(odd_run):
    with plots.style():
        figure = plots.confusion_matrix(odd_run.run.predictions, odd_run.run.data)
        figure.savefig(os.devnull, format="png")
    label = figure.axes[0].get_xticklabels()[0].get_text()
    assert label == r"Ke\$\$ha"  # which matplotlib draws as Ke$$ha


def test_user_error_is_one_line_in_a_notebook(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # the shell replaces it
    shell = InteractiveShell.instance()
    shell.user_ns["UserError"] = UserError
    shell.run_cell("raise UserError('the line')")
    InteractiveShell.clear_instance()
    assert capsys.readouterr().out.strip() == "UserError: the line"
