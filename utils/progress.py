"""The progress bar of the course's log: ten blocks wide, on standard output, so that it keeps its place there."""

import sys

from tqdm import tqdm


def progress(iterable=None, **options) -> tqdm:
    """tqdm's bar; ``options`` are tqdm's."""
    return tqdm(iterable, file=sys.stdout, bar_format="{l_bar}{bar:10}{r_bar}", **options)
