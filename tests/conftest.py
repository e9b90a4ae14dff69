"""What the test files share: one CPU thread, a tiny network, and a stand-in for training."""

import os

os.environ["ACCELERATE_USE_CPU"] = "true"  # "bit for bit" is a promise about CPUs
os.environ["OMP_NUM_THREADS"] = "1"  # here and in subprocesses: the order of a sum depends on the threads

import pytest
import torch
from torch import nn

from dyndiff import UNetConfig

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded_weights():
    """New networks, and noise without a generator, are the same in every run of a test."""
    torch.manual_seed(0)


@pytest.fixture
def tiny() -> UNetConfig:
    """Two levels, attention included, in 7,000 weights."""
    return UNetConfig(channels=1, size=8, widths=(4, 8), depth=1, attention=(1,))


@pytest.fixture
def randomised():
    """`randomised(net)` moves all weights, those that start at zero included, as training would."""

    def move(net: nn.Module, scale: float = 0.2, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter += scale * torch.randn(parameter.shape, generator=generator).to(parameter)
        return net

    return move
