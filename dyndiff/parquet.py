"""Data sets that lie in a folder as parquet files: `DIR/mnist/train.parquet`, in the Hugging Face hub's layout.

One column holds the encoded images (PNG or JPEG), another the labels. Reading them needs `dyndiff[data]`.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

DATA_DIR = "DYNDIFF_DATA"
"""The environment variable that names the folder of data sets, where no other is given."""


@dataclass(frozen=True)
class Layout:
    """What a data set's files look like.

    Attributes:
        image, label: the columns' names.
        mode: "L" for grey images, "RGB" for coloured ones, as PIL says it.
        classes: the labels' names.
    """

    image: str
    label: str
    mode: str
    classes: tuple[str, ...]


LAYOUTS = {
    "mnist": Layout("image", "label", "L", tuple("0123456789")),
    "cifar10": Layout("img", "label", "RGB", ("airplane", "automobile", "bird", "cat", "deer",
                                              "dog", "frog", "horse", "ship", "truck")),
}  # fmt: skip
"""A data set's name to its layout."""


def read(name: str, split: str, size: int, data_dir: str | Path | None = None) -> tuple[Tensor, Tensor]:
    """The images and labels of a split.

    Args:
        name: a key of `LAYOUTS`.
        split: "train" or "test".
        size: the side in pixels that images are resized to, where it is not theirs.
        data_dir: the folder that holds `NAME/SPLIT.parquet`; by default what `DYNDIFF_DATA` names.

    Returns:
        Pixels, uint8 of shape (N, C, size, size), and labels, int64 of shape (N,).

    Raises:
        ValueError: if the file is not there or not such a file, or pyarrow and pillow are not installed.
    """
    try:
        import pyarrow
        from PIL import Image
        from pyarrow import parquet
    except ImportError:
        raise ValueError(f"the data set {name!r} is read from parquet files: pip install 'dyndiff[data]'") from None
    folder = data_dir or os.environ.get(DATA_DIR)
    if not folder:
        raise ValueError(f"the data set {name!r} lies in a folder: name it by --data-dir, or by {DATA_DIR}")
    path, layout = Path(folder) / name / f"{split}.parquet", LAYOUTS[name]
    try:
        table = parquet.read_table(path, columns=[layout.image, layout.label])
        encoded = table[layout.image].combine_chunks().field("bytes")
        images = [Image.open(io.BytesIO(item.as_py())).convert(layout.mode) for item in encoded]
        labels = torch.tensor(table[layout.label].to_pylist())
        pixels = torch.stack([torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8) for image in images])
    except (OSError, KeyError, TypeError, RuntimeError, pyarrow.ArrowException) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error).splitlines()[0]
        raise ValueError(f"the data set {name!r} can't be read from {str(path)!r}: {reason}") from None
    width, height = images[0].size
    pixels = pixels.reshape(len(images), height, width, -1).permute(0, 3, 1, 2).contiguous()
    return _resized(pixels, size), labels


def _resized(pixels: Tensor, size: int) -> Tensor:
    if pixels.shape[-2:] == (size, size):
        return pixels
    sized = F.interpolate(pixels.float(), size=(size, size), mode="bilinear", align_corners=False, antialias=True)
    return sized.round().to(torch.uint8)
