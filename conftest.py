"""Tests, the notebooks among them, run in smoke mode: two epochs on a few of the embedded digits."""

import os

os.environ["EVA8_SMOKE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # one worker per core
    os.environ["OMP_NUM_THREADS"] = "1"

LONGEST = ("_assignment.ipynb", "test_colab", "test_processes", "test_main", "test_throughput", "test_execute")


def pytest_collection_modifyitems(items: list) -> None:
    """Run the longest files first, so that all workers finish at the same time."""
    items.sort(key=lambda item: next((i for i, name in enumerate(LONGEST) if name in item.nodeid), len(LONGEST)))
