"""The benchmark over seeds: what it runs, keeps and prints."""

import csv
import statistics

import pytest
import torch

from benchmarks import seeds
from utils import plots
from utils.system.errors import TrainingError

README = "a\n<!-- ladder -->\n<!-- /ladder -->\nb\n<!-- max-lr -->\n<!-- /max-lr -->\n"


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(seeds, "RESULTS", tmp_path / "seeds.csv")
    monkeypatch.setattr(seeds, "HISTORIES", tmp_path / "histories.csv")
    monkeypatch.setattr(seeds, "README", tmp_path / "README.md")
    monkeypatch.setenv("RUNS", str(tmp_path))
    (tmp_path / "README.md").write_text(README)
    return tmp_path / "seeds.csv"


def call(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["seeds", *arguments])
    seeds.main()


def test_runs_are_saved_and_not_repeated(results, monkeypatch, capsys):
    call(monkeypatch, "ours", "--seeds", "3", "--epochs", "6")
    (row,) = csv.DictReader(results.open())
    assert (row["variant"], row["data"], row["seed"], row["epochs"]) == ("ours", "digits", "3", "6")
    assert 0 <= float(row["test_accuracy"]) <= 100 and 0.001 < float(row["max_lr"]) < 0.1
    assert (results.parent / "smoke/seeds/ours-3/weights.pt").exists() and "digits" not in (
        results.parent / "README.md"
    ).read_text()
    history = list(csv.DictReader((results.parent / "histories.csv").open()))
    assert [entry["epoch"] for entry in history] == list("123456")
    assert history[-1]["test_accuracy"] == row["test_accuracy"] and history[0]["variant"] == "ours"
    monkeypatch.setattr(seeds, "train", lambda *_: pytest.fail("trained again"))
    call(monkeypatch, "ours", "--seeds", "3", "--epochs", "6")
    *_, heading, table = capsys.readouterr().out.strip().split("\n\n")
    assert heading == "digits, 6 epochs" and f"| 1 | {float(row['test_accuracy']):.2f}% | – |" in table


def test_curves_are_drawn_when_all_runs_are_there(results, monkeypatch):
    monkeypatch.setattr(seeds, "PICTURE", results.parent / "curves.png")
    drawn = []
    monkeypatch.setattr(seeds, "accuracy_curves", lambda *a: drawn.append(a) or plots.accuracy_curves(*a))
    for name in seeds.CURVES:
        seeds.draw_curves()
        assert not seeds.PICTURE.exists()
        for data, epochs, accuracies in (
            ("CIFAR-10", 24, (20.0, 40.5)),
            ("CIFAR-10", 72, (19.0, 50.0)),
            ("CIFAR-10 (JPEG copy)", 24, (19.0, 37.0)),
        ):
            for epoch, accuracy in enumerate(accuracies, start=1):
                row = dict(zip(seeds.HISTORY_COLUMNS, (name, data, 0, epochs, epoch, 30.0, accuracy)))
                seeds.append(seeds.HISTORIES, seeds.HISTORY_COLUMNS, row)
    seeds.draw_curves()
    ((curves, _),) = drawn
    assert list(curves) == list(seeds.CURVES.values()) and set(map(tuple, curves.values())) == {(20.0, 40.5)}
    assert seeds.PICTURE.exists()


def diverge(*_):
    raise TrainingError("the loss became nan")


def test_fewer_epochs_keep_the_shape_of_the_cycle(results, monkeypatch):
    recipes = []
    monkeypatch.setattr(seeds.Run, "fit", lambda run, max_lr: recipes.append(run.session.recipe) or diverge())
    call(monkeypatch, "a8_0.04", "--epochs", "4")
    assert [(recipe.epochs, recipe.top_epoch) for recipe in recipes] == [(4, 1)]


