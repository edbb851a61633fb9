"""Classify images with a trained network."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import ImageOps
from torch import nn

from utils.sessions import SESSIONS
from utils.sources.image_folder import UNREADABLE, as_tensor, read_rgb
from utils.system.errors import DataError, FileError
from utils.system.files import load_tensors
from utils.transforms import Normalize


@dataclass(frozen=True)
class Classifier:
    """A trained network with its classes and the normalization of its images."""

    model: nn.Module
    classes: tuple[str, ...]
    normalize: Normalize

    @torch.inference_mode()
    def __call__(self, image: str | Path, count: int = 3) -> dict[str, float]:
        """The ``count`` most probable classes of an image file with their probabilities, in descending order.

        The center square of the image is scaled to 32×32 pixels. Raises DataError if the file is no image.
        """
        try:
            picture = read_rgb(image)
        except FileNotFoundError as error:
            raise DataError(f"{image} does not exist.") from error
        except UNREADABLE as error:
            raise DataError(f"{image} is not an image that Pillow can read: give a PNG or JPEG file.") from error
        pixels = as_tensor(np.array(ImageOps.fit(picture, (32, 32)))[None])  # (1, 3, 32, 32), uint8
        best = self.model(self.normalize(pixels))[0].softmax(dim=0).topk(min(count, len(self.classes)))
        return {self.classes[i]: round(p, 4) for p, i in zip(best.values.tolist(), best.indices.tolist())}


def load_classifier(path: str | Path) -> Classifier:
    """Load the trained network of a run's ``weights.pt``, to the CPU.

    Raises FileError: the file cannot be read, or is not that of a finished run.
    """
    content = load_tensors(path)
    try:
        model = SESSIONS[content["session"]].network()
        model.load_state_dict(content["model"])
        return Classifier(model.eval(), content["classes"], Normalize(content["mean"], content["std"]))
    except (KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise FileError(f"{path} contains no trained network: give the weights.pt of a finished run.") from error
