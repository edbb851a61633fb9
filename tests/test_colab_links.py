"""`make colab` writes the address of the repository, and changes nothing else."""

import os
import shutil
import subprocess
import sys
from unittest.mock import Mock

import pytest

from tests.conftest import ROOT
from tests.repositories import commit_files, git, make_project, make_repository
from tools import colab

BADGE = "https://colab.research.google.com/github/OWNER/NAME/blob/main/session{}_assignment.ipynb"
OTHERS = "https://colab.research.google.com/github/you/yours/blob/main/lesson.ipynb"
README = f"""# Networks

Open [session 9]({BADGE.format(9)}) or [8]({BADGE.format(8)}), or [a lesson]({OTHERS}).
It works. <!-- colab-hint -->First call
`make colab`.<!-- /colab-hint --> All is said.
"""
NOTEBOOK = r"""{"cells": [{ "cell_type":"markdown","source": [
 "[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](BADGE)\n"]},
 {"cell_type": "code", "source": ["import os\n",
  "REPOSITORY = \"https://github.com/OWNER/NAME\"  # to clone, für alle\n",
  "MY_REPOSITORY = \"https://github.com/OWNER/NAME\"\n"]}],   "nbformat": 4 }"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The README and the notebooks in the folder ``course/session 9``, in no repository."""
    project = make_project(tmp_path, "course/session 9", monkeypatch)
    (project / "README.md").write_text(README)
    for session in (7, 8, 9):
        text = NOTEBOOK.replace("BADGE", BADGE.format(session))
        (project / f"session{session}_assignment.ipynb").write_text(text, "utf-8")
    return project


@pytest.fixture
def own(project):
    """The project in a repository of its own."""
    make_repository(project)
    return project


@pytest.fixture
def course(project):
    """A repository with the project in a subfolder."""
    make_repository(project.parent)
    commit_files(project.parent)
    return project.parent


def call(monkeypatch, *arguments):
    """The command line of ``make colab``."""
    monkeypatch.setattr("sys.argv", ["colab", *arguments])
    colab.main()


def message(monkeypatch, *arguments) -> str:
    """The one line with which it stops."""
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, *arguments)
    text = str(stop.value.code)
    assert text.startswith("no link was written: ")
    assert "\n" not in text
    return text


def contents(folder):
    return {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_links_of_a_repository_of_its_own(own, monkeypatch):
    call(monkeypatch)
    link = "https://colab.research.google.com/github/me/mine/blob/main/session9_assignment.ipynb"
    assert f"[session 9]({link})" in (own / "README.md").read_text()
    assert f"({link})" in (own / "session9_assignment.ipynb").read_text("utf-8")


def test_links_in_a_subfolder_have_the_folder(project, course, monkeypatch):
    call(monkeypatch)
    start = "https://colab.research.google.com/github/me/mine/blob/main/session%209"
    assert f"[8]({start}/session8_assignment.ipynb)" in (project / "README.md").read_text()
    notebook = (project / "session7_assignment.ipynb").read_text("utf-8")
    assert f"({start}/session7_assignment.ipynb)" in notebook


def test_links_have_the_current_branch(project, course, monkeypatch):
    git(course, "checkout", "-qb", "work")
    call(monkeypatch)
    assert "/github/me/mine/blob/work/session%209/" in (project / "README.md").read_text()


def test_links_to_an_earlier_folder_are_replaced(project, course, monkeypatch):
    call(monkeypatch)
    git(course, "mv", "session 9", "last")
    moved = course / "last"
    monkeypatch.setattr("utils.git.ROOT", moved)
    call(monkeypatch)
    assert "blob/main/last/session9_assignment.ipynb" in (moved / "README.md").read_text()
    assert "session%209" not in (moved / "README.md").read_text()


def test_setup_cell_in_a_subfolder_clones_the_whole_repository(project, course, monkeypatch):
    call(monkeypatch)
    for session in (7, 8, 9):
        notebook = (project / f"session{session}_assignment.ipynb").read_text("utf-8")
        assert r'"REPOSITORY = \"https://github.com/me/mine\"  # to clone' in notebook


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_notebook_is_the_same_but_for_its_addresses(own, monkeypatch, line_end):
    path = own / "session9_assignment.ipynb"
    old = path.read_text("utf-8").replace("\n", line_end)
    path.write_bytes(old.encode())
    call(monkeypatch)
    new = path.read_bytes().decode()
    restored = new.replace("github/me/mine/blob", "github/OWNER/NAME/blob").replace(
        r' "REPOSITORY = \"https://github.com/me/mine',
        r' "REPOSITORY = \"https://github.com/OWNER/NAME',
    )
    assert new != old
    assert restored == old


def test_readme_keeps_links_to_other_notebooks(own, monkeypatch):
    call(monkeypatch)
    assert f"[a lesson]({OTHERS})" in (own / "README.md").read_text()


def test_readme_loses_the_hint_to_make_colab(own, monkeypatch):
    call(monkeypatch)
    assert "It works. All is said.\n" in (own / "README.md").read_text()


def test_other_files_are_left_alone(own, monkeypatch):
    others = {"README.md.bak", "own.ipynb", "session9_assignment.ipynb.bak", "notes.md"}
    for name in others:
        (own / name).write_text(BADGE.format(9))
    call(monkeypatch)
    for name in others:
        assert (own / name).read_text() == BADGE.format(9)


def test_no_file_is_added(own, monkeypatch):
    before = contents(own)
    call(monkeypatch)
    assert contents(own).keys() == before.keys()


def test_second_call_writes_nothing(own, monkeypatch, capsys):
    call(monkeypatch)
    capsys.readouterr()
    write = Mock()
    monkeypatch.setattr(colab, "write_text", write)
    call(monkeypatch)
    write.assert_not_called()
    assert capsys.readouterr().out.startswith("Nothing to write: ")


def test_each_address_that_is_written_is_a_line(own, monkeypatch, capsys):
    call(monkeypatch)
    start = "https://colab.research.google.com/github/me/mine/blob/main"
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        f"README.md: {start}/session9_assignment.ipynb",
        f"README.md: {start}/session8_assignment.ipynb",
    ]
    assert lines[-2:] == [
        f"session9_assignment.ipynb: {start}/session9_assignment.ipynb",
        'session9_assignment.ipynb: REPOSITORY = "https://github.com/me/mine"',
    ]


