"""Small classifiers of digits: the eyes of the Fréchet distance, and the judges of samples.

One for the 16x16 digits and one for MNIST's 28x28; `python -m dyndiff.experiments.classifier NAME` trained
them, and its records, test accuracy included, lie beside their weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .denoiser import BUNDLED
from .files import read_tensors

CONFIDENT = 0.9
"""An image counts as a digit if one class gets more than this probability."""

FOLDERS = {16: BUNDLED / "classifier-digits", 28: BUNDLED / "classifier-mnist"}
"""The side of the images that a bundled classifier sees to where it lies."""


class DigitClassifier(nn.Module):
    """Three convolutions, and two linear layers.

    Args:
        size: the side of the images, a multiple of 4.
    """

    def __init__(self, size: int = 16) -> None:
        super().__init__()
        self.size = size
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        )  # fmt: skip
        self.hidden = nn.Linear(64 * (size // 4) ** 2, 64)
        self.out = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, size, size) in [-1, 1] -> logits (B, 10)."""
        return self.out(F.dropout(self.features(x), 0.5, self.training))

    def features(self, x: Tensor) -> Tensor:
        """(B, 1, size, size) in [-1, 1] -> (B, 64)."""
        if x.shape[1:] != (1, self.size, self.size):
            raise ValueError(
                f"the digit classifier sees images of shape (B, 1, {self.size}, {self.size}), got {tuple(x.shape)}"
            )
        return torch.tanh(self.hidden(self.layers(x).flatten(1)))


@dataclass(frozen=True)
class Verdict:
    """What the classifier says of a set of images.

    Attributes:
        confident: the share of images that it calls with over 90% confidence.
        classes: the share of each of the ten digits among all its calls.
    """

    confident: float
    classes: list[float]


@cache
def load_classifier(size: int = 16) -> DigitClassifier:
    """The bundled classifier of images with sides of `size`, ready to use.

    Raises:
        ValueError: if there is none.
    """
    if size not in FOLDERS:
        raise ValueError(f"the bundled classifiers see images of 16x16 (digits) and 28x28 (mnist), got {size}x{size}")
    classifier = DigitClassifier(size)
    classifier.load_state_dict(read_tensors(FOLDERS[size] / "model.safetensors"))
    return classifier.eval().requires_grad_(False)


@torch.no_grad()
def judge(images: Tensor, batch_size: int = 500) -> Verdict:
    """Ask the bundled classifier what it sees in images (N, 1, H, H) in [-1, 1]."""
    classifier = load_classifier(images.shape[-1])
    logits = torch.cat([classifier(batch) for batch in images.split(batch_size)])
    probability, called = logits.softmax(dim=1).max(dim=1)
    share = torch.bincount(called, minlength=10) / len(images)
    return Verdict((probability > CONFIDENT).float().mean().item(), share.tolist())
