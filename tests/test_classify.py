"""Loading a trained network and classifying images, as in the README."""

import re
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from models.model9 import TransformerModel
from tests.conftest import ROOT
from tests.small import DIGITS, RECIPE, save_weights, small_run
from utils.classify import load_classifier
from utils.data import load_data
from utils.sources.image_folder import decode_image, read_rgb
from utils.system.files import load_tensors
from utils.transforms import Normalize


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    model = TransformerModel().eval()
    save_weights(tmp_path / "weights.pt", model, 9, DIGITS)
    return tmp_path / "weights.pt", model


@torch.no_grad()
def test_probabilities_are_those_of_the_network(weights, tmp_path):
    path, model = weights
    image = DIGITS.test_images[0]
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "digit.png")
    expected = model(Normalize(DIGITS.mean, DIGITS.std)(image[None]))[0].softmax(dim=0)
    got = load_classifier(path)(tmp_path / "digit.png", count=10)
    assert got == pytest.approx({name: p for name, p in zip(DIGITS.classes, expected.tolist())}, abs=1e-4)
    assert list(got.values()) == sorted(got.values(), reverse=True)


def test_pictures_of_any_size_and_mode(weights, tmp_path):
    classify, gray = load_classifier(weights[0]), DIGITS.test_images[0, 0].numpy()
    for mode in ("L", "RGBA", "P"):
        Image.new(mode, (200, 120)).save(tmp_path / "wide.png")
        assert len(classify(tmp_path / "wide.png")) == 3
    Image.fromarray(gray).save(tmp_path / "8.png")
    Image.fromarray(gray.astype("uint16") * 257).save(tmp_path / "16.png")  # 16 bits are seen as 8 bits are
    assert classify(tmp_path / "16.png") == classify(tmp_path / "8.png")


def exif(*entries: tuple[int, int, int]) -> bytes:
    """An EXIF block with some entries (tag, type, value or offset), whose only rational is −1/0."""
    table = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    return b"Exif\0\0" + head + table + struct.pack("<I", 0) + struct.pack("<ii", -1, 0)


@pytest.mark.parametrize("metadata, upright", [
    (exif((0x0112, 3, 6)), True),  # orientation 6: turned by a quarter
    (exif((0x0112, 3, 6), (0x011A, 10, 38)), False),  # and a resolution that is a damaged rational
    (b"Exif\0\0garbage", False),
])  # fmt: skip
def test_metadata_turn_an_image_but_never_reject_it(tmp_path, metadata, upright):
    """In classify and in training folders alike."""
    plain = np.zeros((32, 32, 3), dtype=np.uint8)
    plain[:16] = 255  # the upper half is white
    Image.fromarray(plain).save(tmp_path / "photo.png", exif=metadata)
    expected = np.rot90(plain, -1) if upright else plain
    assert np.array_equal(np.asarray(read_rgb(tmp_path / "photo.png")), expected)
    assert np.array_equal(decode_image(tmp_path / "photo.png", "photo.png"), expected)
    load_classifier(ROOT / "static/session9/weights.pt")(tmp_path / "photo.png")


def test_checkpoint_serves_as_weights(tmp_path):
    run = small_run(tmp_path / "run", replace(RECIPE, epochs=1, top_epoch=1), load_data())
    run.fit(0.01)
    contents = [load_tensors(run.folder / name) for name in ("weights.pt", "checkpoint.pt")]
    assert all(contents[1][name] == contents[0][name] for name in ("session", "classes", "mean", "std"))
    assert all(torch.equal(value, contents[1]["model"][name]) for name, value in contents[0]["model"].items())


def test_the_readmes_lines_run(monkeypatch, capsys):
    (lines,) = re.findall(r"```python\n(.*?load_classifier.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    monkeypatch.chdir(ROOT)
    exec(lines, {})
    assert re.match(r"\{'horse': 0\.\d+, ", capsys.readouterr().out)
