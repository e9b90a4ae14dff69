"""Files that are whole or not there: everything is written beside its place and then renamed."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Lend a temporary name beside `path`; what was written there takes `path`'s place if all went well."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        temporary = Path(folder) / path.name
        yield temporary
        os.replace(temporary, path)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """The same for a folder: whole under its name, or absent."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        new, old = Path(folder) / "new", Path(folder) / "old"
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


def newest_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint of a training run with the most steps, or None: `folder/step-NNNNNN`."""
    return max(checkpoints(folder), key=lambda path: int(path.name[5:]), default=None)


def checkpoints(folder: str | Path) -> list[Path]:
    """All checkpoints in a training run's folder."""
    return [path for path in Path(folder).glob("step-*") if path.name[5:].isdigit() and path.is_dir()]
