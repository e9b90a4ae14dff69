"""Where images lie: a named data set in the folder of data sets or on the hub, or a folder or file of yours."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from . import hub, parquet
from .hub import HUB
from .parquet import Encoded

DATA_DIR = "DYNDIFF_DATA"
"""The environment variable that names the folder of data sets, where no other is given."""

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
"""What an image's file may end in; other files among them are passed over."""


class NoSplit(ValueError):
    """The images are there, but none of them are of such a split."""


@dataclass(frozen=True)
class Source:
    """A split whose files are at hand.

    Attributes:
        folder: what all of them lie in.
        files: in order.
        encoded: reads them from the first one on.
        count: how many there are.
        mode: "L" or "RGB", as PIL says it; None: grey if all of them are.
        classes: the labels' names; None: the numbers up to the highest label.
        crop: the side of the square that is cut from the middle of an image; None: as large as it allows.
        flips: whether a mirrored image is as good as the image.
    """

    folder: Path
    files: tuple[Path, ...]
    encoded: Callable[[], Iterator[Encoded]]
    count: int
    mode: str | None = None
    classes: tuple[str, ...] | None = None
    crop: int | None = None
    flips: bool = False


def data_folder(data_dir: str | Path | None = None) -> Path:
    """The folder of data sets: the given one, else what `DYNDIFF_DATA` names, else `~/.cache/dyndiff`
    (`$XDG_CACHE_HOME/dyndiff`, where that is set).
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dyndiff"
    return Path(data_dir or os.environ.get(DATA_DIR) or cache)


def local_source(name: str, split: str, data_dir: str | Path | None = None) -> Source | None:
    """A split that lies on this machine; None if it is one of the hub's and doesn't, or not all of it.

    A named data set is looked for in `data_folder(data_dir) / name`; any other name is the path of a parquet
    file, or of a folder of such files or of images. Files named `train.parquet`, `train-*.parquet` or
    `train/*.parquet` are the split "train", and so are images in a folder of that name; where nothing is named
    after a split, everything is "train". An image's class is the folder that it lies in.

    Raises:
        ValueError: if the name is neither, or the files are not all there or can't be read.
        NoSplit: if there is none of that name.
    """
    if name in HUB:
        path = data_folder(data_dir) / name
        return _described(name, path, files) if (files := _parquet_files(path, split, partly=True)) else None
    path = Path(name)
    if path.is_file():
        if split != "train":
            raise NoSplit(f"{name!r} is one file, and so it has no split {split!r}")
        if path.suffix != ".parquet":
            raise ValueError(f"{name!r} must be a folder of images or a parquet file")
        return _undescribed(path.parent, (path,))
    if files := _parquet_files(path, split):
        return _undescribed(path, files)
    if files := tuple(sorted(path.rglob("*.parquet"))):
        if split != "train" or _parquet_files(path, "test"):
            raise NoSplit(f"{name!r} has no split {split!r}: no {split}.parquet or {split}-*.parquet")
        return _undescribed(path, files)
    return _images(path, split)


def downloaded_source(name: str, split: str, data_dir: str | Path | None = None) -> Source:
    """A split of one of the hub's data sets, once what lacks in the folder of data sets has been downloaded to it.

    Raises:
        ValueError: if it can't be had, or doesn't go with what was there.
    """
    folder = data_folder(data_dir) / name
    try:
        hub.download(name, split, folder)
        return _described(name, folder, _parquet_files(folder, split))
    except ValueError as error:
        raise ValueError(f"{str(folder)!r} doesn't hold the {split} files of {name!r}, and {error}") from None


def _described(name: str, folder: Path, files: tuple[Path, ...]) -> Source:
    entry = HUB[name]
    encoded = partial(_all_rows, files, entry.image, entry.label)
    count = sum(map(parquet.count, files))
    return Source(folder, files, encoded, count, entry.mode, entry.classes, entry.crop, entry.flips)


def _undescribed(folder: Path, files: tuple[Path, ...]) -> Source:
    image, label, classes = parquet.columns(files[0])
    encoded = partial(_all_rows, files, image, label)
    return Source(folder, files, encoded, sum(map(parquet.count, files)), classes=classes)


def _all_rows(files: tuple[Path, ...], image: str, label: str | None) -> Iterator[Encoded]:
    return chain.from_iterable(parquet.rows(path, image, label) for path in files)


def _parquet_files(folder: Path, split: str, partly: bool = False) -> tuple[Path, ...]:
    """The parquet files below a folder that are named after a split; all of them, or none if partly allows that."""
    if (whole := folder / f"{split}.parquet").is_file():
        return (whole,)
    files = sorted(
        path for path in folder.rglob("*.parquet") if path.name.startswith(f"{split}-") or path.parent.name == split
    )
    parts = [int(part[1]) for path in files if (part := re.search(r"-of-(\d+)", path.name))]
    if wrong := [part for part in parts if part != len(files)]:
        if partly:
            return ()
        raise ValueError(f"{str(folder)!r} holds {len(files)} of the {wrong[0]} files of {split!r}")
    return tuple(files)


def _images(folder: Path, split: str) -> Source:
    roots = {name: folder / name for name in ("train", "test") if (folder / name).is_dir()} or {"train": folder}
    if split not in roots:
        raise NoSplit(f"{str(folder)!r} has no split {split!r}: no folder of that name in it")
    root, found = roots[split], {each: _image_files(each) for each in roots.values()}
    if not found[root]:
        raise ValueError(f"{str(root)!r} holds no image: no file that ends in {', '.join(sorted(SUFFIXES))}")
    classes = sorted({_class(path, each, folder) for each in found for path in found[each]})

    def encoded() -> Iterator[Encoded]:
        for path in found[root]:
            yield Encoded(repr(str(path)), path.read_bytes(), classes.index(_class(path, root, folder)))

    return Source(root, tuple(found[root]), encoded, len(found[root]), classes=tuple(classes))


def _image_files(root: Path) -> list[Path]:
    """All images below a folder, hidden ones aside, in the order of their names: the same on every machine."""
    paths = (path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    visible = (path for path in paths if not any(part.startswith(".") for part in path.relative_to(root).parts))
    return sorted(visible, key=lambda path: path.relative_to(root).parts)


def _class(path: Path, root: Path, folder: Path) -> str:
    """The first folder below the split's; the data set's own name for an image that lies beside such folders."""
    parts = path.relative_to(root).parts
    return parts[0] if len(parts) > 1 else folder.resolve().name
