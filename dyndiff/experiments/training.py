"""Train a preset into a folder, or go on with the run that is there."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..data import load_images
from ..denoiser import Denoiser
from ..files import clear_unfinished, newest_checkpoint, output_folder, read_json, write_json
from ..plots import image_grids, save_figure
from ..presets import create_model
from ..progress import train_with_progress
from ..run import Run, TrainConfig
from ..sampling import sample
from ..schedules import create_schedule
from ..train import TrainStep


def train_preset(
    preset: str,
    data: str,
    out: str | Path,
    config: TrainConfig,
    schedule: str = "cosine",
    target: str = "v",
    checkpoint_every: int = 500,
    data_dir: Path | None = None,
    keep: int = 1,
    sample_every: int = 0,
    tracker: str | None = None,
    resume: bool = True,
) -> Run:
    """Train a named network on a named data set, in front of the user.

    `out/run.json` says what the run is; `out/step-NNNNNN` are its newest checkpoints, `keep` of them, and
    `out/samples` the pictures on the way. A folder that holds the same run is gone on with; one that holds
    another is left alone.

    Raises:
        ValueError: on an unknown name or a setting out of range, before anything is written; or if
            the folder holds another run, with the settings that differ.
        Interrupted: on Ctrl-C or SIGTERM; what is done is saved.
    """
    for name, value, least in (("checkpoint_every", checkpoint_every, 1), ("keep", keep, 1),
                               ("sample_every", sample_every, 0)):  # fmt: skip
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if (launched := os.environ.get("ACCELERATE_MIXED_PRECISION", "no")) not in ("no", config.precision):
        raise ValueError(f"the launcher was told --mixed_precision {launched}; dyndiff train is to be told too, by "
                         f"--precision {launched}")  # fmt: skip
    torch.manual_seed(config.seed)  # the initial weights
    denoiser = Denoiser(create_model(preset), create_schedule(schedule), target)
    images = load_images(data, "train", denoiser.net.config.size, data_dir)
    denoiser.net.check_shape(images.pixels[:1], torch.ones(1))
    settings = {"preset": preset, "data": data, "schedule": schedule, "target": target, **asdict(config)}

    run, out = Run(denoiser, config), Path(out)
    if run.accelerator.num_processes == 1 and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        print("dyndiff: the launcher has started one process, not several; on CPUs, accelerate launch does so "
              "unless ACCELERATE_USE_CPU=true and --multi_gpu say otherwise", file=sys.stderr)  # fmt: skip
    _check_tracker(tracker)
    if run.accelerator.is_main_process:
        _claim(out, settings, resume)
    run.accelerator.wait_for_everyone()
    if newest_checkpoint(out) is not None:
        run = _resumed(out, run)
    _check_shared(out, run)
    with _tracked(tracker, out) as log:
        along = _along(run, out, preset, sample_every, log)
        train_with_progress(run, images, out, preset, checkpoint_every, keep, along)
    return run


def _claim(out: Path, settings: dict[str, Any], resume: bool) -> None:
    """Make sure that the folder is new or holds this very run."""
    known = (out / "run.json").exists()
    if not resume and (known or newest_checkpoint(out) is not None):
        raise ValueError(f"{str(out)!r} holds a run; leave --no-resume out to go on with it, or give another --out")
    if known:
        _require_same(read_json(out / "run.json"), settings, out)
    elif newest_checkpoint(out) is not None:
        raise ValueError(f"{str(out)!r} holds checkpoints but no run.json; give another --out")
    for folder in (output_folder(out), out / "samples"):
        clear_unfinished(folder)
    if not known:
        write_json(out / "run.json", settings)


def _require_same(found: dict[str, Any], wanted: dict[str, Any], out: Path) -> None:
    found = {**asdict(TrainConfig()), **found}  # a setting that is newer than the run had its default
    different = [name for name in wanted if found.get(name) != wanted[name]]
    if different:
        pairs = ", ".join(f"{name} = {found.get(name)} (asked for: {wanted[name]})" for name in different)
        raise ValueError(f"{str(out)!r} holds another run, with {pairs}; give another --out to start anew")


def _resumed(out: Path, new: Run) -> Run:
    """The run in the folder, which must be what the new one would have become."""
    run = Run.resume(out)
    run.require(new.config)
    found, wanted = run.denoiser, new.denoiser
    for name, same in {
        "network": found.net.config == wanted.net.config,
        "schedule": found.schedule == wanted.schedule,
        "target": found.target == wanted.target,
    }.items():
        if not same:
            raise ValueError(f"the checkpoint in {str(out)!r} has another {name} than its run.json says; "
                             "give another --out to start anew")  # fmt: skip
    return run


def _check_shared(out: Path, run: Run) -> None:
    accelerator = run.accelerator
    steps = accelerator.gather(torch.tensor([run.step], device=accelerator.device)).tolist()
    if len(set(steps)) > 1:
        raise ValueError(f"the processes find steps {steps} in {str(out)!r}: --out must be a disk that all share")


def _along(
    run: Run, out: Path, preset: str, sample_every: int, log: Callable[..., None] | None
) -> Callable[[TrainStep], None]:
    """What happens on the way: pictures from the averaged model, always of the same noise; a tracker's curves."""
    config, before = run.config, (run.step, time.perf_counter())

    def along(step: TrainStep) -> None:
        nonlocal before
        if log is not None and step.step % 10 == 0:
            now = (step.step, time.perf_counter())
            speed = config.batch_size * (now[0] - before[0]) / (now[1] - before[1])
            rate, before = config.learning_rate_at(step.step - 1), now
            log({"loss": run.losses[-1], "learning_rate": rate, "images_per_second": speed}, step=step.step)
        if sample_every and (step.step % sample_every == 0 or step.step == config.steps):
            images = sample(run.ema, 36, sampler="dpmpp_2m", steps=15)
            path = output_folder(out / "samples") / f"step-{step.step:06d}.png"
            save_figure(image_grids({f"{preset}, step {step.step}": images}, columns=6), path)

    return along


def _check_tracker(tracker: str | None) -> None:
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import LoggerType

    known, installed = ([str(name) for name in names] for names in (LoggerType, get_available_trackers()))
    if tracker is not None and (tracker not in known or tracker == "all"):
        raise ValueError(f"unknown tracker {tracker!r}; choose from {', '.join(set(known) - {'all'})}")
    if tracker is not None and tracker not in installed:
        raise ValueError(f"the tracker {tracker!r} is not installed: pip install {tracker}")


@contextmanager
def _tracked(tracker: str | None, out: Path) -> Iterator[Callable[..., None] | None]:
    """What a tracker's curves are logged with; None without a tracker."""
    from accelerate import Accelerator

    if tracker is None:
        yield None
        return
    accelerator = Accelerator(log_with=tracker, project_dir=out)
    accelerator.init_trackers("dyndiff")
    try:
        yield accelerator.log
    finally:
        for each in accelerator.trackers:
            each.finish()
