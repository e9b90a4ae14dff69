r"""The denoiser: a network, a schedule, and what the network is asked to predict.

$$x_t = \alpha x_0 + \sigma \epsilon, \qquad
L_{\text{simple}} = \mathbb E_{t, x_0, \epsilon}\,\lVert y - \mathrm{net}(x_t, t)\rVert^2,
\qquad y \in \{\epsilon,\; x_0,\; v = \alpha\epsilon - \sigma x_0\}.$$

Source: Ho et al. (2020), equations 4 and 14; Salimans and Ho (2022), section 4 and appendix D, for `v`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from .files import check_manifest, newest_checkpoint, output_folder, read_json, read_tensors, write_json, write_tensors
from .schedules import SCHEDULES, Schedule, create_schedule, expand
from .unet import UNet, UNetConfig

Denoise = Callable[[Tensor, Tensor], Tensor]
"""What a sampler needs: `(x_t (B, C, H, W), t (B,)) -> x0 (B, C, H, W)`, an estimate of the clean image."""

TARGETS = ("eps", "x0", "v")

BUNDLED = Path(__file__).parent / "checkpoints"
"""Trained models that come with the package, a folder each, loaded by the folder's name."""


class Denoiser(nn.Module):
    """A network that has been told what its output means.

    Called with a noisy batch and its times, it returns the estimate of the clean images, whatever the
    network itself predicts: samplers need to know nothing more.

    Args:
        net: the network, `(x (B, C, H, W), t (B,) in [0, 1]) -> (B, C, H, W)`. Training and calling
            ask no more of it; `save` and `sample` also read a `UNet`'s configuration.
        schedule: how much noise there is at time t.
        target: what the network predicts: "eps" (the noise), "x0" (the clean image), "v" (their mix).

    Raises:
        ValueError: on an unknown target.
    """

    def __init__(self, net: UNet, schedule: Schedule, target: str = "v") -> None:
        super().__init__()
        if target not in TARGETS:
            raise ValueError(f"unknown target {target!r}; choose from {', '.join(TARGETS)}")
        self.net, self.schedule, self.target = net, schedule, target

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Estimate the clean images.

        Args:
            x: noisy images at time t, shape (B, C, H, W).
            t: diffusion times in (0, 1], shape (B,).
            labels: for a class-conditional network, int64 of shape (B,).

        Returns:
            x0, shape (B, C, H, W), about in [-1, 1].
        """
        alpha, sigma = expand(self.schedule.alpha(t), x), expand(self.schedule.sigma(t), x)
        prediction = _ask(self.net, x, t, labels)
        if self.target == "eps":
            return (x - sigma * prediction) / alpha
        if self.target == "x0":
            return prediction
        return alpha * x - sigma * prediction

    def save(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into a folder, which is made if need be.

        Raises:
            ValueError: if the folder can't be written to, or the network isn't a `UNet` under one of
                `SCHEDULES`, so that a configuration could not describe it.
        """
        schedule = {"name": self.schedule.name, "steps": self.schedule.steps}
        if not isinstance(self.net, UNet) or not _is_named(self.schedule):
            raise ValueError("only a UNet under a schedule from SCHEDULES can be saved with its configuration")
        folder = output_folder(folder)
        write_tensors(folder / "model.safetensors", self.net.state_dict())
        net = {"net": self.net.config.to_dict(), "schedule": schedule, "target": self.target}
        write_json(folder / "config.json", net)

    @classmethod
    def load(cls, source: str | Path) -> Denoiser:
        """Read a saved model.

        Args:
            source: a folder written by `save`, a training run's folder (its newest checkpoint is
                taken), or the name of a bundled model.

        Raises:
            ValueError: if there is none, or its files are damaged or don't belong together.
        """
        folder = _locate(source)
        check_manifest(folder, "config.json", "model.safetensors")
        config, weights = read_json(folder / "config.json"), read_tensors(folder / "model.safetensors")
        try:
            settings = UNetConfig.from_dict(config["net"])
            _check_weights(settings, weights)
            denoiser = cls(UNet(settings), create_schedule(**config["schedule"]), config["target"])
            denoiser.net.load_state_dict(weights)
        except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"the model in {str(folder)!r} is damaged or not one of dyndiff's: {reason}") from None
        return denoiser.eval()


