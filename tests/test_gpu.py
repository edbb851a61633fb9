"""What only a GPU can show: captured steps, their precisions, memory, and that nothing waits."""

import math
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from benchmarks import throughput
from tests.conftest import ROOT
from tests.small import RECIPE, interrupt_epoch, small_run
from utils import training
from utils.optimizers import adam, sgd
from utils.runs.run import Run
from utils.sessions import SESSIONS
from utils.device import make_accelerator
from utils.errors import TrainingError
from utils.graphs import GraphedFunction

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
# A T4 only emulates bfloat16.
EMULATED = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
PRECISIONS = ("float32", "float16") if EMULATED else ("float32", "bfloat16", "float16")


@pytest.fixture(autouse=True)
def works(monkeypatch):
    monkeypatch.setattr(GraphedFunction, "works", True)


@contextmanager
def no_waiting():
    """Inside, it is an error when the CPU waits for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def run_in(folder, precision="auto", epochs=2) -> Run:
    return small_run(folder, replace(RECIPE.for_epochs(epochs), precision=precision))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("session", (7, 8, 9))
def test_captured_step_computes_what_the_plain_one_computes(session, precision):
    """The loss, the gradients and the buffers, from the same random state."""
    accelerator, recipe, found = make_accelerator(precision=precision), SESSIONS[session].recipe, []
    if accelerator.scaler:
        accelerator.scaler = torch.amp.GradScaler(init_scale=128.0)  # no gradient overflows
    torch.manual_seed(0)
    images = torch.randn(2, recipe.batch_size, 3, 32, 32, device="cuda")
    labels = torch.randint(10, (2, recipe.batch_size), device="cuda")
    for wrap in (lambda step, model: step, GraphedFunction):
        torch.manual_seed(0)
        model, optimizer = accelerator.prepare(*SESSIONS[session].build(accelerator.device))
        step = wrap(partial(training.forward_backward, model, accelerator, recipe), model)
        for batch in zip(images, labels):  # the second one only replays
            optimizer.zero_grad()
            loss, _ = step(*batch)
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        found.append([loss, *gradients, *(buffer.float() for buffer in model.buffers())])
    assert step.replay is not None
    tolerance = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}[precision]
    largest = max(gradient.norm() for gradient in gradients)  # some are zero but for rounding
    for plain, captured in zip(*found):
        assert (plain - captured).norm() <= tolerance * max(plain.norm(), largest)


def test_replays_see_new_images_and_draw_new_augmentation(tmp_path):
    """The random numbers are those of the plain function, so that runs with and without graphs see the same images."""
    data_set = run_in(tmp_path / "run").loaders[0].dataset
    torch.manual_seed(0)
    first, second = data_set.__getitems__([*range(64)]), data_set.__getitems__([*range(64)])
    others = data_set.__getitems__([*range(64, 128)])
    assert data_set.batch.replay is not None
    assert not torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert not torch.equal(first[1], others[1])
    torch.manual_seed(0)
    for images, labels in (first, second):
        again = data_set.make_batch(torch.arange(64, device="cuda"))
        assert torch.equal(images, again[0]) and torch.equal(labels, again[1])


def test_random_state_can_be_saved_and_restored_between_replays():
    def draw(zeros):
        return (zeros + torch.rand_like(zeros),)

    replayed, zeros = GraphedFunction(draw), torch.zeros(1000, device="cuda")
    replayed(zeros)
    state = torch.cuda.get_rng_state()
    (expected,) = replayed(zeros)
    torch.cuda.set_rng_state(state)
    assert torch.equal(replayed(zeros)[0], expected)
    torch.cuda.set_rng_state(state)
    with torch.random.fork_rng(devices=["cuda"]):
        replayed(zeros)
        draw(zeros)
    assert torch.equal(replayed(zeros)[0], expected)
    torch.cuda.set_rng_state(state)
    assert torch.equal(draw(zeros)[0], expected)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_runs_learn_without_a_warning(tmp_path, precision, recwarn, capsys):
    """Five epochs on the digits, with smaller last batches; no line but the log's is printed."""
    run = run_in(tmp_path / "run", precision, epochs=5)
    history = run.fit(0.003)  # at 0.01, some seeds diverge, in any precision
    assert torch.tensor(history.train_loss).isfinite().all() and history.test_accuracy[-1] > 30
    assert run.loaders[0].dataset.batch.replay is not None and GraphedFunction.works
    assert [str(warning.message) for warning in recwarn if issubclass(warning.category, UserWarning)] == []
    assert "CUDA graphs" not in capsys.readouterr().out


