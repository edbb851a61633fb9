"""What a run measured."""

import csv
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class History:
    """One entry an epoch, except ``step_lr`` (one a step) and ``log``. Accuracies in percent."""

    lr: list[float] = field(default_factory=list)  # of the epoch's last step
    train_loss: list[float] = field(default_factory=list)  # mean over images, in training mode
    train_accuracy: list[float] = field(default_factory=list)
    test_loss: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # training and testing
    step_lr: list[float] = field(default_factory=list)
    log: list[str] = field(default_factory=list)  # two lines an epoch, as they were shown

    def write_log(self, path: Path) -> None:
        path.write_text("\n".join(self.log) + "\n", "utf-8")

    def write_csv(self, path: Path) -> None:
        """One row an epoch, counted from 1; the learning rates of the steps stay out."""
        columns = ["lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds"]
        with open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["epoch", *columns])
            for epoch, row in enumerate(zip(*(getattr(self, column) for column in columns)), start=1):
                writer.writerow([epoch, *(f"{value:.6g}" for value in row)])
