"""Records: measured numbers, with what it takes to measure them again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .files import read_json, write_json

RESULTS = Path(__file__).parent / "results"
"""The records that chapters quote; they come with the package, so that a notebook finds them anywhere."""


def read_result(name: str) -> dict[str, Any]:
    """The record `dyndiff/results/NAME.json`.

    Raises:
        ValueError: if there is none.
    """
    known = sorted(path.stem for path in RESULTS.glob("*.json"))
    if name not in known:
        raise ValueError(f"no record {name!r}; there are {', '.join(known)}")
    return read_json(RESULTS / f"{name}.json")


def write_record(path: Path, results: dict[str, Any]) -> None:
    """Write measured results with what it takes to measure them again."""
    write_json(path, {**results, "measured": provenance()})


def provenance() -> dict[str, Any]:
    """The command, the commit, the device and the library versions of this process."""
    program = Path(sys.argv[0])
    return {  # python -m dyndiff is dyndiff, python -m pytest is pytest
        "command": " ".join([(program.parent if program.name == "__main__.py" else program).name, *sys.argv[1:]]),
        "commit": _commit(),
        "device": _device(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **_versions("dyndiff", "torch", "accelerate")},
    }


def _commit() -> str | None:
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno", "."], capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None  # installed from a wheel, or no git
    return f"{head}-modified" if changed else head


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {os.cpu_count()} cores ({platform.machine()})"


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
