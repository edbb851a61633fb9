"""The cells of a notebook in any order, interrupted anywhere: the uninterrupted result, or one line."""

import json
import os
import sys
import warnings
from dataclasses import asdict, replace

import matplotlib as mpl
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from torch.nn import functional as F

from tests.small import small_run
from utils import plots, training
from utils.data import load_data
from utils.recipes import SESSION9
from utils.errors import TrainingError, UserError
from utils.files import load_tensors

FEW = load_data()  # 40 digits: 20 steps an epoch
CPU = replace(SESSION9, precision="float32").for_images(40).for_epochs(2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = small_run(tmp_path_factory.mktemp("whole") / "run", CPU, FEW, cpu=True)
    run.fit(0.01)
    return run


@pytest.fixture
def run(tmp_path):
    return small_run(tmp_path / "run", CPU, FEW, cpu=True)


def same(one, two) -> bool:
    """The same weights and measurements, bit for bit."""
    states = one.model.state_dict(), two.model.state_dict()
    assert one.history.test_loss == two.history.test_loss and one.history.step_lr == two.history.step_lr
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def interrupt(run, monkeypatch, step: int, error: type = KeyboardInterrupt, max_lr: float = 0.01) -> None:
    """Train, and stop in the given step: 20 steps and a test pass are one epoch."""
    calls, real = [], F.cross_entropy

    def stop(*arguments, **options):
        calls.append(1)
        if len(calls) == step and error is KeyboardInterrupt:
            raise error
        return real(*arguments, **options) * (float("nan") if len(calls) == step else 1)

    with monkeypatch.context() as patch:
        patch.setattr(training.F, "cross_entropy", stop)
        with pytest.raises(error):
            run.fit(max_lr)


@pytest.mark.parametrize("step", [5, 30])
def test_training_cell_run_again_after_an_interruption(run, whole, monkeypatch, step):
    interrupt(run, monkeypatch, step)
    run.fit(0.01)
    assert same(run, whole)


@pytest.mark.parametrize("step", [5, 30])
def test_training_cell_run_again_with_another_max_lr(run, whole, monkeypatch, step, capsys):
    """As the message about a loss that is not finite proposes."""
    interrupt(run, monkeypatch, step, TrainingError, max_lr=0.04)
    run.fit(0.01)
    assert same(run, whole) and max(run.history.step_lr) == pytest.approx(0.01)
    assert load_tensors(run.folder / "checkpoint.pt")["max_lr"] == 0.01
    assert ("The earlier run was moved to" in capsys.readouterr().out) == (step == 30)  # if it had a checkpoint
    assert (run.folder / "plan.json").exists()  # so that it resumes after the kernel has ended


def test_training_cell_run_again_after_the_end(run, whole):
    model = run.build()
    run.fit(0.01)
    assert run.model is model  # the notebook's variable is the trained network
    run.finish()
    run.find_lr()  # trains no further, and leaves the network alone
    assert same(run, whole)
    run.fit(0.01)
    assert same(run, whole) and (run.folder / "run.json").exists()
    run.fit(0.005)
    (aside,) = run.folder.parent.glob("run-*")
    assert json.loads((aside / "run.json").read_text())["max_lr"] == 0.01 and not (run.folder / "run.json").exists()


def test_pictures_belong_to_the_weights_as_they_are(run, whole):
    run.show("confusion_matrix", "sample_training_images")
    sample, before = run.sample[0], run.predictions[0]
    run.fit(0.01)
    assert same(run, whole) and torch.equal(run.sample[0], sample)
    assert not torch.equal(run.predictions[0], before)
    logits, labels = run.predictions
    assert F.cross_entropy(logits, labels).item() == pytest.approx(run.history.test_loss[-1])
    assert 100 * (logits.argmax(1) == labels).float().mean().item() == pytest.approx(run.history.test_accuracy[-1])


def test_finish_wants_a_trained_network(run, monkeypatch):
    for before in (lambda: None, lambda: interrupt(run, monkeypatch, 30), lambda: run.fit(0.01) and run.build()):
        before()
        with pytest.raises(TrainingError, match="not trained to the end: call fit first"):
            run.finish()
    assert not (run.folder / "run.json").exists()


def test_find_lr_starts_from_a_new_network_and_keeps_its_result(run, whole, monkeypatch):
    first = run.find_lr()
    (run.folder / "lr_finder.json").unlink()
    interrupt(run, monkeypatch, 5)
    assert run.find_lr() == first
    monkeypatch.setattr("utils.runs.run.find_lr", lambda *_: pytest.fail("searched again"))
    assert run.find_lr() == first
    run.fit(0.01)
    assert same(run, whole)


def test_weights_are_saved_before_any_picture(run, monkeypatch, capsys):
    """A picture that fails costs one line."""
    run.fit(0.01)
    weights, checkpoint = (load_tensors(run.folder / name) for name in ("weights.pt", "checkpoint.pt"))
    assert list(weights) == "model session recipe commit classes mean std".split() and weights["recipe"] == asdict(CPU)
    assert set(weights) < set(checkpoint)  # which serves as weights
    monkeypatch.setenv("EVA8_SMOKE", "0")
    monkeypatch.setattr(plots, "confusion_matrix", lambda run: 1 / 0)
    run.show("confusion_matrix", "lr_history_plot")
    told = "The picture confusion_matrix cannot be drawn (ZeroDivisionError: division by zero).\n"
    assert told in capsys.readouterr().out
    assert (run.folder / "lr_history_plot.png").exists() and not (run.folder / "confusion_matrix.png").exists()


def test_pictures_of_odd_data(tmp_path, monkeypatch):
    displayed = []  # a notebook draws them again
    monkeypatch.setitem(sys.modules, "ipykernel", None)
    draw = lambda figure: displayed.append(figure.savefig(os.devnull, format="png", dpi=72))  # noqa: E731
    monkeypatch.setattr("IPython.display.display", draw)
    odd = replace(FEW, name="a $ and a $_^", classes=("Ke$$ha", "ca$h_$^", *"车鸟猫鹿狗蛙马船"))
    data = replace(odd, test_images=FEW.test_images[:7], test_labels=FEW.test_labels[:7])
    run = small_run(tmp_path / "run", replace(CPU, epochs=1, top_epoch=1), data, cpu=True)
    run.fit(0.01)
    with warnings.catch_warnings(), mpl.rc_context({"text.usetex": True}):
        warnings.simplefilter("error", UserWarning)
        run.show("sample_training_images", "confusion_matrix", "attention_maps", "signal_rank")
    assert len(list(run.folder.glob("*.png"))) == len(displayed) == 4
    (figure := plots.confusion_matrix(run)).canvas.draw()
    assert figure.axes[0].get_xticklabels()[0].get_text() == r"Ke\$\$ha"  # which matplotlib draws as Ke$$ha


def test_log_is_complete_on_a_narrow_terminal(run, whole, monkeypatch):
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((40, 20)))
    run.fit(0.01)
    ends = [[line.split("[")[0] for line in one.history.log] for one in (run, whole)]
    assert ends[0] == ends[1] and all("100%|██████████| 20/20 " in line for line in ends[0][::2])


def test_user_error_is_one_line_in_a_notebook(capsys):
    shell = InteractiveShell.instance()
    shell.user_ns["UserError"] = UserError
    shell.run_cell("raise UserError('the line')")
    assert capsys.readouterr().out.strip() == "UserError: the line"
    InteractiveShell.clear_instance()
