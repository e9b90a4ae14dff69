"""Training: one loop, a generator, whose caller owns the progress bar, the pictures and the stop.

Everything random in step n is a function of the seed and n alone: which images, which times, which
noise. So a run that was stopped and resumed is, bit for bit on a CPU, the run that never stopped; and
processes that take a part of the batch each make the same step as one that takes all of it.
Source: Ho et al. (2020), algorithm 1; times stratified over the batch as in Kingma et al. (2021), I.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .data import Images, to_unit
from .denoiser import denoising_loss
from .run import PRECISIONS, Run, TrainConfig
from .seeds import generator_for

__all__ = ["Run", "TrainConfig", "TrainStep", "train"]


class TrainStep(NamedTuple):
    """What a step of training left behind.

    Attributes:
        step: how many steps have been made, 1 after the first.
        loss: this step's loss, the mean over all processes, a scalar.
    """

    step: int
    loss: Tensor


def train(run: Run, images: Images, loss_of: Callable[..., Tensor] = denoising_loss) -> Iterator[TrainStep]:
    """Train until the run's configuration says it is done; stop whenever you like.

    Args:
        run: a new `Run(denoiser, config)`, or `Run.resume(folder)`.
        images: what to learn, with the network's number of channels; they may lie on the run's device.
        loss_of: what to minimise; takes what `denoising_loss` takes.

    Yields:
        One `TrainStep` after each optimiser step; the run is whole at that moment and can be saved.

    Raises:
        ValueError: if the images don't fit the network, or the loss is no longer a finite number.
    """
    config = run.config
    weights: list[Tensor] = list(run.denoiser.parameters())
    averages: list[Tensor] = list(run.ema.parameters())
    run.denoiser.train()
    while run.step < config.steps:
        loss = _gradients(run, images, loss_of)
        if not math.isfinite(value := loss.item()):
            raise ValueError(f"the loss became {value} in step {run.step + 1}: a lower learning rate may help")
        run.scaler.unscale_(run.optimizer)
        torch.nn.utils.clip_grad_norm_(weights, config.clip_norm)
        for group in run.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(run.step)
        run.scaler.step(run.optimizer)
        run.scaler.update()
        run.optimizer.zero_grad()

        decay = min(config.ema_decay, (1 + run.step) / (10 + run.step))  # short at first: forget the start
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 - decay)
        run.step += 1
        run.losses.append(value)
        yield TrainStep(run.step, loss)


def _gradients(run: Run, images: Images, loss_of: Callable[..., Tensor]) -> Tensor:
    """Put the gradient of the batch's mean loss into the weights; the loss, on the CPU."""
    device, slices = run.accelerator.device, run.config.accumulate
    dtype, total = PRECISIONS[run.config.precision], torch.zeros((), device=device)
    for n, (x0, t, eps, labels) in enumerate(_slices(run, images)):
        last = n == slices - 1
        with nullcontext() if last else run.accelerator.no_sync(run.parallel.net):
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                loss = loss_of(run.parallel, x0, t, eps, labels, min_snr=run.config.min_snr) / slices
            total += loss.detach()
            if last:  # asked for before the last backward pass, so that a GPU doesn't wait for the answer
                reading = _reading(run.accelerator.reduce(total, "mean"))
            run.scaler.scale(loss).backward()
    return reading()


def _slices(run: Run, images: Images) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    """This process's part of the step's batch, slice by slice: images, times, noise and labels.

    All processes draw all of the batch's randomness, so that it doesn't depend on how many they are.
    """
    config, accelerator, size = run.config, run.accelerator, run.config.batch_size
    batch, generator = _batch(len(images), run.step, config), generator_for(config.seed, "noise", run.step)
    t = (torch.arange(1, size + 1) - torch.rand((), generator=generator)) / size
    eps = torch.randn(size, *images.pixels.shape[1:], generator=generator)
    labels = None
    if classes := run.denoiser.net.config.classes:
        forget = torch.rand(size, generator=generator) < config.drop_labels
        labels = torch.where(forget, classes, images.labels[batch])
    mirror = torch.rand(size, generator=generator) < 0.5 if images.flips else None

    part = size // (accelerator.num_processes * config.accumulate)
    for n in range(config.accumulate):
        first = (accelerator.process_index * config.accumulate + n) * part
        own = slice(first, first + part)
        pixels = images.pixels[batch[own]]
        if mirror is not None:
            flipped = mirror[own].to(pixels.device)[:, None, None, None]
            pixels = torch.where(flipped, pixels.flip(-1), pixels)
        x0 = to_unit(_sent(pixels, accelerator.device))
        yield x0, t[own], _sent(eps[own], accelerator.device), None if labels is None else labels[own]


def _batch(count: int, step: int, config: TrainConfig) -> Tensor:
    """The images of a step: one shuffled pass over all of them after another, shape (batch_size,)."""
    start = step * config.batch_size
    epochs = range(start // count, (start + config.batch_size - 1) // count + 1)
    parts = []
    for epoch in epochs:
        first = start - epoch * count
        parts.append(_shuffled(count, config.seed, epoch)[max(0, first) : first + config.batch_size])
    return torch.cat(parts)


@lru_cache(maxsize=2)
def _shuffled(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=generator_for(seed, "order", epoch))


def _sent(x: Tensor, device: torch.device) -> Tensor:
    """`x` on the device; from pinned memory a GPU takes it without keeping the program waiting."""
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def _reading(value: Tensor) -> Callable[[], Tensor]:
    """Send a scalar to the CPU while a GPU goes on with other work; call the result to wait for it."""
    if not value.is_cuda:
        return value.cpu
    copy, copied = value.to("cpu", non_blocking=True), torch.cuda.Event()
    copied.record()

    def wait() -> Tensor:
        copied.synchronize()
        return copy

    return wait
