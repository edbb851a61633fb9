"""Tests, the notebooks among them, run in smoke mode: two epochs on a few of the embedded digits."""

import os

import pytest

from tests.not_executed import NOT_EXECUTED, REASON

os.environ["EVA8_SMOKE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # one worker per core
    os.environ["OMP_NUM_THREADS"] = "1"

LONGEST = ("_assignment.ipynb", "test_colab", "test_processes", "test_main", "test_throughput", "test_execute")


def pytest_collection_modifyitems(items: list) -> None:
    """Run the longest files first, so that all workers finish at the same time."""
    items.sort(key=lambda item: next((i for i, name in enumerate(LONGEST) if name in item.nodeid), len(LONGEST)))
    for item in items:
        checks_output = "NBVAL_CHECK_OUTPUT" in getattr(getattr(item, "cell", None), "source", "")
        if checks_output and item.nodeid.startswith(NOT_EXECUTED):
            item.add_marker(pytest.mark.skip(reason=REASON))
