"""What git knows about the project: its repository, its place in there, the commit that runs."""

import os
import re
import subprocess
from functools import cache
from pathlib import Path
from urllib.parse import quote

from utils.errors import UserError

ROOT = Path(__file__).parents[1]

# https://github.com/OWNER/NAME, git@github.com:OWNER/NAME.git and other forms of them
ON_GITHUB = re.compile(
    r"((https?|ssh|git)://)?([^@/]*@)?(www\.|ssh\.)?github\.com(:\d+)?[:/]/?"
    r"(?P<name>[\w.-]+/[\w.-]+?)(\.git)?/?",
    re.ASCII | re.IGNORECASE,
)


# What the runs themselves write: a second run by the same code is still by that commit.
NO_RESULTS = (":!benchmarks/seeds.csv", ":!README.md", ":!static")


# As git sets them in its hooks: the project's folder decides about the repository.
OF_ANOTHER_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR")


class GitError(UserError):
    """git refuses the repository or cannot read it."""


class NoRepository(GitError):
    """The project is in no repository, or in one without an address."""


def git(*words: str) -> str:
    """What a git command prints in the project's folder.

    Raises GitError: the command fails, or there is no git.
    """
    environment = os.environ | {"LC_ALL": "C"}  # messages in English, which `failure` reads
    for name in OF_ANOTHER_REPOSITORY:
        environment.pop(name, None)
    try:
        done = subprocess.run(
            ["git", *words],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        raise NoRepository(
            f"git is not installed or cannot be run ({error.strerror}): install it."
        ) from error
    if done.returncode:
        raise failure(done.stderr)
    return done.stdout.strip("\n")


def failure(message: str) -> GitError:
    """The error for a message of git."""
    if "not a git repository (or any" in message:
        return NoRepository("the project's folder is in no git repository: run `git init` in it.")
    advice = re.search(r"git config --global --add safe\.directory .*", message)
    if advice:
        return GitError(
            f"git refuses the repository, because another user owns it: run `{advice[0]}`."
        )
    first, _, _ = message.strip().partition("\n")
    return GitError(f"git cannot read the repository ({first}): repair it, or clone it again.")


def folder() -> str:
    """The project's folder inside its repository, such as ``EVA8/session9``; "" for the top.

    Raises NoRepository, also for a repository around the folder that tracks none of its files,
    such as that of a home folder.
    """
    prefix = git("rev-parse", "--show-prefix").removesuffix("/")
    if prefix and not git("ls-files"):
        raise NoRepository(
            "the git repository around the project's folder does not track its files: "
            "run `git add .` in it, or `git init` for a repository of its own."
        )
    return prefix


def path_on_github() -> str:
    """The current branch and the project's folder, as in an address: ``main/EVA8/session9``."""
    branch = quote(git("branch", "--show-current") or "main", safe="")
    return f"{branch}/{quote(folder())}".removesuffix("/")


def name_on_github(address: str) -> str:
    """``OWNER/NAME`` of an address on GitHub; "" for any other."""
    match = ON_GITHUB.fullmatch(address)
    return match["name"] if match else ""


def without_credentials(address: str) -> str:
    """The address to clone, without credentials; with https, which browsers open, for GitHub."""
    name = name_on_github(address)
    if name:
        return f"https://github.com/{name}"
    return re.sub(r"//[^@/]*@", "//", address).removesuffix(".git")


def origin() -> str:
    """The plain address of the remote "origin".

    Raises GitError: git knows none.
    """
    folder()  # else the repository is not that of the project
    example = "origin https://github.com/OWNER/NAME"
    if "origin" not in git("remote").splitlines():
        raise NoRepository(
            f'the git repository has no remote named "origin": run `git remote add {example}`.'
        )
    address = without_credentials(git("remote", "get-url", "origin"))
    if ":" not in address:
        raise NoRepository(
            'the remote "origin" is a folder, which others cannot open: '
            f"run `git remote set-url {example}`."
        )
    return address


def repository() -> str:
    """The plain address of the remote "origin"; "" if git knows none."""
    try:
        return origin()
    except GitError:
        return ""


def page(address: str) -> str:
    """The address at which a reader finds the project: on GitHub, with the project's folder.

    "" stands for the remote "origin"; another repository's address is returned as it is.
    Raises GitError: the address is "", and git knows none.
    """
    if address and without_credentials(address) != repository():
        return address
    address = origin()
    if folder() and name_on_github(address):
        return f"{address}/tree/{path_on_github()}"
    return address


@cache
def commit() -> str:
    """The short hash of the commit that runs, with "+" if the code differs; "" without git."""
    try:
        folder()  # else the commit is not one of the project
        commit_hash = git("rev-parse", "--short", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *NO_RESULTS)
    except GitError:
        return ""
    return f"{commit_hash}+" if changed else commit_hash