def test_missing_notebook_is_named(own, monkeypatch, capsys):
    (own / "session7_assignment.ipynb").unlink()
    call(monkeypatch)
    assert "session7_assignment.ipynb: not in this folder" in capsys.readouterr().out


def test_file_that_cannot_be_replaced_is_one_line_and_stays(own, monkeypatch):
    monkeypatch.setattr(os, "replace", Mock(side_effect=OSError(28, "No space left on device")))
    before = contents(own)
    assert "README.md cannot be written (No space left on device)" in message(monkeypatch)
    assert contents(own) == before


def test_file_that_cannot_be_read_is_one_line(own, monkeypatch):
    (own / "README.md").unlink()
    (own / "README.md").mkdir()
    assert "README.md cannot be read" in message(monkeypatch)


REPOSITORIES = [
    "me/mine",
    "https://github.com/me/mine",
    "https://github.com/me/mine.git",
    "git@github.com:me/mine.git",
]


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_repository_may_be_given_as_a_name_or_an_address(project, monkeypatch, repository):
    call(monkeypatch, "--repository", repository)
    assert "github/me/mine/blob/main/session9" in (project / "README.md").read_text()
    notebook = (project / "session9_assignment.ipynb").read_text("utf-8")
    assert r"REPOSITORY = \"https://github.com/me/mine\"" in notebook


def test_repository_that_is_given_is_used_with_branch_and_folder(project, course, monkeypatch):
    git(course, "checkout", "-qb", "work")
    call(monkeypatch, "--repository", "you/fork")
    assert "github/you/fork/blob/work/session%209/" in (project / "README.md").read_text()


@pytest.mark.parametrize(
    "repository", ["", "mine", "me/mine/more", "https://gitlab.com/me/mine", "me/my mine"]
)
def test_repository_that_is_not_on_github_is_one_line(project, monkeypatch, repository):
    before = contents(project)
    text = message(monkeypatch, "--repository", repository)
    assert f'"{repository}" is not a repository on GitHub' in text
    assert "make colab REPO=owner/name" in text
    assert contents(project) == before


def test_remote_on_another_host_is_one_line(project, monkeypatch):
    make_repository(project, remote="https://me:secret@gitlab.com/me/mine.git")
    text = message(monkeypatch)
    assert 'GitHub only, and the remote "origin" is https://gitlab.com/me/mine:' in text


def test_no_repository_is_one_line(project, monkeypatch):
    text = message(monkeypatch)
    assert "is in no git repository" in text
    assert "make colab REPO=owner/name" in text


