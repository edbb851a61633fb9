"""Folders of images: what is read, and one line for what cannot be read."""

import hashlib
import os
import shutil
import unicodedata
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from utils import image_folder
from utils.data import CIFAR10_MEAN, CIFAR10_STD, ImageData, channel_statistics, load_folder
from utils.errors import DataError

CLASSES = [f"class{i}" for i in range(10)]
CIFAR10_CLASSES = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]
NO_IMAGE = "pets/train/class0/0.png is not a readable image: replace or remove it"


def picture(seed: int, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> Image.Image:
    """Noise, ``size`` is (width, height)."""
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def write_images(
    folder: Path,
    classes: list[str] = CLASSES,
    train_count: int = 3,
    test_count: int = 2,
) -> Path:
    """A folder of noise with so many images of each class."""
    for split, count in (("train", train_count), ("test", test_count)):
        for label, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                picture(100 * label + 10 * count + i).save(folder / split / name / f"{i}.png")
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path / "pets")


def same(a: ImageData, b: ImageData) -> bool:
    names = ("train_images", "train_labels", "test_images", "test_labels")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


def pixels_of(image: Image.Image) -> np.ndarray:
    """As in a data set: channels first."""
    return np.asarray(image).transpose(2, 0, 1)


def error_of(path: Path) -> str:
    """The error message, which is one line."""
    with pytest.raises(DataError) as caught:
        load_folder(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_images_of_a_folder(folder):
    data = load_folder(folder)
    assert data.train_images.shape == (30, 3, 32, 32)
    assert data.train_images.dtype == torch.uint8
    assert data.test_images.shape == (20, 3, 32, 32)
    expected = pixels_of(Image.open(folder / "train/class1/2.png"))
    assert np.array_equal(data.train_images[5], expected)


def test_labels_of_a_folder(folder):
    data = load_folder(folder)
    assert data.train_labels.tolist() == [i // 3 for i in range(30)]
    assert data.test_labels.tolist() == [i // 2 for i in range(20)]
    assert data.train_labels.dtype == torch.int64


def test_name_classes_and_statistics_of_a_folder(folder):
    data = load_folder(folder)
    assert data.name == "pets (folder of images)"
    assert data.classes == tuple(CLASSES)
    assert not data.is_cifar10
    assert (data.mean, data.std) == channel_statistics(data.train_images)


def test_nothing_is_written_beside_the_images(folder):
    before = sorted(folder.parent.rglob("*"))
    load_folder(folder)
    assert sorted(folder.parent.rglob("*")) == before


def test_folder_on_a_read_only_file_system(folder, monkeypatch):
    """Root may write everywhere, so the functions that write stand in for the file system."""

    def fail(*_, **__):
        raise OSError(30, "Read-only file system")

    for function in ("mkdir", "replace", "rename", "unlink"):
        monkeypatch.setattr(os, function, fail)
    open_file = os.open

    def open_to_read(path, flags, *args, **options):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            fail()
        return open_file(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", open_to_read)
    assert len(load_folder(folder).train_labels) == 30


def test_a_bar_shows_the_progress(folder, capsys):
    load_folder(folder)
    output = capsys.readouterr().out
    assert "Reading train/: 100%" in output
    assert "20/20" in output


def test_other_formats_than_png(folder):
    picture(7).save(folder / "train/class0/9.webp", lossless=True)
    assert np.array_equal(load_folder(folder).train_images[3], pixels_of(picture(7)))


def test_grayscale_becomes_rgb(folder):
    gray = picture(8, mode="L")
    gray.save(folder / "train/class0/9.png")
    image = load_folder(folder).train_images[3]
    assert np.array_equal(image, np.broadcast_to(gray, (3, 32, 32)))


def test_grayscale_of_16_bits_is_scaled(folder):
    levels = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) * 64  # 0 to 65,472
    Image.fromarray(levels).save(folder / "train/class0/9.png")
    image = load_folder(folder).train_images[3]
    assert np.array_equal(image, np.broadcast_to(levels // 256, (3, 32, 32)))


def test_transparent_level_of_16_bits_is_shown_on_white(tmp_path):
    levels = np.full((32, 32), 40_000, dtype=np.uint16)
    levels[:16] = 123
    Image.fromarray(levels).save(tmp_path / "image.png", transparency=123)
    pixels = np.asarray(image_folder.read_rgb(tmp_path / "image.png"))
    assert (pixels[:16] == 255).all()
    assert (pixels[16:] == 40_000 // 256).all()


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_pixels_of_32_bits_are_not_taken_for_black(folder, kind):
    """Nobody knows which number is white."""
    pixels = np.ones((32, 32), dtype=kind)
    Image.fromarray(pixels).save(folder / "train/class0/9.tif")
    assert "train/class0/9.tif is not a readable image: replace or remove it" in error_of(folder)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_shown_on_white(tmp_path, mode):
    image = picture(1, mode="L").convert("RGB")
    opacity = Image.new("L", (32, 32), 255)
    opacity.paste(0, (0, 0, 32, 16))  # the upper half is transparent
    transparent = image.convert(mode)
    transparent.putalpha(opacity)
    transparent.save(tmp_path / "image.png")
    pixels = np.asarray(image_folder.read_rgb(tmp_path / "image.png"))
    assert (pixels[:16] == 255).all()
    assert np.array_equal(pixels[16:], np.asarray(image)[16:])


def test_half_transparent_pixels_are_mixed_with_white(tmp_path):
    Image.new("RGBA", (32, 32), (0, 100, 255, 51)).save(tmp_path / "image.png")  # one fifth
    image = image_folder.read_rgb(tmp_path / "image.png")
    assert image.getpixel((0, 0)) == (204, 224, 255)


@pytest.mark.parametrize("mode", ["P", "L"])
def test_the_transparent_color_of_a_palette_or_of_gray_is_shown_as_white(tmp_path, mode):
    image = Image.new(mode, (32, 32), 3)
    image.paste(5, (0, 0, 32, 16))
    if mode == "P":
        image.putpalette([value for level in range(256) for value in (level, level, level)])
    image.save(tmp_path / "image.png", transparency=5)
    pixels = np.asarray(image_folder.read_rgb(tmp_path / "image.png"))
    assert (pixels[:16] == 255).all()
    assert (pixels[16:] == 3).all()


def test_an_opaque_alpha_channel_changes_nothing(tmp_path):
    picture(1, mode="RGBA").save(tmp_path / "image.png")
    assert image_folder.read_rgb(tmp_path / "image.png") == picture(1)


def test_images_in_subfolders_of_a_class(folder):
    (folder / "train/class9/more").mkdir()
    picture(7).save(folder / "train/class9/more/0.png")
    assert np.array_equal(load_folder(folder).train_images[-1], pixels_of(picture(7)))


def test_link_to_a_folder_elsewhere(folder):
    expected = load_folder(folder)
    shutil.move(folder / "train/class1", folder.parent / "elsewhere")
    (folder / "train/class1").symlink_to(folder.parent / "elsewhere")
    assert same(load_folder(folder), expected)


@pytest.mark.parametrize(
    "place",
    [
        "__MACOSX/train/fish",
        "train/__MACOSX",
        "train/.ipynb_checkpoints",
        "train/class0/.ipynb_checkpoints",
        "train/class0/__MACOSX",
        "train/lost+found",
        "test/@eaDir",
        "train/class0/@eaDir/0.png",
        "test/$RECYCLE.BIN",
        "train/System Volume Information",
    ],
)
def test_hidden_folders_are_ignored(folder, place):
    expected = load_folder(folder)
    (folder / place).mkdir(parents=True)
    picture(7).save(folder / place / "0.png")
    assert same(load_folder(folder), expected)


@pytest.mark.parametrize("name", ["._0.png", ".DS_Store", "notes.txt"])
def test_hidden_files_and_other_files_are_ignored(folder, name):
    expected = load_folder(folder)
    (folder / "train/class0" / name).write_bytes(b"no image")
    (folder / "train" / name).write_bytes(b"no image")
    assert same(load_folder(folder), expected)


def test_file_and_class_names_that_are_not_utf8(tmp_path):
    cafe = os.fsdecode(b"caf\xe9")
    folder = write_images(tmp_path / cafe, [*CLASSES[:9], cafe])
    picture(1).save(folder / "train/class0" / f"{cafe}.png")
    data = load_folder(folder)
    assert len(data.train_labels) == 31
    assert data.classes[0] == "caf\\xe9"
    assert data.name == "caf\\xe9 (folder of images)"
    (folder / "train/class0" / f"{cafe}.png").write_bytes(b"no image")
    assert "class0/caf\\xe9.png is not a readable image" in error_of(folder)


def test_names_with_control_characters_stay_in_one_line(tmp_path):
    """They are printed in logs, and titles of pictures."""
    folder = write_images(tmp_path / "two\nlines", [*CLASSES[:9], "tab\tnew\u2028line"])
    data = load_folder(folder)
    assert data.name == "two\\nlines (folder of images)"
    assert data.classes[9] == "tab\\tnew\\u2028line"
    shutil.rmtree(folder / "train")
    assert r"two\nlines does not contain train/" in error_of(folder)


def test_accents_may_be_stored_in_two_ways(tmp_path):
    """In bytes, "cafz" stands before the composed name, but after the decomposed one."""
    composed = unicodedata.normalize("NFC", "café")
    decomposed = unicodedata.normalize("NFD", "café")
    folder = write_images(tmp_path / "food", [composed, "cafz", *CLASSES[:8]])
    expected = load_folder(folder)
    (folder / "test" / composed).rename(folder / "test" / decomposed)
    data = load_folder(folder)
    assert data.classes == ("cafz", composed, *CLASSES[:8])
    assert same(data, expected)


def test_two_folders_that_differ_in_how_accents_are_stored(tmp_path):
    composed = unicodedata.normalize("NFC", "café")
    decomposed = unicodedata.normalize("NFD", "café")
    folder = write_images(tmp_path / "food", [composed, decomposed, *CLASSES[:8]])
    assert f"food/train has two folders named {composed}, whose accents are" in error_of(folder)


def use_digests_of(data: ImageData, monkeypatch) -> None:
    """Let the images of ``data`` count as CIFAR-10."""
    train = image_folder.digest(data.train_images, data.train_labels)
    test = image_folder.digest(data.test_images, data.test_labels)
    monkeypatch.setattr(image_folder, "CIFAR10_DIGESTS", [train, test])


def test_digest_is_that_of_the_sorted_digests_of_the_images(folder):
    data = load_folder(folder)
    digests = []
    for image, label in zip(data.test_images, data.test_labels.tolist(), strict=True):
        digests.append(hashlib.sha256(bytes([label]) + image.numpy().tobytes()).digest())
    expected = hashlib.sha256(b"".join(sorted(digests))).hexdigest()
    assert image_folder.digest(data.test_images, data.test_labels) == expected


def test_cifar10_is_recognized_by_its_images_in_any_order(folder, monkeypatch):
    data = load_folder(folder)
    use_digests_of(data, monkeypatch)
    (folder / "train/class0/1.png").rename(folder / "train/class0/another.png")
    shuffled = load_folder(folder)
    assert not same(shuffled, data)
    assert shuffled.is_cifar10
    assert shuffled.name == "CIFAR-10"
    assert (shuffled.mean, shuffled.std) == (CIFAR10_MEAN, CIFAR10_STD)


def test_one_different_label_is_not_cifar10(folder, monkeypatch):
    use_digests_of(load_folder(folder), monkeypatch)
    (folder / "test/class1/0.png").rename(folder / "test/class0/9.png")
    folder = folder.rename(folder.with_name("CIFAR-10"))
    data = load_folder(folder)
    assert not data.is_cifar10
    assert data.name == "CIFAR-10 (folder of images)"


def test_folder_that_does_not_exist(tmp_path):
    message = error_of(tmp_path / "nowhere")
    assert "nowhere does not exist: set DATA to cifar10, digits, auto" in message


@pytest.mark.parametrize("split", ["train", "test"])
def test_folder_without_one_split(folder, split):
    shutil.rmtree(folder / split)
    message = error_of(folder)
    assert f"pets does not contain {split}/: set DATA to the folder that contains train/" in message


def test_splits_in_an_enclosed_folder_are_not_searched(folder):
    assert "does not contain train/ and test/" in error_of(folder.parent)


def test_archive_is_not_read(tmp_path):
    (tmp_path / "pets.zip").write_bytes(b"PK")
    message = error_of(tmp_path / "pets.zip")
    assert "pets.zip is not a folder, and archives are not read: unpack it" in message


def test_archive_of_cifar10_belongs_into_data_root(tmp_path):
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(b"")
    message = error_of(archive)
    assert "is CIFAR-10's own archive: put it into data/ (or $DATA_ROOT)" in message
    assert "set DATA=cifar10" in message


@pytest.mark.parametrize("place", [".", "cifar-10-batches-py"])
def test_unpacked_files_of_cifar10_belong_into_data_root(tmp_path, place):
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / "data_batch_1").write_bytes(b"")
    message = error_of(tmp_path)
    assert "contains CIFAR-10's own files: put their folder, cifar-10-batches-py, into" in message


def test_different_classes_in_train_and_test(folder):
    (folder / "test/class9").rename(folder / "test/wolf")
    message = error_of(folder)
    assert "pets: train/ and test/ must have the same classes, but " in message
    assert "only train/ has class9 and only test/ has wolf: rename the folders alike" in message


def test_too_few_classes(folder):
    shutil.rmtree(folder / "train/class4")
    shutil.rmtree(folder / "test/class4")
    message = error_of(folder)
    assert "pets has 9 classes, but these networks distinguish 10: give train/ and" in message
    assert "ten folders of images. Found: class0, class1" in message
    assert "class4" not in message


def test_no_classes(folder):
    for split in ("train", "test"):
        shutil.rmtree(folder / split)
        (folder / split).mkdir()
    message = error_of(folder)
    assert "pets has 0 classes, but these networks distinguish 10: give train/ and" in message
    assert message.endswith("Found: none.")


def test_many_classes_are_listed_in_short(tmp_path):
    names = [f"class{i:03}" for i in range(300)]
    folder = write_images(tmp_path / "pets", names, train_count=0, test_count=0)
    message = error_of(folder)
    assert message.startswith(f"{folder} has 300 classes, but these networks distinguish 10")
    assert message.endswith(" ….")
    assert len(message) < 700


def test_empty_folder_is_named_first(folder):
    for split in ("train", "test"):
        (folder / split / "unsorted").mkdir()
    expected = (
        "pets has 11 classes, but these networks distinguish 10; "
        "unsorted contains no image: remove it. Found: class0,"
    )
    assert expected in error_of(folder)


def test_empty_folder_in_one_split_is_named(folder):
    (folder / "train/unsorted").mkdir()
    assert "only train/ has unsorted; unsorted contains no image: remove it." in error_of(folder)


def test_class_without_images(folder):
    for file in (folder / "test/class3").iterdir():
        file.unlink()
    assert "pets/test has no image of class3: add .png or .jpg files" in error_of(folder)


def test_image_of_another_size(folder):
    picture(0, size=(48, 32)).save(folder / "train/class0/0.png")
    message = error_of(folder)
    assert "train/class0/0.png is 48×32 pixels: resize all images to 32×32 first" in message


def test_file_that_is_no_image(folder):
    (folder / "train/class0/0.png").write_text("no image")
    assert NO_IMAGE in error_of(folder)


def test_truncated_image(folder):
    file = folder / "train/class0/0.png"
    file.write_bytes(file.read_bytes()[:500])
    assert NO_IMAGE in error_of(folder)


@pytest.mark.parametrize("place", ["train/class0/0.png", "train/class0"])
def test_link_to_nothing(folder, place):
    (folder / place).rename(folder.parent / "moved")
    (folder / place).symlink_to("gone")
    expected = f"{folder / place} cannot be read (No such file or directory): remove this link"
    assert error_of(folder).startswith(expected)


@pytest.mark.parametrize("place", [".", "train", "train/class0"])
def test_link_to_itself(folder, place):
    link = folder / place
    link.rename(folder.parent / "moved")
    link.symlink_to(link)
    expected = f"{link} cannot be read (Too many levels of symbolic links): remove this link"
    assert error_of(folder).startswith(expected)


def test_link_to_a_folder_around_it(folder):
    """All images would be read forty times, and those of other classes, too."""
    (folder / "train/class3/up").symlink_to("..")
    assert error_of(folder) == (
        f"{folder}/train/class3/up is a link to a folder that contains it: remove the link."
    )


def test_links_that_lead_to_each_other(folder):
    (folder / "train/class3/more").symlink_to(folder / "train/class4")
    (folder / "train/class4/more").symlink_to(folder / "train/class3")
    assert "more is a link to a folder that contains it: remove the link." in error_of(folder)


def test_image_that_cannot_be_read(folder, monkeypatch):
    """Root may read everything, so that a replaced function forbids it."""
    forbidden = Mock(side_effect=PermissionError(13, "Permission denied"))
    monkeypatch.setattr(image_folder, "read_rgb", forbidden)
    expected = "train/class0/0.png cannot be read (Permission denied): check its permissions"
    assert expected in error_of(folder)


@pytest.mark.parametrize("place", ["train", "train/class0", "train/class0/more"])
def test_folder_that_cannot_be_listed(folder, monkeypatch, place):
    """Root may list everything, so that a replaced function forbids it."""
    (folder / "train/class0/more").mkdir()
    scandir = os.scandir
    listdir = os.listdir

    def forbid(path):
        if Path(path) == folder / place:
            raise PermissionError(13, "Permission denied", str(path))

    def forbidden_scandir(path):
        forbid(path)
        return scandir(path)

    def forbidden_listdir(path):
        forbid(path)
        return listdir(path)

    monkeypatch.setattr(os, "scandir", forbidden_scandir)
    monkeypatch.setattr(os, "listdir", forbidden_listdir)
    assert error_of(folder) == (
        f"{folder / place} cannot be read (Permission denied): check its permissions and disk."
    )


@pytest.mark.skipif(
    "TEST_CIFAR10" not in os.environ,
    reason="TEST_CIFAR10 names no folder of CIFAR-10",
)
def test_real_cifar10():
    data = load_folder(Path(os.environ["TEST_CIFAR10"]))
    assert data.is_cifar10
    assert data.classes == tuple(CIFAR10_CLASSES)
