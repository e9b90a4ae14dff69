"""A training run: its settings, its state, and checkpoints that hold all of it.

A checkpoint is a folder `step-NNNNNN` of safetensors and JSON that is whole or not there. Randomness needs
no place in it: what a step draws is a function of the seed and the step.
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from .denoiser import Denoiser
from .files import (
    check_manifest,
    checkpoints,
    newest_checkpoint,
    output_folder,
    read_json,
    read_tensors,
    remove_folder,
    replacing_folder,
    write_json,
    write_manifest,
    write_tensors,
)

PRECISIONS: dict[str, torch.dtype | None] = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}
"""A mixed precision's name to the type that matrix products are computed in."""

TYPES: dict[str, set[type]] = {
    "int": {int},
    "float": {int, float},
    "float | None": {int, float, type(None)},
    "str": {str},
    "bool": {bool},
}
"""A setting's declared type to what it may be."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        steps: optimiser steps in all; the learning rate reaches 0 at the last.
        batch_size: images a step, over all processes.
        learning_rate: of Adam, at the end of the warm-up; it then falls to 0 along a cosine.
        warmup: steps over which the learning rate rises; they keep the first updates, made with
            Adam's still empty moments, small.
        clip_norm: gradients longer than this are scaled down to it: one bad batch can't undo the rest.
        ema_decay: weights are averaged over about 1 / (1 - ema_decay) steps; the average is the model.
        min_snr: weigh the loss of almost clean images down; see `denoising_loss`. None: L_simple.
        drop_labels: share of the labels that a class-conditional network is not told, so that it can
            also do without (Ho and Salimans, 2022, algorithm 1).
        seed: of the order of the images, the times and the noise; from a shell, of the first weights too.
        accumulate: slices that a process cuts its part of the batch into, one after the other: the same
            gradient in less memory.
        precision: of matrix products: no (float32), fp16 (with a scaled loss) or bf16 (from Ampere GPUs on).
        compiled: whether torch.compile makes the network faster, after a minute or so.
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
    accumulate: int = 1
    precision: str = "no"
    compiled: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):  # they may come from a damaged file
            if type(value := getattr(self, field.name)) not in TYPES[str(field.type)]:
                raise ValueError(f"{field.name} must be {field.type}, got {value!r}")
        for name in ("steps", "batch_size", "accumulate"):
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
        if self.precision not in PRECISIONS:
            raise ValueError(f"unknown precision {self.precision!r}; choose from {', '.join(PRECISIONS)}")

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step 0, 1, ..."""
        rise = min(1.0, (step + 1) / max(1, min(self.warmup, self.steps // 2)))
        return self.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * step / self.steps))


class Run:
    """All that a training run is: the denoiser, its average, the optimiser, and how far it has come.

    Each of several processes (`accelerate launch`) makes the same run and trains it on its part of the batch.

    Attributes:
        denoiser: the weights being trained.
        ema: their moving average: the model to sample from.
        parallel: `denoiser`, with gradients that are averaged over the processes; what `train` calls.
        step: optimiser steps made.
        losses: one number a step.

    Raises:
        ValueError: if the batch can't be cut into equal parts, or the GPU knows no bf16.
    """

    def __init__(self, denoiser: Denoiser, config: TrainConfig) -> None:
        from accelerate import Accelerator  # imported here: reading a checkpoint needs none of it

        # Precision is the run's own business: accelerate has one for all runs of a program.
        self.accelerator = Accelerator(mixed_precision="no")
        self.config, device = config, self.accelerator.device
        _check_parts(config, self.accelerator.num_processes)
        if config.precision == "bf16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
            raise ValueError(f"{torch.cuda.get_device_name(device)} computes no bf16; choose precision fp16 or no")
        self.denoiser = denoiser.to(device)
        self.ema = copy.deepcopy(self.denoiser).eval().requires_grad_(False)
        self.parallel = self._parallel()
        self.optimizer = torch.optim.Adam(self.denoiser.parameters(), lr=config.learning_rate, betas=(0.9, 0.99))
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.step = 0
        self.losses: list[float] = []

    def _parallel(self) -> Denoiser:
        net = self.denoiser.net
        if self.config.compiled:
            net.compile()  # in place, so that the weights keep their names
        if self.accelerator.num_processes == 1:
            return self.denoiser
        return Denoiser(self.accelerator.prepare_model(net), self.denoiser.schedule, self.denoiser.target)

    def save(self, folder: str | Path, keep: int = 1) -> Path:
        """Write a checkpoint, `folder/step-NNNNNN`, then remove those before it but the last keep - 1.

        It holds the averaged model, as `Denoiser.save` writes it, and what `resume` needs. Of several
        processes the main one alone writes.
        """
        folder = output_folder(folder)
        path = folder / f"step-{self.step:06d}"
        if not self.accelerator.is_main_process:
            return path
        old = sorted(set(checkpoints(folder)) - {path}, key=lambda checkpoint: int(checkpoint.name[5:]))
        with replacing_folder(path) as staged:
            self.ema.save(staged)
            write_tensors(staged / "training.safetensors", self._tensors())
            write_json(staged / "training.json", {"config": asdict(self.config), "losses": self.losses})
            write_manifest(staged)
        for checkpoint in old[: len(old) - keep + 1]:
            remove_folder(checkpoint)
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
        check_manifest(path, "training.json", "training.safetensors")
        denoiser, saved = Denoiser.load(path), read_json(path / "training.json")
        tensors = read_tensors(path / "training.safetensors")
        try:
            run = cls(denoiser, TrainConfig(**saved["config"]))
            run.losses = [float(loss) for loss in saved["losses"]]
            run.step = len(run.losses)
            if path.name != f"step-{run.step:06d}":
                raise ValueError(f"it holds {run.step} losses")
            run._load_tensors(tensors)
        except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
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
        if self.scaler.is_enabled():
            scaler = self.scaler.state_dict()
            tensors["scaler"] = torch.tensor([scaler["scale"], scaler["_growth_tracker"]], dtype=torch.float64)
        return tensors

    def _load_tensors(self, tensors: dict[str, Tensor]) -> None:
        net = self.denoiser.net
        net.load_state_dict({name[4:]: value for name, value in tensors.items() if name.startswith("net.")})
        if self.scaler.is_enabled():
            scale, tracker = tensors["scaler"].tolist()
            self.scaler.load_state_dict({**self.scaler.state_dict(), "scale": scale, "_growth_tracker": int(tracker)})
        skipped = self.scaler.is_enabled() and not any(name.startswith("adam.") for name in tensors)
        if self.step == 0 or skipped:  # the scaler drops a step whose gradients overflow
            return  # Adam has no moments yet
        state = self.optimizer.state_dict()
        for index, (name, parameter) in enumerate(net.named_parameters()):
            moments = {}
            for key in ("step", "exp_avg", "exp_avg_sq"):
                # A copy: what was read lies in the file, which would keep its place on the disk though removed.
                place = torch.empty(()) if key == "step" else torch.empty_like(parameter)  # in its memory format
                if (value := tensors[f"adam.{key}.{name}"]).shape != place.shape:
                    raise ValueError(f"adam.{key}.{name} has shape {tuple(value.shape)}")
                moments[key] = place.copy_(value)
            state["state"][index] = moments
        self.optimizer.load_state_dict(state)


def _check_parts(config: TrainConfig, processes: int) -> None:
    if config.batch_size % (processes * config.accumulate):
        raise ValueError(f"batch_size must divide by processes x accumulate: got {config.batch_size} images for "
                         f"{processes} x {config.accumulate}")  # fmt: skip
