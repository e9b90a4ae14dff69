"""Parquet files of images, in the Hugging Face hub's layout: one row an image, encoded as PNG or JPEG.

One column holds `{bytes, path}` or bytes, another the labels. Reading them needs `dyndiff[data]`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pyarrow import Schema
    from pyarrow.parquet import ParquetFile


class Encoded(NamedTuple):
    """An image as a file holds it.

    Attributes:
        where: how to name it to a person.
        data: the bytes of a PNG, a JPEG or the like; None if the file has none for it.
        label: its class; None if the file has none for it.
    """

    where: str
    data: bytes | None
    label: int | None


def rows(path: Path, image: str, label: str | None) -> Iterator[Encoded]:
    """The images of a file, in its order; never more than some hundred in memory.

    Args:
        path: the file.
        image: the column of images.
        label: the column of labels; None: every image is of class 0.

    Raises:
        ValueError: if it is no such file, is cut short, or lacks such a column.
    """
    with _opened(path) as file:
        _check(path, file.schema_arrow, image, label)
        row = 0
        for batch in file.iter_batches(batch_size=128, columns=[image] if label is None else [image, label]):
            labels = [0] * len(batch) if label is None else batch.column(label).to_pylist()
            for value, number in zip(batch.column(image).to_pylist(), labels, strict=True):
                data = value["bytes"] if isinstance(value, dict) else value
                yield Encoded(f"{str(path)!r}, row {row}", data, number)
                row += 1


def count(path: Path) -> int:
    """How many rows a file has; ValueError as `rows` says."""
    with _opened(path) as file:
        return int(file.metadata.num_rows)


def columns(path: Path) -> tuple[str, str | None, tuple[str, ...] | None]:
    """Which columns of a file hold images and labels, and the classes' names, for a file that nobody described.

    Returns:
        The first column of encoded images; "label" if there is such a column; and what the hub's own
        metadata calls the classes, if it does.

    Raises:
        ValueError: as `rows` says.
    """
    with _opened(path) as file:
        schema = file.schema_arrow
    images = [name for name in schema.names if _holds_images(schema, name)]
    if not images:
        raise ValueError(f"{str(path)!r} has no column of encoded images: it has {', '.join(schema.names)}")
    label = "label" if "label" in schema.names else None
    try:
        names = json.loads(schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):  # none, or not the hub's
        names = None
    return images[0], label, tuple(map(str, names)) if names else None


def _check(path: Path, schema: Schema, image: str, label: str | None) -> None:
    from pyarrow import types

    for column in (image, label):
        if column is not None and column not in schema.names:
            raise ValueError(f"{str(path)!r} has no column {column!r}: it has {', '.join(schema.names)}")
    if not _holds_images(schema, image):
        raise ValueError(f"column {image!r} of {str(path)!r} must hold encoded images, not {schema.field(image).type}")
    if label is not None and not types.is_integer(schema.field(label).type):
        raise ValueError(f"column {label!r} of {str(path)!r} must hold integers, not {schema.field(label).type}")


def _holds_images(schema: Schema, name: str) -> bool:
    from pyarrow import types

    kind: Any = schema.field(name).type
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


@contextmanager
def _opened(path: Path) -> Iterator[ParquetFile]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ValueError(f"reading {str(path)!r} needs pyarrow: pip install 'dyndiff[data]'") from None
    try:
        with ParquetFile(path, memory_map=True) as file:
            yield file
    except (OSError, pyarrow.ArrowException) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error).splitlines()[0]
        raise ValueError(f"{str(path)!r} can't be read as parquet (cut short, or another kind?): {reason}") from None
