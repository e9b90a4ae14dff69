"""What a network costs: parameters, FLOPs, seconds, bytes.

Counts are exact and the same on every machine; times are medians of interleaved, warmed-up calls, so
that whatever else the machine does falls on all networks alike.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import quantiles
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

Inputs = tuple[Tensor, Tensor]
"""`(x (B, C, H, W), t (B,))`."""


@dataclass(frozen=True)
class Profile:
    """One network's costs for one call on a batch.

    Attributes:
        name: what the network is called.
        params: number of weights.
        flops: floating-point operations of a call (a multiply-add counts as two).
        latency_s: median seconds of a call, without gradients.
        latency_quartiles_s: first and third quartile.
        peak_bytes: most memory alive at one moment of a call without gradients, weights and input aside.
    """

    name: str
    params: int
    flops: int
    latency_s: float
    latency_quartiles_s: tuple[float, float]
    peak_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def profile(nets: Mapping[str, nn.Module], inputs: Inputs | dict[str, Inputs], repeats: int = 30) -> list[Profile]:
    """Measure networks side by side.

    Args:
        nets: by name.
        inputs: one for all, or one for each name.
        repeats: timed calls of each network, at least 2; three more warm it up.

    Returns:
        One `Profile` a network, in the same order.

    Raises:
        ValueError: if `repeats` is below 2.
    """
    if repeats < 2:
        raise ValueError(f"a median with quartiles needs at least 2 repeats, got {repeats}")
    each = inputs if isinstance(inputs, dict) else dict.fromkeys(nets, inputs)
    seconds = latencies([lambda net=net, x=each[name]: net(*x) for name, net in nets.items()], repeats)
    profiles = []
    for (name, net), times in zip(nets.items(), seconds, strict=True):
        low, median, high = quantiles(times, n=4)
        counts = count_parameters(net), count_flops(net, each[name])
        profiles.append(Profile(name, *counts, median, (low, high), peak_bytes(net, each[name])))
    return profiles


def count_parameters(net: nn.Module) -> int:
    """The number of weights."""
    return sum(parameter.numel() for parameter in net.parameters())


@torch.no_grad()
def count_flops(net: nn.Module, inputs: Inputs) -> int:
    """FLOPs of one call, from torch's own counter: convolutions, matrix products, attention."""
    with FlopCounterMode(display=False) as counter:
        net(*inputs)
    return counter.get_total_flops()


@torch.no_grad()
def latencies(calls: Sequence[Any], repeats: int, warmup: int = 3) -> list[list[float]]:
    """Seconds of each call, in turn: first, second, ..., first, second, ... after `warmup` rounds."""
    seconds: list[list[float]] = [[] for _ in calls]
    for n in range(warmup + repeats):
        for call, times in zip(calls, seconds, strict=True):
            _wait()
            start = time.perf_counter()
            call()
            _wait()
            if n >= warmup:
                times.append(time.perf_counter() - start)
    return seconds


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@torch.no_grad()
def peak_bytes(net: nn.Module, inputs: Inputs) -> int:
    """The most bytes of tensors made during one call that were alive together."""
    with _AliveBytes() as alive:
        net(*inputs)
    return alive.peak


class _AliveBytes(TorchDispatchMode):
    """Follows every storage from the operation that makes it to its release."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_iter((args, kwargs)):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self.known:
                self.known.add(tensor.untyped_storage())  # weights and input: they were there before
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self.known:
                self.known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._release, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def _release(self, size: int) -> None:
        self.now -= size


def table(profiles: Sequence[Profile]) -> str:
    """The profiles as text, with each cost's share of the first network's."""
    first = profiles[0]

    def cell(value: float, base: float, text: str) -> str:
        return f"{text} ({value / base:4.0%})"

    lines = [f"{'':14} {'parameters':>17} {'MFLOPs':>15} {'ms a call':>15} {'peak MB':>15}"]
    for p in profiles:
        cells = [
            cell(p.params, first.params, f"{p.params:,}"),
            cell(p.flops, first.flops, f"{p.flops / 1e6:.1f}"),
            cell(p.latency_s, first.latency_s, f"{p.latency_s * 1e3:.1f}"),
            cell(p.peak_bytes, first.peak_bytes, f"{p.peak_bytes / 1e6:.2f}"),
        ]
        lines.append(f"{p.name:14} {cells[0]:>17} " + " ".join(f"{c:>15}" for c in cells[1:]))
    return "\n".join(lines)
