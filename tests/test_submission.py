"""The submission shows the run in the order of the assignment page, and says if it should not be handed in."""

import json
import re
import subprocess

import pytest

from tools import publish
from utils.runs import report
from utils.sessions import SESSIONS

FACTS = {
    "session": 9, "data": "CIFAR-10", "is_cifar10": True, "smoke": False, "epochs": 24, "parameters": 26064,
    "test_accuracy": 68.957, "max_lr": 0.3, "first_lr": 0.003, "top_epoch": 5,
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    (tmp_path / "training_log.txt").write_text("EPOCH = 1\nTest set: fine\n")

    def write(address="https://github.com/me/mine", **changes):
        facts = FACTS | changes
        (tmp_path / "run.json").write_text(json.dumps(facts))
        shown = report.write_submission(tmp_path, SESSIONS[facts["session"]].answers, address).splitlines()
        text = (tmp_path / "submission.md").read_text("utf-8")
        heads = re.findall(r"^(?:\*\*|\d\. ).*?(?=:?$)", text, re.MULTILINE)
        assert [line for line in shown if "holds" not in line] == heads and str(tmp_path / "submission.md") in "".join(
            shown
        )
        return text

    return write


@pytest.mark.parametrize("session, points", [
    (9, ["Repository: https://github.com/me/mine", "class UltimusBlock", "EPOCH = 1", "(loss_and_accuracy_graphs.png)"]),
    (8, ["Repository: ", "class CustomResNet", "LRMIN = 0.0030, LRMAX = 0.3000 at the end of epoch 5", "EPOCH = 1", "68.96%, on CIFAR-10"]),
    (7, ["Repository: ", "class BasicBlock", "EPOCH = 1", "(loss_and_accuracy_graphs.png)", "(misclassified_images.png)", "(grad_cam.png)"]),
])  # fmt: skip
def test_the_points_stand_in_the_pages_order(run, session, points):
    text = run(session=session)
    assert text.startswith(f"# Session {session}\n")
    numbered = text.split("\n\n", 1)[1]
    for number, point in enumerate(points, start=1):
        before, numbered = numbered.split(point, 1)
        assert f"{number}. " in before
    pictures = re.findall(r"!\[.*\]\((.*)\)", text)
    assert set(pictures) <= set(publish.files(session)) and len(pictures) == {7: 3, 8: 0, 9: 1}[session]


def test_learning_rates_are_those_of_a_run_that_peaks_earlier(run):
    text = run(session=8, epochs=12, top_epoch=2, first_lr=0.02, max_lr=0.2)
    assert "LRMIN = 0.0200, LRMAX = 0.2000 at the end of epoch 2." in text


@pytest.mark.parametrize("changes, reason", [
    ({"data": "digits", "is_cifar10": False}, "it was trained on digits, not on CIFAR-10"),
    ({"data": "CIFAR-10-C (folder of images)", "is_cifar10": False}, "it was trained on CIFAR-10-C"),
    ({"smoke": True}, "it is a smoke run"),
    ({"smoke": True, "is_cifar10": False}, "it is a smoke run and it was trained on"),
])  # fmt: skip
def test_first_line_says_why_a_run_should_not_be_handed_in(run, changes, reason):
    first = run(**changes).splitlines()[0]
    assert first.startswith("**Do not hand this in: ") and reason in first


@pytest.mark.parametrize("remote, address", [
    ("https://github.com/me/mine.git", "https://github.com/me/mine"),
    ("https://me:secret@github.com/me/mine", "https://github.com/me/mine"),
    ("git@github.com:me/mine.git", "git@github.com:me/mine"),
    (None, ""),
])  # fmt: skip
def test_repository_is_the_remote_origin_without_credentials(monkeypatch, tmp_path, remote, address):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    if remote:
        subprocess.run(["git", "remote", "add", "origin", remote], cwd=tmp_path, check=True)
    monkeypatch.setattr(report, "ROOT", tmp_path)
    assert report.repository() == address
    monkeypatch.setenv("PATH", "")  # no git
    assert report.repository() == report.commit.__wrapped__() == ""


def test_commit_is_marked_if_tracked_files_have_changed(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    (tmp_path / "tracked").write_text("as committed")
    author = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "-A"], [*author, "commit", "-qm", "1"], [*author, "tag", "-m", "", "v1"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    (tmp_path / "new").touch()
    assert re.fullmatch("[0-9a-f]{7,}", commit := report.commit.__wrapped__())
    (tmp_path / "tracked").write_text("changed")
    assert report.commit.__wrapped__() == f"{commit}+"


def test_missing_address_of_the_repository_is_pointed_out(run):
    assert run(address="").startswith("**Add the address of your repository: ")
