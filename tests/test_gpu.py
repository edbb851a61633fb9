"""What only a GPU can show: recorded steps, their precisions, memory, and that nothing waits."""

import math
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ConstantLR

from benchmarks import throughput
from tests.conftest import ROOT
from tests.small import DIGITS, FEW_DIGITS, RECIPE, SMALL, Cells, interrupt_epoch
from utils import training
from utils.data import make_loaders, train_transform
from utils.device import choose_device, memory_format
from utils.errors import TrainingError
from utils.graphs import GraphedFunction
from utils.optimizers import adam, sgd
from utils.runs.run import Run
from utils.sessions import SESSIONS
from utils.training import TrainingStep

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
# A T4 only emulates bfloat16.
EMULATED = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
PRECISIONS = ["float32", "float16"] if EMULATED else ["float32", "bfloat16", "float16"]
TOLERANCES = {
    "float32": 1e-3,
    "float16": 1e-2,
    "bfloat16": 5e-2,
}


@pytest.fixture(autouse=True)
def recording_works(monkeypatch):
    """As before a failure, and again after the test."""
    monkeypatch.setattr(GraphedFunction, "recording_works", True)


@contextmanager
def no_waiting():
    """Inside, it is an error when the CPU waits for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def gpu_cells(folder, precision="auto", epochs=2, data=FEW_DIGITS) -> Cells:
    """A run of session 9 on the GPU whose cells were executed up to the training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNS", str(folder.parent))
        patch.setenv("EVA8_SMOKE", "0")
        run = Run.open(folder.name, RECIPE.replace(epochs=epochs, precision=precision), data)
    transform = train_transform(run.recipe, data)
    loaders = make_loaders(data, transform, run.recipe.batch_size, run.device)
    model = run.build(SMALL)
    criterion = nn.CrossEntropyLoss(label_smoothing=run.recipe.label_smoothing)
    return Cells(run, *loaders, model, criterion, adam(model, run.recipe.weight_decay))


def step_of(cells: Cells) -> TrainingStep:
    """A step at a learning rate that stays, clipping as the recipe asks."""
    run = cells.run
    scheduler = ConstantLR(cells.optimizer, 1)
    return TrainingStep(
        cells.model,
        cells.criterion,
        cells.optimizer,
        scheduler,
        run.precision,
        run.recipe.max_grad_norm,
    )


# Recorded functions


def result_of_two_passes(session, precision, graphed):
    """Loss, gradients and buffers after two batches, and the step; the second pass replays."""
    device = choose_device()
    recipe = session.recipe
    torch.manual_seed(0)
    images = torch.randn(2, recipe.batch_size, 3, 32, 32, device=device)
    labels = torch.randint(10, (2, recipe.batch_size), device=device)
    torch.manual_seed(0)
    model = session.network().to(device).to(memory_format=memory_format(device))
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    optimizer = session.optimizer(model, recipe.weight_decay)
    step = TrainingStep(model, criterion, optimizer, ConstantLR(optimizer, 1), precision)
    if precision == "float16":
        step.scaler = torch.amp.GradScaler("cuda", init_scale=128.0)  # no gradient overflows
    function = step.graphed_forward_backward if graphed else step.forward_backward
    for batch in zip(images, labels, strict=True):
        optimizer.zero_grad()
        loss, _ = function(*batch)
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    buffers = [buffer.float() for buffer in model.buffers()]
    return loss, gradients, buffers, step


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("number", SESSIONS)
def test_recorded_step_computes_what_the_plain_one_computes(number, precision):
    session = SESSIONS[number]
    plain_loss, plain_gradients, plain_buffers, _ = result_of_two_passes(session, precision, False)
    loss, gradients, buffers, step = result_of_two_passes(session, precision, True)
    assert step.graphed_forward_backward.replay is not None
    tolerance = TOLERANCES[precision]
    largest = max(gradient.norm() for gradient in gradients)  # some are zero but for rounding
    pairs = zip(
        [plain_loss, *plain_gradients, *plain_buffers],
        [loss, *gradients, *buffers],
        strict=True,
    )
    for plain, recorded in pairs:
        assert (plain - recorded).norm() <= tolerance * max(plain.norm(), largest)


