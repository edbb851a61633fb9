"""Loading a trained network and classifying images, as in the README."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from models.model9 import TransformerModel
from tests.conftest import ROOT
from tests.small import DIGITS, save_weights
from utils.classify import Classifier
from utils.image_folder import read_rgb
from utils.transforms import Normalize


@torch.no_grad()
def test_probabilities_are_those_of_the_network(tmp_path):
    torch.manual_seed(0)
    model, image = TransformerModel().eval(), DIGITS.test_images[0]
    save_weights(tmp_path / "weights.pt", model, 9, DIGITS)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "digit.png")
    expected = model(Normalize(DIGITS.mean, DIGITS.std)(image[None]))[0].softmax(dim=0)
    classify = Classifier(tmp_path / "weights.pt")
    got = classify(tmp_path / "digit.png", count=10)
    assert got == pytest.approx({name: p for name, p in zip(DIGITS.classes, expected.tolist())}, abs=1e-4)
    assert list(got.values()) == sorted(got.values(), reverse=True)
    for mode in ("L", "RGBA", "P"):  # of any size and mode
        Image.new(mode, (200, 120)).save(tmp_path / "wide.png")
        assert len(classify(tmp_path / "wide.png")) == 3


def test_metadata_turn_an_image_but_never_reject_it(tmp_path):
    """In classify and in training folders alike."""
    plain, turned = np.zeros((32, 32, 3), dtype=np.uint8), Image.Exif()
    plain[:16] = 255  # the upper half is white
    turned[0x0112] = 6  # orientation: by a quarter
    for metadata, expected in ((turned, np.rot90(plain, -1)), (b"Exif\0\0garbage", plain)):
        Image.fromarray(plain).save(tmp_path / "photo.png", exif=metadata)
        assert np.array_equal(read_rgb(tmp_path / "photo.png"), expected)


def test_the_readmes_lines_run(monkeypatch, capsys):
    (lines,) = re.findall(r"```python\n(.*?Classifier.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    monkeypatch.chdir(ROOT)
    exec(lines, {})
    assert re.match(r"\{'horse': 0\.\d+, ", capsys.readouterr().out)
