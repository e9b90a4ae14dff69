"""Which denoiser learns more from the same? All seven networks of a scale, at equal steps and at equal FLOPs.

    python -m dyndiff.experiments.equal digits --out runs/equal-digits

Each network is trained with the same data, noise, optimiser and seeds; the U-Net once more with so few steps
that it spends the cunet's training FLOPs. A finished run is a JSON file in the folder: what is there is not
run again, so that the command can be stopped and repeated, with more seeds too.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
import tyro

from ..data import Images, load_images, to_unit
from ..denoiser import Denoiser, perturb
from ..files import output_folder, read_json
from ..presets import PRESETS, create_model
from ..profile import count_flops, count_parameters
from ..progress import progress_bar
from ..records import write_record
from ..sampling import sample
from ..schedules import cosine
from ..seeds import generator_for
from ..train import Run, TrainConfig, train
from .quality import digit_quality, digit_reference

KINDS = ("unet", "cunet", "thin", "tied", "ode1", "blind", "papercode")


def validation_loss(denoiser: Denoiser, test: Images, count: int = 1000, batch_size: int = 250) -> dict[str, float]:
    """The mean error on test images under fixed noise, of `v` and of the noise that follows from it.

    Args:
        denoiser: of any target.
        test: images of its size; the first `count` are used, again from the start if there are fewer.
        count: noisy images; their times are uniform in (0, 1), stratified.
        batch_size: of the calls.
    """
    chosen, device = torch.arange(count) % len(test), next(denoiser.parameters()).device
    generator = generator_for(0, "validation")
    t = (torch.randperm(count, generator=generator) + 0.5) / count
    x0 = to_unit(test.pixels[chosen])
    eps = torch.randn(x0.shape, generator=generator)
    errors = []
    with torch.no_grad():
        for x, noise, when in zip(x0.split(batch_size), eps.split(batch_size), t.split(batch_size), strict=True):
            noisy = perturb(denoiser.schedule, x, when, noise)
            wrong = (denoiser(noisy.to(device), when.to(device)).cpu() - x).square()
            errors.append(wrong.flatten(1).mean(1))
    error, sigma = torch.cat(errors).double(), denoiser.schedule.sigma(t)
    alpha = denoiser.schedule.alpha(t)  # v = (alpha x - x0) / sigma and eps = (x - alpha x0) / sigma
    return {"v": float((error / sigma**2).mean()), "eps": float((error * (alpha / sigma) ** 2).mean())}


def train_and_judge(
    preset: str, config: TrainConfig, train_set: Images, test_set: Images, samples: int
) -> dict[str, Any]:
    """Train a preset and say how well it denoises on the way, and what it draws in the end.

    Returns:
        The preset's costs, `curve` (steps, training FLOPs and validation losses at ten moments), and the
        samples' quality, where a classifier knows the data.
    """
    torch.manual_seed(config.seed)  # the initial weights
    net = create_model(preset)
    shape = (1, net.config.channels, net.config.size, net.config.size)
    flops = count_flops(net, (torch.zeros(shape), torch.ones(1)))
    run, curve = Run(Denoiser(net, cosine(), "v"), config), []
    moments = {round(config.steps * part / 10) for part in range(1, 11)}
    with progress_bar(f"{preset}, seed {config.seed}", config.steps, unit="step") as bar:
        for step in train(run, train_set):
            bar.update()
            if step.step in moments:
                spent = 3 * flops * config.batch_size * step.step  # forwards, and twice that backwards
                curve.append({"step": step.step, "flops": spent, **validation_loss(run.ema, test_set)})
    result = {
        "preset": preset,
        "params": count_parameters(net),
        "flops": flops,
        "config": asdict(config),
        "curve": curve,
    }
    if net.config.size == 16:
        drawn = sample(run.ema, samples, sampler="dpmpp_2m", steps=20, seed=config.seed)
        result["samples"] = {"count": samples, "sampler": "dpmpp_2m", "steps": 20, **digit_quality(drawn)}
    return result


def equal(
    scale: str,
    /,
    out: Path,
    data: str | None = None,
    data_dir: Path | None = None,
    kinds: tuple[str, ...] = KINDS,
    seeds: int = 3,
    steps: int = 1200,
    batch_size: int = 64,
    learning_rate: float = 4e-3,
    samples: int = 2000,
) -> None:
    """Train the networks of a scale at equal steps, and the U-Net at the cunet's FLOPs too; record all of it.

    Args:
        scale: digits, mnist, cifar10 or paper: the end of the presets' names.
        out: the folder for a JSON file a run, and `equal.json` with all of them.
        data: the data set; by default the scale's name.
        data_dir: the folder that holds it, if it doesn't come with the package.
        kinds: the networks, by the beginning of the presets' names; unet and cunet are the yardstick.
        seeds: runs of each, with seeds 0, 1, ...
        steps: optimiser steps of each run.
        batch_size, learning_rate: the same for all.
        samples: images drawn from each model, where a classifier knows the data.
    """
    if f"unet-{scale}" not in PRESETS:
        raise ValueError(f"unknown scale {scale!r}; choose from digits, mnist, cifar10, paper")
    size = PRESETS[f"unet-{scale}"].size
    train_set, test_set = (load_images(data or scale, split, size, data_dir) for split in ("train", "test"))
    short = round(steps * _flops(f"cunet-{scale}") / _flops(f"unet-{scale}"))
    plan = [(f"{kind}-{scale}", steps) for kind in kinds] + [(f"unet-{scale}", short)]
    runs = []
    for seed in range(seeds):
        for preset, count in plan:
            config = TrainConfig(steps=count, batch_size=batch_size, learning_rate=learning_rate, seed=seed)
            path = output_folder(out) / f"{preset}-{count}-steps-seed-{seed}.json"
            if not path.exists():
                write_record(path, train_and_judge(preset, config, train_set, test_set, samples))
            runs.append(_same(read_json(path), config, path))
    record: dict[str, Any] = {
        "scale": scale,
        "data": data or scale,
        "short_steps": short,
        "runs": runs,
        "table": table(runs),
    }
    if scale == "digits":
        record["real_digits"] = digit_reference(samples)
    write_record(out / "equal.json", record)
    for row in record["table"]:
        print("  ".join(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()))


def table(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each network and number of steps: means over the seeds, and half-widths of 95% intervals."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["preset"], run["config"]["steps"]), []).append(run)
    rows = []
    for (preset, steps), group in groups.items():
        row = {
            "preset": preset,
            "steps": steps,
            "params": group[0]["params"],
            "flops": group[0]["flops"],
            "seeds": len(group),
        }
        for name, values in _measures(group).items():
            row[name], row[f"{name}_95"] = fmean(values), _half_width(values)
        rows.append(row)
    return rows


def _measures(group: list[dict[str, Any]]) -> dict[str, list[float]]:
    found = {loss: [run["curve"][-1][loss] for run in group] for loss in ("v", "eps")}
    if "samples" in group[0]:
        found["frechet"] = [run["samples"]["frechet"] for run in group]
    return found


def _half_width(values: list[float]) -> float | None:
    """Of Student's 95% interval of the mean; None for a single value."""
    student = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
    return student[len(values)] * stdev(values) / len(values) ** 0.5 if len(values) in student else None


def _flops(preset: str) -> int:
    config = PRESETS[preset]
    shape = (1, config.channels, config.size, config.size)
    return count_flops(create_model(preset), (torch.zeros(shape), torch.ones(1)))


def _same(found: dict[str, Any], config: TrainConfig, path: Path) -> dict[str, Any]:
    if found["config"] != asdict(config):
        raise ValueError(f"{str(path)!r} holds a run of another configuration; give another --out")
    return found


if __name__ == "__main__":
    tyro.cli(equal)
