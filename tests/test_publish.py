"""Only a complete run on CIFAR-10 is published, and exactly that run."""

import json
import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from tools.publish import BEST_PUBLIC, COLUMNS, SEEDS, files, publish, read
from utils.errors import UserError

FACTS = {
    "session": 9, "data": "CIFAR-10", "is_cifar10": True, "epochs": 24, "max_lr": 0.0195, "seed": 0,
    "parameters": 26064, "train_accuracy": 70.5, "test_accuracy": 68.25, "seconds_per_epoch": 55.1,
    "hardware": "a CPU, 2 threads", "torch": "2.15.0",
}  # fmt: skip
README = "top\n<!-- results -->\nold\n<!-- /results -->\nand\n<!-- session9-log -->\n<!-- /session9-log -->\nend\n"


def notebook(*cells):
    """Code cells given as (source, count, output type)."""
    return new_notebook(cells=[
        new_code_cell(source, execution_count=count, outputs=[
            new_output("error", ename="E", evalue="", traceback=[]) if kind == "error" else new_output("stream", text="out")
        ] if kind else [])
        for source, count, kind in cells
    ])  # fmt: skip


@pytest.fixture
def root(tmp_path):
    """A repository with a finished run that has not been published."""
    run = tmp_path / "runs/session9"
    run.mkdir(parents=True)
    for name in files(9):
        (run / name).write_bytes(name.encode())
    (run / "run.json").write_text(json.dumps(FACTS))
    (run / "history.csv").write_text("epoch,test_accuracy\n" + "".join(f"{i},{i + 44.25}\n" for i in range(1, 25)))
    (run / "training_log.txt").write_text("EPOCH = 1\nTest set: fine\n")
    nbformat.write(notebook(("a = 1", 1, None), ("print(a)", 2, "stream")), run / "session9_assignment.ipynb")
    nbformat.write(notebook(("a = 1", None, None), ("print(a)", None, None)), tmp_path / "session9_assignment.ipynb")
    (tmp_path / "README.md").write_text(README)
    runs = "ours 70,2,NVIDIA H100", "ours 72,,NVIDIA T4", "ours_old 71,50,2 threads", "a8 79,1,NVIDIA"
    lines = [f"{session},{variant},CIFAR-10,0,{epochs},,,{measured},,,\n"
             for session, epochs in ((9, 24), (8, 24), (7, 20))
             for variant, measured in (run.split(" ", 1) for run in runs)]  # fmt: skip
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / SEEDS).write_text(",".join(COLUMNS) + "\n" + "".join(lines))
    return tmp_path


def test_publish_shows_the_run(root):
    publish(9, root)
    for name in files(9):
        assert (root / "static/session9" / name).read_bytes() == (root / "runs/session9" / name).read_bytes()
    name = "session9_assignment.ipynb"
    assert (root / name).read_bytes() == (root / "runs/session9" / name).read_bytes()
    readme = (root / "README.md").read_text()
    row = f"| 9: ULTIMUS | **70.08 ± 1.88% (3)** | {BEST_PUBLIC[9]} | 48 | 22 |"
    assert "\n\n| session |" in readme and row in readme and BEST_PUBLIC[9].startswith("[62.25%](https://")
    (added,) = read(root / SEEDS, hardware="a CPU, 2 threads")
    assert (added["max_lr"], added["test_accuracy"], added["curve"][-17:]) == ("0.0195", "68.25", "66.25 67.25 68.25")
    assert "```text\nEPOCH = 1\nTest set: fine\n```" in readme
    assert re.fullmatch("top\n.*\nand\n.*\nend\n", readme, re.DOTALL) and "old" not in readme
    publish(9, root)
    assert (root / "README.md").read_text() == readme
    (root / "runs/session9/run.json").write_text(json.dumps(FACTS | {"commit": "later", "test_accuracy": 70.0}))
    publish(9, root)  # the same seed on the same hardware
    assert [row["commit"] for row in read(root / SEEDS, hardware="a CPU, 2 threads")] == ["later"]
    (root / "README.md").write_text(README.replace("session9-log", "other"))
    publish(9, root)
    assert "Test set: fine" not in (root / "README.md").read_text()


@pytest.mark.parametrize("change, reason", [
    ({"data": "digits", "is_cifar10": False}, "was trained on digits, not on CIFAR-10"),
    ({"data": "CIFAR-10-C (folder of images)", "is_cifar10": False}, "was trained on CIFAR-10-C"),
])  # fmt: skip
def test_unfit_runs_are_rejected(root, change, reason):
    (root / "runs/session9/run.json").write_text(json.dumps(FACTS | change))
    assert_not_published(root, reason)


@pytest.mark.parametrize("name", ["run.json", "weights.pt", "signal_rank.png", "session9_assignment.ipynb"])
def test_unfinished_run_is_rejected(root, name):
    (root / "runs/session9/history.csv").write_text("epoch,test_accuracy\n1,10\n")
    assert_not_published(root, "has 1 of 24 epochs")
    (root / "runs/session9" / name).unlink()
    assert_not_published(root, f"is missing {name}: finish `make session9` first")


@pytest.mark.parametrize("cells, reason", [
    ([("a = 2", 1, None), ("print(a)", 2, "stream")], "has changed since the run"),
    ([("a = 1", 2, None), ("print(a)", 1, "stream")], "not executed whole, from top to bottom"),
    ([("a = 1", 1, None), ("print(a)", None, None)], "not executed whole"),
    ([("a = 1", 1, None), ("print(a)", 2, "error")], "shows an error"),
])  # fmt: skip
def test_unfit_notebooks_are_rejected(root, cells, reason):
    nbformat.write(notebook(*cells), root / "runs/session9/session9_assignment.ipynb")
    assert_not_published(root, reason)


def assert_not_published(root, reason):
    """The error says why, and no published file has changed."""
    shown = (root / "session9_assignment.ipynb").read_bytes()
    with pytest.raises(UserError, match=reason):
        publish(9, root)
    assert (root / "README.md").read_text() == README and not (root / "static").exists()
    assert (root / "session9_assignment.ipynb").read_bytes() == shown
