"""The benchmark over seeds: what it runs, keeps and prints."""

import csv

import pytest

from benchmarks import seeds
from utils.errors import TrainingError


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(seeds, "RESULTS", tmp_path / "seeds.csv")
    return tmp_path / "seeds.csv"


def call(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["seeds", *arguments])
    seeds.main()


def test_runs_are_kept_and_not_repeated(results, monkeypatch, capsys):
    call(monkeypatch, "ours", "--seeds", "3", "--epochs", "6")
    (row,) = csv.DictReader(results.open())
    assert (row["variant"], row["data"], row["seed"], row["epochs"]) == ("ours", "digits", "3", "6")
    assert 0 <= float(row["test_accuracy"]) <= 100 and 0.001 < float(row["max_lr"]) < 0.1
    monkeypatch.setattr(seeds, "run", lambda *_: pytest.fail("trained again"))
    call(monkeypatch, "ours", "--seeds", "3", "--epochs", "6")
    assert f"| digits | 6 | 1 | {float(row['test_accuracy']):.2f}% | – |" in capsys.readouterr().out


def test_a_lost_run_counts_as_collapsed(results, monkeypatch, capsys):
    def lost(*_):
        raise TrainingError("the loss became nan")

    monkeypatch.setattr(seeds, "fit", lost)
    call(monkeypatch, "reference", "--seeds", "0", "1")
    assert "| digits | 24 | 2 | 10.00% | 0.00 | 10.00% | 10.00% | 2 | 0.001 |" in capsys.readouterr().out


def test_variants_differ_from_the_recipe_only_where_they_say():
    ours = seeds.VARIANTS["ours"]
    assert ours.recipe is seeds.SESSION9 and ours.init == "near_isometry" and ours.max_lr is None
    assert {name for name, variant in seeds.VARIANTS.items() if variant.init == "pytorch"} == {"reference", "lr"}
