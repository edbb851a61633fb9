"""The submission shows the run in the order of the assignment page, or says why not."""

import re
import subprocess

import pytest

from tests.small import cells_of
from utils import git
from utils.errors import TrainingError
from utils.runs import report
from utils.runs.report import submission_text

FACTS = {
    "session": 9,
    "network": "TransformerModel()",
    "data": "CIFAR-10",
    "is_cifar10": True,
    "epochs": 24,
    "parameters": 26064,
    "test_accuracy": 68.957,
    "max_lr": 0.3,
    "first_lr": 0.003,
    "top_epoch": 4,
}


def text_of(session: int, **changes) -> str:
    facts = FACTS | {"session": session} | changes
    return submission_text(facts, "https://host/me/mine", "class Net: ...", "EPOCH = 1\n")


POINTS = {
    9: ["Repository: https://host/me/mine", "class Net", "EPOCH = 1", "loss_and_accuracy_graphs"],
    8: ["Repository: ", "class Net", "LRMIN = 0.0030, LRMAX = 0.3000", "EPOCH = 1", "68.96%"],
    7: [
        "Repository: ",
        "class Net",
        "EPOCH = 1",
        "loss_and_accuracy_graphs",
        "misclassified_images",
        "grad_cam",
    ],
}


@pytest.mark.parametrize("session", POINTS)
def test_points_stand_in_the_order_of_the_page(session):
    rest = text_of(session).split("\n\n", 1)[1]
    for number, point in enumerate(POINTS[session], start=1):
        before, rest = rest.split(point, 1)
        assert f"{number}. " in before


def test_run_on_cifar10_has_no_warning():
    assert text_of(9).startswith("# Session 9\n")


def test_first_line_says_that_a_run_on_other_images_is_not_to_be_handed_in():
    text = text_of(9, data="digits", is_cifar10=False)
    assert text.startswith("**Do not hand this in: it was trained on digits")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    cells = cells_of(tmp_path_factory.mktemp("runs") / "run")
    cells.train()
    cells.run.finish()
    return cells.run


def submission(run, *arguments) -> str:
    run.submission(*arguments)
    return (run.folder.path / "submission.md").read_text("utf-8")


def test_submission_before_the_end_is_one_line(tmp_path):
    with pytest.raises(TrainingError, match=r"call run\.finish"):
        cells_of(tmp_path / "run").run.submission()


def test_submission_shows_the_network_that_was_trained(finished):
    assert "TransformerModel(a=8) (26,064 parameters)" in submission(finished)
    assert "class UltimusBlock" in submission(finished)


def test_submission_has_the_address_that_is_given(finished):
    assert "Repository: https://host/you/yours\n" in submission(finished, "https://host/you/yours")


def test_placeholder_is_no_address(finished, monkeypatch):
    monkeypatch.setattr("utils.runs.run.repository", lambda: "https://host/me/mine")
    text = submission(finished, "https://github.com/OWNER/NAME")
    assert "Repository: https://host/me/mine\n" in text


def test_answers_are_known_for_each_session():
    assert set(report.ANSWERS) == {7, 8, 9}


@pytest.fixture
def repository(monkeypatch, tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    monkeypatch.setattr(git, "ROOT", tmp_path)
    return tmp_path


ADDRESSES = {
    "https://github.com/me/mine.git": "https://github.com/me/mine",
    "https://me:secret@github.com/me/mine": "https://github.com/me/mine",
    "git@github.com:me/mine.git": "git@github.com:me/mine",
    "/home/me/mine": "",
}


@pytest.mark.parametrize("remote", ADDRESSES)
def test_repository_is_the_remote_origin_without_credentials(repository, remote):
    subprocess.run(["git", "remote", "add", "origin", remote], cwd=repository, check=True)
    assert git.repository() == ADDRESSES[remote]


def test_repository_without_a_remote(repository):
    assert git.repository() == ""


def test_no_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git.repository() == ""
    assert git.commit.__wrapped__() == ""


def test_commit_is_marked_if_tracked_files_have_changed(repository):
    (repository / "a").write_text("1")
    author = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["add", "a"], [*author, "commit", "-qm", "1"]):
        subprocess.run(["git", *command], cwd=repository, check=True)
    commit = git.commit.__wrapped__()
    assert re.fullmatch("[0-9a-f]{7,}", commit)
    (repository / "a").write_text("changed")
    assert git.commit.__wrapped__() == f"{commit}+"
