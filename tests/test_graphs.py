"""GraphedFunction with a stand-in for CUDA graphs: on the CPU, a replay calls the function."""

from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ConstantLR

from tests.small import RECIPE, cells_of
from utils import graphs
from utils.graphs import GraphedFunction
from utils.training import TrainingStep


def warm_up_on_cpu(work, device):
    """Three calls; the random state is restored."""
    for _ in range(graphs.WARM_UP):
        with torch.random.fork_rng():
            result = work()
    return result


def capture_on_cpu(work, device):
    """As on a GPU, each replay writes into the tensors of the recording, and nowhere else."""
    before = [[value.clone() for value in values] for values in warm_up_on_cpu(work, device)]
    recorded = warm_up_on_cpu(work, device)
    for old_values, new_values in zip(before, recorded, strict=True):
        for old, new in zip(old_values, new_values, strict=True):
            if not torch.equal(old, new):
                pytest.fail("each replay would add to the gradients of the one before")

    def replay():
        for own_values, new_values in zip(recorded, work(), strict=True):
            for own, new in zip(own_values, new_values, strict=True):
                own.copy_(new)
                new.zero_()

    return replay, recorded


def fail_to_capture(work, device):
    """What a recording does that the system forbids: the end of it fails in turn."""
    capture_on_cpu(work, device)
    try:
        raise RuntimeError("operation not permitted\nmore lines")
    finally:
        raise RuntimeError("operation failed due to a previous error during capture")


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(graphs, "can_record", lambda *inputs: not torch.is_inference_mode_enabled())
    monkeypatch.setattr(graphs, "warm_up", warm_up_on_cpu)
    monkeypatch.setattr(graphs, "capture", capture_on_cpu)
    # As before a failure, and again after the test.
    monkeypatch.setattr(GraphedFunction, "recording_works", True)


# Any function


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)
    )


def trained(graphed):
    """The state of a network after eight random batches, some of them smaller, and all outputs."""
    model = make_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def forward_backward(images, labels):
        logits = model(images)
        F.cross_entropy(logits, labels).backward()
        return logits.detach(), (logits.argmax(1) == labels).sum()

    function = GraphedFunction(forward_backward, model) if graphed else forward_backward
    outputs = []
    for size in (6, 6, 6, 5, 6, 6, 6, 4):
        optimizer.zero_grad()
        outputs += function(torch.randn(size, 4), torch.randint(2, (size,)))
        optimizer.step()
    return model.state_dict(), outputs


def test_replays_train_as_the_function_does(stand_in):
    """Bit for bit: gradients, BatchNorm's buffers, random numbers, and smaller batches."""
    expected, _ = trained(graphed=False)
    state, _ = trained(graphed=True)
    torch.testing.assert_close(state, expected, rtol=0, atol=0)


def test_replays_return_what_the_function_returns(stand_in):
    """Bit for bit, and a later replay does not overwrite it."""
    _, expected = trained(graphed=False)
    _, outputs = trained(graphed=True)
    torch.testing.assert_close(outputs, expected, rtol=0, atol=0)


def test_function_is_called_in_inference_mode(stand_in):
    double = GraphedFunction(lambda values: (2 * values,))
    with torch.inference_mode():
        (result,) = double(torch.ones(3))
    assert result.tolist() == [2, 2, 2]
    assert double.replay is None


def test_failed_recording_costs_one_line(stand_in, monkeypatch, capsys):
    monkeypatch.setattr(graphs, "capture", fail_to_capture)
    trained(graphed=True)
    output = capsys.readouterr().out
    assert output.count("\n") == 1
    assert "RuntimeError: operation not permitted)" in output


def test_training_goes_on_after_a_failed_recording(stand_in, monkeypatch):
    expected, _ = trained(graphed=False)
    monkeypatch.setattr(graphs, "capture", fail_to_capture)
    state, _ = trained(graphed=True)
    torch.testing.assert_close(state, expected, rtol=0, atol=0)


