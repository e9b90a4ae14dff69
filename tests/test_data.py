"""The data sets: how many, which bytes, the same every time."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from dyndiff import DATASETS, load_images, to_bytes, to_unit
from dyndiff.hub import HUB

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
    with pytest.raises(ValueError, match="'imagenet'.*digits, shapes, mnist.*or give the path of a folder"):
        load_images("imagenet")
    with pytest.raises(ValueError, match="unknown data set ''"):
        load_images("")


def test_unknown_split_lists_the_known():
    with pytest.raises(ValueError, match="'valid'.*train, test"):
        load_images("digits", "valid")


def test_only_what_stays_itself_is_mirrored():
    """The shapes do, but are drawn left and right alike as it is."""
    assert not any(load_images(name, size=8).flips for name in DATASETS)
    assert [name for name, entry in HUB.items() if entry.flips] == ["cifar10", "celeba", "lsun_church"]


@pytest.mark.parametrize("size", [3, 0, -1])
def test_images_need_four_pixels_a_side(size):
    with pytest.raises(ValueError, match=f"at least 4 pixels a side, got {size}"):
        load_images("digits", size=size)


STORED = Path(os.environ.get("DYNDIFF_DATA", ""))
CHECKSUMS = {
    ("mnist", "train", 28): "f2ce6f395cc2594e837ed8fa",
    ("mnist", "test", 28): "512c43d612d9474679ee81f4",
    ("mnist", "test", 16): "0b5ba6b7a6f6e93ee1eb0b38",
    ("cifar10", "test", 32): "1577b1923f0a1046afc9230f",
    ("cifar10", "test", 16): "f5499e4dcd3f9bf489fd5db7",
}
"""Of the pixels that the records of this project were measured with (cifar10 as JPEG)."""


@pytest.mark.parametrize(("name", "split", "size"), CHECKSUMS)
def test_what_was_measured_on_is_still_what_is_read(name, split, size):
    if not (STORED / name / f"{split}.parquet").is_file():
        pytest.skip(f"DYNDIFF_DATA names no folder with {name} in it")
    images = load_images(name, split, size)
    assert hashlib.sha256(images.pixels.numpy().tobytes()).hexdigest().startswith(CHECKSUMS[name, split, size])


@pytest.mark.skipif(not (STORED / "mnist").is_dir(), reason="DYNDIFF_DATA names no folder with mnist in it")
def test_mnist_is_mnist():
    images = load_images("mnist", "test", size=28)
    assert images.pixels.shape == (10_000, 1, 28, 28)
    assert images.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
