"""The data sets: how many, which bytes, the same every time."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dyndiff import DATASETS, load_images, to_bytes, to_unit
from dyndiff.parquet import LAYOUTS

COUNTS = {"digits": (1297, 500, 10), "shapes": (2000, 500, 3)}
SETS = [(name, split) for name in DATASETS for split in ("train", "test")]


def test_every_data_set_is_tested():
    assert set(DATASETS) == set(COUNTS)


@pytest.mark.parametrize(("name", "split"), SETS)
def test_counts_types_and_ranges(name, split):
    images = load_images(name, split, size=16)
    train, test, classes = COUNTS[name]
    count = train if split == "train" else test
    assert len(images) == count
    assert (images.pixels.shape, images.pixels.dtype) == ((count, 1, 16, 16), torch.uint8)
    assert (images.labels.shape, images.labels.dtype) == ((count,), torch.int64)
    assert len(images.classes) == classes
    assert images.labels.unique().tolist() == list(range(classes))
    assert images.pixels.min() == 0
    assert images.pixels.max() > 200


@pytest.mark.parametrize("name", DATASETS)
def test_splits_share_no_image(name):
    train, test = (load_images(name, split, size=16).pixels.flatten(1) for split in ("train", "test"))
    assert not {bytes(image) for image in train.numpy()} & {bytes(image) for image in test.numpy()}


def test_the_splits_of_the_digits_are_all_of_them():
    """Each with its own label."""
    from sklearn.datasets import load_digits

    def pairs(pixels, labels):
        return sorted((bytes(image), int(label)) for image, label in zip(pixels, labels, strict=True))

    bunch = load_digits()
    original = to_bytes(torch.from_numpy(bunch.images) / 8 - 1).flatten(1).numpy()
    train, test = (load_images("digits", split, size=8) for split in ("train", "test"))
    ours = torch.cat([train.pixels, test.pixels]).flatten(1).numpy()
    assert pairs(ours, torch.cat([train.labels, test.labels])) == pairs(original, bunch.target)


@pytest.mark.parametrize("name", DATASETS)
def test_loading_twice_gives_the_same_and_leaves_torchs_generator_alone(name):
    before = torch.get_rng_state()
    one = load_images(name, "train", size=8)
    torch.rand(1)
    other = load_images(name, "train", size=8)
    torch.set_rng_state(before)
    assert torch.equal(one.pixels, other.pixels)
    assert torch.equal(one.labels, other.labels)
    load_images(name, "train", size=8)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("size", [4, 9, 16, 64])
@pytest.mark.parametrize("name", DATASETS)
def test_any_size_is_the_same_pictures(name, size):
    """The mean brightness of an image does not depend on how finely it is drawn, but for its edges."""
    images, fine = load_images(name, "test", size=size), load_images(name, "test", size=32)
    assert images.pixels.shape[1:] == (1, size, size)
    assert torch.equal(images.labels, fine.labels)
    means = [pixels.float().mean((1, 2, 3)).numpy() for pixels in (images.pixels, fine.pixels)]
    assert np.corrcoef(*means)[0, 1] > 0.95


def test_bytes_survive_the_way_there_and_back():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_bytes(to_unit(pixels)), pixels)


def test_unit_range():
    assert to_unit(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]


def test_what_leaves_the_range_is_clamped():
    assert to_bytes(torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0])).tolist() == [0, 0, 128, 255, 255]


def test_unknown_data_set_lists_the_known():
    with pytest.raises(ValueError, match="'imagenet'.*digits, shapes"):
        load_images("imagenet")


def test_unknown_split_lists_the_known():
    with pytest.raises(ValueError, match="'valid'.*train, test"):
        load_images("digits", "valid")


@pytest.mark.parametrize("size", [3, 0, -1])
def test_images_need_four_pixels_a_side(size):
    with pytest.raises(ValueError, match=f"at least 4 pixels a side, got {size}"):
        load_images("digits", size=size)


@pytest.fixture
def stored(tmp_path):
    """A folder with three grey images of 6x6 as mnist, two coloured ones as cifar10."""
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    pixels = {"mnist": torch.arange(3 * 36).reshape(3, 6, 6), "cifar10": torch.arange(2 * 108).reshape(2, 6, 6, 3)}
    for name, layout in LAYOUTS.items():
        encoded = []
        for image in pixels[name]:
            file = io.BytesIO()
            Image.fromarray(image.to(torch.uint8).numpy()).save(file, "png")
            encoded.append({"bytes": file.getvalue(), "path": None})
        (tmp_path / name).mkdir()
        table = pyarrow.table({layout.image: encoded, layout.label: list(range(len(encoded)))})
        parquet.write_table(table, tmp_path / name / "test.parquet")
    return tmp_path, pixels


def test_parquet_files_are_read_as_they_are(stored, monkeypatch):
    folder, pixels = stored
    grey = load_images("mnist", "test", size=6, data_dir=folder)
    assert torch.equal(grey.pixels, pixels["mnist"][:, None].to(torch.uint8))
    assert grey.labels.tolist() == [0, 1, 2]
    monkeypatch.setenv("DYNDIFF_DATA", str(folder))
    coloured = load_images("cifar10", "test", size=6)
    assert torch.equal(coloured.pixels, pixels["cifar10"].permute(0, 3, 1, 2).to(torch.uint8))
    assert coloured.classes[1] == "automobile"


def test_parquet_images_are_resized_where_asked(stored):
    images = load_images("cifar10", "test", size=4, data_dir=stored[0])
    assert images.pixels.shape == (2, 3, 4, 4)
    assert images.pixels.dtype == torch.uint8


def test_what_is_wrong_with_a_folder_of_data_is_said(stored, monkeypatch):
    folder, _ = stored
    monkeypatch.delenv("DYNDIFF_DATA", raising=False)
    with pytest.raises(ValueError, match="--data-dir, or by DYNDIFF_DATA"):
        load_images("mnist", size=28)
    with pytest.raises(ValueError, match=r"'mnist' can't be read from '.*train.parquet': no such file"):
        load_images("mnist", "train", data_dir=folder)
    path = folder / "mnist" / "test.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"'mnist' can't be read from '.*test.parquet'"):
        load_images("mnist", "test", data_dir=folder)
    with pytest.raises(ValueError, match="'cifar10' can't be read"):
        path.with_name("train.parquet").write_bytes(b"")
        load_images("cifar10", "train", data_dir=folder)


MNIST = Path(os.environ.get("DYNDIFF_DATA", "")) / "mnist" / "test.parquet"


@pytest.mark.skipif(not MNIST.is_file(), reason="DYNDIFF_DATA names no folder with mnist in it")
def test_mnist_is_mnist():
    images = load_images("mnist", "test", size=28)
    assert images.pixels.shape == (10_000, 1, 28, 28)
    assert images.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
