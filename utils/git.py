"""What git knows about the project: the address of its repository and the commit that runs."""

import re
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]


def git(*words: str) -> str:
    """What a git command prints in the project's folder; "" if it fails or there is no git."""
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip()


def repository() -> str:
    """The address of the remote "origin", without credentials; "" if it is none or a folder."""
    address = re.sub(r"//[^@/]*@", "//", git("remote", "get-url", "origin")).removesuffix(".git")
    return address if ":" in address else ""


@cache
def commit() -> str:
    """The short hash of the commit that runs, with "+" if tracked files differ; "" without git."""
    return git("describe", "--always", "--dirty=+", "--exclude=*")
