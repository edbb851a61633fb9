"""Archives of many names, sizes and damages, drawn at random."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from utils.data import load_folder
from utils.system.errors import DataError

names = st.text("abcdefghijklmnopqrstuvwxyzäß 0123456789_-", min_size=1, max_size=12).filter(
    lambda name: name.strip() == name
)


@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(names, min_size=10, max_size=10, unique_by=str.lower), st.integers(1, 2), st.integers(0, 2**31), st.data()
)
def test_a_folder_and_its_archives_are_read_as_they_are(classes, count, seed, data):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (2, len(classes), count, 32, 32, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where) / "photos"
        for split, images in zip(("train", "test"), pixels):
            for name, some in zip(classes, images):
                (folder / split / name).mkdir(parents=True)
                for i, image in enumerate(some):
                    Image.fromarray(image).save(folder / split / name / f"{i}.png")
        shutil.make_archive(str(folder), "zip", folder)
        shutil.make_archive(str(folder), "xztar", folder)
        order = sorted(range(len(classes)), key=classes.__getitem__)
        for source in (folder, folder.with_name("photos.zip"), folder.with_name("photos.tar.xz")):
            for _ in range(2):  # decoded, then from the cache
                found = load_folder(source)
                assert found.classes == tuple(sorted(classes))
                for images, labels, truth in (
                    (found.train_images, found.train_labels, pixels[0]),
                    (found.test_images, found.test_labels, pixels[1]),
                ):
                    assert labels.tolist() == [label for label in range(len(classes)) for _ in range(count)]
                    expected = truth[order].reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)
                    assert np.array_equal(images.numpy(), expected)
        # A byte of the archive is changed or its end is missing: read correctly, or a one-line error.
        archive = folder.with_name("photos.zip")
        content = bytearray(archive.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[place] ^= data.draw(st.integers(1, 255))
        else:
            del content[place:]
        archive.write_bytes(content)
        try:
            load_folder(archive)
        except DataError as error:
            assert "\n" not in str(error) and "photos.zip" in str(error)
