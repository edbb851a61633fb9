"""The progress bar of the course's log: ten blocks wide, on standard output, so that it keeps its place there."""

import sys
from typing import TextIO

from tqdm import tqdm


def progress(iterable=None, file: TextIO | None = None, **options) -> tqdm:
    """tqdm's bar; ``options`` are tqdm's."""
    return tqdm(iterable, file=file or sys.stdout, bar_format="{l_bar}{bar:10}{r_bar}", **options)