def bundled() -> list[str]:
    """The names of the trained models that come with the package."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/config.json"))


def _locate(source: str | Path) -> Path:
    folder = Path(source)
    for candidate in (folder, newest_checkpoint(folder), BUNDLED / str(source)):
        if candidate is not None and (candidate / "config.json").is_file():
            return candidate
    raise ValueError(
        f"no model {str(source)!r}: give a folder that holds a config.json, a training run's folder, "
        f"or one of {', '.join(bundled())}"
    )


def _check_weights(config: UNetConfig, weights: dict[str, Tensor]) -> None:
    """Raise ValueError unless a file's weights are the network's, before one too large fills the memory."""
    blocks = 2 * sum(config.depths) + config.middle
    if blocks > len(weights):
        raise ValueError(f"{blocks} blocks can't be made of {len(weights)} weights")
    with torch.device("meta"):  # shapes alone
        shapes = {name: value.shape for name, value in UNet(config).state_dict().items()}
    if wrong := [name for name in shapes if name not in weights or weights[name].shape != shapes[name]]:
        raise ValueError(f"its weights are another network's, such as {wrong[0]}")


def _is_named(schedule: Schedule) -> bool:
    return schedule.name in SCHEDULES and schedule == create_schedule(schedule.name, schedule.steps)


def perturb(schedule: Schedule, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Noise clean images to time t in one go (Ho et al., equation 4).

    Args:
        x0, eps: clean images and standard normal noise, both (B, C, H, W).
        t: diffusion times in [0, 1], shape (B,).

    Returns:
        x_t, shape (B, C, H, W).
    """
    return expand(schedule.alpha(t), x0) * x0 + expand(schedule.sigma(t), x0) * eps


def denoising_loss(
    denoiser: Denoiser,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    labels: Tensor | None = None,
    *,
    min_snr: float | None = None,
) -> Tensor:
    """L_simple: the mean squared error of the network's own target (Ho et al., equation 14).

    Args:
        x0: clean images in [-1, 1], shape (B, C, H, W).
        t: diffusion times in (0, 1], shape (B,).
        eps: standard normal noise, shape (B, C, H, W).
        labels: for a class-conditional network, int64 of shape (B,).
        min_snr: weigh the error of x0 by min(SNR, this) in place of the SNR: Hang et al. (2023), section
            3.3 (they take 5; None leaves it out). Easy, almost clean images then count less.

    Returns:
        A scalar; 1 for a network that returns 0 under "eps", and near it under "v".
    """
    schedule = denoiser.schedule
    alpha, sigma = expand(schedule.alpha(t), x0), expand(schedule.sigma(t), x0)
    wanted = {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0}[denoiser.target]
    prediction = _ask(denoiser.net, perturb(schedule, x0, t, eps), t, labels)
    error = (prediction - wanted).square().flatten(1).mean(1)  # (B,)
    if min_snr is not None:
        error = error * _min_snr_weight(schedule, denoiser.target, t, min_snr).to(error)
    return error.mean()


def _min_snr_weight(schedule: Schedule, target: str, t: Tensor, most: float) -> Tensor:
    """What turns each target's error into min(SNR, most) times that of x0, shape (B,)."""
    snr = schedule.log_snr(t).exp()
    return snr.clamp(max=most) / {"eps": snr, "x0": torch.ones_like(snr), "v": snr + 1}[target]


def _ask(net: UNet, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    """The network's output; its clock keeps at least float32, whatever the images are in."""
    t = t.to(device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
    return net(x, t) if labels is None else net(x, t, labels)
