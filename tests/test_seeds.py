"""The benchmark over seeds: its file of results, what it trains, and what the README shows."""

import json
import shutil
import statistics
import threading
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from torch import nn

from benchmarks import results as results_module
from benchmarks import seeds
from benchmarks.results import (
    COLUMNS,
    SEEDS,
    accuracy,
    append,
    fill_section,
    one_per_seed,
    read,
    row_of,
    table,
)
from models.model9 import TransformerModel
from tests.conftest import ROOT, SESSION9
from tests.small import DIGITS, FEW_DIGITS
from utils import files
from utils.errors import TrainingError


def row(**values):
    return dict.fromkeys(COLUMNS, "") | values


# The file of results


@pytest.fixture
def path(tmp_path):
    """A file of results with one run."""
    path = tmp_path / "seeds.csv"
    path.write_text(",".join(COLUMNS) + "\n")
    append(path, row(seed="0", hardware="CPU", test_accuracy="70"))
    return path


@pytest.fixture
def finished_run(tmp_path):
    """The folder of a run with the facts that a row needs, and others."""
    facts = {"session": 9, "seed": 3, "max_lr": 0.01234567, "test_accuracy": 71.5, "network": "N"}
    (tmp_path / "run.json").write_text(json.dumps(facts))
    (tmp_path / "history.csv").write_text("epoch,test_accuracy\n1,50.25\n2,71.50\n")
    return tmp_path


def test_row_has_the_facts_of_the_run(finished_run):
    found = row_of(finished_run, "a8")
    assert found["variant"] == "a8"
    assert found["seed"] == "3"
    assert found["test_accuracy"] == "71.5"


def test_row_has_all_columns_and_no_others(finished_run):
    assert tuple(row_of(finished_run)) == COLUMNS


def test_row_rounds_to_six_digits(finished_run):
    assert row_of(finished_run)["max_lr"] == "0.0123457"


def test_row_has_the_test_accuracy_of_each_epoch(finished_run):
    assert row_of(finished_run)["curve"] == "50.25 71.50"


def test_rows_with_the_wanted_values_are_read(path):
    append(path, row(seed="1", hardware="CPU"))
    append(path, row(seed="1", hardware="GPU"))
    assert [found["hardware"] for found in read(path, seed="1")] == ["CPU", "GPU"]
    assert read(path, seed="1", hardware="other") == []


@pytest.mark.parametrize(
    "other",
    [
        {"session": "8"},
        {"variant": "a8"},
        {"data": "digits"},
        {"seed": "1"},
        {"epochs": "12"},
        {"hardware": "GPU"},
    ],
)
def test_another_run_is_added(path, other):
    append(path, row(seed="0", hardware="CPU", test_accuracy="71") | other)
    assert [found["test_accuracy"] for found in read(path)] == ["70", "71"]


def test_same_seed_on_the_same_hardware_is_replaced(path):
    append(path, row(seed="0", hardware="CPU", test_accuracy="71"))
    assert [found["test_accuracy"] for found in read(path)] == ["71"]


def test_two_threads_that_append_at_once_keep_both_rows(path, monkeypatch):
    """The second one comes when the first has read the file, but not yet written it."""
    second_waits_or_is_done = threading.Event()

    def append_second():
        append(path, row(seed="2"))
        second_waits_or_is_done.set()

    def message_of_the_second(*_arguments, **_options):
        second_waits_or_is_done.set()

    second = threading.Thread(target=append_second)

    def write_after_the_second_has_come(path, text):
        monkeypatch.setattr(results_module, "write_text", files.write_text)
        second.start()
        second_waits_or_is_done.wait()
        files.write_text(path, text)

    monkeypatch.setattr(files, "print", message_of_the_second, raising=False)
    monkeypatch.setattr(results_module, "write_text", write_after_the_second_has_come)
    append(path, row(seed="1"))
    second.join()
    assert [found["seed"] for found in read(path)] == ["0", "1", "2"]


def test_accuracy_of_several_runs_has_its_spread():
    rows = [
        {"seed": "0", "test_accuracy": "70"},
        {"seed": "1", "test_accuracy": "72"},
        {"seed": "2", "test_accuracy": "68.25"},
    ]
    assert accuracy(rows) == "70.08 ± 1.88% (3)"


def test_accuracy_of_one_run_has_no_spread():
    assert accuracy([{"seed": "0", "test_accuracy": "37.42"}]) == "37.42% (1)"


