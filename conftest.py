"""Tests, the notebooks among them, run in smoke mode: two epochs on the embedded digits."""

import os

os.environ["EVA8_SMOKE"] = "1"
