"""Diffusion models whose denoiser is a continuous dynamical system: the book's library.

Read it in this order: `schedules`, `denoiser`, `samplers`, `ode`, `unet`, `train`.
"""

from .data import DATASETS, Images, load_images, to_bytes, to_unit
from .denoiser import Denoiser, bundled, denoising_loss, perturb
from .presets import PRESETS, create_model
from .samplers import SAMPLERS, ancestral, clamped, ddim, sample
from .schedules import SCHEDULES, Schedule, cosine, linear, sigmoid
from .train import Run, TrainConfig, train
from .unet import DynamicBlock, ResBlock, UNet, UNetConfig

__version__ = "0.1.0"

__all__ = [
    "DATASETS", "PRESETS", "SAMPLERS", "SCHEDULES",
    "Denoiser", "DynamicBlock", "Images", "ResBlock", "Run", "Schedule", "TrainConfig", "UNet", "UNetConfig",
    "ancestral", "bundled", "clamped", "cosine", "create_model", "ddim", "denoising_loss", "linear",
    "load_images", "perturb", "sample", "sigmoid", "to_bytes", "to_unit", "train",
]  # fmt: skip