def test_of_two_runs_of_one_seed_the_newer_one_counts():
    rows = [{"seed": "0", "test_accuracy": "70"}, {"seed": "0", "test_accuracy": "72"}]
    assert accuracy(rows) == "72.00% (1)"


def test_table_is_markdown_between_empty_lines():
    lines = table(("name", "number"), [("a", 1), ("b", 2)]).split("\n")
    assert lines == ["", "| name | number |", "|---|---|", "| a | 1 |", "| b | 2 |", ""]


def test_section_is_replaced_and_the_rest_is_kept():
    text = "top\n<!-- a -->\nold\n<!-- /a -->\n<!-- b -->\nother\n<!-- /b -->\n"
    expected = "top\n<!-- a -->\nnew\n<!-- /a -->\n<!-- b -->\nother\n<!-- /b -->\n"
    assert fill_section(text, "a", "new") == expected


# What the benchmark trains


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A copy of the results, of which the benchmark writes the README's tables and the curves."""
    for folder in ("benchmarks", "static/session9"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(ROOT / SEEDS, tmp_path / SEEDS)
    shutil.copy(ROOT / "README.md", tmp_path)
    monkeypatch.setattr(seeds, "ROOT", tmp_path)
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    return tmp_path


def call(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["seeds", *arguments])
    seeds.main()


@pytest.fixture
def no_readme(monkeypatch):
    """Leave the README and its picture alone: they take a second."""
    monkeypatch.setattr(seeds, "write_readme", dict)


@pytest.fixture
def trained(no_readme, full, monkeypatch):
    """What the benchmark trains, not in smoke mode; nothing is trained."""
    monkeypatch.setenv("DATA", "digits")
    calls = []

    def train(session, name, seed, data, epochs):
        calls.append((session.name, name, seed, data.name, epochs))
        return {"test_accuracy": "70", "max_lr": "0.01"}

    monkeypatch.setattr(seeds, "train", train)
    return calls


def test_trained_run_becomes_a_row(results, no_readme, monkeypatch, capsys):
    call(monkeypatch, "a8", "--seeds", "5", "--epochs", "2")
    (found,) = read(results / SEEDS, data="digits")
    assert found == row_of(results / "runs/smoke/seeds/session9-a8-5", "a8")
    assert found["seed"] == "5"
    assert len(found["curve"].split()) == 2
    last_line = f"digits, 2 epochs: {float(found['test_accuracy']):.2f}% (1)\n"
    assert capsys.readouterr().out.endswith(last_line)


def test_network_of_the_variant_is_trained(results, monkeypatch):
    networks = []

    def train_session(session, run, max_lr):
        networks.append(session.network())
        raise TrainingError("enough")

    monkeypatch.setattr(seeds, "train_session", train_session)
    seeds.train(SESSION9, "a8", 0, FEW_DIGITS, epochs=2)
    (network,) = networks
    assert network.features(torch.zeros(1, 3, 32, 32)).shape == (1, 48)
    assert any(isinstance(layer, nn.MaxPool2d) for layer in network.conv_block)


def test_seeds_of_a_session_are_trained(results, monkeypatch, trained):
    call(monkeypatch, "ours", "--session", "8", "--seeds", "3", "4")
    assert trained == [
        ("session8", "ours", 3, "digits", 24),
        ("session8", "ours", 4, "digits", 24),
    ]


def test_seeds_in_the_file_are_not_repeated(results, monkeypatch, trained, capsys):
    saved = row(session="9", variant="a8", data="digits", epochs="24", seed="3")
    append(results / SEEDS, saved | {"test_accuracy": "72"})
    call(monkeypatch, "a8", "--seeds", "3", "4")
    assert [seed for _, _, seed, _, _ in trained] == [4]
    assert capsys.readouterr().out.endswith("digits, 24 epochs: 71.00 ± 1.41% (2)\n")


def test_runs_that_diverge_count_as_chance(results, no_readme, monkeypatch, capsys):
    def diverge(session, run, max_lr):
        raise TrainingError("the loss became nan")

    monkeypatch.setattr(seeds, "train_session", diverge)
    call(monkeypatch, "reference", "--seeds", "0", "1")
    found = read(results / SEEDS, data="digits")
    assert [row["test_accuracy"] for row in found] == ["10.00", "10.00"]
    assert [row["max_lr"] for row in found] == ["0.001", "0.001"]
    assert "the loss became nan" in capsys.readouterr().out


def test_run_that_diverges_at_the_suggested_max_lr_names_it(results, monkeypatch):
    def diverge(session, run, max_lr):
        run.search = SimpleNamespace(suggestion=0.0225)
        raise TrainingError("the loss became nan")

    monkeypatch.setattr(seeds, "train_session", diverge)
    found = seeds.train(SESSION9, "ours", 0, FEW_DIGITS, epochs=2)
    assert found == {"max_lr": "0.0225", "test_accuracy": "10.00"}


def test_recipe_of_the_variant_is_trained(full, results, monkeypatch):
    """With fewer epochs, the cycle keeps its shape."""
    recipes = []

    def train_session(session, run, max_lr):
        recipes.append((run.recipe, max_lr))
        raise TrainingError("enough")

    monkeypatch.setattr(seeds, "train_session", train_session)
    seeds.train(SESSION9, "reference", 7, DIGITS, epochs=4)
    ((recipe, max_lr),) = recipes
    assert recipe.seed == 7
    assert recipe.epochs == 4
    assert recipe.top_epoch == 1
    assert recipe.cutout == 8
    assert recipe.max_grad_norm is None
    assert max_lr == 0.001


def test_validation_tests_on_training_images(results, monkeypatch, trained):
    monkeypatch.setattr(seeds, "hold_out", partial(seeds.hold_out, count=10))
    call(monkeypatch, "a8", "--validation")
    assert trained == [("session9", "a8", 0, "digits, validation split", 24)]
    assert len(read(results / SEEDS, data="digits, validation split")) == 1


def test_held_out_images_are_always_the_same():
    first = seeds.hold_out(DIGITS, 200)
    second = seeds.hold_out(DIGITS, 200)
    assert torch.equal(first.test_images, second.test_images)


def test_held_out_and_other_images_are_the_training_images():
    split = seeds.hold_out(DIGITS, 200)
    assert len(split.test_labels) == 200
    both = torch.cat([split.train_images, split.test_images]).flatten(1)
    training_images = DIGITS.train_images.flatten(1)
    assert len(both) == len(training_images)
    assert torch.equal(both.unique(dim=0), training_images.unique(dim=0))


def test_held_out_images_keep_their_labels():
    split = seeds.hold_out(DIGITS, 200)
    image = split.test_images[0]
    same = (DIGITS.train_images == image).flatten(1).all(dim=1)
    assert DIGITS.train_labels[same].unique().tolist() == [split.test_labels[0].item()]


# The variants


def options_of(variant):
    """The arguments of the variant's network, and None if it is the session's."""
    return variant.network.keywords if isinstance(variant.network, partial) else None


def test_ours_is_the_session_as_published():
    ours = seeds.VARIANTS["ours"]
    assert ours == seeds.Variant(ours.text)


@pytest.mark.parametrize("name", seeds.MAX_LRS)
def test_max_lr_variants_are_a8_at_another_max_lr(name):
    variant = seeds.VARIANTS[name]
    assert variant.changes == {}
    assert options_of(variant) == {"a": 8}
    assert name == f"a8_{variant.max_lr}"


@pytest.mark.parametrize("name", seeds.VARIANTS)
def test_variants_change_what_a_recipe_has(name):
    variant = seeds.VARIANTS[name]
    recipe = SESSION9.recipe.replace(**variant.changes)
    assert all(getattr(recipe, key) == value for key, value in variant.changes.items())


def test_variants_from_pytorchs_initialization():
    names = ["reference", "lr", "a8_pytorch"]
    options = {name: options_of(variant) or {} for name, variant in seeds.VARIANTS.items()}
    assert [name for name in options if options[name].get("init") == "pytorch"] == names


def test_variants_from_our_blocks_without_our_filters():
    names = ["init", "large", "a8_large"]
    options = {name: options_of(variant) or {} for name, variant in seeds.VARIANTS.items()}
    assert [name for name in options if options[name].get("init") == "near_isometry"] == names


@pytest.mark.parametrize("name", seeds.VARIANTS)
def test_networks_named_a8_have_a_map_of_8x8_pixels(name):
    network = seeds.VARIANTS[name].network or TransformerModel
    side = network().conv_block(torch.zeros(2, 3, 32, 32)).shape[-1]
    assert side == (8 if name.startswith("a8") else 32)


def test_network_without_blocks_has_none():
    assert len(seeds.without_blocks().ultimus_blocks) == 0


# What the README shows


@pytest.fixture
def readme():
    return (ROOT / "README.md").read_text("utf-8")


def published(variant):
    """The test accuracies of the whole runs of session 9 on CIFAR-10, one per seed."""
    rows = one_per_seed(read(ROOT / SEEDS, variant=variant, **seeds.PUBLISHED))
    return [float(row["test_accuracy"]) for row in rows]


def test_readme_shows_the_committed_tables(results, monkeypatch, readme):
    call(monkeypatch)
    assert (results / "README.md").read_text("utf-8") == readme


def test_readme_shows_the_committed_results(readme):
    ours = published("ours")
    assert f"**{statistics.mean(ours):.1f} ± {statistics.stdev(ours):.1f}%**" in readme


def test_readme_shows_the_committed_result_of_a8(readme):
    assert f"ends at {statistics.mean(published('a8')):.1f}%" in readme


def test_readme_shows_where_the_committed_seeds_got_stuck(readme):
    stuck = published("a8_pytorch")
    assert len(stuck) == 5
    span = f"{min(stuck):.0f}% and {max(stuck):.0f}%"
    assert f"five seeds ended between {span}" in readme


def test_readme_compares_other_max_lrs_with_the_committed_results(readme):
    rows = read(ROOT / SEEDS, variant="a8", **seeds.PUBLISHED)
    mean_and_spread, _, _ = accuracy(rows).partition(" (")
    _, _, below_the_table = readme.partition("<!-- /max-lr -->")
    assert mean_and_spread in below_the_table


def test_readme_shows_the_committed_results_of_72_epochs(readme):
    rows = read(ROOT / SEEDS, variant="a8", epochs="72")
    accuracies = "% and ".join(row["test_accuracy"] for row in rows)
    assert f"seeds 0 and 1 end at {accuracies}%" in readme


def test_table_shows_the_runs_of_a_variant(results):
    other = row(variant="lr", seed="9", max_lr="0.5", test_accuracy="70") | seeds.PUBLISHED
    append(results / SEEDS, other)
    line = seeds.table_of(["lr"]).strip().splitlines()[-1]
    both = accuracy([*read(ROOT / SEEDS, variant="lr", **seeds.PUBLISHED), other])
    assert line.startswith("| + max LR from the LR finder")
    assert line.endswith(f" | {both} | 0.025 to 0.5 |")


@pytest.mark.parametrize("other", [{"data": "digits"}, {"epochs": "12"}, {"session": "8"}])
def test_table_shows_whole_runs_of_session_9_on_cifar10_only(results, other):
    before = seeds.table_of(["lr"])
    run = row(variant="lr", seed="9", max_lr="0.5", test_accuracy="70")
    append(results / SEEDS, run | seeds.PUBLISHED | other)
    assert seeds.table_of(["lr"]) == before


@pytest.fixture
def curves(monkeypatch):
    """What the benchmark would draw."""
    drawn = {}

    def accuracy_curves(curves, data_name):
        drawn.update(curves)
        return Figure()

    monkeypatch.setattr(seeds, "accuracy_curves", accuracy_curves)
    return drawn


def test_curves_are_those_of_seed_0(results, monkeypatch, curves):
    call(monkeypatch)
    (reference,) = read(ROOT / SEEDS, variant="reference", seed="0", **seeds.PUBLISHED)
    expected = [float(value) for value in reference["curve"].split()]
    assert curves[seeds.CURVES["reference"]] == expected
    assert list(curves) == list(seeds.CURVES.values())


def test_of_two_runs_of_seed_0_the_newer_ones_curve_is_drawn(results, monkeypatch, curves):
    newer = row(variant="lr", seed="0", hardware="new", max_lr="0.02", test_accuracy="70")
    append(results / SEEDS, newer | seeds.PUBLISHED | {"curve": "10 20 70"})
    call(monkeypatch)
    assert curves[seeds.CURVES["lr"]] == [10, 20, 70]


@pytest.mark.parametrize("other", [{"data": "digits"}, {"epochs": "12"}, {"session": "8"}])
def test_curves_are_those_of_whole_runs_of_session_9_on_cifar10(
    results, monkeypatch, curves, other
):
    run = row(variant="lr", seed="0", hardware="new", curve="10 20 70")
    append(results / SEEDS, run | seeds.PUBLISHED | other)
    call(monkeypatch)
    assert len(curves[seeds.CURVES["lr"]]) == 24


def test_curves_are_saved_as_the_readmes_picture(results, monkeypatch):
    call(monkeypatch)
    picture = imread(results / "static/session9/test_accuracy.png")
    assert picture.shape[:2] == (4.5 * 150, 7 * 150)
