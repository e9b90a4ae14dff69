"""Train a preset into a folder, or go on with the run that is there."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..data import load_images
from ..denoiser import Denoiser
from ..files import newest_checkpoint, output_folder, read_json, write_json
from ..presets import create_model
from ..progress import train_with_progress
from ..schedules import create_schedule
from ..train import Run, TrainConfig


def train_preset(
    preset: str,
    data: str,
    out: str | Path,
    config: TrainConfig,
    schedule: str = "cosine",
    target: str = "v",
    checkpoint_every: int = 500,
    data_dir: Path | None = None,
) -> Run:
    """Train a named network on a named data set, in front of the user.

    `out/run.json` says what the run is; `out/step-NNNNNN` is its newest checkpoint. A folder that
    holds the same run is gone on with; one that holds another is left alone.

    Raises:
        ValueError: on an unknown name or a setting out of range, before anything is written; or if
            the folder holds another run, with the first setting that differs.
        Interrupted: on Ctrl-C or SIGTERM; what is done is saved.
    """
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be at least 1, got {checkpoint_every}")
    torch.manual_seed(config.seed)  # the initial weights
    denoiser = Denoiser(create_model(preset), create_schedule(schedule), target)
    images = load_images(data, "train", denoiser.net.config.size, data_dir)
    denoiser.net.check_shape(images.pixels[:1], torch.ones(1))
    settings = {"preset": preset, "data": data, "schedule": schedule, "target": target, **asdict(config)}

    out = Path(out)
    if (out / "run.json").exists():
        _require_same(read_json(out / "run.json"), settings, out)
    elif newest_checkpoint(out) is not None:
        raise ValueError(f"{str(out)!r} holds checkpoints but no run.json; give another --out")
    write_json(output_folder(out) / "run.json", settings)
    run = Run.resume(out) if newest_checkpoint(out) is not None else Run(denoiser, config)
    train_with_progress(run, images, out, preset, checkpoint_every)
    return run


def _require_same(found: dict[str, Any], wanted: dict[str, Any], out: Path) -> None:
    different = [name for name in wanted if found.get(name) != wanted[name]]
    if different:
        pairs = ", ".join(f"{name} = {found.get(name)} (asked for: {wanted[name]})" for name in different)
        raise ValueError(f"{str(out)!r} holds another run, with {pairs}; give another --out to start anew")
