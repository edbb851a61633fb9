"""How pytest runs here: in smoke mode, and a notebook's cells in their order."""

import math
import os
import time
from queue import Empty

import pytest
from nbval.kernel import RunningKernel

# Two epochs on a few of the embedded digits, for the tests and the notebooks among them.
os.environ["EVA8_SMOKE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # there is one worker for each core
    os.environ["OMP_NUM_THREADS"] = "1"
# As git sets them in hooks: a test that calls git would change the repository of the hook. As make
# sets them: a make that a test calls would be a part of `make test`.
for name in [name for name in os.environ if name.startswith(("GIT_", "MAKE", "MFLAGS"))]:
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


def pytest_configure():
    """Let nbval notice a kernel that has died; else it waits for the timeout of the cell."""
    get_message = RunningKernel.get_message

    def get_message_while_alive(kernel, stream, timeout=None):
        end = time.monotonic() + (timeout or math.inf)
        while True:
            try:
                return get_message(kernel, stream, timeout=1)
            except Empty:
                if not kernel.is_alive():
                    pytest.fail("the notebook's kernel has died, perhaps for lack of memory", False)
                if time.monotonic() > end:
                    raise

    RunningKernel.get_message = get_message_while_alive
