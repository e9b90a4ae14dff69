"""The command `dyndiff data`: which data sets there are, and getting one ready."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg


def data(
    action: Annotated[Positional[Literal["list", "prefetch"]], arg(metavar="list|prefetch")],
    name: Annotated[Positional[str | None], arg(metavar="NAME")] = None,
    data_dir: Path | None = None,
    size: int | None = None,
) -> None:
    """List the data sets, or download and decode one before it is needed.

    What doesn't lie in the folder of data sets as NAME/train.parquet or NAME/train-*.parquet is downloaded, then
    decoded into one array of bytes: training starts at once, needs no network, and reads from the disk what doesn't
    fit into memory. Images that can't be decoded are left out and named. The same command again checks what is there.

        dyndiff data list
        dyndiff data prefetch cifar10
        dyndiff data prefetch path/to/photos --size 64

    Args:
        action: what to do.
        name: a data set of the list, or the path of a parquet file or of a folder of images: its subfolders train
            and test, where there are such, are its splits, and the subfolders of those its classes.
        data_dir: the folder of data sets; by default what the environment's DYNDIFF_DATA names, else
            ~/.cache/dyndiff.
        size: the side in pixels that the square of each image's middle is resized to; by default the one that is
            usual for the data set.
    """
    if action == "list":
        print(_table())
    elif name is None:
        raise ValueError("name what to prefetch: a data set that `dyndiff data list` shows, or a path")
    else:
        _prefetch(name, size, data_dir)


def _table() -> str:
    from .data import DATASETS, load_images
    from .hub import HUB

    lines = ["name           train images    test images   shape      mirrored   from"]
    for name in DATASETS:
        train, test = (load_images(name, split) for split in ("train", "test"))
        lines.append(f"{name:13}{len(train):14,}{len(test):15,}   1, any     {'no':11}the package")
    for name, entry in HUB.items():
        shape = f"{1 if entry.mode == 'L' else 3}x{entry.size}x{entry.size}"
        flips = "yes" if entry.flips else "no"
        lines.append(f"{name:13}{entry.counts[0]:14,}{entry.counts[1]:15,}   {shape:11}{flips:11}{entry.repository}")
    return "\n".join([*lines, "PATH          a folder of images, or of parquet files, or one such file of yours"])


def _prefetch(name: str, size: int | None, data_dir: Path | None) -> None:
    from .data import DATASETS, check
    from .hub import HUB
    from .prefetch import array_folder, prefetch
    from .sources import NoSplit

    if size is None and name in HUB:
        size = HUB[name].size
    check(name, 16 if size is None else size)
    if name in DATASETS:
        print(f"{name}: comes with the package, nothing to do")
        return
    if size is None:
        raise ValueError(f"give --size: which side the images of {name!r} are to be resized to, in pixels")
    for split in ("train", "test"):
        try:
            record = prefetch(name, split, size, data_dir)
        except NoSplit:
            if split == "train":
                raise
            continue
        count, *shape = record["shape"]
        left_out = f", {len(record['left_out'])} left out" if record["left_out"] else ""
        print(f"{name}, {split}: {count:,} images of {'x'.join(map(str, shape))}{left_out}, "
              f"in {array_folder(name, split, size, data_dir)}")  # fmt: skip
