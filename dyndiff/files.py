"""Files that are whole or not there: everything is written beside its place and then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

UNFINISHED = ".unfinished-"
"""In the names of what is being written; only a process that was killed leaves such a folder behind."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Lend a temporary name beside `path`; what was written there takes `path`'s place if all went well."""
    with _beside(path) as folder:
        temporary = folder / path.name
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # a rename may reach the disk before what it renames
        os.replace(temporary, path)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """The same for a folder: whole under its name, or absent.

    A process killed between the two renames leaves the old folder to `clear_unfinished`, which puts it back.
    """
    with _beside(path) as folder:
        new, old = folder / "new", folder / "old"
        new.mkdir()
        yield new
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(new, path)
        except BaseException:
            if old.exists():
                os.replace(old, path)
            raise


def remove_folder(path: Path) -> None:
    """Remove a folder; under its name it is whole or gone, at any moment. A full disk has room for that."""
    removed = path.with_name(f".{path.name}{UNFINISHED}removed")
    os.replace(path, removed)
    shutil.rmtree(removed)


def clear_unfinished(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder; put back what they had only set aside."""
    for left in folder.glob(f".*{UNFINISHED}*"):
        path = folder / left.name[1:].rpartition(UNFINISHED)[0]
        if (left / "old").exists() and not path.exists():
            os.replace(left / "old", path)
        shutil.rmtree(left)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A temporary folder on the same disk as `path`, so that a rename is all that it takes."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}{UNFINISHED}") as folder:
        yield Path(folder)


def output_folder(path: str | Path) -> Path:
    """Make a folder to write into.

    Raises:
        ValueError: if it can't be made or written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise ValueError(f"cannot write to the folder {str(path)!r}: {error.strerror}") from None


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, in one rename."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; ValueError names a file that is missing or holds none."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {str(path)!r} as JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{str(path)!r} must hold a JSON object, not a {type(value).__name__}")
    return value


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as safetensors, in one rename; OSError names a file that the disk did not take."""
    with replacing(path) as temporary:
        try:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)
        except SafetensorError as error:
            raise OSError(f"cannot write {str(path)!r}: {error}") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read safetensors; ValueError names a file that is missing, cut short or of another kind."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read {str(path)!r} as safetensors (cut short, or another kind?): {error}") from None


MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Write down the SHA-256 of every file in a folder, in `manifest.json`."""
    write_json(folder / MANIFEST, {path.name: _digest(path) for path in sorted(folder.iterdir())})


def check_manifest(folder: Path, *names: str) -> None:
    """Raise ValueError, naming it, if a file is no longer what was written; a folder without a manifest is trusted."""
    if (folder / MANIFEST).exists():
        written = read_json(folder / MANIFEST)
        for path in (folder / name for name in names):
            if path.is_file() and _digest(path) != written.get(path.name):
                raise ValueError(f"{str(path)!r} is damaged: it is not the file that was written")


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def newest_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint of a training run with the most steps, or None: `folder/step-NNNNNN`."""
    return max(checkpoints(folder), key=lambda path: int(path.name[5:]), default=None)


def checkpoints(folder: str | Path) -> list[Path]:
    """All checkpoints in a training run's folder."""
    return [path for path in Path(folder).glob("step-*") if path.name[5:].isdigit() and path.is_dir()]
