"""The address, the folder and the commit of the project, as git knows them, or why it does not."""

import re

import pytest

from tests.repositories import commit_files, git, make_project, make_repository
from utils.git import (
    GitError,
    commit,
    folder,
    name_on_github,
    origin,
    page,
    path_on_github,
    repository,
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The project's folder, in no repository."""
    return make_project(tmp_path, "course/EVA8/session9", monkeypatch)


@pytest.fixture
def course(project):
    """The folder ``course`` with the project in ``course/EVA8/session9``, in no repository."""
    return project.parents[1]


@pytest.fixture
def home(course):
    """``course`` as a repository that tracks other files, but none of the project."""
    make_repository(course)
    (course / "diary.txt").touch()
    commit_files(course, "diary.txt")
    return course


ADDRESSES = {
    "https://github.com/me/mine": "https://github.com/me/mine",
    "https://github.com/me/mine.git": "https://github.com/me/mine",
    "https://www.GitHub.com/me/mine/": "https://github.com/me/mine",
    "https://me:secret@github.com/me/mine": "https://github.com/me/mine",
    "git@github.com:me/mine.git": "https://github.com/me/mine",
    "ssh://git@github.com/me/mine.git": "https://github.com/me/mine",
    "ssh://git@ssh.github.com:443/me/mine.git": "https://github.com/me/mine",
    "https://me:secret@gitlab.com/me/mine.git": "https://gitlab.com/me/mine",
    "git@gitlab.com:group/me/mine.git": "git@gitlab.com:group/me/mine",
    "/home/me/mine": "",
}


@pytest.mark.parametrize("remote", ADDRESSES)
def test_repository_is_the_remote_origin_without_credentials(project, remote):
    make_repository(project, remote)
    assert repository() == ADDRESSES[remote]


@pytest.mark.parametrize(
    "address",
    [
        "https://notgithub.com/me/mine",
        "https://gist.github.com/me/mine",
        "https://gitlab.com/github.com/mine",
        "https://github.com/me",
        "https://github.com/me/mine/tree/main",
    ],
)
def test_other_addresses_are_no_repository_on_github(address):
    assert name_on_github(address) == ""


def test_folder_at_the_top_of_a_repository_is_empty(project):
    make_repository(project)
    assert folder() == ""


def test_folder_is_the_one_inside_the_repository(course):
    make_repository(course)
    commit_files(course)
    assert folder() == "EVA8/session9"


def test_repository_that_tracks_none_of_the_files_is_not_that_of_the_project(home):
    with pytest.raises(GitError, match="does not track its files"):
        folder()


def test_repository_that_tracks_none_of_the_files_gives_no_address(home):
    assert repository() == ""


def test_path_on_github_has_the_branch_and_the_folder(course):
    make_repository(course)
    commit_files(course)
    git(course, "checkout", "-qb", "work")
    assert path_on_github() == "work/EVA8/session9"


def test_path_on_github_at_the_top_is_the_branch(project):
    make_repository(project)
    assert path_on_github() == "main"


def test_path_on_github_without_a_current_branch_has_main(course):
    make_repository(course)
    commit_files(course)
    git(course, "branch", "-m", "work")
    git(course, "checkout", "-q", "--detach")
    assert path_on_github() == "main/EVA8/session9"


def test_path_on_github_is_percent_encoded(tmp_path, monkeypatch):
    make_project(tmp_path, "course/week 9 (ü)", monkeypatch)
    course = tmp_path / "course"
    make_repository(course)
    commit_files(course)
    git(course, "checkout", "-qb", "feature/net")
    assert path_on_github() == "feature%2Fnet/week%209%20%28%C3%BC%29"


def reason() -> str:
    """Why git knows no address: one line."""
    with pytest.raises(GitError) as stop:
        origin()
    assert "\n" not in str(stop.value)
    return str(stop.value)


def test_git_that_is_not_installed_is_named(project, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert reason().startswith("git is not installed")


def test_folder_in_no_repository_is_named(project):
    assert "is in no git repository: run `git init`" in reason()


def test_repository_that_git_refuses_is_named_with_the_advice_of_git(project, monkeypatch):
    make_repository(project)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert "another user owns it" in reason()
    assert f"`git config --global --add safe.directory {project}`" in reason()


def test_repository_that_git_cannot_read_is_named_with_the_words_of_git(project):
    make_repository(project)
    (project / ".git/config").write_text("no configuration\n")
    assert "bad config line 1" in reason()


def test_repository_without_a_remote_origin_is_named(project):
    make_repository(project)
    git(project, "remote", "rename", "origin", "upstream")
    assert 'no remote named "origin": run `git remote add origin' in reason()


def test_remote_origin_that_is_a_folder_is_named(project):
    make_repository(project, remote="/home/me/mine")
    assert '"origin" is a folder' in reason()
    assert "git remote set-url origin" in reason()


@pytest.mark.parametrize("address", ["", "https://github.com/me/mine", "git@github.com:me/mine"])
def test_page_of_a_subfolder_on_github_has_branch_and_folder(course, address):
    make_repository(course)
    commit_files(course)
    assert page(address) == "https://github.com/me/mine/tree/main/EVA8/session9"


def test_page_of_a_whole_repository_is_its_address(project):
    make_repository(project, remote="git@github.com:me/mine.git")
    assert page("") == "https://github.com/me/mine"


def test_page_of_a_subfolder_on_another_host_is_the_address_of_the_repository(course):
    make_repository(course, remote="https://gitlab.com/me/mine.git")
    commit_files(course)
    assert page("") == "https://gitlab.com/me/mine"


def test_page_of_another_repository_is_its_address_as_given(course):
    make_repository(course)
    commit_files(course)
    assert page("https://github.com/you/yours.git") == "https://github.com/you/yours.git"


def current_commit() -> str:
    """The commit, as a new process finds it."""
    return commit.__wrapped__()


@pytest.fixture
def committed(project):
    """The project in a repository of its own with one commit."""
    make_repository(project)
    commit_files(project)
    return project


def test_commit_is_a_short_hash(committed):
    assert re.fullmatch("[0-9a-f]{7,}", current_commit())


def test_commit_is_marked_if_tracked_files_have_changed(committed):
    before = current_commit()
    (committed / "main.py").write_text("changed")
    assert current_commit() == f"{before}+"


@pytest.mark.parametrize("name", ["README.md", "benchmarks/seeds.csv", "static/session9/run.json"])
def test_commit_is_not_marked_for_results_that_a_run_has_written(committed, name):
    """Else of two runs by the same code, only the first would have a commit without a mark."""
    path = committed / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("before")
    commit_files(committed)
    before = current_commit()
    path.write_text("after")
    assert current_commit() == before


def test_commit_is_not_marked_for_other_files_of_a_course(home):
    commit_files(home)
    before = current_commit()
    (home / "diary.txt").write_text("changed")
    assert current_commit() == before


def test_commit_is_not_marked_for_files_that_git_does_not_track(committed):
    before = current_commit()
    (committed / "other.py").touch()
    assert current_commit() == before


def test_commit_is_that_of_the_project_in_a_hook_of_another_repository(
    committed, tmp_path, monkeypatch
):
    before = current_commit()
    other = tmp_path / "other"
    other.mkdir()
    make_repository(other)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    assert current_commit() == before


def test_commit_without_git_is_empty(committed, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert current_commit() == ""


def test_repository_that_tracks_none_of_the_files_gives_no_commit(home):
    assert current_commit() == ""
