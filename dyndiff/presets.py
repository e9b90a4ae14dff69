"""Named networks: four scales, and at each the same seven ways to fill one skeleton.

- `unet-*`, residual blocks: the standard DDPM U-Net, at `paper` scale the baseline of Calvo-Ordonez et al. (2024)
- `cunet-*`, second-order ODEs: the continuous U-Net, fewer and narrower blocks with weights shared over solver steps
- `thin-*`, residual blocks; a control: the U-Net, narrowed to the cunet's parameters
- `tied-*`, tied residual steps; a control: the cunet without its ODE, with as many evaluations and so its FLOPs
- `ode1-*`, first-order ODEs; a control: the cunet without its velocity
- `blind-*`, second-order ODEs; a control: the cunet without the diffusion time
- `papercode-*`, the released code's blocks; a control: first order, without time, one step of RK4
"""

from __future__ import annotations

from dataclasses import replace

from .unet import UNet, UNetConfig


def _family(
    scale: str, unet: UNetConfig, cunet: UNetConfig, thin: tuple[int, ...], released: tuple[int, ...]
) -> dict[str, UNetConfig]:
    """The seven networks of a scale: two, and the controls that follow from them and from two sets of widths."""
    return {
        f"unet-{scale}": unet,
        f"cunet-{scale}": cunet,
        f"thin-{scale}": replace(unet, widths=thin),
        f"tied-{scale}": replace(cunet, block="tied"),
        f"ode1-{scale}": replace(cunet, block="first_order", method="euler"),
        f"blind-{scale}": replace(cunet, time=False),
        f"papercode-{scale}": replace(
            _one_block_a_level(unet, released),
            block="released", method="rk4", time=False, attention=(len(released) - 2,),
        ),
    }  # fmt: skip


def _one_block_a_level(unet: UNetConfig, widths: tuple[int, ...]) -> UNetConfig:
    """A smaller skeleton: a block a level each way, one in the middle, attention beside it."""
    coarsest = len(widths) - 1
    return replace(unet, widths=widths, depth=(1,) * coarsest + (0,), middle=1, attention=(coarsest,))


def _continuous(unet: UNetConfig, widths: tuple[int, ...]) -> UNetConfig:
    """One dynamic block a level; two steps at the coarsest, where they are cheap."""
    return replace(_one_block_a_level(unet, widths), block="dynamic", steps=(1,) * (len(widths) - 1) + (2,))


DIGITS = UNetConfig(channels=1, size=16, widths=(16, 32, 64), depth=1, attention=(2,))
MNIST = UNetConfig(channels=1, size=28, widths=(16, 32, 72), depth=2, attention=(2,))
CIFAR10 = UNetConfig(channels=3, size=32, widths=(32, 64, 128, 256), depth=(3, 2, 2, 1), attention=(3,))
PAPER = UNetConfig(channels=3, size=64, widths=(64, 128, 256, 512), depth=(3, 2, 2, 1), attention=(3,))

PRESETS = {
    **_family("digits", DIGITS, _continuous(DIGITS, (8, 20, 40)), (8, 12, 24), (4, 16, 40)),
    **_family("mnist", MNIST, _continuous(MNIST, (16, 28, 40)), (4, 12, 24), (8, 16, 64)),
    **_family("cifar10", CIFAR10, _continuous(CIFAR10, (24, 56, 96, 160)), (12, 24, 48, 96), (16, 32, 64, 128, 240)),
    **_family("paper", PAPER, _continuous(PAPER, (48, 112, 192, 320)), (24, 48, 96, 192), (32, 64, 128, 256, 480)),
}
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
