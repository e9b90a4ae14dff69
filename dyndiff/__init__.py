"""Diffusion models whose denoiser is a continuous dynamical system: the book's library.

Read it in this order: `schedules`, `denoiser`, `samplers`, `ode`, `unet`, `train`.
"""

from .blocks import DynamicBlock, ResBlock
from .data import DATASETS, Images, load_images, to_bytes, to_unit
from .denoiser import Denoiser, bundled, denoising_loss, perturb
from .flow import decode, encode, pf_ode
from .presets import PRESETS, create_model
from .samplers import ancestral, ddim, dpmpp_2m, euler_maruyama, heun
from .sampling import SAMPLERS, clamped, guided, inpainting, sample, slerp
from .schedules import SCHEDULES, Schedule, cosine, linear, sigmoid, zero_terminal_snr
from .train import Run, TrainConfig, train
from .unet import UNet, UNetConfig

__version__ = "0.1.0"

__all__ = [
    "DATASETS", "PRESETS", "SAMPLERS", "SCHEDULES",
    "Denoiser", "DynamicBlock", "Images", "ResBlock", "Run", "Schedule", "TrainConfig", "UNet", "UNetConfig",
    "ancestral", "bundled", "clamped", "cosine", "create_model", "ddim", "decode", "denoising_loss", "dpmpp_2m",
    "encode", "euler_maruyama", "guided", "heun", "inpainting", "linear", "load_images", "perturb", "pf_ode",
    "sample", "sigmoid", "slerp", "to_bytes", "to_unit", "train", "zero_terminal_snr",
]  # fmt: skip
