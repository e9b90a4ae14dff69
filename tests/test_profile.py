"""Costs: counted exactly where a formula is known."""

import json

import pytest
import torch
from torch import nn

from dyndiff import create_model
from dyndiff.blocks import DynamicBlock
from dyndiff.profile import (
    count_evaluations,
    count_flops,
    count_parameters,
    latencies,
    peak_bytes,
    profile,
    table,
    training_peak_bytes,
)


class Chain(nn.Module):
    """A network made of a function of x: what `profile` calls with (x, t)."""

    def __init__(self, function, layer=None):
        super().__init__()
        self.function, self.layer = function, layer

    def forward(self, x, t):
        return self.function(x) if self.layer is None else self.layer(x)


INPUTS = (torch.randn(2, 3, 10, 10), torch.ones(2))
BYTES = 2 * 3 * 10 * 10 * 4


@pytest.fixture
def conv():
    return Chain(None, nn.Conv2d(3, 8, 5, padding=2))


def test_parameters_of_a_convolution(conv):
    assert count_parameters(conv) == 8 * 3 * 5 * 5 + 8


def test_flops_of_a_convolution(conv):
    """Two for each weight and output pixel; the bias is left out."""
    assert count_flops(conv, INPUTS) == 2 * (2 * 10 * 10) * (8 * 3 * 5 * 5)


def test_flops_grow_with_the_batch():
    net = create_model("cunet-digits")
    one, three = (count_flops(net, (torch.randn(b, 1, 16, 16), torch.ones(b))) for b in (1, 3))
    assert three == 3 * one


def kept(x):
    y = x + 1
    z = y + 1
    return z + 1


PEAKS = {
    "one": (lambda x: x + 1, 1),
    "two in a chain": (lambda x: (x + 1) * 2, 2),
    "ten in a chain, each freed": (lambda x: ((((x + 1) * 2 + 3) * 4 + 5) * 6 + 7) * 8, 2),
    "three kept by names": (kept, 3),
    "in place": (lambda x: (x + 1).mul_(2).add_(3), 1),
    "views": (lambda x: (x + 1).flatten(1).view(2, 3, 10, 10).transpose(2, 3), 1),
    "views of the input": (lambda x: x.flatten(1), 0),
    "wider": (lambda x: torch.cat([x, x], dim=1), 2),
    "wider, then narrow": (lambda x: torch.cat([x, x], dim=1)[:, :3] + 1, 3),
    "in double": (lambda x: x.double(), 2),
}


@pytest.mark.parametrize(("function", "images"), PEAKS.values(), ids=PEAKS)
def test_peak_bytes_are_those_alive_together(function, images):
    assert peak_bytes(Chain(function), INPUTS) == images * BYTES


def test_peak_bytes_leave_weights_out(conv):
    assert peak_bytes(conv, INPUTS) == 2 * 8 * 10 * 10 * 4


def test_training_keeps_what_the_gradient_needs():
    """A chain of n tanh keeps n images for its backward pass; without gradients two are alive at once."""
    inputs = (INPUTS[0].clone().requires_grad_(), INPUTS[1])
    peaks = [training_peak_bytes(Chain(nn.Sequential(*[nn.Tanh()] * n)), inputs) for n in (4, 12)]
    assert peaks[1] - peaks[0] == 8 * BYTES


def test_training_memory_leaves_the_gradients_as_they_were(conv):
    assert training_peak_bytes(conv, INPUTS) > peak_bytes(conv, INPUTS)
    assert all(parameter.grad is None for parameter in conv.parameters())


def test_reversal_needs_no_more_memory_for_more_steps():
    net = create_model("cunet-digits")
    inputs = torch.randn(16, 1, 16, 16), torch.rand(16)
    peaks = {}
    for gradient in ("backprop", "reversible"):
        for steps in (1, 16):
            net.set_solver(gradient=gradient, steps=steps)
            peaks[gradient, steps] = training_peak_bytes(net, inputs)
    assert peaks["reversible", 16] <= 1.10 * peaks["reversible", 1] < peaks["backprop", 1]
    assert peaks["backprop", 16] > 5 * peaks["backprop", 1]


def test_evaluations_are_those_of_the_solver():
    net = create_model("cunet-digits")
    blocks = sum(isinstance(module, DynamicBlock) for module in net.modules())
    for method, steps, each in (("leapfrog", 3, 3), ("rk4", 2, 8)):
        net.set_solver(method=method, steps=steps)
        assert count_evaluations(net, (torch.randn(1, 1, 16, 16), torch.rand(1))) == each * blocks


def test_profile_keeps_order_and_orders_quartiles():
    nets = {"b": Chain(torch.relu), "a": Chain(torch.sigmoid)}
    profiles = profile(nets, INPUTS, repeats=5)
    assert [p.name for p in profiles] == ["b", "a"]
    for p in profiles:
        assert 0 < p.latency_quartiles_s[0] <= p.latency_s <= p.latency_quartiles_s[1]


def test_profile_as_json_has_the_promised_keys(conv):
    (result,) = json.loads(json.dumps([p.to_dict() for p in profile({"conv": conv}, INPUTS, repeats=2)]))
    assert set(result) == {"name", "params", "flops", "latency_s", "latency_quartiles_s", "peak_bytes",
                           "evaluations", "training_peak_bytes"}  # fmt: skip
    assert (result["name"], result["params"], result["flops"]) == ("conv", 608, 240_000)


def test_each_network_may_have_its_own_inputs():
    nets = {"small": Chain(torch.exp), "large": Chain(torch.exp)}
    inputs = {"small": INPUTS, "large": (torch.randn(4, 3, 10, 10), torch.ones(4))}
    small, large = profile(nets, inputs, repeats=2)
    assert large.peak_bytes == 2 * small.peak_bytes


def test_calls_are_interleaved_and_warmed_up():
    made = []
    seconds = latencies([lambda: made.append("a"), lambda: made.append("b")], repeats=4, warmup=2)
    assert made == ["a", "b"] * 6
    assert [len(times) for times in seconds] == [4, 4]


@pytest.mark.parametrize("repeats", [1, 0, -1])
def test_quartiles_need_two_calls(repeats, conv):
    with pytest.raises(ValueError, match=f"at least 2 repeats, got {repeats}"):
        profile({"conv": conv}, INPUTS, repeats)


def test_table_gives_shares_of_the_first(conv):
    half = Chain(None, nn.Conv2d(3, 4, 5, padding=2))
    lines = table(profile({"whole": conv, "half": half}, INPUTS, repeats=2)).splitlines()
    assert [line.split()[0] for line in lines] == ["parameters", "whole", "half"]
    assert "608 (100%)" in lines[1]
    assert "304 ( 50%)" in lines[2]