def test_failed_recording_is_not_tried_again(stand_in, monkeypatch, capsys):
    monkeypatch.setattr(graphs, "capture", fail_to_capture)
    trained(graphed=True)
    capsys.readouterr()
    trained(graphed=True)
    assert capsys.readouterr().out == ""


# Training steps and whole runs


def states_of_two_steps():
    """The state of a network that two TrainingSteps have trained, and these steps."""
    model = make_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    steps = []
    for _ in range(2):
        step = TrainingStep(model, F.cross_entropy, optimizer, ConstantLR(optimizer, 1))
        steps.append(step)
        for _ in range(3):
            step(torch.randn(6, 4), torch.randint(2, (6,)))
    return model.state_dict(), steps


def test_second_step_of_a_network_trains_the_same_with_graphs(stand_in, monkeypatch):
    state, _ = states_of_two_steps()
    monkeypatch.setattr(GraphedFunction, "recording_works", False)
    expected, _ = states_of_two_steps()
    torch.testing.assert_close(state, expected, rtol=0, atol=0)


def test_second_step_of_a_network_makes_its_own_recording(stand_in):
    _, (first, second) = states_of_two_steps()
    assert first.graphed_forward_backward.replay is not None
    assert second.graphed_forward_backward.replay is not None
    assert second.graphed_forward_backward.replay is not first.graphed_forward_backward.replay


def test_run_is_the_same_with_graphs(tmp_path, stand_in, monkeypatch):
    """The batches come from a graph, too, but those of the test do not."""
    recipe = RECIPE.replace(epochs=1)
    with_graphs = cells_of(tmp_path / "graphs", recipe)
    losses = with_graphs.train().train_loss
    assert with_graphs.train_loader.dataset.graphed_batch.replay is not None
    assert with_graphs.test_loader.dataset.graphed_batch.replay is None
    monkeypatch.setattr(GraphedFunction, "recording_works", False)
    without = cells_of(tmp_path / "plain", recipe)
    assert without.train().train_loss == losses
    expected = without.model.state_dict()
    torch.testing.assert_close(with_graphs.model.state_dict(), expected, rtol=0, atol=0)


def test_recording_that_fails_in_the_lr_finder_says_so(stand_in, tmp_path, monkeypatch, capsys):
    """torch-lr-finder's own lines are not printed, but this one is."""

    def fail(work, device):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(graphs, "capture", fail)
    cells = cells_of(tmp_path / "run")
    monkeypatch.setenv("EVA8_SMOKE", "1")  # a short search
    cells.run.find_lr(cells.model, cells.optimizer, cells.train_loader)
    assert "CUDA graphs do not work here (ZeroDivisionError" in capsys.readouterr().out


# What is asked of CUDA, here a stand-in


def test_only_a_gpu_that_trains_records():
    gpu = SimpleNamespace(is_cuda=True)
    cpu = SimpleNamespace(is_cuda=False)
    assert graphs.can_record(gpu)
    assert not graphs.can_record(cpu)
    with torch.inference_mode():
        assert not graphs.can_record(gpu)


@pytest.fixture
def cuda(monkeypatch):
    cuda = MagicMock()
    cuda.graph.return_value.__exit__.return_value = False  # exceptions pass
    monkeypatch.setattr(torch, "cuda", cuda)
    return cuda


def test_capture_returns_replay_and_result(cuda):
    replay, result = graphs.capture(lambda: 7, torch.device("cuda", 0))
    assert replay is cuda.CUDAGraph().replay
    assert result == 7


def test_failed_capture_leaves_stream_and_random_state_as_they_were(cuda):
    def fail():
        raise ZeroDivisionError

    generator = cuda.default_generators[0]
    with pytest.raises(ZeroDivisionError):
        graphs.capture(fail, torch.device("cuda", 0))
    cuda.set_stream.assert_called_once_with(cuda.current_stream())
    generator.graphsafe_set_state.assert_called_once_with(generator.clone_state())
