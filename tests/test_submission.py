"""The submission shows the run in the order of the assignment page, and says if it should not be handed in."""

import json
import re
import subprocess

import pytest

from tools import publish
from utils.runs import report
from utils.sessions import SESSIONS

FACTS = {
    "session": 9, "data": "CIFAR-10", "is_cifar10": True, "epochs": 24, "parameters": 26064,
    "test_accuracy": 68.957, "max_lr": 0.3, "first_lr": 0.003, "top_epoch": 4,
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    (tmp_path / "training_log.txt").write_text("EPOCH = 1\nTest set: fine\n")

    def write(address="https://github.com/me/mine", **changes):
        facts = FACTS | changes
        (tmp_path / "run.json").write_text(json.dumps(facts))
        shown = report.write_submission(tmp_path, SESSIONS[facts["session"]].answers, address)
        text = (tmp_path / "submission.md").read_text("utf-8")
        heads = re.findall(r"^(?:\*\*|\d\. ).*?(?=:?$)", text, re.MULTILINE)
        told = f"{tmp_path}/submission.md holds the answers to the assignment page:\n"
        assert told in shown and shown.replace(told, "").splitlines() == heads
        return text

    return write


@pytest.mark.parametrize("session, points", [
    (9, ["Repository: https://github.com/me/mine", "class UltimusBlock", "EPOCH = 1", "(loss_and_accuracy_graphs.png)"]),
    (8, ["Repository: ", "class CustomResNet", "LRMIN = 0.0030, LRMAX = 0.3000 at the end of epoch 4", "EPOCH = 1", "68.96%, on CIFAR-10"]),
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


@pytest.mark.parametrize("changes, reason", [
    ({"data": "digits", "is_cifar10": False}, "it was trained on digits, not on CIFAR-10"),
    ({"data": "CIFAR-10-C (folder of images)", "is_cifar10": False}, "it was trained on CIFAR-10-C"),
    ({"address": ""}, "Add the address of your repository: "),
])  # fmt: skip
def test_first_line_says_why_a_run_should_not_be_handed_in(run, changes, reason):
    assert re.match(rf"\*\*(Do not hand this in: )?{re.escape(reason)}", run(**changes))


@pytest.mark.parametrize("remote, address", [
    ("https://github.com/me/mine.git", "https://github.com/me/mine"),
    ("https://me:secret@github.com/me/mine", "https://github.com/me/mine"),
    ("git@github.com:me/mine.git", "git@github.com:me/mine"),
    (None, ""),
    ("/home/me/mine", ""),
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
    as_test = "git -c user.name=test -c user.email=test@localhost"
    script = f"git init -q; touch a; git add a; {as_test} commit -qm 1; {as_test} tag -m 1 v1; touch new"
    subprocess.run(script, shell=True, cwd=tmp_path, check=True)
    assert re.fullmatch("[0-9a-f]{7,}", commit := report.commit.__wrapped__())
    (tmp_path / "a").write_text("changed")
    assert report.commit.__wrapped__() == f"{commit}+"
