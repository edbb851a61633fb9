"""Loading a trained network and classifying images, as in the README."""

import re
import sys
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from models.model9 import TransformerModel
from tests.conftest import ROOT
from tests.small import DIGITS, save_weights
from utils.classify import Classifier
from utils.errors import FileError
from utils.files import as_bytes, load_tensors
from utils.image_folder import read_rgb
from utils.transforms import Normalize

PUBLISHED = ROOT / "static/session9/weights.pt"


class Own(nn.Module):
    """A network that is not in models/."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3 * 32 * 32, 10)

    def forward(self, images):
        return self.fc(images.flatten(1))


@pytest.fixture
def weights(tmp_path):
    return tmp_path / "weights.pt"


def name_another_network(path, name: str, arguments: object) -> None:
    """Write another class into a weights file, as anybody could."""
    content = load_tensors(path)
    content["network"] = {"class": name, "arguments": arguments}
    path.write_bytes(as_bytes(content))


@torch.no_grad()
def test_probabilities_are_those_of_the_network(weights, tmp_path):
    model = save_weights(weights, TransformerModel, DIGITS).eval()
    image = DIGITS.test_images[0]
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "digit.png")
    normalize = Normalize(DIGITS.mean, DIGITS.std)
    expected = model(normalize(image[None]))[0].softmax(dim=0).tolist()
    probabilities = Classifier(weights)(tmp_path / "digit.png", count=10)
    by_class = dict(zip(DIGITS.classes, expected, strict=True))
    assert probabilities == pytest.approx(by_class, abs=1e-4)


def test_classes_come_in_the_order_of_their_probabilities(weights, tmp_path):
    save_weights(weights, partial(TransformerModel, a=8), DIGITS)
    Image.new("RGB", (32, 32)).save(tmp_path / "black.png")
    values = list(Classifier(weights)(tmp_path / "black.png", count=10).values())
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_images_of_any_size_and_mode(weights, tmp_path, mode):
    save_weights(weights, partial(TransformerModel, a=8), DIGITS)
    Image.new(mode, (200, 120)).save(tmp_path / "wide.png")
    assert len(Classifier(weights)(tmp_path / "wide.png")) == 3


def test_network_is_built_with_its_arguments(weights):
    save_weights(weights, partial(TransformerModel, a=8), DIGITS)
    pools = [
        layer for layer in Classifier(weights).model.modules() if isinstance(layer, nn.MaxPool2d)
    ]
    assert pools


def test_published_weights():
    assert isinstance(Classifier(PUBLISHED).model, TransformerModel)


def test_weights_of_the_old_form(weights):
    """They name no network, only the session."""
    content = load_tensors(PUBLISHED)
    content.pop("network", None)
    weights.write_bytes(as_bytes(content))
    assert isinstance(Classifier(weights).model, TransformerModel)


def test_network_outside_of_models_must_be_given(weights):
    save_weights(weights, Own, DIGITS)
    with pytest.raises(
        FileError, match=r"Own, which is not in models/.*Classifier\(path, network=Own\)"
    ):
        Classifier(weights)


def test_tilde_is_the_home_folder(weights, tmp_path, monkeypatch):
    """No shell replaces it in --checkpoint=~/weights.pt, and none in Python."""
    monkeypatch.setenv("HOME", str(tmp_path))
    save_weights(weights, TransformerModel, DIGITS)
    Image.new("RGB", (32, 32)).save(tmp_path / "black.png")
    assert len(Classifier("~/weights.pt")("~/black.png")) == 3


def test_network_that_is_given(weights):
    model = save_weights(weights, Own, DIGITS)
    loaded = Classifier(weights, network=Own).model
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_given_network_must_fit_the_weights(weights):
    save_weights(weights, Own, DIGITS)
    with pytest.raises(FileError, match="does not hold weights of this network"):
        Classifier(weights, network=TransformerModel)


def test_network_with_arguments_that_no_file_can_hold_must_be_given(weights):
    save_weights(weights, partial(nn.Sequential, nn.Flatten(), nn.Linear(3072, 10)), DIGITS)
    with pytest.raises(FileError, match=r"network=Sequential\)"):
        Classifier(weights)


FOREIGN = ("os.mkdir", "json.tool.main", "models.model9.nn.Linear", "models.no.Net", "Net", "")


@pytest.mark.parametrize("name", FOREIGN)
def test_file_imports_nothing_outside_of_models(weights, tmp_path, monkeypatch, name):
    save_weights(weights, TransformerModel, DIGITS)
    name_another_network(weights, name, {"path": "hacked"})
    monkeypatch.chdir(tmp_path)
    modules = set(sys.modules)
    with pytest.raises(FileError):
        Classifier(weights)
    assert set(sys.modules) == modules
    assert not (tmp_path / "hacked").exists()


NO_ARGUMENTS = ({"a": 5}, {"b": 8}, [8], "a")


@pytest.mark.parametrize("arguments", NO_ARGUMENTS)
def test_arguments_that_the_network_does_not_take(weights, arguments):
    save_weights(weights, TransformerModel, DIGITS)
    name_another_network(weights, "models.model9.TransformerModel", arguments)
    with pytest.raises(FileError, match=r"weights\.pt does not hold weights of this network"):
        Classifier(weights)


EXIF_ORIENTATION = 0x0112


def half_white() -> np.ndarray:
    """An image whose upper half is white."""
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[:16] = 255
    return pixels


def test_metadata_turn_an_image(tmp_path):
    """In classify and in training folders alike."""
    metadata = Image.Exif()
    metadata[EXIF_ORIENTATION] = 6  # by a quarter
    Image.fromarray(half_white()).save(tmp_path / "photo.png", exif=metadata)
    assert np.array_equal(read_rgb(tmp_path / "photo.png"), np.rot90(half_white(), -1))


def test_metadata_never_reject_an_image(tmp_path):
    Image.fromarray(half_white()).save(tmp_path / "photo.png", exif=b"Exif\0\0garbage")
    assert np.array_equal(read_rgb(tmp_path / "photo.png"), half_white())


def test_the_readmes_lines_run(monkeypatch, capsys):
    readme = (ROOT / "README.md").read_text("utf-8")
    (lines,) = re.findall(r"```python\n(.*?Classifier.*?)```", readme, re.DOTALL)
    monkeypatch.chdir(ROOT)
    exec(lines, {})
    assert re.match(r"\{'horse': 0\.\d+, ", capsys.readouterr().out)
