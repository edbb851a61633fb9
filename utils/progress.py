"""The progress bar of the training log, on standard output, in order with other output."""

import sys

from tqdm import tqdm


def progress(iterable=None, **options) -> tqdm:
    """A tqdm bar; ``options`` are passed to tqdm."""
    return tqdm(iterable, file=sys.stdout, bar_format="{l_bar}{bar:10}{r_bar}", **options)
