"""Properties that hold for every image, schedule, folder and checkpoint, tested on many."""

import itertools
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.test_schedule import learning_rates
from utils.data import channel_statistics, load_folder
from utils.recipes import SESSION7, SESSION8, SESSION9
from utils.schedule import one_cycle
from utils.system.errors import DataError
from utils.system.files import load_tensors, save_tensors
from utils.transforms import Compose, CutOut, Normalize, RandomCrop, RandomHorizontalFlip

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
settings.register_profile(
    "here", max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("here")

seeds = st.integers(0, 2**31)
transforms = st.one_of(
    st.integers(0, 8).map(lambda padding: RandomCrop(32, padding)),
    st.just(RandomHorizontalFlip()),
    st.integers(0, 32).map(lambda size: CutOut(size, fill=MEAN)),
)


@st.composite
def batches(draw) -> torch.Tensor:
    """uint8 images ``(B, 3, 32, 32)``, up to six, of few or many levels."""
    generator = torch.Generator().manual_seed(draw(seeds))
    return torch.randint(draw(st.integers(1, 256)), (draw(st.integers(1, 6)), 3, 32, 32), generator=generator).byte()


@given(batches(), st.lists(transforms, max_size=3), seeds)
def test_transforms_keep_shape_type_and_range_and_leave_their_input_alone(images, chain, seed):
    before = images.clone()
    torch.manual_seed(seed)
    got = Compose(chain)(images)
    assert got.shape == images.shape and got.dtype == torch.uint8
    assert torch.equal(images, before)
    fill = {round(255 * value) for value in MEAN}
    assert set(got.unique().tolist()) <= set(images.unique().tolist()) | fill  # no new values


@given(batches(), transforms, seeds)
def test_a_transform_treats_each_image_on_its_own(images, transform, seed):
    """The result for an image depends on its own draws, not on the other images of the batch."""
    torch.manual_seed(seed)
    first = transform(images)
    others = images.flip(0)
    others[0] = images[0]
    torch.manual_seed(seed)
    assert torch.equal(transform(others)[0], first[0])


@given(batches())
def test_nothing_to_do_changes_nothing(images):
    assert torch.equal(RandomCrop(32, padding=0)(images), images)
    assert torch.equal(CutOut(0, fill=MEAN)(images), images)
    assert torch.equal(Compose([])(images), images)
    twice = RandomHorizontalFlip()
    mirrored = twice.apply(images, torch.ones(len(images), dtype=torch.bool))
    assert torch.equal(mirrored, images.flip(-1))


@given(batches())
def test_normalize_is_undone_by_its_inverse(images):
    normalize = Normalize(MEAN, STD)
    normal = normalize(images)
    assert normal.dtype == torch.float32 and normal.shape == images.shape
    torch.testing.assert_close(normalize.inverse(normal), images / 255, rtol=0, atol=1e-6)


@given(batches())
def test_statistics_are_those_of_the_pixels(images):
    mean, std = channel_statistics(images)
    pixels = images.double() / 255
    assert mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-7)


@given(st.sampled_from([SESSION7, SESSION8, SESSION9]), st.integers(1, 30), st.integers(1, 40), st.floats(1e-5, 10))
def test_one_cycle_starts_tops_and_ends_where_it_should(recipe, epochs, batches, max_lr):
    recipe = recipe.for_epochs(epochs)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1)
    scheduler = one_cycle(optimizer, max_lr, recipe, batches)
    lrs = learning_rates(optimizer, scheduler, epochs * batches)
    top = max(1, recipe.top_epoch * batches - 1)
    assert min(lrs) > 0 and max(lrs) == pytest.approx(max_lr) and lrs[top] == pytest.approx(max_lr)
    assert lrs[0] == pytest.approx(max_lr / recipe.start_div)
    assert all(a < b for a, b in itertools.pairwise(lrs[: top + 1]))
    assert all(a > b for a, b in itertools.pairwise(lrs[top:]))
    if len(lrs) > 2:  # a run of a single step does not descend
        assert lrs[-1] == pytest.approx(max_lr / recipe.end_div)


@given(st.sampled_from([SESSION7, SESSION8, SESSION9]), st.integers(1, 200_000), st.integers(1, 100))
def test_a_recipe_fits_any_number_of_images_and_epochs(recipe, images, epochs):
    fitted = recipe.for_images(images).for_epochs(epochs)
    assert 1 <= fitted.batch_size <= recipe.batch_size and 1 <= fitted.top_epoch <= epochs == fitted.epochs
    if images >= 20:
        assert images // fitted.batch_size >= 20
    assert replace(fitted, batch_size=recipe.batch_size, epochs=recipe.epochs, top_epoch=recipe.top_epoch) == recipe


names = st.text("abcdefghijklmnopqrstuvwxyzäß 0123456789_-", min_size=1, max_size=12).filter(
    lambda name: name.strip() == name
)


@settings(max_examples=10)
@given(st.lists(names, min_size=1, max_size=4, unique_by=str.lower), st.integers(1, 3), seeds, st.data())
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


values = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**62), 2**62), st.floats(allow_nan=False), st.text(max_size=8)
)
tensors = st.builds(
    lambda shape, dtype, seed: (100 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype),
    st.lists(st.integers(0, 4), max_size=3),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]),
    seeds,
)


@given(st.dictionaries(st.text(max_size=8), st.one_of(values, tensors, st.lists(values, max_size=3)), max_size=5))
def test_what_is_saved_is_what_is_loaded(content):
    with tempfile.TemporaryDirectory() as where:
        path = Path(where) / "checkpoint.pt"
        save_tensors(path, content)
        loaded = load_tensors(path)
        assert list(path.parent.iterdir()) == [path]
    assert loaded.keys() == content.keys()
    for name, value in content.items():
        if isinstance(value, torch.Tensor):
            assert loaded[name].dtype == value.dtype and torch.equal(loaded[name], value)
        else:
            assert loaded[name] == value
