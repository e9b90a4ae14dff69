"""Data sets of the Hugging Face hub, by short names: where each lies, and what its images are.

A download that broke off is gone on with, byte for byte; a file is whole under its name, or not there.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from huggingface_hub import HfFileSystem

BLOCK = 1 << 23
"""Bytes that are asked for at a time: what a broken connection costs at most."""


@dataclass(frozen=True)
class HubSet:
    """A data set of the hub, in parquet files.

    Attributes:
        repository: its public name.
        files: the pattern of a split's files.
        image: the column of encoded images.
        label: the column of labels; None where there are none to use.
        mode: "L" for grey images, "RGB" for coloured ones, as PIL says it.
        classes: the labels' names.
        size: the side in pixels that it is commonly learnt at.
        counts: images to train on, and to test on.
        crop: the side of the square that is cut from the middle first; None: as large as the image allows.
        flips: whether a mirrored image is as good as the image.
    """

    repository: str
    files: str
    image: str
    label: str | None
    mode: str
    classes: tuple[str, ...]
    size: int
    counts: tuple[int, int]
    crop: int | None = None
    flips: bool = False


# Mirrored, a 2 is no digit; and a shoe of Fashion-MNIST points left.
HUB = {
    "mnist": HubSet(
        "ylecun/mnist", "mnist/{split}-*.parquet", "image", "label", "L", tuple("0123456789"), 28, (60_000, 10_000)
    ),
    "fashion_mnist": HubSet(
        "zalando-datasets/fashion_mnist", "fashion_mnist/{split}-*.parquet", "image", "label", "L",
        ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
        28, (60_000, 10_000),
    ),
    "cifar10": HubSet(
        "uoft-cs/cifar10", "plain_text/{split}-*.parquet", "img", "label", "RGB",
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        32, (50_000, 10_000), flips=True,
    ),
    # The aligned faces are 178 wide and 218 high: the square of their middle is what DDIM and others learn from.
    "celeba": HubSet(
        "flwrlabs/celeba", "img_align+identity+attr/{split}-*.parquet", "image", None, "RGB", ("face",),
        64, (162_770, 19_962), crop=178, flips=True,
    ),
    # LSUN's 126,227 training images, split by who published them; its "label" is the first letter of a key.
    "lsun_church": HubSet(
        "tglcourse/lsun_church_train", "data/{split}-*.parquet", "image", None, "RGB", ("church",),
        128, (119_915, 6_312), flips=True,
    ),
}  # fmt: skip
"""A data set's name to where it lies. Parquet files of mnist's and cifar10's layout are tested; the names of
repositories, files and columns are their pages', and were not tried: no test of this project needs a network."""


def download(name: str, split: str, folder: Path) -> None:
    """Bring a split's files into a folder, under their paths in the repository; those that it holds stay as they are.

    Raises:
        ValueError: if they can't be had; what has come by then is kept, and the next call goes on from there.
    """
    from huggingface_hub import HfFileSystem

    repository, pattern = HUB[name].repository, HUB[name].files.format(split=split)
    there = {path.name for path in folder.rglob("*.parquet")}
    try:
        hub = HfFileSystem()
        for file in _list(hub, f"datasets/{repository}/{pattern}"):
            path = folder / file.removeprefix(f"datasets/{repository}/")
            if path.name not in there:
                _fetch(hub, file, path)
    except Exception as error:  # huggingface_hub's, and those of whatever it asks the network by
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{repository!r} can't be downloaded from the hub: {reason}") from None


def _list(hub: HfFileSystem, pattern: str) -> list[str]:
    try:
        if files := sorted(hub.glob(pattern)):
            return files
    except FileNotFoundError:
        pass
    raise ValueError(f"no {pattern} is there")


def _fetch(hub: HfFileSystem, file: str, path: Path) -> None:
    from tqdm import tqdm

    info: dict[str, Any] = hub.info(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with open(part, "ab") as come, hub.open(file, "rb", block_size=BLOCK) as remote:
        if come.tell() > info["size"]:
            come.truncate(0)
        remote.seek(come.tell())
        with tqdm(
            total=info["size"], initial=come.tell(), desc=path.name, unit="B", unit_scale=True, disable=None
        ) as bar:
            while block := remote.read(BLOCK):
                bar.update(come.write(block))
    with open(part, "rb") as come:
        checksum = hashlib.file_digest(come, "sha256").hexdigest()
    if info.get("lfs") and checksum != info["lfs"]["sha256"]:
        part.unlink()
        raise ValueError(f"{path.name} came with a wrong checksum; the next call fetches it anew")
    os.replace(part, path)
