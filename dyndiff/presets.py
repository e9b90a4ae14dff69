"""Named networks: four scales, and at each the same seven ways to fill one skeleton.

- `unet-*`, residual blocks: the standard DDPM U-Net, at `paper` scale the baseline of Calvo-Ordonez et al. (2024)
- `cunet-*`, second-order ODEs: the continuous U-Net, one narrower block a level each way
- `thin-*`, residual blocks; a control: the U-Net, narrowed to the cunet's parameters
- `tied-*`, two residual steps with one set of weights; a control: shared weights without an ODE, at the cunet's FLOPs
- `ode1-*`, first-order ODEs; a control: the cunet without its velocity, widened to its FLOPs; with the one
  step of Euler that this leaves it, a narrower U-Net of residual blocks
- `blind-*`, second-order ODEs; a control: the cunet without the diffusion time
- `papercode-*`, the released code's blocks; a control: first order, without time, one step of RK4
"""

from __future__ import annotations

from dataclasses import replace

from .unet import UNet, UNetConfig


def _family(
    scale: str,
    unet: UNetConfig,
    *,
    cunet: tuple[int, ...],
    thin: tuple[int, ...],
    ode1: tuple[int, ...],
    tied: tuple[int, ...],
    released: tuple[int, ...],
) -> dict[str, UNetConfig]:
    """The seven networks of a scale: the U-Net, and what follows from it and from five sets of widths."""
    continuous = replace(unet, widths=cunet, depth=1, block="dynamic")
    return {
        f"unet-{scale}": unet,
        f"cunet-{scale}": continuous,
        f"thin-{scale}": replace(unet, widths=thin),
        f"tied-{scale}": replace(continuous, widths=tied, block="tied", steps=2),
        f"ode1-{scale}": replace(continuous, widths=ode1, block="first_order", method="euler"),
        f"blind-{scale}": replace(continuous, time=False),
        f"papercode-{scale}": replace(
            unet, widths=released, depth=(1,) * (len(released) - 1) + (0,), middle=1,
            attention=(len(released) - 2,), block="released", method="rk4", time=False,
        ),
    }  # fmt: skip


DIGITS = UNetConfig(channels=1, size=16, widths=(16, 32, 64), depth=1, attention=(2,))
MNIST = UNetConfig(channels=1, size=28, widths=(16, 32, 72), depth=2, attention=(2,))
CIFAR10 = UNetConfig(channels=3, size=32, widths=(32, 64, 128, 256), depth=(3, 2, 2, 1), attention=(3,))
PAPER = UNetConfig(channels=3, size=64, widths=(64, 128, 256, 512), depth=(3, 2, 2, 1), attention=(3,))

PRESETS = {
    **_family(
        "digits", DIGITS, cunet=(8, 16, 20), thin=(8, 16, 24), ode1=(12, 16, 24), tied=(8, 12, 20),
        released=(4, 16, 40),
    ),
    **_family(
        "mnist", MNIST, cunet=(12, 20, 24), thin=(8, 16, 24), ode1=(16, 24, 32), tied=(12, 16, 24),
        released=(8, 16, 64),
    ),
    **_family(
        "cifar10", CIFAR10, cunet=(24, 40, 64, 80), thin=(12, 24, 52, 100), ode1=(32, 48, 80, 104),
        tied=(24, 36, 56, 72), released=(16, 32, 64, 128, 240),
    ),
    **_family(
        "paper", PAPER, cunet=(48, 80, 128, 160), thin=(24, 48, 96, 200), ode1=(64, 96, 160, 224),
        tied=(48, 72, 112, 144), released=(32, 64, 128, 256, 480),
    ),
}  # fmt: skip
"""A preset's name to its configuration. `papercode-paper` is 480 wide at the bottom, where the released code
has 512: our downsampling has larger 1x1 convolutions, and so both come to the same parameters and FLOPs.
Its attention sits where theirs does, a level above the bottom."""


def create_model(name: str) -> UNet:
    """Build a named network with fresh weights.

    Raises:
        ValueError: on a name that is not in `PRESETS`.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; choose from {', '.join(PRESETS)}")
    return UNet(PRESETS[name])
