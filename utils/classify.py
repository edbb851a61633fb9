"""Classify images with a trained network."""

from pathlib import Path

import numpy as np
import torch
from PIL import ImageOps

from utils.sessions import SESSIONS
from utils.sources.image_folder import UNREADABLE, as_tensor, read_rgb
from utils.system.errors import DataError, FileError
from utils.system.files import load_tensors
from utils.transforms import Normalize


class Classifier:
    """The trained network of a run's ``weights.pt``, on the CPU; FileError if ``path`` is no such file."""

    def __init__(self, path: str | Path) -> None:
        content = load_tensors(path)
        try:
            self.model = SESSIONS[content["session"]].network().eval()
            self.model.load_state_dict(content["model"])
            self.classes: tuple[str, ...] = content["classes"]
            self.normalize = Normalize(content["mean"], content["std"])
        except (KeyError, RuntimeError, TypeError, AttributeError) as error:
            raise FileError(f"{path} contains no trained network: give the weights.pt of a finished run.") from error

    @torch.inference_mode()
    def __call__(self, image: str | Path, count: int = 3) -> dict[str, float]:
        """The ``count`` most probable classes of an image file with their probabilities, in descending order.

        The center square of the image is scaled to 32×32 pixels. Raises DataError if the file is no image.
        """
        try:
            picture = read_rgb(image)
        except UNREADABLE as error:
            reason = getattr(error, "strerror", None) or "it is not an image that Pillow knows"
            raise DataError(f"{image} cannot be read ({reason}): give a PNG or JPEG file.") from error
        pixels = as_tensor(np.array(ImageOps.fit(picture, (32, 32)))[None])  # (1, 3, 32, 32), uint8
        best = self.model(self.normalize(pixels))[0].softmax(dim=0).topk(min(count, len(self.classes)))
        return {self.classes[i]: round(p, 4) for p, i in zip(best.values.tolist(), best.indices.tolist())}
