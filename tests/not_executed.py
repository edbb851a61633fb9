"""Notebooks whose outputs are due: what checks their outputs is skipped, by name."""

NOT_EXECUTED = ("session7_assignment", "session8_assignment")
REASON = "its run on CIFAR-10 with these cells is not done yet"