def test_no_remote_is_one_line(own, monkeypatch):
    git(own, "remote", "remove", "origin")
    text = message(monkeypatch)
    assert 'no remote named "origin"' in text
    assert "make colab REPO=owner/name" in text


def test_no_git_is_one_line(own, monkeypatch):
    monkeypatch.setenv("PATH", "")
    text = message(monkeypatch)
    assert "git is not installed" in text
    assert "make colab REPO=owner/name" in text


def test_repository_that_does_not_track_the_project_is_one_line(project, monkeypatch):
    make_repository(project.parent)
    before = contents(project)
    assert "does not track its files" in message(monkeypatch)
    assert contents(project) == before


@pytest.mark.parametrize("arguments", [(), ("--repository", "me/mine")])
def test_repository_that_git_refuses_is_one_line(own, monkeypatch, arguments):
    """Even if the repository is given: only git knows the folder."""
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    before = contents(own)
    assert "git config --global --add safe.directory" in message(monkeypatch, *arguments)
    assert contents(own) == before


@pytest.mark.parametrize("name", colab.FILES)
def test_the_files_of_the_project_have_addresses_to_write(name):
    text = (ROOT / name).read_text("utf-8")
    assert colab.LINK.search(text)
    assert colab.REPOSITORY.search(text) or name == "README.md"


NEEDED = (
    "Makefile",
    "tools/__init__.py",
    "tools/colab.py",
    "utils/__init__.py",
    "utils/errors.py",
    "utils/files.py",
    "utils/formats.py",
    "utils/git.py",
)


@pytest.fixture
def clone(own):
    """The project with its Makefile and what `make colab` needs, and a finished installation."""
    for name in NEEDED:
        (own / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, own / name)
    for name in ("requirements.txt", "requirements-notebook.txt", "constraints.txt"):
        (own / name).touch()
    (own / ".venv").mkdir()
    (own / ".venv/.ready").touch()
    return own


def make(folder, *arguments) -> subprocess.CompletedProcess:
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True)


BARE_PYTHON = f"PYTHON={sys.executable} -S"  # without the packages that are installed


def test_make_colab_needs_no_package(clone):
    done = make(clone, "colab", BARE_PYTHON)
    assert done.returncode == 0, done.stderr
    assert "github/me/mine/blob/main/session9" in (clone / "README.md").read_text()


def test_make_colab_prints_only_what_it_has_written(clone):
    lines = make(clone, "colab", BARE_PYTHON).stdout.splitlines()
    assert {line.partition(":")[0] for line in lines} == set(colab.FILES)


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_make_colab_with_a_repository(clone, repository):
    git(clone, "remote", "remove", "origin")
    make(clone, "colab", BARE_PYTHON, f"REPO={repository}")
    assert "github/me/mine/blob/main/session9" in (clone / "README.md").read_text()


def test_make_colab_without_an_address_fails(clone):
    git(clone, "remote", "remove", "origin")
    done = make(clone, "colab", BARE_PYTHON)
    assert done.returncode == 2
    assert 'no remote named "origin"' in done.stderr


PUBLISH_ONLY = """#!/bin/sh
# Stands in for Python: publishes nothing, and runs tools.colab without packages.
case $2 in tools.colab) exec PYTHON -S "$@" ;; esac
"""


@pytest.fixture
def publish(clone):
    """`make publish` of a run that is finished."""
    python = clone / "python"
    python.write_text(PUBLISH_ONLY.replace("PYTHON", sys.executable))
    python.chmod(0o755)

    def publish(*arguments):
        return make(clone, "publish", "SESSION=9", "RUN=./python", *arguments)

    return publish


def test_make_publish_writes_the_address_of_origin(clone, publish):
    assert publish().returncode == 0
    assert "github/me/mine/blob" in (clone / "README.md").read_text()


def test_make_publish_without_an_address_succeeds(clone, publish):
    git(clone, "remote", "remove", "origin")
    assert publish().returncode == 0
    assert (clone / "README.md").read_text() == README


def test_make_publish_with_a_repository_writes_its_address(clone, publish):
    publish("REPO=you/yours")
    assert "github/you/yours/blob" in (clone / "README.md").read_text()


def test_make_publish_with_a_wrong_repository_fails(publish):
    assert publish("REPO=mine").returncode == 2


def test_make_publish_with_an_empty_repository_leaves_the_links_alone(clone, publish):
    assert publish("REPO=").returncode == 0
    assert (clone / "README.md").read_text() == README
