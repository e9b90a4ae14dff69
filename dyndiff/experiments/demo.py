"""The first five minutes: both denoisers learn the digits, and their samples and costs are compared."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from ..data import load_images, to_unit
from ..denoiser import Denoiser
from ..files import clear_unfinished, newest_checkpoint, output_folder
from ..plots import image_grids, save_figure, training_curves
from ..presets import create_model
from ..profile import profile
from ..progress import progress_bar, train_with_progress
from ..records import write_record
from ..sampling import check_settings, sample
from ..schedules import cosine
from ..train import Run, TrainConfig
from .quality import digit_quality, digit_reference

MODELS = ("unet-digits", "cunet-digits")


def demo(out: str | Path, config: TrainConfig, samples: int = 500, sampling_steps: int = 50) -> dict[str, Any]:
    """Train both denoisers on the digits and compare them.

    Args:
        out: the folder for `samples.png`, `training.png`, `comparison.json` and the two runs. Runs
            that are in it already are gone on with.
        config: the same for both.
        samples: images drawn from each model.
        sampling_steps: network calls for each image, with the ancestral sampler.

    Returns:
        The comparison, as `comparison.json` holds it.

    Raises:
        ValueError: if the folder can't be written to or holds runs of another configuration.
        Interrupted: on Ctrl-C; what is done is saved.
    """
    check_settings("ancestral", samples, sampling_steps)
    if samples < 2:
        raise ValueError(f"a comparison needs at least 2 samples, got {samples}")
    out, started = output_folder(out), time.perf_counter()
    resumed = (out / "runs").exists()
    runs = {name: train_model(name, out / "runs" / name, config) for name in MODELS}
    drawn = {}
    for name, run in runs.items():
        with progress_bar(f"{name} samples", samples * sampling_steps, unit="call") as bar:
            drawn[name] = sample(run.ema, samples, sampler="ancestral", steps=sampling_steps, progress=bar.update)

    inputs = (torch.randn(64, 1, 16, 16), torch.rand(64))
    costs = profile({name: run.ema.cpu().net for name, run in runs.items()}, inputs)
    models = [
        {**cost.to_dict(), "loss": mean_loss(runs[cost.name]), **digit_quality(drawn[cost.name])} for cost in costs
    ]
    comparison = {
        "data": "digits, 16x16: 1,297 to train, 500 to test",
        "config": vars(config),
        "samples": samples,
        "sampling_steps": sampling_steps,
        "latency_batch": 64,
        "models": models,
        "real_digits": digit_reference(samples),
        "resumed": resumed,
        "seconds": time.perf_counter() - started,
    }
    real = to_unit(load_images("digits", "test", size=16).pixels)
    titles = {cost.name: f"{cost.name}, {cost.params:,} parameters" for cost in costs}
    panels = {"real digits": real[:64], **{titles[name]: images[:64] for name, images in drawn.items()}}
    save_figure(image_grids(panels, columns=8), out / "samples.png")
    save_figure(training_curves({name: run.losses for name, run in runs.items()}, "loss (v)"), out / "training.png")
    write_record(out / "comparison.json", comparison)
    return comparison


def train_model(name: str, folder: Path, config: TrainConfig) -> Run:
    """Train a preset on the digits, or go on where `folder` left off."""
    clear_unfinished(folder)
    if newest_checkpoint(folder) is not None:
        run = Run.resume(folder)
        run.require(config)
    else:
        torch.manual_seed(config.seed)  # the initial weights
        run = Run(Denoiser(create_model(name), cosine(), "v"), config)
    train_with_progress(run, load_images("digits", "train", size=16), output_folder(folder), name)
    return run


def mean_loss(run: Run, window: int = 100) -> float:
    """The mean training loss of the last steps."""
    return sum(run.losses[-window:]) / len(run.losses[-window:])


def comparison_table(comparison: dict[str, Any]) -> str:
    """The comparison as a Markdown table, as the terminal and the README show it."""
    first, second = comparison["models"]
    real = comparison["real_digits"]

    def row(label: str, key: str, form: str, scale: float = 1.0, real: str = "") -> list[str]:
        cells = [format(model[key] * scale, form) for model in (first, second)]
        return [label, *cells, f"{second[key] / first[key]:.0%}", real]

    count, classes = comparison["samples"], [model["classes"] for model in (first, second)]
    spread = [f"{min(shares):.0%} to {max(shares):.0%}" for shares in classes]
    rows = [
        ["", first["name"], second["name"], "ratio", "real digits"],
        row("parameters", "params", ",.0f"),
        row("MFLOPs a call, one image", "flops", ".1f", 1e-6 / comparison["latency_batch"]),
        row(f"ms a call, batch {comparison['latency_batch']}", "latency_s", ".1f", 1e3),
        row(f"peak MB a call, batch {comparison['latency_batch']}", "peak_bytes", ".1f", 1e-6),
        row("training loss, last 100 steps", "loss", ".4f"),
        row(f"Fréchet distance, {count} samples", "frechet", ".2f", real=f"{real['frechet']:.2f}"),
        [*row("called with over 90% confidence", "confident", ".1%")[:3], "", f"{real['confident']:.1%}"],
        ["rarest to commonest digit", *spread, "", ""],
    ]
    widths = [max(len(line[i]) for line in rows) for i in range(len(rows[0]))]
    rule = ["-" * widths[0], *["-" * (width - 1) + ":" for width in widths[1:]]]
    lines = [[c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
             for line in [rows[0], rule, *rows[1:]]]  # fmt: skip
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
