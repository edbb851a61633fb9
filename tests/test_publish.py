"""Only a complete run on CIFAR-10 is published, and exactly that run."""

import csv
import json

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from benchmarks.results import COLUMNS, SEEDS, append, read
from tools import publish as command
from tools.publish import BEST_PUBLIC, publish, published_files, results_table
from utils.errors import UserError

NOTEBOOK = "session9_assignment.ipynb"
CPU = "a CPU, 2 threads, float32"
FACTS = {
    "session": 9,
    "data": "CIFAR-10",
    "is_cifar10": True,
    "epochs": 24,
    "max_lr": 0.0195,
    "seed": 0,
    "train_accuracy": 70.5,
    "test_accuracy": 68.25,
    "seconds_per_epoch": 55.1,
    "hardware": CPU,
    "torch": "2.15.0",
}
README = """top
<!-- results -->
old
<!-- /results -->
and
<!-- session9-log -->
<!-- /session9-log -->
end
"""
EPOCHS = {7: 20, 8: 24, 9: 24}
EARLIER_RUNS = [  # of each session
    # variant, seed, test accuracy, seconds per epoch, hardware
    ("ours", "1", "70", "2", "NVIDIA H100"),
    ("ours", "2", "72", "", "NVIDIA T4"),
    ("ours_old", "0", "71", "50", CPU),
    ("a8", "0", "79", "1", "NVIDIA H100"),
]


def cell(source, count=None, outputs=()):
    return new_code_cell(source, execution_count=count, outputs=list(outputs))


def write_notebook(path, *cells):
    nbformat.write(new_notebook(cells=list(cells)), path)


def write_facts(root, **changes):
    (root / "runs/session9/run.json").write_text(json.dumps(FACTS | changes))


def write_history(root, epochs):
    lines = [f"{epoch},{epoch + 44.25}\n" for epoch in range(1, epochs + 1)]
    (root / "runs/session9/history.csv").write_text("epoch,test_accuracy\n" + "".join(lines))


def row(**values):
    return dict.fromkeys(COLUMNS, "") | {"data": "CIFAR-10"} | values


