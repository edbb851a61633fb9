"""The progress bar of the training log: ten blocks wide, on standard output, in order with other output."""

import sys
from typing import TextIO

from tqdm import tqdm


def progress(iterable=None, file: TextIO | None = None, **options) -> tqdm:
    """A tqdm bar; ``options`` are passed to tqdm."""
    return tqdm(iterable, file=file or sys.stdout, bar_format="{l_bar}{bar:10}{r_bar}", **options)
