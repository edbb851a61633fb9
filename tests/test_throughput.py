"""The benchmark measures both pipelines on the same images and prints a table."""

import shutil

import pytest
import torch

from benchmarks import throughput
from benchmarks.classic import classic_loaders
from utils.sessions import SESSIONS


@pytest.fixture
def data():
    return throughput.random_images(64)


def test_both_pipelines_train_and_test_one_network(data, monkeypatch):
    monkeypatch.setattr(throughput, "compile_where_it_pays", lambda *_, **__: None)
    for kind in (throughput.Classic, throughput.Ours):
        torch.manual_seed(0)
        pipeline = kind(SESSIONS[9], data)
        before = [parameter.detach().clone() for parameter in pipeline.model.parameters()]
        pipeline.train()
        after = [parameter.detach().clone() for parameter in pipeline.model.parameters()]
        assert not any(torch.equal(one, two) for one, two in zip(before, after))
        pipeline.test()
        assert all(torch.equal(one, two) for one, two in zip(after, pipeline.model.parameters()))


@pytest.mark.parametrize("session", [7, 8, 9])
def test_classic_sees_the_recipes_augmentation(data, session):
    recipe = SESSIONS[session].recipe
    train_loader, test_loader = classic_loaders(data, SESSIONS[session])
    images, labels = next(iter(test_loader))
    assert images.shape == (64, 3, 32, 32) and torch.equal(labels, data.test_labels)
    names = [type(step).__name__ for step in train_loader.dataset.transform.transforms]
    assert ("RandomErasing" in names) == bool(recipe.cutout) and "RandomCrop" in names
    if recipe.cutout:
        image, _ = train_loader.dataset[0]
        assert (image == 0).all(dim=0).sum() == recipe.cutout**2


def test_each_pipeline_is_timed_in_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(throughput, "peak_flops", lambda precision: 1e12)
    monkeypatch.setattr(throughput, "first_batch", lambda number: 0.1)
    row = throughput.compare(8, images=8, rounds=1)
    assert len(row) == 12 and row[0] == "8" and "×** (" in row[3] and "×** (" in row[6]
    for cell in (row[1], row[2], row[4], row[5], *row[9:]):
        assert float(cell.replace(",", "")) > 0
    assert not hasattr(throughput, "pipeline")  # it is built in the workers only


def test_start_of_a_session(monkeypatch):
    assert throughput.first_batch(9) > 0
    monkeypatch.setattr("sys.executable", shutil.which("false"))
    with pytest.raises(RuntimeError, match="session 9 ended before its first batch"):
        throughput.first_batch(9)


def test_flops_are_those_of_the_convolutions():
    per_image = 3 * 2 * 1024 * (27 * 16 + 144 * 32 + 288 * 48) - 2 * 1024 * 27 * 16  # the images need no gradient
    assert throughput.flops(SESSIONS[9].network) == pytest.approx(per_image, rel=0.01)


def test_table(monkeypatch, capsys):
    monkeypatch.setattr(throughput, "compare", lambda number, images, rounds: [str(number), *"abcdefghijk"])
    monkeypatch.setattr("sys.argv", ["throughput", "9", "8"])
    throughput.main()
    lines = capsys.readouterr().out.splitlines()
    assert "PyTorch" in lines[0] and lines[1] == "" and len({line.count("|") for line in lines[2:]}) == 1
    assert [line.split(" | ")[0] for line in lines[4:]] == ["| 9", "| 8"]


def test_each_machine_has_its_table():
    first, second = ("{}, 2 threads, PyTorch 2; noise\n\n| session | ratio |\n| --- | --- |\n| 9 | {} |".format(*pair)
                     for pair in (("an EPYC", 4), ("a Xeon", 3)))  # fmt: skip
    shown = throughput.merge_tables("\n", first)
    assert shown == first
    shown = throughput.merge_tables(f"\n{shown}\n", second)
    assert shown == f"{first}\n\n{second}"
    assert throughput.merge_tables(shown, first.replace("4", "5")) == f"{second}\n\n{first.replace('4', '5')}"
