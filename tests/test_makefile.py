"""`make session9` finds a usable Python, or says in one line which one it needs.

Stand-ins for Python write down what they are asked for, so that nothing is installed.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

FILES = ("Makefile", "requirements.txt", "requirements-notebook.txt", "constraints.txt")
SET_BY_USERS = {
    "PYTHONPATH": "/elsewhere",
    "PYTHONHOME": "/elsewhere",
    "PYTHONOPTIMIZE": "2",
    "PYTHONWARNINGS": "error",
    "MPLBACKEND": "bogus",
    "MATPLOTLIBRC": "/elsewhere",
    "GIT_DIR": "/elsewhere",
}
INSTALL = ".venv/bin/python -m pip install -r requirements.txt -c constraints.txt"
TRAIN = ".venv/bin/python -m tools.execute 9"
MAKE_VENV = "python3 -m venv .venv"


def stand_in(path: Path, version: tuple[int, int] = (3, 11), has_pip: bool = True) -> None:
    """A Python of this version, with pip or without, whose virtual environments are usable."""
    pip = "sys" if has_pip else "None"
    before = f"import sys; sys.version_info = {version}; sys.modules['pip'] = {pip}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"""#!/bin/sh
if [ "$1" = -I ]; then shift; elif [ "$PYTHONHOME" ]; then exit 1; fi
if [ "$1" = -c ]; then exec {sys.executable} -I -c "{before}
$2"; fi
echo "$0 $*" >> asked.txt
env > environment.txt
if [ "$2" = pip ]; then exit $(cat pip-exit-code); fi
if [ "$2" = venv ]; then mkdir -p "$3/bin" && cp usable "$3/bin/python"; fi
"""
    )
    path.chmod(0o755)


@pytest.fixture
def project(tmp_path):
    """The Makefile with a Python 3.11 beside it, and no .venv."""
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "pip-exit-code").write_text("0")
    stand_in(tmp_path / "usable")
    stand_in(tmp_path / "bin/python3")
    return tmp_path


def make(project: Path, *words: str, **variables: str) -> subprocess.CompletedProcess:
    """``make session9`` with the stand-ins."""
    path = f"{project / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        ["make", "session9", *words],
        cwd=project,
        env=os.environ | {"PATH": path} | variables,
        capture_output=True,
        text=True,
    )


def asked(project: Path) -> list[str]:
    """What the stand-ins have been asked for."""
    path = project / "asked.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.replace(f"{project}/bin/", "") for line in lines]


def test_first_call_installs_and_trains(project):
    assert make(project).returncode == 0
    assert asked(project) == [MAKE_VENV, INSTALL, TRAIN]


def test_second_call_only_trains(project):
    make(project)
    make(project)
    assert asked(project) == [MAKE_VENV, INSTALL, TRAIN, TRAIN]


def test_python_that_is_too_old(project):
    stand_in(project / "bin/python3", version=(3, 10))
    done = make(project)
    assert done.returncode == 2
    assert done.stdout == (
        "python3 is missing or older than Python 3.11: install a newer one, then run "
        "make session9 PYTHON=python3.11\n"
    )
    assert asked(project) == []


def test_python_that_is_missing(project):
    done = make(project, "PYTHON=no-python")
    assert done.stdout.startswith("no-python is missing or older than Python 3.11: install")
    assert asked(project) == []


def test_remedy_for_an_old_python_helps(project):
    stand_in(project / "bin/python3", version=(3, 10))
    stand_in(project / "bin/python3.11")
    make(project, "PYTHON=python3.11")
    assert asked(project) == ["python3.11 -m venv .venv", INSTALL, TRAIN]


def test_usable_environment_needs_no_other_python(project):
    """Its Python may be another one than python3."""
    make(project)
    stand_in(project / "bin/python3", version=(3, 10))
    (project / ".venv/.ready").unlink()
    make(project)
    assert asked(project)[3:] == [INSTALL, TRAIN]


def gone(python: Path) -> None:
    """Uninstalled, so that the link to it leads nowhere."""
    python.unlink()
    python.symlink_to("/usr/bin/python3.gone")


def too_old(python: Path) -> None:
    stand_in(python, version=(3, 10))


def without_pip(python: Path) -> None:
    """Interrupted before pip was there, or of another Python since an upgrade of the system."""
    stand_in(python, has_pip=False)


@pytest.mark.parametrize("damage", [gone, too_old, without_pip])
def test_unusable_environment_is_made_anew(project, damage):
    make(project)
    damage(project / ".venv/bin/python")
    assert make(project).returncode == 0
    assert asked(project)[3:] == [MAKE_VENV, INSTALL, TRAIN]


def test_environment_that_is_a_link_to_nothing_is_made_anew(project):
    (project / ".venv").symlink_to("gone")
    make(project)
    assert asked(project) == [MAKE_VENV, INSTALL, TRAIN]


def test_linked_environment_stays_when_the_link_is_replaced(project):
    """Another project may use it."""
    stand_in(project / "shared/bin/python", version=(3, 10))
    (project / ".venv").symlink_to("shared")
    make(project)
    assert (project / "shared/bin/python").exists()
    assert not (project / ".venv").is_symlink()


def test_interrupted_installation_is_repeated(project):
    (project / "pip-exit-code").write_text("1")
    done = make(project)
    assert done.stdout.endswith(
        "The packages could not be installed: run make session9 again, after make clean if an "
        "earlier installation was interrupted\n"
    )
    (project / "pip-exit-code").write_text("0")
    make(project)
    assert asked(project) == [MAKE_VENV, INSTALL, INSTALL, TRAIN]


def test_settings_for_other_programs_do_not_reach_the_training(project):
    make(project, **SET_BY_USERS)
    environment = (project / "environment.txt").read_text().splitlines()
    names = {line.partition("=")[0] for line in environment}
    assert "PATH" in names
    assert not names & SET_BY_USERS.keys()


def test_environment_is_usable_whatever_is_set_for_other_programs(project):
    make(project)
    make(project, **SET_BY_USERS)
    assert asked(project)[3:] == [TRAIN]