def earlier_rows():
    """``EARLIER_RUNS`` of all sessions."""
    for session, epochs in EPOCHS.items():
        for variant, seed, accuracy, seconds, hardware in EARLIER_RUNS:
            yield row(
                session=str(session),
                variant=variant,
                seed=seed,
                epochs=str(epochs),
                test_accuracy=accuracy,
                seconds_per_epoch=seconds,
                hardware=hardware,
            )


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository with a finished run that has not been published."""
    monkeypatch.delenv("RUNS", raising=False)
    run = tmp_path / "runs/session9"
    run.mkdir(parents=True)
    for name in published_files(9):
        (run / name).write_bytes(name.encode())
    write_facts(tmp_path)
    write_history(tmp_path, epochs=24)
    (run / "training_log.txt").write_text("EPOCH = 1\nTest set: fine\n")
    write_notebook(tmp_path / NOTEBOOK, cell("a = 1"), cell("print(a)"))
    printed = new_output("stream", text="1")
    write_notebook(run / NOTEBOOK, cell("a = 1", 1), cell("print(a)", 2, [printed]))
    (tmp_path / "README.md").write_text(README)
    (tmp_path / "benchmarks").mkdir()
    with (tmp_path / SEEDS).open("w") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(earlier_rows())
    return tmp_path


def contents(root):
    """The bytes of all files but the locks."""
    files = [path for path in root.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {path: path.read_bytes() for path in files}


def test_files_of_the_run_are_copied(root):
    publish(9, root)
    for name in published_files(9):
        published = root / "static/session9" / name
        assert published.read_bytes() == (root / "runs/session9" / name).read_bytes()


def test_executed_notebook_is_copied(root):
    publish(9, root)
    assert (root / NOTEBOOK).read_bytes() == (root / "runs/session9" / NOTEBOOK).read_bytes()


def test_only_session_9_publishes_its_weights():
    assert [number for number in EPOCHS if "weights.pt" in published_files(number)] == [9]


def test_readme_shows_the_table_of_results(root):
    publish(9, root)
    readme = (root / "README.md").read_text()
    table = results_table(root / SEEDS)
    assert f"top\n<!-- results -->\n{table}\n<!-- /results -->\nand\n" in readme


def test_readme_shows_the_log(root):
    publish(9, root)
    readme = (root / "README.md").read_text()
    log = "\n```text\nEPOCH = 1\nTest set: fine\n```\n"
    assert readme.endswith(f"<!-- session9-log -->\n{log}\n<!-- /session9-log -->\nend\n")


def test_readme_without_a_place_for_the_log_gets_none(root):
    (root / "README.md").write_text(README.replace("session9-log", "other"))
    publish(9, root)
    assert "Test set: fine" not in (root / "README.md").read_text()


def test_run_becomes_a_row_of_the_results(root):
    publish(9, root)
    (added,) = read(root / SEEDS, variant="ours", hardware=CPU)
    assert added["session"] == "9"
    assert added["max_lr"] == "0.0195"
    assert added["test_accuracy"] == "68.25"


def test_same_run_published_twice_changes_nothing(root):
    publish(9, root)
    before = contents(root)
    publish(9, root)
    assert contents(root) == before


def test_later_run_of_the_seed_on_this_hardware_replaces_its_row(root):
    publish(9, root)
    write_facts(root, commit="later")
    publish(9, root)
    rows = read(root / SEEDS, variant="ours", hardware=CPU)
    assert [row["commit"] for row in rows] == ["later"]


def test_table_has_a_row_for_each_session(root):
    lines = results_table(root / SEEDS).strip().splitlines()
    assert [line.split(":")[0] for line in lines[2:]] == ["| 9", "| 8", "| 7"]


def test_table_shows_mean_and_spread_and_the_newest_times(root):
    publish(9, root)
    cells = results_table(root / SEEDS).strip().splitlines()[2].strip("| ").split(" | ")
    assert cells == [
        "9: ULTIMUS",
        "**70.08 ± 1.88% (3)**",  # of 70, 72 and 68.25
        BEST_PUBLIC[9],
        "48",  # 24 epochs of 2 seconds on the only GPU with a time
        "22",  # 24 epochs of 55.1 seconds
    ]


@pytest.mark.parametrize("other", [{"data": "digits"}, {"epochs": "12"}, {"variant": "a8"}])
def test_table_shows_whole_runs_of_ours_on_cifar10_only(root, other):
    before = results_table(root / SEEDS)
    run = row(session="9", variant="ours", epochs="24", seed="3", test_accuracy="10")
    append(root / SEEDS, run | other)
    assert results_table(root / SEEDS) == before


def test_runs_may_be_in_another_folder(root, monkeypatch):
    (root / "runs").rename(root / "elsewhere")
    monkeypatch.setenv("RUNS", str(root / "elsewhere"))
    publish(9, root)
    assert (root / "static/session9/run.json").exists()


def assert_not_published(root, *key_words):
    """The error says why, and no file has changed."""
    before = contents(root)
    with pytest.raises(UserError) as error:
        publish(9, root)
    for words in key_words:
        assert words in str(error.value)
    assert contents(root) == before


@pytest.mark.parametrize("name", ["digits", "CIFAR-10-C (folder of images)"])
def test_run_on_other_images_is_rejected(root, name):
    write_facts(root, data=name, is_cifar10=False)
    assert_not_published(root, name, "not on CIFAR-10", "DATA=cifar10")


def test_run_with_too_few_epochs_is_rejected(root):
    write_history(root, epochs=23)
    assert_not_published(root, "23 of 24 epochs", "make session9")


@pytest.mark.parametrize("name", [*published_files(9), NOTEBOOK])
def test_run_without_one_of_its_files_is_rejected(root, name):
    (root / "runs/session9" / name).unlink()
    assert_not_published(root, "missing", name, "make session9")


@pytest.mark.parametrize(
    "cells, reason",
    [
        ([cell("a = 2", 1), cell("print(a)", 2)], "has changed"),
        ([cell("a = 1", 1)], "has changed"),
        ([cell("a = 1", 2), cell("print(a)", 1)], "from top to bottom"),
        ([cell("a = 1", 1), cell("print(a)")], "from top to bottom"),
        ([cell("a = 1", 5), cell("print(a)", 6)], "from top to bottom"),
    ],
)
def test_notebook_that_is_not_a_whole_run_is_rejected(root, cells, reason):
    write_notebook(root / "runs/session9" / NOTEBOOK, *cells)
    assert_not_published(root, NOTEBOOK, reason, "make session9")


def test_notebook_with_an_error_is_rejected(root):
    error = new_output("error", ename="E", evalue="", traceback=[])
    cells = [cell("a = 1", 1), cell("print(a)", 2, [error])]
    write_notebook(root / "runs/session9" / NOTEBOOK, *cells)
    assert_not_published(root, NOTEBOOK, "shows an error")


def cells_with_the_address_of(name: str, count: int | None = None) -> list:
    """A badge and a setup cell as `make colab` writes them."""
    link = f"https://colab.research.google.com/github/{name}/blob/main/{NOTEBOOK}"
    badge = new_markdown_cell(f"[badge]({link})")
    return [badge, cell(f'REPOSITORY = "https://github.com/{name}"\na = 1', count)]


def test_address_of_the_repository_may_differ(root):
    write_notebook(root / NOTEBOOK, *cells_with_the_address_of("OWNER/NAME"))
    executed = cells_with_the_address_of("me/mine", count=1)
    write_notebook(root / "runs/session9" / NOTEBOOK, *executed)
    publish(9, root)
    assert "me/mine" in (root / NOTEBOOK).read_text()


def test_command_says_what_it_has_published(root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    monkeypatch.setattr("sys.argv", ["publish", "9"])
    command.main()
    assert capsys.readouterr().out.startswith("Published")


def test_command_says_in_one_line_why_not(root, monkeypatch):
    monkeypatch.chdir(root)
    monkeypatch.setattr("sys.argv", ["publish", "9"])
    write_history(root, epochs=1)
    with pytest.raises(SystemExit) as stop:
        command.main()
    (line,) = str(stop.value.code).strip().splitlines()
    assert "1 of 24 epochs" in line
