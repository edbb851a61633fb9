"""Classify images with a trained network."""

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ImageOps
from torch import nn

from utils.errors import DataError, FileError
from utils.files import load_tensors, printable
from utils.image_folder import UNREADABLE, as_tensor, read_rgb
from utils.transforms import Normalize

# The networks of weights.pt files that were saved before these files named them.
NETWORKS = {
    7: "models.model7.ResNet18",
    8: "models.model8.CustomResNet",
    9: "models.model9.TransformerModel",
}


class Classifier:
    """The trained network of a run's ``weights.pt``, on the CPU.

    Networks of models/ are built again as they were. For another one, give the class or function
    that makes it: ``Classifier(path, network=Mine)``. Raises FileError: ``path`` is no such file,
    or of another network.
    """

    def __init__(self, path: str | Path, network: Callable[[], nn.Module] | None = None) -> None:
        path = os.path.expanduser(path)
        content = load_tensors(path)
        if network is None:
            network = saved_network(content, path)
        try:
            self.model = network().eval()
            self.model.load_state_dict(content["model"])
            self.classes: tuple[str, ...] = content["classes"]
            self.normalize = Normalize(content["mean"], content["std"])
        except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise FileError(
                f"{printable(path)} does not hold weights of this network: give the weights.pt of "
                "a finished run, and the network that it trained."
            ) from error

    @torch.inference_mode()
    def __call__(self, image: str | Path, count: int = 3) -> dict[str, float]:
        """The ``count`` most probable classes of an image file, with their probabilities.

        The center square of the image is scaled to 32×32 pixels. Raises DataError if the file is
        no image.
        """
        try:
            picture = read_rgb(os.path.expanduser(image))
        except UNREADABLE as error:
            reason = getattr(error, "strerror", None) or "it is not an image that Pillow knows"
            raise DataError(
                f"{printable(image)} cannot be read ({reason}): give a PNG or JPEG file."
            ) from error
        square = ImageOps.fit(picture, (32, 32))
        pixels = as_tensor(np.array(square)[None])  # (1, 3, 32, 32), uint8
        probabilities = self.model(self.normalize(pixels))[0].softmax(dim=0)  # (10,)
        best = probabilities.topk(min(count, len(self.classes)))
        return {
            self.classes[index]: round(probability, 4)
            for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        }


def saved_network(content: dict[str, Any], path: str | Path) -> Callable[[], nn.Module]:
    """A function that makes the network that ``content`` names; FileError if none is known."""
    saved = content.get("network")
    if saved is None and content.get("session") in NETWORKS:
        saved = {"class": NETWORKS[content["session"]], "arguments": {}}
    if not isinstance(saved, dict) or not isinstance(saved.get("class"), str):
        raise FileError(
            f"{printable(path)} names no network, as a bare state_dict does not: "
            "give the weights.pt of a finished run."
        )
    module, _, name = saved["class"].rpartition(".")
    arguments = saved.get("arguments")
    # Only the project's own networks are imported, because the file may come from anybody.
    if module.startswith("models.") and module.count(".") == 1 and arguments is not None:
        try:
            network = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            pass
        else:
            return lambda: network(**arguments)
    raise FileError(
        f"{printable(path)} holds the weights of {name}, which is not in models/: "
        f"load it from Python, with Classifier(path, network={name})."
    )
