"""GraphedFunction with a stand-in for CUDA graphs, which replays on the CPU by calling the function again."""

from types import SimpleNamespace
from unittest.mock import MagicMock, call

import pytest
import torch
from torch import nn

from tests.small import small_run
from utils import graphs
from utils.graphs import GraphedFunction


def warm_up_on_cpu(work, device):
    """Three calls; the random state is restored."""
    for _ in range(graphs.WARM_UP):
        with torch.random.fork_rng():
            result = work()
    return result


def capture_on_cpu(work, device):
    """As on a GPU, each replay writes into the tensors that the recording has made, and nowhere else."""
    before = [[value.clone() for value in values] for values in warm_up_on_cpu(work, device)]
    recorded = warm_up_on_cpu(work, device)
    if not all(torch.equal(a, b) for both in zip(before, recorded) for a, b in zip(*both)):
        pytest.fail("each replay would add to the gradients of the one before")

    def replay():
        for owns, news in zip(recorded, work()):
            for own, new in zip(owns, news):
                own.copy_(new)
                new.zero_()

    return replay, recorded


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(graphs, "can_record", lambda *inputs: not torch.is_inference_mode_enabled())
    monkeypatch.setattr(graphs, "warm_up", warm_up_on_cpu)
    monkeypatch.setattr(graphs, "capture", capture_on_cpu)
    monkeypatch.setattr(GraphedFunction, "works", True)  # as before a failure, and again after the test


def trained(graphed: bool) -> tuple[dict, list]:
    """A small network after eight random batches, the last of which is smaller, and all outputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def forward_backward(images, labels):
        logits = model(images)
        nn.functional.cross_entropy(logits, labels).backward()
        return logits.detach(), (logits.argmax(1) == labels).sum()

    step, kept = GraphedFunction(forward_backward, model) if graphed else forward_backward, []
    for size in (6, 6, 6, 5, 6, 6, 6, 4):
        optimizer.zero_grad()
        kept += step(torch.randn(size, 4), torch.randint(2, (size,)))
        optimizer.step()
    return model.state_dict(), kept


def test_replays_compute_what_the_function_computes(stand_in):
    """Bit for bit: outputs that stay, gradients, BatchNorm's buffers, random numbers, and smaller batches."""
    (weights, outputs), (own_weights, own_outputs) = trained(graphed=False), trained(graphed=True)
    assert all(map(torch.equal, outputs, own_outputs))
    for name, value in weights.items():
        assert torch.equal(value, own_weights[name]), name


def test_a_run_is_the_same_with_graphs(tmp_path, stand_in, monkeypatch):
    """The batches come from a graph, too, and the loader asks for one of them ahead."""
    with_graphs = small_run(tmp_path / "graphs", cpu=True)
    history = with_graphs.fit(0.01)
    assert with_graphs.loaders[0].dataset.batch.replay is not None
    assert with_graphs.loaders[1].dataset.batch.replay is None  # tests go without
    monkeypatch.undo()
    without = small_run(tmp_path / "plain", cpu=True)
    assert without.fit(0.01).train_loss == history.train_loss
    for name, value in without.model.state_dict().items():
        assert torch.equal(value, with_graphs.model.state_dict()[name]), name


def test_training_goes_on_after_a_failed_recording(stand_in, monkeypatch, capsys):
    def fails(work, device):
        capture_on_cpu(work, device)
        try:
            raise RuntimeError("operation not permitted\nmore lines")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    (weights, _), _ = trained(graphed=False), monkeypatch.setattr(graphs, "capture", fails)
    own_weights, _ = trained(graphed=True)
    told = "CUDA graphs do not work here (RuntimeError: operation not permitted): each step takes longer"
    assert capsys.readouterr().out == f"{told} but is otherwise the same.\n"
    for name, value in weights.items():
        assert torch.equal(value, own_weights[name]), name
    trained(graphed=True)
    assert not capsys.readouterr().out  # it is not tried again


def test_a_recording_that_fails_in_the_lr_finder_says_so(stand_in, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(graphs, "capture", lambda work, device: 1 / 0)
    run = small_run(tmp_path / "run", cpu=True)
    monkeypatch.setenv("EVA8_SMOKE", "1")  # a short search
    run.find_lr()
    shown = capsys.readouterr().out
    assert "CUDA graphs do not work here (ZeroDivisionError: division by zero)" in shown and "LR finder" in shown
    assert "See the graph" not in shown  # torch-lr-finder's own lines


def test_only_one_gpu_that_trains_records(monkeypatch):
    gpu, cpu = SimpleNamespace(is_cuda=True), SimpleNamespace(is_cuda=False)
    assert graphs.can_record(gpu) and not graphs.can_record(cpu)
    with torch.inference_mode():
        assert not graphs.can_record(gpu)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert not graphs.can_record(gpu)


def test_warm_up_and_capture_leave_stream_and_random_state_as_they_were(monkeypatch):
    """With a stand-in for torch.cuda, which records the calls."""
    cuda, device = MagicMock(), torch.device("cuda", 0)
    monkeypatch.setattr(torch, "cuda", cuda)
    monkeypatch.setattr(torch.random, "fork_rng", cuda.fork_rng)
    cuda.graph.return_value.__exit__.return_value = False  # exceptions pass
    main, side, generator = cuda.current_stream(), cuda.Stream(), cuda.default_generators[0]
    cuda.mock_calls.clear()
    graphs.warm_up(cuda.work, device)
    made = [one for one in cuda.mock_calls if one[0] in ("stream", "fork_rng", "work") or "wait" in one[0]]
    inside = call.fork_rng(devices=[device]), call.stream(side), *[call.work()] * graphs.WARM_UP
    assert made == [call.Stream().wait_stream(main), *inside, call.current_stream().wait_stream(side)]
    assert graphs.capture(lambda: 7, device) == (cuda.CUDAGraph().replay, 7) and not cuda.set_stream.called
    with pytest.raises(ZeroDivisionError):
        graphs.capture(lambda: 1 / 0, device)
    cuda.set_stream.assert_called_once_with(main)
    generator.graphsafe_set_state.assert_called_once_with(generator.clone_state())
