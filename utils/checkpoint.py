"""A trained network on disk: whole or not there, and loaded without running anyone's code."""

from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from utils.files import replace_file
from utils.recipes import Recipe


def save_checkpoint(path: Path, model: nn.Module, recipe: Recipe, epoch: int) -> None:
    """Save the weights after ``epoch``, and the recipe they were trained by."""
    content = {"model": model.state_dict(), "recipe": asdict(recipe), "epoch": epoch}
    replace_file(path, lambda part: torch.save(content, part))


def load_weights(path: Path, model: nn.Module) -> None:
    """Load the weights of ``save_checkpoint`` into ``model``, on whatever device it is."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(content["model"])
