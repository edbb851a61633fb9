"""How pytest runs here: in smoke mode, and a notebook's cells in their order."""

import os

import pytest

# Two epochs on a few of the embedded digits, for the tests and the notebooks among them.
os.environ["EVA8_SMOKE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # there is one worker for each core
    os.environ["OMP_NUM_THREADS"] = "1"
# As git sets them in hooks: a test that calls git would change the repository of the hook.
for name in [name for name in os.environ if name.startswith("GIT_")]:
    del os.environ[name]


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """With pytest-xdist, the tests of one file, and the cells of a notebook, share a process."""
    if getattr(config.option, "numprocesses", None):
        config.option.dist = "loadscope"
        config.option.loadscopereorder = False


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items):
    """Run the cells of each notebook in their order, even if a plugin shuffles tests."""
    result = yield
    cells = [item for item in items if hasattr(item, "cell_num")]
    others = [item for item in items if not hasattr(item, "cell_num")]
    cells.sort(key=lambda cell: (str(cell.path), cell.cell_num))
    items[:] = cells + others
    return result
