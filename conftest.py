"""Tests, the notebooks among them, run in smoke mode: two epochs on a few of the embedded digits."""

import os

os.environ["EVA8_SMOKE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # one worker per core
    os.environ["OMP_NUM_THREADS"] = "1"
