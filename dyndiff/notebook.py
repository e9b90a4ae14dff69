"""What every chapter begins with: how much of it to run, and what that takes here.

The environment variable DYNDIFF_MODE says how much: "smoke" (seconds; the tests), "cpu" (the default; at
most two minutes on two cores) or "full" (a GPU).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TypeVar

import torch

MODES = ("smoke", "cpu", "full")

BUDGETS = Path(__file__).parent / "budgets.json"
"""Seconds and memory of each chapter, measured by `python -m dyndiff.experiments.budget`."""

T = TypeVar("T")


def mode() -> str:
    """The mode that this process runs in.

    Raises:
        ValueError: if DYNDIFF_MODE is set to something else.
    """
    value = os.environ.get("DYNDIFF_MODE") or "cpu"
    if value not in MODES:
        raise ValueError(f"DYNDIFF_MODE must be one of {', '.join(MODES)}, got {value!r}")
    return value


def choose(*, smoke: T, cpu: T, full: T) -> T:
    """The value for this process's mode: `steps = choose(smoke=5, cpu=300, full=1200)`."""
    return {"smoke": smoke, "cpu": cpu, "full": full}[mode()]


def begin(chapter: str) -> None:
    """Print the chapter's mode and measured budget, and a warning where a GPU would matter.

    Args:
        chapter: the notebook's name, such as "03_ddpm_from_scratch".
    """
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"mode: {mode()}; torch {torch.__version__}; {device}")
    budgets = json.loads(BUDGETS.read_text()) if BUDGETS.exists() else {}
    if measured := budgets.get(chapter, {}).get(mode()):
        print(f"budget: {measured['seconds']:.0f} s and {measured['peak_mb']:,.0f} MB, measured on {budgets['device']}")
    if mode() == "full" and not torch.cuda.is_available():
        print("warning: full mode is meant for a GPU and will take hours here; unset DYNDIFF_MODE for the short form")
