"""A small classifier of 16x16 digits: the eyes of the demo's Fréchet distance, and its judge.

It was trained by `python -m dyndiff.experiments.classifier`, whose record, test accuracy included,
lies beside its weights.
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

FOLDER = BUNDLED / "classifier-digits"


class DigitClassifier(nn.Module):
    """Three convolutions, their features averaged over the image, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        )  # fmt: skip
        self.hidden = nn.Linear(64 * 4 * 4, 64)
        self.out = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 16, 16) in [-1, 1] -> logits (B, 10)."""
        return self.out(F.dropout(self.features(x), 0.5, self.training))

    def features(self, x: Tensor) -> Tensor:
        """(B, 1, 16, 16) in [-1, 1] -> (B, 64)."""
        if x.shape[1:] != (1, 16, 16):
            raise ValueError(f"the digit classifier sees images of shape (B, 1, 16, 16), got {tuple(x.shape)}")
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
def load_classifier() -> DigitClassifier:
    """The bundled classifier, ready to use."""
    classifier = DigitClassifier()
    classifier.load_state_dict(read_tensors(FOLDER / "model.safetensors"))
    return classifier.eval().requires_grad_(False)


def judge(images: Tensor) -> Verdict:
    """Ask the bundled classifier what it sees in images (N, 1, 16, 16) in [-1, 1]."""
    probability, called = load_classifier()(images).softmax(dim=1).max(dim=1)
    share = torch.bincount(called, minlength=10) / len(images)
    return Verdict((probability > CONFIDENT).float().mean().item(), share.tolist())
