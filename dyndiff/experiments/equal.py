"""Which denoiser learns more from the same? The networks of a scale, at equal steps and at equal FLOPs.

    python -m dyndiff.experiments.equal digits --out runs/equal-digits

Each network is trained with the same data, noise, optimiser and seeds; the U-Net and the thin one once more, for
as many steps as spend the cunet's training FLOPs. Beside the presets stand two: `wide`, the cunet at the abstract's
promise of 25% of the U-Net's parameters and 30% of its FLOPs, and `distilled`, the cunet taught by the U-Net
that was trained before it. A finished run is a JSON file in the folder, and its model a folder beside it: what
is there is not run again, so that the command can be stopped and repeated, with more seeds or samples too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
import tyro
from torch import Tensor

from ..data import Images, load_images, to_unit
from ..denoiser import Denoiser, denoising_loss, perturb
from ..files import output_folder, read_json
from ..presets import PRESETS
from ..profile import count_flops, count_parameters
from ..progress import progress_bar
from ..records import provenance, write_record
from ..sampling import sample
from ..schedules import cosine, expand
from ..seeds import generator_for
from ..train import Run, TrainConfig, train
from ..unet import UNet, UNetConfig
from .quality import quality

KINDS = ("unet", "cunet", "thin", "tied", "ode1", "blind", "papercode", "wide", "distilled")
MATCHED = ("unet", "thin")
"""Trained at the cunet's FLOPs too: the one makes fewer steps, the other more. `tied` and `ode1` have its FLOPs."""

WIDE = {"digits": (8, 16, 24), "mnist": (12, 24, 32), "cifar10": (28, 48, 72, 96), "paper": (56, 88, 152, 176)}
"""Widths that spend up to 25% of the parameters and 30% of the FLOPs."""


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


def network(kind: str, scale: str) -> UNetConfig:
    """What a kind of network is at a scale."""
    cunet = PRESETS[f"cunet-{scale}"]
    others = {"wide": replace(cunet, widths=WIDE[scale]), "distilled": cunet}
    return others[kind] if kind in others else PRESETS[f"{kind}-{scale}"]


def distillation(teacher: Denoiser) -> Callable[..., Tensor]:
    """The loss of a student that hears the data and a teacher alike (Hinton et al., 2015, section 2).

    The middle between the image's own `v` and the teacher's prediction is to be met: up to a constant, half
    the squared distance to the one and half that to the other. The teacher says what the data say on
    average, and so there is less noise to learn from.
    """

    def loss(student: Denoiser, x0: Tensor, t: Tensor, eps: Tensor, labels: Tensor | None, **options: Any) -> Tensor:
        alpha, sigma = (expand(part(t), x0) for part in (student.schedule.alpha, student.schedule.sigma))
        x = perturb(student.schedule, x0, t, eps)
        with torch.no_grad():
            told = teacher.net(x, t)
        return (student.net(x, t) - 0.5 * (alpha * eps - sigma * x0 + told)).square().mean()

    return loss


def train_network(
    name: str,
    net: UNet,
    config: TrainConfig,
    train_set: Images,
    test_set: Images,
    loss_of: Callable[..., Tensor] = denoising_loss,
) -> tuple[Denoiser, dict[str, Any]]:
    """Train a network and say how well it denoises on the way.

    Returns:
        The averaged model; and the network's costs, the loss on training images in the end, and `curve`: steps,
        training FLOPs and validation losses at ten moments.
    """
    flops = _flops(net)
    run, curve = Run(Denoiser(net, cosine(), "v"), config), []
    moments = {round(config.steps * part / 10) for part in range(1, 11)}
    with progress_bar(f"{name}, seed {config.seed}", config.steps, unit="step") as bar:
        for step in train(run, train_set, loss_of):
            bar.update()
            if step.step in moments:
                spent = 3 * flops * config.batch_size * step.step  # forwards, and twice that backwards
                curve.append({"step": step.step, "flops": spent, **validation_loss(run.ema, test_set)})
    costs = {"params": count_parameters(net), "flops": flops}
    return run.ema, {"name": name, **costs, "training": validation_loss(run.ema, train_set), "curve": curve}


