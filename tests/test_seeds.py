"""The benchmark over seeds: what it runs, keeps and prints."""

import statistics
from functools import partial

import pytest
import torch

from benchmarks import seeds
from utils import plots
from utils.system.errors import TrainingError


@pytest.fixture
def results(tmp_path, monkeypatch):
    for name, file in (("RESULTS", "seeds.csv"), ("HISTORIES", "histories.csv"), ("README", "README.md")):
        monkeypatch.setattr(seeds, name, tmp_path / file)
    monkeypatch.setenv("RUNS", str(tmp_path))
    seeds.README.write_text("a\n<!-- ladder -->\n<!-- /ladder -->\nb\n<!-- max-lr -->\n<!-- /max-lr -->\n")
    return tmp_path


def call(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["seeds", *arguments])
    seeds.main()


def test_runs_are_saved_and_not_repeated(results, monkeypatch, capsys):
    call(monkeypatch, "ours", "--seeds", "3", "--epochs", "2")
    (row,) = seeds.read(seeds.RESULTS)
    assert (row["variant"], row["data"], row["seed"], row["epochs"]) == ("ours", "digits", "3", "2")
    assert 0 <= float(row["test_accuracy"]) <= 100 and 0.001 < float(row["max_lr"]) < 0.1
    assert (results / "smoke/seeds/ours-3/weights.pt").exists() and "digits" not in seeds.README.read_text()
    history = seeds.read(seeds.HISTORIES)
    assert [(entry["variant"], entry["epoch"]) for entry in history] == [("ours", "1"), ("ours", "2")]
    assert history[-1]["test_accuracy"] == row["test_accuracy"]
    monkeypatch.setattr(seeds, "train", lambda *_: pytest.fail("trained again"))
    call(monkeypatch, "ours", "--seeds", "3", "--epochs", "2")
    *_, heading, table = capsys.readouterr().out.strip().split("\n\n")
    assert heading == "digits, 2 epochs" and f"| 1 | {float(row['test_accuracy']):.2f}% | – |" in table


def test_runs_that_diverge_count_and_fewer_epochs_keep_the_shape_of_the_cycle(results, monkeypatch, capsys):
    def diverge(run, max_lr):
        assert (run.session.recipe.epochs, run.session.recipe.top_epoch) == (4, 1)
        raise TrainingError("the loss became nan")

    monkeypatch.setattr(seeds.Run, "fit", diverge)
    monkeypatch.setattr(seeds, "hold_out", partial(seeds.hold_out, count=10))
    call(monkeypatch, "reference", "--seeds", "0", "1", "--epochs", "4", "--validation")
    *_, heading, table = capsys.readouterr().out.strip().split("\n\n")
    assert heading == "digits, validation split, 4 epochs"
    assert "| 2 | 10.00% | 0.00 | 10.00% | 10.00% | 2 | 0.001 |" in table


def test_recipes_are_chosen_on_held_out_training_images():
    data = seeds.load_data("digits")
    split = seeds.hold_out(data, 200)
    assert len(split.train_labels) == 1237
    assert torch.equal(seeds.hold_out(data, 200).test_images, split.test_images)
    rows = torch.cat([split.train_images, split.test_images]).flatten(1)
    assert torch.equal(rows.unique(dim=0), data.train_images.flatten(1).unique(dim=0))  # no duplicates, no test image


def test_curves_are_drawn_when_all_runs_are_there(results, monkeypatch):
    monkeypatch.setattr(seeds, "PICTURE", results / "curves.png")
    drawn = []
    monkeypatch.setattr(seeds, "accuracy_curves", lambda *a: drawn.append(a) or plots.accuracy_curves(*a))
    for name in seeds.CURVES:
        seeds.draw_curves()
        assert not seeds.PICTURE.exists()
        for data, seed, epochs, accuracy in (("CIFAR-10", 0, 24, 20), ("CIFAR-10", 1, 24, 30), ("CIFAR-10", 0, 72, 40),
                                             ("digits", 0, 24, 50)):  # fmt: skip
            for epoch in (1, 2):
                values = (name, data, seed, epochs, epoch, 30, accuracy + epoch)
                seeds.append(seeds.HISTORIES, seeds.HISTORY_COLUMNS, dict(zip(seeds.HISTORY_COLUMNS, values)))
    seeds.draw_curves()
    assert [curves for curves, _ in drawn] == [{label: [21, 22] for label in seeds.CURVES.values()}]
    assert seeds.PICTURE.exists()


def test_variants_differ_from_the_recipe_only_where_they_say():
    assert seeds.VARIANTS["ours"].max_lr is None
    for name, variant in seeds.VARIANTS.items():
        as_published = name in ("ours", "a8_no_blocks", *seeds.MAX_LRS)
        assert (variant.changes == {}) == (variant.init == "ours") == as_published, name
        assert (variant.init == "pytorch") == (name in ("reference", "lr", "a8_pytorch")), name
        assert (variant.a == 8) == name.startswith("a8"), name
        assert len(seeds.network(variant).ultimus_blocks) == (0 if name == "a8_no_blocks" else 4), name


def test_readme_shows_the_committed_results():
    readme, rows = seeds.README.read_text("utf-8"), seeds.read(seeds.RESULTS)
    for variants in (seeds.LADDER, seeds.MAX_LRS):
        assert seeds.table(seeds.select(rows), variants) in readme
    ours, stuck = (
        [float(row["test_accuracy"]) for row in seeds.select(rows) if row["variant"] == name]
        for name in ("ours", "a8_pytorch")
    )
    assert f"session 9 ends at {statistics.mean(ours):.2f} ± {statistics.stdev(ours):.2f}%" in readme
    assert len(stuck) == 5 and f"five seeds ended between {min(stuck):.0f}% and {max(stuck):.0f}%" in readme
    longer = {row["seed"]: row["test_accuracy"] for row in seeds.select(rows, epochs="72") if row["variant"] == "a8"}
    assert f"seeds {' and '.join(longer)} end at {'% and '.join(longer.values())}%" in readme


def test_readme_gets_whole_runs_on_cifar10_in_the_order_of_the_variants(results):
    row = {"data": "CIFAR-10", "epochs": "24", "max_lr": "0.02"}
    rows = [row | {"variant": name, "test_accuracy": accuracy} for name, accuracy in
            [("a8", "75"), ("reference", "10"), ("a8_0.04", "74"), ("a8", "76")]]  # fmt: skip
    seeds.write_readme([*rows, rows[0] | {"data": "digits"}, rows[0] | {"epochs": "12"}])
    ladder, max_lrs = seeds.README.read_text().split("\nb\n")
    assert [line.split(" | ")[1:6] for line in ladder.splitlines() if "%" in line] == [
        ["1", "10.00%", "–", "10.00%", "10.00%"], ["2", "75.50%", "0.71", "75.00%", "76.00%"]
    ]  # fmt: skip
    assert [line.split(" | ")[0] for line in max_lrs.splitlines() if "%" in line] == [
        "| max LR from the LR finder", "| max LR 0.04"
    ]  # fmt: skip
