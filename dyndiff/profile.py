"""What a network costs: parameters, FLOPs, evaluations, seconds, bytes.

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
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from .blocks import Force, ResBlock
from .controls import ReleasedField

Inputs = tuple[Tensor, Tensor]
"""`(x (B, C, H, W), t (B,))`."""

EVALUATED = (ResBlock, Force, ReleasedField)
"""The modules whose calls are a network's function evaluations."""


@dataclass(frozen=True)
class Profile:
    """One network's costs for one call on a batch.

    Attributes:
        name: what the network is called.
        params: number of weights.
        flops: floating-point operations of a call (a multiply-add counts as two).
        evaluations: how often a call evaluates the inside of a block: once for a residual block, once for
            each force that a dynamic block's solver asks for.
        latency_s: median seconds of a call, without gradients.
        latency_quartiles_s: first and third quartile.
        peak_bytes: most memory alive at one moment of a call without gradients, weights and input aside.
        training_peak_bytes: the same for a call with its backward pass, the weights' gradients aside.
    """

    name: str
    params: int
    flops: int
    evaluations: int
    latency_s: float
    latency_quartiles_s: tuple[float, float]
    peak_bytes: int
    training_peak_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def profile(
    nets: Mapping[str, nn.Module], inputs: Inputs | dict[str, Inputs], repeats: int = 30, *, compiled: bool = False
) -> list[Profile]:
    """Measure networks side by side.

    Args:
        nets: by name.
        inputs: one for all, or one for each name; on the networks' device.
        repeats: timed calls of each network, at least 2; three more warm it up.
        compiled: time what `torch.compile` makes of them, with CUDA graphs where there is CUDA. Counts and
            bytes stay those of the network as written.

    Returns:
        One `Profile` a network, in the same order.

    Raises:
        ValueError: if `repeats` is below 2.
    """
    if repeats < 2:
        raise ValueError(f"a median with quartiles needs at least 2 repeats, got {repeats}")
    each = inputs if isinstance(inputs, dict) else dict.fromkeys(nets, inputs)
    timed = {name: torch.compile(net, mode="reduce-overhead") if compiled else net for name, net in nets.items()}
    seconds = latencies([lambda net=net, x=each[name]: net(*x) for name, net in timed.items()], repeats)
    profiles = []
    for (name, net), times in zip(nets.items(), seconds, strict=True):
        low, median, high = quantiles(times, n=4)
        counts = count_parameters(net), count_flops(net, each[name]), count_evaluations(net, each[name])
        memory = peak_bytes(net, each[name]), training_peak_bytes(net, each[name])
        profiles.append(Profile(name, *counts, median, (low, high), *memory))
    return profiles


def count_parameters(net: nn.Module) -> int:
    """The number of weights."""
    return sum(parameter.numel() for parameter in net.parameters())


@torch.no_grad()
def count_flops(net: nn.Module, inputs: Inputs) -> int:
    """FLOPs of one call, from torch's own counter: convolutions, matrix products, attention.

    Attention is spelt out as matrix products: the counter doesn't know the kernel that CPUs take for it.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(*inputs)
    return counter.get_total_flops()


@torch.no_grad()
def count_evaluations(net: nn.Module, inputs: Inputs) -> int:
    """How often one call evaluates the inside of a block, counted by hooks on every `EVALUATED` module."""
    calls: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda module, *_: calls.append(module))
        for module in net.modules()
        if isinstance(module, EVALUATED)
    ]
    try:
        net(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return len(calls)


@torch.no_grad()
def latencies(calls: Sequence[Any], repeats: int, warmup: int = 3) -> list[list[float]]:
    """Seconds of each call, in turn: first, second, ..., first, second, ... after `warmup` rounds.

    With CUDA they are the device's own, between two events in its queue; else the clock on the wall.
    """
    measure = _device_seconds if torch.cuda.is_available() else _seconds
    seconds: list[list[float]] = [[] for _ in calls]
    for n in range(warmup + repeats):
        for call, times in zip(calls, seconds, strict=True):
            took = measure(call)
            if n >= warmup:
                times.append(took)
    return seconds


def _seconds(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _device_seconds(call: Any) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


@torch.no_grad()
def peak_bytes(net: nn.Module, inputs: Inputs) -> int:
    """The most bytes of tensors made during one call that were alive together."""
    with _AliveBytes() as alive:
        net(*inputs)
    return alive.peak


def training_peak_bytes(net: nn.Module, inputs: Inputs) -> int:
    """The most bytes alive together in a call and its backward pass: what training needs beyond the weights.

    The gradients of the weights are there before it starts, and stay out of the count.
    """
    kept = [(parameter, parameter.grad) for parameter in net.parameters() if parameter.requires_grad]
    for parameter, _ in kept:
        parameter.grad = torch.zeros_like(parameter)
    try:
        with torch.enable_grad(), _AliveBytes() as alive:
            output = net(*inputs)
            if output.requires_grad:
                output.square().mean().backward()
            del output
    finally:
        for parameter, grad in kept:
            parameter.grad = grad
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
        return f"{text} ({value / base:4.0%})" if base else text

    heads = ["MFLOPs", "evaluations", "ms a call", "peak MB", "training MB"]
    lines = [f"{'':17} {'parameters':>18} " + " ".join(f"{head:>15}" for head in heads)]
    for p in profiles:
        cells = [
            cell(p.params, first.params, f"{p.params:,}"),
            cell(p.flops, first.flops, f"{p.flops / 1e6:.1f}"),
            cell(p.evaluations, first.evaluations, f"{p.evaluations}"),
            cell(p.latency_s, first.latency_s, f"{p.latency_s * 1e3:.1f}"),
            cell(p.peak_bytes, first.peak_bytes, f"{p.peak_bytes / 1e6:.2f}"),
            cell(p.training_peak_bytes, first.training_peak_bytes, f"{p.training_peak_bytes / 1e6:.2f}"),
        ]
        lines.append(f"{p.name:17} {cells[0]:>18} " + " ".join(f"{c:>15}" for c in cells[1:]))
    return "\n".join(lines)