def draw(denoiser: Denoiser, count: int, seed: int, test_set: Images) -> dict[str, Any]:
    """Sample with DPM-Solver++ 2M and say how good the samples are."""
    settings: dict[str, Any] = {"sampler": "dpmpp_2m", "steps": 15}
    with progress_bar("sampling", count * settings["steps"], unit="call") as bar:
        images = sample(denoiser, count, **settings, seed=seed, progress=bar.update)
    return {"count": count, **settings, **quality(images, test_set)}


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
    learning_rate: float = 8e-3,
    samples: int = 10_000,
) -> None:
    """Train the networks of a scale at equal steps, two of them at equal FLOPs too; record all of it.

    Args:
        scale: digits, mnist, cifar10 or paper: the end of the presets' names.
        out: the folder for a JSON file and a model a run, and `equal.json` with all that is known of them.
        data: the data set; by default the scale's name.
        data_dir: the folder that holds it, if it doesn't come with the package.
        kinds: the networks, by the beginning of the presets' names, and `wide` and `distilled`.
        seeds: runs of each, with seeds 0, 1, ...
        steps: optimiser steps of each run.
        batch_size, learning_rate: the same for all.
        samples: images drawn from each model, where a classifier knows the data; 0 to draw none yet.
    """
    if f"unet-{scale}" not in PRESETS:
        raise ValueError(f"unknown scale {scale!r}; choose from digits, mnist, cifar10, paper")
    if other := sorted(set(kinds) - set(KINDS)):
        raise ValueError(f"unknown kind {other[0]!r}; choose from {', '.join(KINDS)}")
    folder, size = output_folder(out), PRESETS[f"unet-{scale}"].size
    train_set, test_set = (load_images(data or scale, split, size, data_dir) for split in ("train", "test"))
    spent = {kind: _flops(UNet(network(kind, scale))) for kind in ("cunet", *MATCHED)}
    matched = {kind: round(steps * spent["cunet"] / spent[kind]) for kind in MATCHED if kind in kinds}
    plan = [(kind, steps) for kind in kinds] + list(matched.items())
    runs = []
    for seed in range(seeds):
        for kind, count in plan:
            config = TrainConfig(steps=count, batch_size=batch_size, learning_rate=learning_rate, seed=seed)
            path = folder / f"{kind}-{count}-steps-seed-{seed}.json"
            model = path.with_suffix("")
            if not path.exists():
                loss_of = denoising_loss
                if kind == "distilled":
                    loss_of = distillation(Denoiser.load(folder / f"unet-{steps}-steps-seed-{seed}"))
                torch.manual_seed(seed)  # the initial weights
                net = UNet(network(kind, scale))
                trained, result = train_network(f"{kind}-{scale}", net, config, train_set, test_set, loss_of)
                trained.save(model)
                write_record(path, {**result, "config": asdict(config)})
            run = _same(read_json(path), config, path)
            if samples and run.get("samples", {}).get("count") != samples:
                run["samples"] = {**draw(Denoiser.load(model), samples, seed, test_set), "measured": provenance()}
                write_record(path, run)
            runs.append(run)
    record: dict[str, Any] = {"scale": scale, "data": data or scale, "matched_steps": matched, "runs": runs}
    record["table"] = table(runs)
    if samples:
        record["real"] = quality(to_unit(train_set.pixels[:samples]), test_set)
    write_record(folder / "equal.json", record)
    for row in record["table"]:
        print("  ".join(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()))


def table(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each network and number of steps: means over the seeds, and half-widths of 95% intervals."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["name"], run["config"]["steps"]), []).append(run)
    rows = []
    for (name, steps), group in groups.items():
        row = {
            "name": name,
            "steps": steps,
            "params": group[0]["params"],
            "flops": group[0]["flops"],
            "seeds": len(group),
        }
        for measure, values in _measures(group).items():
            row[measure], row[f"{measure}_95"] = fmean(values), half_width(values)
        rows.append(row)
    return rows


def _measures(group: list[dict[str, Any]]) -> dict[str, list[float]]:
    found = {loss: [run["curve"][-1][loss] for run in group] for loss in ("v", "eps")}
    if all("samples" in run for run in group):
        found["frechet"] = [run["samples"]["frechet"] for run in group]
    return found


def half_width(values: list[float]) -> float | None:
    """Of Student's 95% interval of the mean; None where 2 to 10 values are not given."""
    student = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
    return student[len(values)] * stdev(values) / len(values) ** 0.5 if len(values) in student else None


def _flops(net: UNet) -> int:
    shape = (1, net.config.channels, net.config.size, net.config.size)
    return count_flops(net, (torch.zeros(shape), torch.ones(1)))


def _same(found: dict[str, Any], config: TrainConfig, path: Path) -> dict[str, Any]:
    if found["config"] != asdict(config):
        raise ValueError(f"{str(path)!r} holds a run of another configuration; give another --out")
    return found


if __name__ == "__main__":
    tyro.cli(equal)