@pytest.mark.parametrize("precision", PRECISIONS)
def test_resumed_run_is_the_whole_run(tmp_path, precision, monkeypatch):
    """Bit for bit where the kernels are deterministic; else within rounding: the random numbers are the same."""
    whole = run_in(tmp_path / "whole", precision)
    whole.fit(0.01)
    halves = run_in(tmp_path / "halves", precision)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_epoch(2, patch)
        halves.fit(0.01)
    resumed = run_in(tmp_path / "halves", precision)
    resumed.fit(0.01)
    assert resumed.history.train_loss == pytest.approx(whole.history.train_loss, rel=0.02)
    assert resumed.history.step_lr == whole.history.step_lr


def test_training_goes_on_after_a_failed_capture(tmp_path):
    """A step that waits for the GPU cannot be captured. In a process of its own: older PyTorch keeps what it left."""
    program = """if True:
        import sys
        from pathlib import Path
        from tests.small import RECIPE, small_run
        from utils import training
        real = training.forward_backward
        def waits(*arguments):
            loss, hits = real(*arguments)
            loss.item()
            return loss, hits
        training.forward_backward = waits
        run = small_run(Path(sys.argv[1]), RECIPE.for_epochs(5))
        assert run.fit(0.003).test_accuracy[-1] > 30
    """
    command = [sys.executable, "-c", program, str(tmp_path / "run")]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("CUDA graphs do not work here (") == 1


def test_out_of_memory_says_which_batch_size_to_try(tmp_path, monkeypatch):
    run = run_in(tmp_path / "run")
    monkeypatch.setattr(run.model, "forward", lambda images: torch.empty(1 << 50, device="cuda"))
    with pytest.raises(TrainingError, match="the GPU is out of memory with batches of 71 images: try 35"):
        run.fit(0.01)


def test_nothing_in_an_epoch_waits_for_the_gpu(tmp_path, monkeypatch):
    """But the progress bar, which is not drawn here: training steps, BatchNorm's statistics, test batches."""
    run = run_in(tmp_path / "run")
    accelerator, recipe = run.accelerator, run.session.recipe
    model, optimizer, *loaders = accelerator.prepare(run.model, run.optimizer, *run.loaders)
    step = GraphedFunction(partial(training.forward_backward, model, accelerator, recipe), model)
    iterator = iter(loaders[0])

    def one_step():
        images, labels = next(iterator)
        optimizer.zero_grad()
        step(images, labels)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    model.train()
    one_step()  # records
    with no_waiting():
        for _ in range(5):
            one_step()
    training.refresh_batchnorm(model, loaders[0].dataset, recipe.batch_size, accelerator)
    training.predict(model, loaders[1], accelerator=accelerator)
    with no_waiting():
        training.refresh_batchnorm(model, loaders[0].dataset, recipe.batch_size, accelerator)
        training.predict(model, loaders[1], accelerator=accelerator)


def test_optimizers_update_all_weights_with_few_launches():
    model = nn.Linear(2, 2)
    assert adam(model, 0.1).defaults["fused"] is None  # as PyTorch chooses
    assert adam(model.cuda(), 0.1).defaults["fused"] and sgd(model, 0.1).defaults["fused"]


def test_first_step_that_overflows_changes_nothing():
    model, scaler = nn.Linear(2, 2).cuda(), torch.amp.GradScaler("cuda")
    optimizer, before = sgd(model, 0.1), model.weight.clone()
    for scale in (math.inf, 0.0):
        optimizer.zero_grad()
        scaler.scale(scale * model(torch.ones(1, 2, device="cuda")).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(model.weight, before)


def test_benchmark_measures_the_bare_graph():
    training, _, bare_graph = throughput.ours(SESSIONS[9], throughput.noise(512))
    training()
    before = [parameter.detach().clone() for parameter in training.args[0].parameters()]
    bare_graph()
    assert GraphedFunction.works and not any(map(torch.equal, before, training.args[0].parameters()))