def test_second_step_of_a_network_makes_its_own_recording(tmp_path):
    cells = gpu_cells(tmp_path / "run")
    first = step_of(cells)
    training.train(first, cells.train_loader, epoch=1)
    second = step_of(cells)
    meter = training.train(second, cells.train_loader, epoch=2)
    assert first.graphed_forward_backward.replay is not None
    assert second.graphed_forward_backward.replay is not None
    assert math.isfinite(meter.loss)


def test_replays_draw_new_augmentation(tmp_path):
    data_set = gpu_cells(tmp_path / "run").train_loader.dataset
    torch.manual_seed(0)
    first_images, first_labels = data_set.__getitems__([*range(16)])
    second_images, second_labels = data_set.__getitems__([*range(16)])
    assert data_set.graphed_batch.replay is not None
    assert not torch.equal(first_images, second_images)
    assert torch.equal(first_labels, second_labels)


def test_replays_see_new_images(tmp_path):
    data_set = gpu_cells(tmp_path / "run").train_loader.dataset
    data_set.__getitems__([*range(16)])
    _, labels = data_set.__getitems__([*range(16, 32)])
    assert data_set.graphed_batch.replay is not None
    assert torch.equal(labels, data_set.labels[16:32])


def test_replays_draw_the_random_numbers_of_the_plain_function(tmp_path):
    """So runs with and without graphs see the same images."""
    data_set = gpu_cells(tmp_path / "run").train_loader.dataset
    torch.manual_seed(0)
    recorded = [data_set.__getitems__([*range(16)]) for _ in range(2)]
    torch.manual_seed(0)
    for images, labels in recorded:
        plain_images, plain_labels = data_set.make_batch(torch.arange(16, device="cuda"))
        assert torch.equal(images, plain_images)
        assert torch.equal(labels, plain_labels)


@pytest.fixture
def draws():
    """A plain function that draws random numbers, and its recording; both expect ``zeros``."""

    def draw(zeros):
        return (zeros + torch.rand_like(zeros),)

    zeros = torch.zeros(1000, device="cuda")
    recorded = GraphedFunction(draw)
    recorded(zeros)
    assert recorded.replay is not None
    return draw, recorded, zeros


def test_random_state_can_be_restored_between_replays(draws):
    _, recorded, zeros = draws
    state = torch.cuda.get_rng_state()
    (expected,) = recorded(zeros)
    torch.cuda.set_rng_state(state)
    assert torch.equal(recorded(zeros)[0], expected)


def test_random_state_can_be_forked_between_replays(draws):
    draw, recorded, zeros = draws
    state = torch.cuda.get_rng_state()
    (expected,) = recorded(zeros)
    torch.cuda.set_rng_state(state)
    with torch.random.fork_rng(devices=["cuda"]):
        recorded(zeros)
        draw(zeros)
    assert torch.equal(recorded(zeros)[0], expected)


def test_plain_function_draws_the_same_after_replays(draws):
    draw, recorded, zeros = draws
    state = torch.cuda.get_rng_state()
    (expected,) = recorded(zeros)
    torch.cuda.set_rng_state(state)
    assert torch.equal(draw(zeros)[0], expected)


# Whole runs


@pytest.mark.parametrize("precision", PRECISIONS)
def test_runs_learn_without_a_warning(tmp_path, precision, recwarn, capsys):
    """Five epochs on the digits, with smaller last batches; no line but the log's is printed."""
    cells = gpu_cells(tmp_path / "run", precision, epochs=5, data=DIGITS)
    history = cells.train(0.003)  # at 0.01, some seeds diverge, in any precision
    assert all(map(math.isfinite, history.train_loss))
    assert history.test_accuracy[-1] > 30  # chance is 10
    assert cells.train_loader.dataset.graphed_batch.replay is not None
    messages = [str(one.message) for one in recwarn if issubclass(one.category, UserWarning)]
    assert messages == []
    assert "CUDA graphs" not in capsys.readouterr().out


