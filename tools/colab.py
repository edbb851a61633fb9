"""Write the repository's address into badges and setup cells: ``python -m tools.colab``.

Only the README and the three notebooks are edited, and in these only the addresses. Python alone
is needed, none of the packages of requirements.txt.
"""

import argparse
import re
from pathlib import Path

from utils import git
from utils.errors import FileError, UserError, one_line_errors
from utils.files import write_text

FILES = (
    "README.md",
    "session7_assignment.ipynb",
    "session8_assignment.ipynb",
    "session9_assignment.ipynb",
)
COLAB = "https://colab.research.google.com/github"
LINK = re.compile(rf'{re.escape(COLAB)}/[^\s()<>"\\]*/(session[789]_assignment\.ipynb)')
# In the file of a notebook, which is JSON, a quotation mark follows a backslash.
REPOSITORY = re.compile(r'(\bREPOSITORY = \\")[^"\\]*')
HINT = re.compile(r" ?<!-- colab-hint -->.*?<!-- /colab-hint -->", re.DOTALL)


def name_of(repository: str) -> str:
    """``OWNER/NAME`` of a repository on GitHub: of "origin", of an address, or itself.

    Raises UserError: it is none.
    """
    if repository == "origin":
        return name_of_origin()
    if re.fullmatch(r"[\w.-]+/[\w.-]+", repository, re.ASCII):
        return repository.removesuffix(".git")
    name = git.name_on_github(repository)
    if not name:
        raise UserError(
            f'"{repository}" is not a repository on GitHub, and Colab opens no others: '
            "give it as in make colab REPO=owner/name"
        )
    return name


def name_of_origin() -> str:
    """``OWNER/NAME`` of the remote "origin"; raises UserError."""
    try:
        address = git.origin()
    except git.NoRepository as error:
        raise UserError(f"{error} Or give the address: make colab REPO=owner/name") from error
    name = git.name_on_github(address)
    if not name:
        raise UserError(
            f'Colab opens notebooks on GitHub only, and the remote "origin" is {address}: '
            "push the project to GitHub, too, then make colab REPO=owner/name"
        )
    return name


def path_in_repository() -> str:
    """The branch and the project's folder; without a repository on this machine, ``main``.

    Raises GitError: there is one, but git refuses it.
    """
    try:
        return git.path_on_github()
    except git.NoRepository:
        return "main"


def with_address(text: str, name: str, path: str) -> str:
    """``text`` with the address of the repository, and without the hint to ``make colab``."""
    text = LINK.sub(rf"{COLAB}/{name}/blob/{path}/\1", text)
    text = REPOSITORY.sub(rf"\1https://github.com/{name}", text)
    return HINT.sub("", text)


def addresses(text: str) -> list[str]:
    """The addresses that ``with_address`` has written into ``text``, each once."""
    found = [match[0] for match in LINK.finditer(text)]
    found += [match[0].replace("\\", "") + '"' for match in REPOSITORY.finditer(text)]
    return list(dict.fromkeys(found))


def write_links(root: Path, repository: str) -> None:
    """Write the address of ``repository`` into the files under ``root``; print what is written.

    Raises UserError: there is no such address, or a file cannot be read or written.
    """
    name = name_of(repository)
    path = path_in_repository()
    present = [file for file in FILES if (root / file).exists()]
    changed = []
    for file in present:
        before = read(root / file)
        after = with_address(before, name, path)
        if after != before:
            write_text(root / file, after)
            changed.append(file)
            for address in addresses(after):
                print(f"{file}: {address}")
    if not changed:
        print(f"Nothing to write: the address is that of https://github.com/{name} already.")
    for file in FILES:
        if file not in present:
            print(f"{file}: not in this folder, left out")


def read(path: Path) -> str:
    """The text of a file with its line ends as they are; raises FileError."""
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise FileError(
            f"{path} cannot be read ({error.strerror}): fix its permissions, "
            "then run the same command again."
        ) from error


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.colab",
        description="Write the repository's address into the README and the notebooks.",
    )
    parser.add_argument(
        "--repository",
        default="origin",
        help="owner/name or the address of a repository on GitHub; default: that of origin",
    )
    repository = parser.parse_args().repository
    with one_line_errors("no link was written"):
        write_links(git.ROOT, repository)


if __name__ == "__main__":
    main()
