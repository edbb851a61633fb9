"""The submission shows the run in the order of the assignment page, or says why not."""

import re

import pytest

from tests.repositories import commit_files, make_project, make_repository
from tests.small import cells_of
from utils.errors import TrainingError
from utils.runs import report
from utils.runs.report import submission_text
from utils.sessions import SESSIONS

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
    _, _, text = text_of(session).partition("\n\n")
    answers = re.split(r"^\d\. ", text, flags=re.MULTILINE)[1:]
    assert len(answers) == len(POINTS[session])
    for answer, point in zip(answers, POINTS[session], strict=True):
        assert point in answer


@pytest.mark.parametrize("session", POINTS)
def test_points_are_numbered(session):
    numbers = re.findall(r"^(\d)\. ", text_of(session), flags=re.MULTILINE)
    assert numbers == [str(number + 1) for number in range(len(POINTS[session]))]


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
    with pytest.raises(TrainingError) as stop:
        cells_of(tmp_path / "run").run.submission()
    assert "call run.finish() first" in str(stop.value)
    assert "\n" not in str(stop.value)
    assert not (tmp_path / "run/submission.md").exists()


def test_submission_names_the_network_and_its_size(finished):
    assert "TransformerModel(a=8) (26,064 parameters)" in submission(finished)


def test_submission_shows_the_source_of_the_network_that_was_trained(finished):
    source = (finished.folder.path / "network.py").read_text("utf-8")
    assert "class UltimusBlock" in source
    assert f"```python\n{source}\n```" in submission(finished)


def test_submission_shows_the_whole_log(finished):
    log = (finished.folder.path / "training_log.txt").read_text("utf-8")
    assert f"```text\n{log}```" in submission(finished)


def test_submission_of_a_run_on_other_images_warns_where_it_is_printed(finished):
    first, second = finished.submission().splitlines()
    assert first.startswith("**Do not hand this in")
    assert f"{finished.folder.path}/submission.md" in second


def test_submission_has_the_address_that_is_given(finished):
    assert "Repository: https://host/you/yours\n" in submission(finished, "https://host/you/yours")


@pytest.mark.parametrize("address", ["", "https://github.com/OWNER/NAME"])
def test_without_an_address_the_submission_has_that_of_git(
    finished, tmp_path, monkeypatch, address
):
    project = make_project(tmp_path, "project", monkeypatch)
    make_repository(project, remote="https://host/me/mine")
    assert "Repository: https://host/me/mine\n" in submission(finished, address)


def test_submission_without_any_address_asks_for_it_and_says_why(finished, tmp_path, monkeypatch):
    make_project(tmp_path, "project", monkeypatch)
    text = submission(finished)
    assert "Repository: (add the address of your repository; git does not know it: " in text
    assert "in no git repository" in text


def test_submission_in_a_repository_that_git_refuses_says_so(finished, tmp_path, monkeypatch):
    project = make_project(tmp_path, "project", monkeypatch)
    make_repository(project)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert f"git config --global --add safe.directory {project}" in submission(finished)


@pytest.mark.parametrize("address", ["", "https://github.com/me/mine"])
def test_submission_in_a_subfolder_has_its_address(finished, tmp_path, monkeypatch, address):
    make_project(tmp_path, "course/session9", monkeypatch)
    make_repository(tmp_path / "course")
    commit_files(tmp_path / "course")
    expected = "Repository: https://github.com/me/mine/tree/main/session9\n"
    assert expected in submission(finished, address)


def test_answers_are_known_for_each_session():
    assert report.ANSWERS.keys() == SESSIONS.keys()
