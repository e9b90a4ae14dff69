"""Data sets as one tensor of bytes: two that come with the package, the hub's, and any folder of images.

The loader of one that comes with it takes a split and an image size and returns `Images`. Networks see
floats in [-1, 1] (Ho et al., 2020, section 3.3): `to_unit` and `to_bytes` are the two ways across.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from . import prefetch
from .hub import HUB


@dataclass(frozen=True)
class Images:
    """A split of a data set.

    Attributes:
        pixels: uint8, shape (N, C, H, W).
        labels: int64, shape (N,).
        classes: the labels' names.
        flips: whether a mirrored image is as good as the image.
    """

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    flips: bool = False

    def __len__(self) -> int:
        return len(self.pixels)


def to_unit(pixels: Tensor) -> Tensor:
    """Bytes 0..255 to floats in [-1, 1], any shape."""
    return pixels.float() / 127.5 - 1


def to_bytes(x: Tensor) -> Tensor:
    """Floats in [-1, 1] to bytes 0..255, any shape; values outside are clamped."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def digits(split: str, size: int) -> Images:
    """The 1,797 handwritten digits that scikit-learn ships (8x8, resized bilinearly).

    The last 500 in a fixed random order are the test split. Source: Alpaydin and Kaynak (1998), UCI.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = torch.randperm(len(bunch.images), generator=torch.Generator().manual_seed(0))
    chosen = order[-500:] if split == "test" else order[:-500]
    pixels = torch.from_numpy(bunch.images).float()[chosen, None] / 16  # (N, 1, 8, 8) in [0, 1]
    pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(bunch.target).long()[chosen]
    return Images(to_bytes(2 * pixels - 1), labels, tuple("0123456789"))


def shapes(split: str, size: int) -> Images:
    """2,000 discs, squares and triangles (500 in the test split) of random place, size and shade; any size."""
    generator = torch.Generator().manual_seed(1 if split == "test" else 0)
    count = 500 if split == "test" else 2000
    labels = torch.randint(3, (count,), generator=generator)
    place = torch.rand(count, 2, 1, 1, generator=generator) * 0.4 + 0.3  # the centre, in sides of the image
    radius = torch.rand(count, 1, 1, generator=generator) * 0.13 + 0.12
    shade = torch.rand(count, 1, 1, generator=generator) * 0.5 + 0.5
    axis = (torch.arange(size) + 0.5) / size
    x, y = (axis[None, None, :] - place[:, 0]) / radius, (axis[None, :, None] - place[:, 1]) / radius
    disc = (x**2 + y**2).sqrt() - 1
    square = torch.maximum(x.abs(), y.abs()) - 0.85
    triangle = torch.maximum(y - 0.7, x.abs() * 0.87 - (y + 0.9) * 0.5)
    distance = torch.stack([disc, square, triangle])[labels, torch.arange(count)]  # (N, H, W), in radii
    cover = (0.5 - distance * radius * size).clamp(0, 1)  # one pixel of anti-aliasing
    return Images(to_bytes(2 * cover * shade - 1)[:, None], labels, ("disc", "square", "triangle"))


# Mirrored, a 2 is no digit; the shapes are drawn left and right alike as it is.
DATASETS = {"digits": digits, "shapes": shapes}
"""The name of a data set that comes with the package to its loader, `(split, size) -> Images`."""


def check(name: str, size: int) -> None:
    """Raise ValueError unless there can be a data set of that name, at that size."""
    if name not in (*DATASETS, *HUB) and not (name and Path(name).exists()):
        raise ValueError(f"unknown data set {name!r}; choose from {', '.join((*DATASETS, *HUB))}, "
                         f"or give the path of a folder of images or of a parquet file")  # fmt: skip
    if size < 4:
        raise ValueError(f"images need at least 4 pixels a side, got {size}")


def load_images(name: str, split: str = "train", size: int = 16, data_dir: str | Path | None = None) -> Images:
    """A data set by name.

    Args:
        name: a key of `DATASETS`, or of `hub.HUB`; or the path of a folder of images, of a folder of parquet
            files, or of one such file.
        split: "train" or "test".
        size: the side that images are resized or drawn to, in pixels, >= 4; of an image that is not square,
            the middle is taken.
        data_dir: the folder of data sets, for one that doesn't come with the package: `NAME/train.parquet` or
            `NAME/train-*.parquet` are looked for in it, and arrays that are made are kept there. By default
            what the environment's `DYNDIFF_DATA` names, else `~/.cache/dyndiff`.

    Returns:
        The split; its pixels lie in a file that is mapped into memory where `prefetch` has made an array. What
        lies neither here nor there is downloaded first.

    Raises:
        ValueError: on an unknown data set or split, a size below 4, or images that can't be found or read.
    """
    check(name, size)
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}; choose from train, test")
    return DATASETS[name](split, size) if name in DATASETS else Images(*prefetch.load(name, split, size, data_dir))
