"""Git repositories for tests, independent of the user's configuration of git."""

import os
import subprocess
from pathlib import Path

import pytest

AUTHOR = ("-c", "user.name=test", "-c", "user.email=test@localhost")


def make_project(outside: Path, name: str, patch: pytest.MonkeyPatch) -> Path:
    """``outside/name``, with one file, as the project's folder; git does not look outside."""
    patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    patch.setenv("GIT_CEILING_DIRECTORIES", str(outside))
    project = outside / name
    project.mkdir(parents=True)
    (project / "main.py").write_text("1\n")
    patch.setattr("utils.git.ROOT", project)
    return project


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", *words], cwd=folder, check=True)


def make_repository(folder: Path, remote: str = "https://github.com/me/mine") -> None:
    """A repository on the branch "main" with a remote "origin"; no file is tracked."""
    git(folder, "init", "-q")
    git(folder, "symbolic-ref", "HEAD", "refs/heads/main")
    git(folder, "remote", "add", "origin", remote)


def commit_files(folder: Path, name: str = ".") -> None:
    """Commit the file ``name``; by default, all files."""
    git(folder, "add", name)
    git(folder, *AUTHOR, "commit", "-qm", "as it is")