def test_recipes_are_chosen_on_held_out_training_images():
    data = seeds.load_data("digits")
    split = seeds.hold_out(data, 200)
    assert split.name == "digits, validation split" and len(split.train_labels) == 1237
    assert torch.equal(seeds.hold_out(data, 200).test_images, split.test_images)
    rows = torch.cat([split.train_images, split.test_images]).flatten(1)
    assert torch.equal(rows.unique(dim=0), data.train_images.flatten(1).unique(dim=0))  # no duplicates, no test image


def test_a_run_that_diverges_counts(results, monkeypatch, capsys):
    monkeypatch.setattr(seeds.Run, "fit", diverge)
    call(monkeypatch, "reference", "--seeds", "0", "1")
    *_, heading, table = capsys.readouterr().out.strip().split("\n\n")
    assert heading == "digits, 24 epochs" and "| 2 | 10.00% | 0.00 | 10.00% | 10.00% | 2 | 0.001 |" in table


def test_variants_differ_from_the_recipe_only_where_they_say():
    ours = seeds.VARIANTS["ours"]
    assert ours.changes == {} and ours.init == "ours" and ours.max_lr is None
    pytorch = {name for name, variant in seeds.VARIANTS.items() if variant.init == "pytorch"}
    assert pytorch == {"reference", "lr", "a8_pytorch"}
    for name, variant in seeds.VARIANTS.items():
        assert (variant.a == 8) == name.startswith("a8"), name
        assert (variant.changes == {}) == (name in ("ours", "a8", "a8_no_blocks", *seeds.MAX_LRS)), name
        assert (variant.changes == {}) == (variant.init == "ours"), name
        assert len(seeds.network(variant).ultimus_blocks) == (0 if name == "a8_no_blocks" else 4), name


def test_readme_shows_the_committed_results():
    readme = seeds.README.read_text("utf-8")
    rows = [row for row in seeds.read(seeds.RESULTS) if (row["data"], row["epochs"]) == ("CIFAR-10", "24")]
    for variants in (seeds.LADDER, seeds.MAX_LRS):
        assert seeds.table(rows, variants) in readme
    ours, stuck = (
        [float(row["test_accuracy"]) for row in rows if row["variant"] == name] for name in ("ours", "a8_pytorch")
    )
    assert f"session 9 ends at {statistics.mean(ours):.2f} ± {statistics.stdev(ours):.2f}%" in readme
    assert len(stuck) == 5 and f"five seeds ended between {min(stuck):.0f}% and {max(stuck):.0f}%" in readme
    longer = {
        row["seed"]: row["test_accuracy"]
        for row in seeds.read(seeds.RESULTS)
        if (row["variant"], row["data"], row["epochs"]) == ("a8", "CIFAR-10", "72")
    }
    assert f"seeds {' and '.join(longer)} end at {'% and '.join(longer.values())}%" in readme


def test_readme_gets_whole_runs_on_cifar10_in_the_order_of_the_variants(results):
    row = {"data": "CIFAR-10", "epochs": "24", "max_lr": "0.02"}
    rows = [row | {"variant": name, "test_accuracy": accuracy} for name, accuracy in
            [("a8", "75"), ("reference", "10"), ("a8_0.04", "74"), ("a8", "76")]]  # fmt: skip
    others = ({"data": "CIFAR-10 (JPEG copy)"}, {"data": "digits"}, {"epochs": "12"})
    seeds.write_readme(rows + [rows[0] | other for other in others])
    ladder, max_lrs = seeds.README.read_text().split("\nb\n")
    assert [line.split(" | ")[1:6] for line in ladder.splitlines() if "%" in line] == [
        ["1", "10.00%", "–", "10.00%", "10.00%"], ["2", "75.50%", "0.71", "75.00%", "76.00%"]
    ]  # fmt: skip
    assert [line.split(" | ")[0] for line in max_lrs.splitlines() if "%" in line] == [
        "| max LR from the LR finder", "| max LR 0.04"
    ]  # fmt: skip
