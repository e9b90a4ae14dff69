"""Data sets that are decoded once, into one array of bytes, which the system reads into memory where it is looked at.

`DIR/NAME/SPLIT-SIZE/` holds `pixels.uint8` and `labels.int64`, the bare bytes of arrays (N, C, SIZE, SIZE) and
(N,); and `images.json`: their shape, the classes' names, what was left out, and checksums of them and their source.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .decoding import decode_all, mode_of
from .files import output_folder, read_json, replacing_folder, write_json
from .hub import HUB
from .sources import Source, data_folder, downloaded_source, local_source

PIXELS, LABELS, RECORD = "pixels.uint8", "labels.int64", "images.json"

Loaded = tuple[Tensor, Tensor, tuple[str, ...], bool]
"""Pixels (uint8, (N, C, H, W)), labels (int64, (N,)), the classes' names, and whether images may be mirrored."""


def load(name: str, split: str, size: int, data_dir: str | Path | None = None) -> Loaded:
    """A split: its array, mapped, if there is one of the files that lie here; else decoded from those.

    A data set of the hub's that doesn't lie here is downloaded and gets its array first.

    Raises:
        ValueError: as `prefetch` does.
    """
    source, folder = local_source(name, split, data_dir), array_folder(name, split, size, data_dir)
    if _fits(folder, source):
        return _mapped(folder)
    if source is None:
        prefetch(name, split, size, data_dir)
        return _mapped(folder)
    mode, pixels = mode_of(source), bytearray()
    labels, _ = decode_all(source.encoded(), source, mode, size, pixels.extend)
    images = torch.frombuffer(pixels, dtype=torch.uint8).reshape(len(labels), -1, size, size)
    return images, torch.tensor(labels), _classes(source, labels), source.flips


def prefetch(name: str, split: str, size: int, data_dir: str | Path | None = None) -> dict[str, Any]:
    """Make a split's array; one that is there, of the files that lie here, is checked byte for byte and kept.

    Where several processes ask for the same array, one makes it and the others wait.

    Args:
        name: a key of `hub.HUB`, or the path of a folder of images, of parquet files or of one such file.
        split: "train" or "test".
        size: the side in pixels that the square of an image's middle is resized to.
        data_dir: the folder of data sets; by default as `sources.data_folder` says.

    Returns:
        What its `images.json` holds.

    Raises:
        ValueError: if the images can't be found, downloaded or decoded, or the array not be written.
    """
    from filelock import FileLock

    folder = array_folder(name, split, size, data_dir)
    if not _whole(folder, local_source(name, split, data_dir)):
        output_folder(folder.parent)
        try:
            with FileLock(folder.parent / ".lock"):
                source = local_source(name, split, data_dir)
                if not _whole(folder, source):
                    source = source or downloaded_source(name, split, data_dir)
                    _make(folder, source, f"{name}, {split}", size)
        except OSError as error:
            raise ValueError(f"the array {str(folder)!r} can't be made: {error}") from None
    return read_json(folder / RECORD)


def array_folder(name: str, split: str, size: int, data_dir: str | Path | None = None) -> Path:
    """Where a split's array lies, or would; that of a path under its last part and a hash of all of it."""
    if name not in HUB:
        path = Path(name).resolve()
        name = f"{path.stem}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    return data_folder(data_dir) / name / f"{split}-{size}"


def _make(folder: Path, source: Source, title: str, size: int) -> None:
    from tqdm import tqdm

    for left in folder.parent.glob(f".{folder.name}*"):  # by a process that was killed: nobody else writes here now
        shutil.rmtree(left)
    mode = mode_of(source)
    with replacing_folder(folder) as staged:
        bar = tqdm(source.encoded(), title, source.count, unit=" images", disable=None)
        with open(staged / PIXELS, "wb") as file:
            labels, left_out = decode_all(bar, source, mode, size, file.write)
        torch.tensor(labels).numpy().tofile(staged / LABELS)
        record = {
            "shape": [len(labels), 1 if mode == "L" else 3, size, size],
            "classes": _classes(source, labels),
            "flips": source.flips,
            "left_out": left_out,
            "sha256": {name: _sha256([staged / name]) for name in (PIXELS, LABELS)},
            "source": {
                "files": len(source.files),
                "bytes": sum(path.stat().st_size for path in source.files),
                "sha256": _sha256(source.files),  # of one after the other
                "state": _state(source),
            },
        }
        write_json(staged / RECORD, record)


def _mapped(folder: Path) -> Loaded:
    record = read_json(folder / RECORD)
    shape = record["shape"]
    pixels = torch.from_file(str(folder / PIXELS), size=math.prod(shape), dtype=torch.uint8).reshape(shape)
    labels = torch.from_file(str(folder / LABELS), size=shape[0], dtype=torch.int64)
    return pixels, labels, tuple(record["classes"]), record["flips"]


def _fits(folder: Path, source: Source | None) -> bool:
    """Whether a folder holds an array of the right length, made of these files as they are now (None: of any)."""
    try:
        record = read_json(folder / RECORD)
        count, channels, height, width = record["shape"]
        lengths = count * channels * height * width, 8 * count
        return (
            lengths == tuple((folder / name).stat().st_size for name in (PIXELS, LABELS))
            and all(isinstance(name, str) for name in record["classes"])
            and isinstance(record["flips"], bool)
            and (source is None or record["source"]["state"] == _state(source))
        )
    except (OSError, KeyError, TypeError, ValueError):
        return False


def _whole(folder: Path, source: Source | None) -> bool:
    """The same, and that every byte of the array is the one that was written."""
    if not _fits(folder, source):
        return False
    written = read_json(folder / RECORD).get("sha256")
    return written == {name: _sha256([folder / name]) for name in (PIXELS, LABELS)}


def _state(source: Source) -> str:
    """A checksum of what is made of a source's files, and of their names, sizes and times of change: cheap."""
    stats = [(path.relative_to(source.folder).as_posix(), path.stat()) for path in source.files]
    lines = [f"{source.mode} {source.classes} {source.crop}"]
    lines += [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _sha256(files: Iterable[Path]) -> str:
    """The checksum of the files' bytes, one file after the other."""
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def _classes(source: Source, labels: list[int]) -> tuple[str, ...]:
    return source.classes if source.classes is not None else tuple(map(str, range(max(labels) + 1)))