@pytest.mark.parametrize("precision", PRECISIONS)
def test_resumed_run_is_the_whole_run(tmp_path, precision, monkeypatch):
    """Within rounding, as not all kernels are deterministic; the random numbers are the same."""
    whole = gpu_cells(tmp_path / "whole", precision).train()
    interrupted = gpu_cells(tmp_path / "halves", precision)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_epoch(2, patch)
        interrupted.train()
    resumed = interrupted.train()
    assert resumed.train_loss == pytest.approx(whole.train_loss, rel=0.02)
    assert resumed.step_lr == whole.step_lr


def test_training_goes_on_after_a_failed_recording(tmp_path):
    """A step that waits for the GPU cannot be recorded.

    In a process of its own, because older versions of PyTorch keep what it left behind.
    """
    program = """if True:
        import sys
        from pathlib import Path

        from tests.small import DIGITS
        from tests.test_gpu import gpu_cells
        from utils.training import TrainingStep

        forward_backward = TrainingStep.forward_backward

        def waits(self, images, labels):
            loss, hits = forward_backward(self, images, labels)
            loss.item()
            return loss, hits

        TrainingStep.forward_backward = waits
        cells = gpu_cells(Path(sys.argv[1]), epochs=5, data=DIGITS)
        assert cells.train(0.003).test_accuracy[-1] > 30
    """
    command = [sys.executable, "-c", program, str(tmp_path / "run")]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("CUDA graphs do not work here (") == 1


def test_out_of_memory_says_which_batch_size_to_try(tmp_path, monkeypatch):
    def take_all_memory(images):
        return torch.empty(1 << 50, device="cuda")

    cells = gpu_cells(tmp_path / "run", data=DIGITS)
    monkeypatch.setattr(cells.model, "forward", take_all_memory)
    with pytest.raises(TrainingError) as caught:
        cells.train()
    assert "out of memory with batches of 71 images" in str(caught.value)
    assert ".replace(batch_size=35)" in str(caught.value)


# Nothing waits for the GPU, but the progress bar, which is not drawn here


def test_training_steps_do_not_wait_for_the_gpu(tmp_path):
    """In float16, one value is read in each step: whether the gradients have overflowed."""
    precision = "float32" if EMULATED else "bfloat16"
    cells = gpu_cells(tmp_path / "run", precision, data=DIGITS)
    step = step_of(cells)
    batches = iter(cells.train_loader)
    cells.model.train()
    step(*next(batches))  # records
    with no_waiting():
        for _ in range(5):
            step(*next(batches))


def test_statistics_of_batchnorm_do_not_wait_for_the_gpu(tmp_path):
    cells = gpu_cells(tmp_path / "run", data=DIGITS)
    arguments = cells.model, cells.train_loader, cells.run.precision
    training.refresh_batchnorm(*arguments)
    with no_waiting():
        training.refresh_batchnorm(*arguments)


def test_test_batches_do_not_wait_for_the_gpu(tmp_path):
    cells = gpu_cells(tmp_path / "run", data=DIGITS)
    arguments = cells.model, cells.test_loader, cells.run.precision
    training.predict(*arguments)
    with no_waiting():
        training.predict(*arguments)


# Optimizers and the benchmark


def test_optimizers_update_all_weights_with_few_launches():
    model = nn.Linear(2, 2)
    assert adam(model, 0.1).defaults["fused"] is None  # as PyTorch chooses
    model.cuda()
    assert adam(model, 0.1).defaults["fused"]
    assert sgd(model, 0.1).defaults["fused"]


def test_first_step_that_overflows_changes_nothing():
    model = nn.Linear(2, 2).cuda()
    optimizer = sgd(model, 0.1)
    scaler = torch.amp.GradScaler("cuda")
    before = model.weight.clone()
    for factor in (math.inf, 0.0):
        optimizer.zero_grad()
        loss = factor * model(torch.ones(1, 2, device="cuda")).sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(model.weight, before)


def test_benchmark_measures_the_bare_graph():
    train_phase, _, bare_graph = throughput.ours(SESSIONS[9], throughput.noise(512))
    train_phase()
    model = train_phase.args[0].model
    before = [parameter.detach().clone() for parameter in model.parameters()]
    bare_graph()
    assert GraphedFunction.recording_works
    assert not any(map(torch.equal, before, model.parameters()))
