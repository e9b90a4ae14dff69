"""Encoded images to bytes of one shape: the square of the middle, resized, channels first.

What changes nothing that is seen is converted (a palette, grey to colour); what would lose or invent something
is refused; what is no image, or is cut short, is left out, named and counted.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from .parquet import Encoded
from .sources import Source

if TYPE_CHECKING:
    from PIL.Image import Image

GREY, COLOUR = ("1", "L", "LA"), ("P", "PA", "RGB", "RGBA")
"""What PIL calls the kinds of images that can be converted; those of 16 bits or of four inks can't."""


class _Damaged(Exception):
    """Why an image can't be decoded."""


def mode_of(source: Source) -> str:
    """What the images of a source are to be: its mode, or "L" if all of them are grey, or else "RGB"."""
    if source.mode is not None:
        return source.mode
    for item in source.encoded():
        try:
            if _opened(item).mode not in GREY:
                return "RGB"
        except _Damaged:
            continue
    return "L"


def decode_all(
    items: Iterable[Encoded], source: Source, mode: str, size: int, take: Callable[[bytes], object]
) -> tuple[list[int], list[str]]:
    """Decode images, one in memory at a time.

    Args:
        items: `source.encoded()`.
        source: what is known of them.
        mode: "L" or "RGB".
        size: the side to resize them to, in pixels.
        take: called with the bytes of each, (C, size, size).

    Returns:
        The labels, and what is wrong with each image that was left out. stderr is told of those too.

    Raises:
        ValueError: if an image can't be converted without harm or has no proper label, or if none is left.
    """
    labels, damaged = [], []
    limit = source.count if source.classes is None else len(source.classes)
    for item in items:
        try:
            image = _opened(item, whole=True)
        except _Damaged as error:
            damaged.append(f"{item.where}: {error}")
            continue
        if item.label is None or not 0 <= item.label < limit:
            raise ValueError(f"{item.where} has the label {item.label}; it must lie in 0 .. {limit - 1}")
        take(_square(_converted(image, mode, item.where), size, source.crop))
        labels.append(item.label)
    if damaged:
        named = "; ".join(damaged[:10]) + (f"; and {len(damaged) - 10} more" if len(damaged) > 10 else "")
        if not labels:
            raise ValueError(f"none of {len(damaged)} images can be decoded: {named}")
        print(f"dyndiff: left out {len(damaged)} of {len(damaged) + len(labels)} images: {named}", file=sys.stderr)
    return labels, damaged


def _opened(item: Encoded, whole: bool = False) -> Image:
    """An image, as it is to be looked at; its pixels are decoded if it must be whole."""
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise ValueError("decoding images needs pillow: pip install 'dyndiff[data]'") from None
    if not item.data:
        raise _Damaged("no bytes")
    try:
        image = Image.open(io.BytesIO(item.data))
        return ImageOps.exif_transpose(image) if whole else image
    except UnidentifiedImageError:
        raise _Damaged("not an image") from None
    except Exception as error:  # what is broken inside an image makes PIL raise almost anything
        raise _Damaged((str(error).splitlines() or [type(error).__name__])[0]) from None


def _converted(image: Image, mode: str, where: str) -> Image:
    if image.mode not in GREY + COLOUR:
        raise ValueError(f"{where} is of mode {image.mode}; 8-bit grey, RGB or a palette is needed")
    if image.mode.endswith("A") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] < 255:  # type: ignore[operator]
            raise ValueError(f"{where} is transparent in places; give it a background first")
    if mode == "L" and image.mode not in GREY:
        image = image.convert("RGB")
        if len({band.tobytes() for band in image.split()}) > 1:
            raise ValueError(f"{where} is coloured, in a data set of grey images")
    return image.convert(mode)


def _square(image: Image, size: int, crop: int | None) -> bytes:
    """The middle of an image, resized bilinearly with antialiasing: bytes (C, size, size)."""
    width, height = image.size
    side = min(width, height, crop or width)
    left, top = (width - side) // 2, (height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    pixels = b"".join(band.tobytes() for band in image.split())
    if side == size:
        return pixels
    x = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).reshape(1, -1, side, side).float()
    x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
    return x.round().to(torch.uint8).numpy().tobytes()
