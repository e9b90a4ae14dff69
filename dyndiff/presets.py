"""Named networks: a size and a block, chosen so that names that differ in one word differ in one thing."""

from __future__ import annotations

from .unet import UNet, UNetConfig

PRESETS = {
    "unet-digits": UNetConfig(channels=1, size=16, widths=(16, 32, 64), depth=1, attention=(2,)),
    "cunet-digits": UNetConfig(channels=1, size=16, widths=(8, 24, 32), depth=1, attention=(2,), block="dynamic"),
    "unet-mnist": UNetConfig(channels=1, size=28, widths=(16, 32, 72), depth=2, attention=(2,)),
}
"""`unet-*` is the standard DDPM U-Net, `cunet-*` the continuous one: another block, narrower, nothing else."""


def create_model(name: str) -> UNet:
    """Build a named network with fresh weights.

    Raises:
        ValueError: on a name that is not in `PRESETS`.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; choose from {', '.join(PRESETS)}")
    return UNet(PRESETS[name])
