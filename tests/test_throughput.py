"""The benchmark measures both pipelines on the same network and prints a table."""

import re

import pytest
import torch

from benchmarks import throughput
from utils.sessions import SESSIONS


@pytest.fixture
def steps(monkeypatch):
    """The numbers of steps for which the benchmark asked to compile; nothing is compiled."""
    asked = []
    monkeypatch.setattr(throughput, "compile_where_it_pays", lambda model, accelerator, steps: asked.append(steps))
    return asked


@pytest.mark.parametrize("pipeline", [throughput.classic, throughput.ours])
def test_both_pipelines_train_and_test_one_network(pipeline, steps):
    training, testing, *_ = pipeline(SESSIONS[9], throughput.noise(64))  # on a GPU, also the bare graph
    model = training.args[0]
    states = [[parameter.detach().clone() for parameter in model.parameters()]]
    for phase in (training, testing):
        phase()
        states.append([parameter.detach().clone() for parameter in model.parameters()])
    assert not any(map(torch.equal, *states[:2])) and all(map(torch.equal, *states[1:]))
    assert isinstance(model, SESSIONS[9].network) and testing.args[0] is model and not model.training


@pytest.mark.parametrize("session", SESSIONS)
def test_both_pipelines_follow_the_recipe(session, steps):
    recipe, data = SESSIONS[session].recipe, throughput.noise(4)
    (_, train_loader, _), (_, test_loader) = (phase.args for phase in throughput.classic(SESSIONS[session], data))
    assert train_loader.batch_size == recipe.batch_size
    assert train_loader.collate_fn.args[0][0].padding == recipe.crop_padding
    images, _ = train_loader.collate_fn(train_loader.dataset)
    assert ((images == 0).all(dim=1).sum(dim=(1, 2)) == recipe.cutout**2).all()
    images, labels = next(iter(test_loader))
    for image, label, (pixels, true) in zip(images, labels, test_loader.dataset):
        torch.testing.assert_close(image, torch.tensor(pixels).permute(2, 0, 1) / 127.5 * 2 - 2)
        assert label == true
    throughput.ours(SESSIONS[session], data)
    assert [count > 1000 for count in steps] == [True] * recipe.compile


def test_median_without_the_warm_up(monkeypatch):
    spent = [99, 1, 2, 5, 10, 20]  # seconds
    clock = iter([time for i, seconds in enumerate(spent) for time in (1000 * i, 1000 * i + seconds)])
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(clock))
    assert throughput.speed(lambda: None, "session 8") == throughput.IMAGES / 5


def test_readme_gets_the_table(tmp_path, monkeypatch, capsys):
    line = f"| {' | '.join(throughput.HEADS)} |"
    assert line in throughput.README.read_text("utf-8")
    monkeypatch.setattr(throughput, "README", tmp_path / "README.md")
    throughput.README.write_text("a\n<!-- throughput -->\nold\n<!-- /throughput -->\nb\n")
    monkeypatch.setattr(throughput, "IMAGES", 8)
    monkeypatch.setattr(throughput, "ROUNDS", 1)
    monkeypatch.setattr("sys.argv", "throughput 8 --readme".split())
    throughput.main()
    machine, empty, *head, row = table = capsys.readouterr().out.splitlines()[-5:]
    gpu, shown, number = torch.cuda.is_available(), "\n".join(table), r"\d{1,3}(,\d{3})*"
    assert "PyTorch" in machine and empty == ""
    assert head == [line + " training: bare graph |" * gpu, "|" + "---|" * (5 + gpu)]
    assert re.fullmatch(rf"\| 8( \| {number} \| {number} \(\d+\.\d×\)){{2}}" + rf" \| {number}" * gpu + r" \|", row)
    assert throughput.README.read_text() == f"a\n<!-- throughput -->\n\n{shown}\n\n<!-- /throughput -->\nb\n"
