"""What each network of a scale costs, in one run: `python -m dyndiff.experiments.costs paper`.

All are timed in turn, for a single image and for a batch, as written and compiled; then the continuous U-Net's
memory in training is counted for more and more solver steps, with backpropagation and with reversal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import tyro

from ..presets import PRESETS
from ..profile import table, training_peak_bytes
from ..records import RESULTS, write_record
from ..unet import UNet
from .efficiency import profile_presets
from .equal import KINDS

PRESET_KINDS = tuple(kind for kind in KINDS if f"{kind}-paper" in PRESETS)


def training_memory(preset: str, batch_size: int, steps: tuple[int, ...]) -> list[dict[str, Any]]:
    """Peak bytes of a training step of a preset, for numbers of solver steps on every level and both gradients."""
    net = UNet(PRESETS[preset])
    x = torch.randn(batch_size, net.config.channels, net.config.size, net.config.size)
    inputs, rows = (x, torch.rand(batch_size)), []
    for gradient in ("backprop", "reversible"):
        for count in steps:
            net.set_solver(gradient=gradient, steps=count)
            rows.append({"gradient": gradient, "steps": count, "bytes": training_peak_bytes(net, inputs)})
    return rows


def costs(
    scale: str,
    /,
    out: Path | None = None,
    kinds: tuple[str, ...] = PRESET_KINDS,
    batch_sizes: tuple[int, ...] = (1, 16),
    repeats: int = 15,
    compiled: tuple[bool, ...] = (False,),
    memory_steps: tuple[int, ...] = (1, 2, 4, 8, 16),
    memory_batch: int = 1,
    device: str = "cpu",
) -> None:
    """Profile the networks of a scale and write all of it into one record.

    Args:
        scale: digits, mnist, cifar10 or paper: the end of the presets' names.
        out: the record; by default costs-SCALE.json among the package's results.
        kinds: the networks, by the beginning of the presets' names; ratios are to the first.
        batch_sizes: images a call; the first is timed with four times the repeats.
        repeats: timed calls of each network.
        compiled: whether to time the networks as written, compiled, or both.
        memory_steps, memory_batch: solver steps and images of the count of memory.
        device: where to measure, such as "cuda".
    """
    if f"unet-{scale}" not in PRESETS:
        raise ValueError(f"unknown scale {scale!r}; choose from digits, mnist, cifar10, paper")
    presets, runs = [f"{kind}-{scale}" for kind in kinds], []
    for fast in compiled:
        for batch_size in batch_sizes:
            count = 4 * repeats if batch_size == batch_sizes[0] else repeats
            found = profile_presets(presets, None, batch_size, count, device=device, compiled=fast)
            print(f"{batch_size} images a call{', compiled' if fast else ''}\n{table(found)}\n", flush=True)
            profiles = [profile.to_dict() for profile in found]
            runs.append({"batch_size": batch_size, "compiled": fast, "repeats": count, "profiles": profiles})
    memory = training_memory(f"cunet-{scale}", memory_batch, memory_steps)
    path = out or RESULTS / f"costs-{scale}{'' if device == 'cpu' else f'-{device}'}.json"
    write_record(path, {"scale": scale, "runs": runs, "memory_batch": memory_batch, "memory": memory})


if __name__ == "__main__":
    tyro.cli(costs)
