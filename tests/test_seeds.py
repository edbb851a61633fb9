"""The benchmark over seeds: what it runs, keeps and prints."""

import re
import shutil
import statistics
from functools import partial

import pytest
import torch

from benchmarks import seeds
from tests.conftest import ROOT
from tools.publish import COLUMNS, SEEDS, accuracy, append, read, row_of
from utils import plots
from utils.errors import TrainingError

README = (ROOT / "README.md").read_text("utf-8")


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A copy of the results, of which the benchmark writes the README's tables and first picture."""
    for folder in ("benchmarks", "static/session9"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(ROOT / SEEDS, tmp_path / SEEDS)
    shutil.copy(ROOT / "README.md", tmp_path)
    monkeypatch.setattr(seeds, "ROOT", tmp_path)
    monkeypatch.setenv("RUNS", str(tmp_path))
    return tmp_path


def call(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["seeds", *arguments])
    seeds.main()


@pytest.mark.parametrize("words, name", [
    (re.search(r"`\.venv/bin/python -m benchmarks\.seeds (.*?)`", README)[1], "9-a8-5"),
    ("ours --session 8 --seeds 3 --epochs 1", "8-ours-3"),
])  # fmt: skip
def test_runs_are_saved_and_not_repeated(results, monkeypatch, capsys, words, name):
    call(monkeypatch, *words.split())
    (row,) = read(results / SEEDS, data="digits")
    assert name == "{session}-{variant}-{seed}".format(**row)
    assert row == row_of(results / f"smoke/seeds/session{name}", row["variant"])
    epochs = [float(value) for value in row["curve"].split()]
    assert len(epochs) == int(row["epochs"]) and epochs[-1] == float(row["test_accuracy"])
    monkeypatch.setattr(seeds, "train", lambda *_: pytest.fail("trained again"))
    call(monkeypatch, *words.split())
    assert capsys.readouterr().out.endswith(f"\ndigits, {len(epochs)} epochs: {epochs[-1]:.2f}% (1)\n")
    assert (results / "README.md").read_text("utf-8") == README


def test_runs_that_diverge_count_and_fewer_epochs_keep_the_shape_of_the_cycle(results, monkeypatch, capsys):
    def diverge(run, max_lr):
        assert (run.session.recipe.epochs, run.session.recipe.top_epoch) == (4, 1)
        raise TrainingError("the loss became nan")

    monkeypatch.setattr(seeds.Run, "fit", diverge)
    monkeypatch.setattr(seeds, "hold_out", partial(seeds.hold_out, count=10))
    call(monkeypatch, "reference", "--seeds", "0", "1", "--epochs", "4", "--validation")
    assert capsys.readouterr().out.endswith("\ndigits, validation split, 4 epochs: 10.00 ± 0.00% (2)\n")
    assert [row["max_lr"] for row in read(results / SEEDS, data="digits, validation split")] == ["0.001"] * 2


def test_recipes_are_chosen_on_held_out_training_images():
    data = seeds.load_data("digits")
    split = seeds.hold_out(data, 200)
    assert len(split.train_labels) == 1237
    assert torch.equal(seeds.hold_out(data, 200).test_images, split.test_images)
    rows = torch.cat([split.train_images, split.test_images]).flatten(1)
    assert torch.equal(rows.unique(dim=0), data.train_images.flatten(1).unique(dim=0))  # no duplicates, no test image


def test_variants_differ_from_the_recipe_only_where_they_say():
    for name, (_, changes, network, max_lr) in seeds.VARIANTS.items():
        as_published = name in ("ours", "a8", "a8_no_blocks", *seeds.MAX_LRS)
        options = getattr(network, "keywords", {"a": 8} if network else {})
        assert (changes == {}) == ("init" not in options) == as_published, name
        assert (options.get("init") == "pytorch") == (name in ("reference", "lr", "a8_pytorch")), name
        assert (options.get("a") == 8) == name.startswith("a8") and (max_lr is None or name != "ours"), name
    assert len(seeds.without_blocks().ultimus_blocks) == 0


def test_readme_shows_the_committed_results():
    ours, stuck, (reference,) = (
        [float(row["test_accuracy"]) for row in read(ROOT / SEEDS, variant=name, **seeds.WHOLE)]
        for name in ("ours", "a8_pytorch", "reference")
    )
    assert f"**{statistics.mean(ours):.1f} ± {statistics.stdev(ours):.1f}%**" in README
    sentence, notebook = re.search("The public reference solution .*%", README)[0], ROOT / "session9_assignment.ipynb"
    assert sentence.endswith(f" {reference}%") and sentence in notebook.read_text("utf-8")
    assert len(stuck) == 5 and f"five seeds ended between {min(stuck):.0f}% and {max(stuck):.0f}%" in README
    found = accuracy(read(ROOT / SEEDS, variant="a8", **seeds.WHOLE)).split(" (")[0]
    assert found in README.split("<!-- /max-lr -->")[1]
    longer = [row["test_accuracy"] for row in read(ROOT / SEEDS, variant="a8", epochs="72")]
    assert f"seeds 0 and 1 end at {'% and '.join(longer)}%" in README


def test_readme_gets_whole_runs_on_cifar10_and_the_newest_curves(results, monkeypatch):
    drawn, curve = [], " ".join(["10"] * 23 + ["70"])
    monkeypatch.setattr(seeds, "accuracy_curves", lambda *a: drawn.append(a[0]) or plots.accuracy_curves(*a))
    row = dict.fromkeys(COLUMNS, "") | seeds.WHOLE | {"variant": "lr", "seed": "0", "max_lr": "0.5"}
    for changes in ({}, {"data": "digits"}, {"epochs": "12"}, {"session": "8"}):
        append(results / SEEDS, row | {"test_accuracy": "70", "curve": curve} | changes)
    call(monkeypatch)
    both = accuracy([*read(ROOT / SEEDS, variant="lr", **seeds.WHOLE), {"test_accuracy": "70"}])
    assert f"gradients clipped to norm 1 | {both} | 0.025 to 0.5 |" in (results / "README.md").read_text("utf-8")
    assert (results / "static/session9/test_accuracy.png").exists()
    assert {label: curve[-1] for label, curve in drawn[0].items()}[seeds.CURVES["lr"]] == 70
