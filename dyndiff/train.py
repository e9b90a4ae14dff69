"""Training: one loop, a generator, whose caller owns the progress bar, the pictures and the stop.

Everything random in step n is a function of the seed and n alone: which images, which times, which
noise. So a run that was stopped and resumed is, bit for bit on a CPU, the run that never stopped.
Source: Ho et al. (2020), algorithm 1; times stratified over the batch as in Kingma et al. (2021), I.1.
"""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .data import Images, to_unit
from .denoiser import Denoiser, denoising_loss
from .files import (
    checkpoints,
    newest_checkpoint,
    output_folder,
    read_json,
    read_tensors,
    replacing_folder,
    write_json,
    write_tensors,
)
from .seeds import generator_for


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        steps: optimiser steps in all.
        batch_size: images a step.
        learning_rate: of Adam, at the end of the warm-up; it then falls to 0 along a cosine.
        warmup: steps over which the learning rate rises; they keep the first updates, made with
            Adam's still empty moments, small.
        clip_norm: gradients longer than this are scaled down to it: one bad batch can't undo the rest.
        ema_decay: weights are averaged over about 1 / (1 - ema_decay) steps; the average is the model.
        min_snr: weigh the loss of almost clean images down; see `denoising_loss`. None: L_simple.
        drop_labels: share of the labels that a class-conditional network is not told, so that it can
            also do without (Ho and Salimans, 2022, algorithm 1).
        seed: of the order of the images, the times and the noise.
    """

    steps: int = 1200
    batch_size: int = 64
    learning_rate: float = 8e-3
    warmup: int = 100
    clip_norm: float = 1.0
    ema_decay: float = 0.995
    min_snr: float | None = None
    drop_labels: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")
        if self.min_snr is not None and not self.min_snr > 0:
            raise ValueError(f"min_snr must be positive, got {self.min_snr}")
        if not 0 <= self.drop_labels <= 1:
            raise ValueError(f"drop_labels must lie in [0, 1], got {self.drop_labels}")
        if self.seed < 0:
            raise ValueError(f"a seed must not be negative, got {self.seed}")

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step 0, 1, ..."""
        rise = min(1.0, (step + 1) / max(1, min(self.warmup, self.steps // 2)))
        return self.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * step / self.steps))


class TrainStep(NamedTuple):
    """What a step of training left behind.

    Attributes:
        step: how many steps have been made, 1 after the first.
        loss: this step's loss, a scalar on the training device (reading it waits for the device).
    """

    step: int
    loss: Tensor


class Run:
    """All that a training run is: the denoiser, its average, the optimiser, and how far it has come.

    Attributes:
        denoiser: the weights being trained.
        ema: their moving average: the model to sample from.
        step: optimiser steps made.
        losses: one number a step.
    """

    def __init__(self, denoiser: Denoiser, config: TrainConfig) -> None:
        from accelerate import Accelerator  # imported here: reading a checkpoint needs none of it

        self.config = config
        self.accelerator = Accelerator()
        self.denoiser = denoiser.to(self.accelerator.device)
        self.ema = copy.deepcopy(self.denoiser).eval().requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.denoiser.parameters(), lr=config.learning_rate, betas=(0.9, 0.99))
        self.step = 0
        self.losses: list[float] = []

    def save(self, folder: str | Path) -> Path:
        """Write a checkpoint, `folder/step-NNNNNN`, then remove the one before it.

        It holds the averaged model, as `Denoiser.save` writes it, and what `resume` needs.
        """
        folder = output_folder(folder)
        old = checkpoints(folder)
        path = folder / f"step-{self.step:06d}"
        with replacing_folder(path) as staged:
            self.ema.save(staged)
            write_tensors(staged / "training.safetensors", self._tensors())
            write_json(staged / "training.json", {"config": asdict(self.config), "losses": self.losses})
        for checkpoint in old:
            if checkpoint != path:
                shutil.rmtree(checkpoint)
        return path

    @classmethod
    def resume(cls, folder: str | Path) -> Run:
        """Go on from the newest checkpoint in a folder.

        Raises:
            ValueError: if there is none, or its files are damaged or don't belong together.
        """
        path = newest_checkpoint(folder)
        if path is None:
            raise ValueError(f"no checkpoint to resume in {str(folder)!r}")
        denoiser, saved = Denoiser.load(path), read_json(path / "training.json")
        tensors = read_tensors(path / "training.safetensors")
        try:
            run = cls(denoiser, TrainConfig(**saved["config"]))
            run.losses = [float(loss) for loss in saved["losses"]]
            run.step = len(run.losses)
            if path.name != f"step-{run.step:06d}":
                raise ValueError(f"it holds {run.step} losses")
            run._load_tensors(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"the checkpoint {str(path)!r} is damaged: {reason}") from None
        return run

    def require(self, config: TrainConfig) -> None:
        """Raise ValueError, naming what differs, unless the run was started with this configuration."""
        mine, other = asdict(self.config), asdict(config)
        if different := [
            f"{name} = {mine[name]} (asked for: {other[name]})" for name in mine if mine[name] != other[name]
        ]:
            raise ValueError(f"the run to go on with has {', '.join(different)}; give another folder to start anew")

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"net.{name}": value for name, value in self.denoiser.net.state_dict().items()}
        for name, parameter in self.denoiser.net.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"adam.{key}.{name}"] = value
        return tensors

    def _load_tensors(self, tensors: dict[str, Tensor]) -> None:
        net = self.denoiser.net
        net.load_state_dict({name[4:]: value for name, value in tensors.items() if name.startswith("net.")})
        if self.step == 0:
            return  # Adam has no moments yet
        state = self.optimizer.state_dict()
        for index, (name, parameter) in enumerate(net.named_parameters()):
            moments = {key: tensors[f"adam.{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            for key in ("exp_avg", "exp_avg_sq"):
                if moments[key].shape != parameter.shape:
                    raise ValueError(f"adam.{key}.{name} has shape {tuple(moments[key].shape)}")
                moments[key] = torch.empty_like(parameter).copy_(moments[key])  # in the weight's memory format
            state["state"][index] = moments
        self.optimizer.load_state_dict(state)


def train(run: Run, images: Images, loss_of: Callable[..., Tensor] = denoising_loss) -> Iterator[TrainStep]:
    """Train until the run's configuration says it is done; stop whenever you like.

    Args:
        run: a new `Run(denoiser, config)`, or `Run.resume(folder)`.
        images: what to learn, with the network's number of channels.
        loss_of: what to minimise; takes what `denoising_loss` takes.

    Yields:
        One `TrainStep` after each optimiser step; the run is whole at that moment and can be saved.

    Raises:
        ValueError: if the images don't fit the network, or the loss is no longer a finite number.
    """
    config, denoiser, device = run.config, run.denoiser, run.accelerator.device
    weights: list[Tensor] = list(denoiser.parameters())
    averages: list[Tensor] = list(run.ema.parameters())
    denoiser.train()
    while run.step < config.steps:
        generator = generator_for(config.seed, "noise", run.step)
        batch = _batch(len(images), run.step, config)
        x0 = to_unit(images.pixels[batch]).to(device)
        t = (torch.arange(1, config.batch_size + 1) - torch.rand((), generator=generator)) / config.batch_size
        eps = torch.randn(x0.shape, generator=generator).to(device)

        labels = None
        if classes := denoiser.net.config.classes:
            forget = torch.rand(config.batch_size, generator=generator) < config.drop_labels
            labels = torch.where(forget, classes, images.labels[batch])

        loss = loss_of(denoiser, x0, t, eps, labels, min_snr=config.min_snr)
        if not math.isfinite(value := loss.item()):
            raise ValueError(f"the loss became {value} in step {run.step + 1}: a lower learning rate may help")
        run.accelerator.backward(loss)
        torch.nn.utils.clip_grad_norm_(weights, config.clip_norm)
        for group in run.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(run.step)
        run.optimizer.step()
        run.optimizer.zero_grad()

        decay = min(config.ema_decay, (1 + run.step) / (10 + run.step))  # short at first: forget the start
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 - decay)
        run.step += 1
        run.losses.append(value)
        yield TrainStep(run.step, loss.detach())


def _batch(count: int, step: int, config: TrainConfig) -> Tensor:
    """The images of a step: one shuffled pass over all of them after another, shape (batch_size,)."""
    start = step * config.batch_size
    epochs = range(start // count, (start + config.batch_size - 1) // count + 1)
    shuffles = [generator_for(config.seed, "order", epoch) for epoch in epochs]
    order = torch.cat([torch.randperm(count, generator=shuffle) for shuffle in shuffles])
    return order[start - epochs[0] * count :][: config.batch_size]
