"""The skeleton and its two blocks: shapes, dynamics, and what depends on what."""

import json
import math
import shutil
import sys
from dataclasses import asdict, replace

import pytest
import torch

from dyndiff import PRESETS, DynamicBlock, ResBlock, UNet, UNetConfig, create_model
from dyndiff.blocks import Attention
from dyndiff.controls import FirstOrderBlock, ReleasedBlock, TiedBlock
from dyndiff.ode import METHODS, Solution, Solver, leapfrog
from dyndiff.profile import count_flops, count_parameters

BLOCKS = ["res", "dynamic"]
EMB = 6


def noise(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def block(randomised):
    """A dynamic block from 4 to 8 channels, in float64, with every weight moved."""
    return randomised(DynamicBlock(4, 8, EMB).double())


@pytest.fixture
def motion(block, monkeypatch):
    """What the block asks the solver to integrate: force, x(0), v(0), gamma."""
    seen = []

    def spy(force, x, v, gamma, *rest):
        seen[:] = [force, x, v, gamma]
        return Solution(x, v, 0)

    monkeypatch.setattr(sys.modules[DynamicBlock.__module__], "integrate", spy)

    def asked(x, emb):
        block(x, emb)
        return tuple(seen)

    return asked


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (3, 4, 12), (2, 16, 8)])
def test_output_has_the_inputs_shape(kind, channels, height, width, tiny):
    net = UNet(replace(tiny, channels=channels, block=kind, widths=(4, 8, 8), depth=2))
    x = noise(3, channels, height, width, dtype=torch.float32)
    assert net(x, torch.rand(3)).shape == x.shape


@pytest.mark.parametrize("name", PRESETS)
def test_presets_run_at_their_own_size(name):
    net = create_model(name)
    shape = (2, net.config.channels, net.config.size, net.config.size)
    assert net(torch.randn(shape), torch.rand(2)).shape == shape


@pytest.mark.parametrize("kind", [ResBlock, DynamicBlock])
def test_a_fresh_block_passes_its_input_on(kind):
    x = noise(2, 8, 4, 4, dtype=torch.float32)
    assert torch.equal(kind(8, 8, EMB)(x, torch.randn(2, EMB)), x)


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_fresh_network_predicts_zero(kind, tiny):
    assert not UNet(replace(tiny, block=kind))(torch.randn(2, 1, 8, 8), torch.rand(2)).any()


@pytest.mark.parametrize("kind", BLOCKS)
def test_output_depends_on_diffusion_time(kind, tiny, randomised):
    net, x = randomised(UNet(replace(tiny, block=kind))), torch.randn(1, 1, 8, 8).expand(2, -1, -1, -1)
    early, late = net(x, torch.tensor([0.2, 0.8]))
    assert (early - late).abs().max() > 1e-3


@pytest.mark.parametrize("kind", BLOCKS)
def test_gradient_reaches_every_weight(kind, tiny, randomised):
    """The time embedding's, both velocities' and the damping's included."""
    net = randomised(UNet(replace(tiny, block=kind)))
    net(torch.randn(2, 1, 8, 8), torch.rand(2)).square().sum().backward()
    dead = [name for name, weight in net.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert dead == []


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_sample_does_not_see_its_batch_mates(kind, tiny, randomised):
    net = randomised(UNet(replace(tiny, block=kind))).double()
    x, t = noise(5, 1, 8, 8), torch.linspace(0.1, 1, 5, dtype=torch.float64)
    alone = torch.cat([net(x[i : i + 1], t[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(net(x, t), alone, atol=1e-12, rtol=0)


def test_attention_lets_far_pixels_meet(randomised):
    x = noise(1, 4, 32, 32)
    changed = x.clone()
    changed[..., 0, 0] += 1
    attend = randomised(Attention(4).double())
    assert (attend(x) - attend(changed))[..., -1, -1].abs().max() > 1e-6


def test_solver_steps_and_method_belong_to_the_config(tiny, randomised):
    """One set of weights, another solver: the state dict does not change, the output does."""
    config = replace(tiny, block="dynamic")
    one, many = UNet(config), UNet(replace(config, steps=4, method="rk4"))
    many.load_state_dict(randomised(one).state_dict())
    x, t = torch.randn(1, 1, 8, 8), torch.ones(1)
    assert (one(x, t) - many(x, t)).abs().max() > 1e-6


def test_solver_steps_of_a_block_can_be_changed(block):
    x, emb = noise(2, 4, 4, 4), noise(2, EMB)
    once = block(x, emb)
    block.solver = Solver(steps=5)
    assert not torch.equal(block(x, emb), once)


@torch.no_grad()
def test_leapfrog_converges_to_rk4(block):
    """Second order: eight times the steps leave a sixty-fourth of the error (a thirtieth is asked)."""
    x, emb = noise(2, 4, 4, 4), noise(2, EMB)
    block.solver = Solver("rk4", 64)
    exact, errors = block(x, emb), []
    for steps in (1, 8, 64):
        block.solver = Solver(steps=steps)
        errors.append(float((block(x, emb) - exact).norm()))
    assert errors[1] < errors[0] / 30
    assert errors[2] < errors[1] / 30


def test_position_leaves_with_the_initial_velocity(motion):
    """dx/dtau = v: after a depth h of 1e-6 the position has moved by h v(0), to first order."""
    force, x, v, gamma = motion(noise(2, 4, 4, 4), noise(2, EMB))
    moved, _ = leapfrog(force, x, v, gamma, 0.0, 1e-6, 1)
    torch.testing.assert_close((moved - x) / 1e-6, v, atol=1e-4, rtol=0)


def test_initial_velocity_is_a_map_of_what_enters(block, motion):
    x = noise(2, 4, 4, 4)
    _, _, v, _ = motion(x, noise(2, EMB))
    _, _, other, _ = motion(noise(2, 4, 4, 4), noise(2, EMB, seed=1))
    assert v.abs().max() > 0.1
    assert torch.equal(v, block.velocity(x))
    assert torch.equal(v, other)  # another diffusion time


def test_force_does_not_see_the_velocity(block, motion):
    """Damping aside: other initial velocities, the same accelerations everywhere."""
    x, emb = noise(2, 4, 4, 4), noise(2, EMB)
    force, start, v, _ = motion(x, emb)
    before = force(start, 0.3)
    with torch.no_grad():
        block.velocity[-1].weight.mul_(3)
    after, _, faster, _ = motion(x, emb)
    assert not torch.equal(v, faster)
    assert torch.equal(after(start, 0.3), before)


def test_force_depends_on_depth_and_on_diffusion_time(motion):
    force, x, _, _ = motion(noise(2, 4, 4, 4), noise(2, EMB))
    later, *_ = motion(noise(2, 4, 4, 4), noise(2, EMB, seed=1))
    assert not torch.equal(force(x, 0.0), force(x, 1.0))
    assert not torch.equal(force(x, 0.0), later(x, 0.0))


def test_damping_is_a_positive_rate_per_channel(block, motion):
    with torch.no_grad():
        block.damping.copy_(torch.linspace(-50, 50, 8))
    *_, gamma = motion(noise(2, 4, 4, 4), noise(2, EMB))
    assert gamma.shape == (8, 1, 1)
    assert (gamma >= 0).all()
    assert gamma[-1].item() == pytest.approx(50)
    assert torch.nn.functional.softplus(DynamicBlock(4, 8, EMB).damping)[0].item() == pytest.approx(math.log(2))


def gradients(net, x, t):
    """Of a loss, to every weight: those that make the embedding, too."""
    return torch.autograd.grad(net(x, t).square().sum(), list(net.parameters()))


@pytest.mark.parametrize("steps", [(1, 3), 4])
def test_reversal_trains_like_backprop(steps, tiny, randomised):
    net = randomised(UNet(replace(tiny, block="dynamic", widths=(4, 8), steps=steps)).double())
    x, t = noise(3, 1, 8, 8), torch.linspace(0.1, 0.9, 3, dtype=torch.float64)
    expected = gradients(net, x, t)
    net.set_solver(gradient="reversible")
    found = gradients(net, x, t)
    scale = max(float(value.abs().max()) for value in expected)
    torch.testing.assert_close(found, expected, atol=1e-10 * scale, rtol=1e-10)


def test_the_adjoint_trains_like_backprop_up_to_the_solvers_error(tiny, randomised):
    net = randomised(UNet(replace(tiny, block="dynamic", widths=(4, 8), method="rk4", steps=40)).double())
    x, t = noise(2, 1, 8, 8), torch.tensor([0.2, 0.7], dtype=torch.float64)
    expected = gradients(net, x, t)
    net.set_solver(gradient="adjoint")
    scale = max(float(value.abs().max()) for value in expected)
    torch.testing.assert_close(gradients(net, x, t), expected, atol=1e-5 * scale, rtol=0)


def test_a_network_without_time_does_not_see_it(tiny, randomised):
    x, early, late = torch.randn(2, 1, 8, 8), torch.full((2,), 0.1), torch.full((2,), 0.9)
    for time in (True, False):
        net = randomised(UNet(replace(tiny, block="dynamic", time=time)))
        assert torch.equal(net(x, early), net(x, late)) is not time


def test_the_solver_of_a_trained_network_can_be_changed(tiny, randomised):
    net = randomised(UNet(replace(tiny, block="dynamic", widths=(4, 8))).eval())
    x, t = torch.randn(2, 1, 8, 8), torch.rand(2)
    once = net(x, t)
    net.set_solver(steps=(3, 2))
    assert not torch.equal(net(x, t), once)
    fresh = UNet(net.config)
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh(x, t), net(x, t))
    levels = [(0, net.down[0]), (1, net.down[1]), (1, net.middle), (1, net.up[0]), (0, net.up[1])]
    blocks = [(n, block) for n, part in levels for block in part.modules() if isinstance(block, DynamicBlock)]
    assert [(n, block.solver.steps) for n, block in blocks] == [(n, (3, 2)[n]) for n, _ in blocks]
    with pytest.raises(ValueError, match="method, steps and a gradient, got 'widths'"):
        net.set_solver(widths=(8,))
    with pytest.raises(ValueError, match="each of the 2 levels"):
        net.set_solver(steps=(1, 2, 3))


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_networks_answer_as_they_do_without(tiny, randomised):
    net = randomised(UNet(replace(tiny, block="dynamic", widths=(4,), middle=1, attention=(), steps=2)).eval())
    x, t = torch.randn(2, 1, 8, 8), torch.rand(2)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(net)(x, t), net(x, t), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*adapts its steps")
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_inside_a_block(method, block):
    block.solver = Solver(method, 2)
    x = noise(2, 4, 4, 4)
    gradient = torch.autograd.grad(block(x, noise(2, EMB)).square().sum(), block.damping)[0]
    assert gradient.isfinite().all()
    assert gradient.all()


SCALES = ("digits", "mnist", "cifar10", "paper")
KINDS = ("unet", "cunet", "thin", "tied", "ode1", "blind", "papercode")


def costs(name):
    """Parameters, and FLOPs of one image."""
    net = create_model(name)
    shape = (1, net.config.channels, net.config.size, net.config.size)
    return count_parameters(net), count_flops(net, (torch.zeros(shape), torch.ones(1)))


def test_every_scale_has_the_same_seven_networks():
    assert set(PRESETS) == {f"{kind}-{scale}" for kind in KINDS for scale in SCALES}


@pytest.mark.parametrize("scale", SCALES)
def test_a_control_changes_one_thing(scale):
    def changed(one, other):
        one, other = asdict(PRESETS[f"{one}-{scale}"]), asdict(PRESETS[f"{other}-{scale}"])
        return {key for key in one if one[key] != other[key]}

    assert changed("unet", "thin") == {"widths"}
    assert changed("cunet", "tied") == {"widths", "block", "steps"}
    assert changed("cunet", "ode1") == {"widths", "block", "method"}
    assert changed("cunet", "blind") == {"time"}


@pytest.mark.parametrize("scale", SCALES)
def test_controls_cost_what_they_control_for(scale):
    """Thin: the cunet's parameters; tied and first-order: its FLOPs."""
    params, flops = costs(f"cunet-{scale}")
    assert costs(f"thin-{scale}")[0] == pytest.approx(params, rel=0.07)
    assert costs(f"tied-{scale}")[1] == pytest.approx(flops, rel=0.05)
    assert costs(f"ode1-{scale}")[1] == pytest.approx(flops, rel=0.05)
    assert costs(f"blind-{scale}") == (params, flops)


def test_the_paper_scale_is_the_papers():
    """Calvo-Ordonez et al.'s baseline, and the code that they released, as counted there."""
    params, flops = costs("unet-paper")
    assert params == pytest.approx(35.71e6, rel=0.03)
    assert flops == pytest.approx(14.59e9, rel=0.03)
    params, flops = costs("papercode-paper")
    assert params == pytest.approx(8.81e6, rel=0.02)
    assert flops == pytest.approx(5.65e9, rel=0.02)


@pytest.mark.parametrize("scale", ["mnist", "cifar10", "paper"])
def test_the_continuous_denoiser_costs_a_quarter_or_less(scale):
    whole, part = costs(f"unet-{scale}"), costs(f"cunet-{scale}")
    assert part[0] <= 0.20 * whole[0]
    assert part[1] <= 0.25 * whole[1]


@pytest.mark.parametrize("kind", ["papercode", "blind"])
def test_controls_without_time_do_not_see_it(kind, randomised):
    net = randomised(create_model(f"{kind}-digits").eval())
    x = torch.randn(1, 1, 16, 16)
    assert torch.equal(net(x, torch.tensor([0.1])), net(x, torch.tensor([0.9])))


def test_tied_steps_are_residual_steps(randomised):
    block = randomised(TiedBlock(4, 4, EMB, solver=Solver(steps=3)).double())
    x, emb = noise(2, 4, 4, 4), noise(2, EMB)
    expected = x
    for _ in range(3):
        expected = expected + block.force(expected, block.film(emb))
    torch.testing.assert_close(block(x, emb), expected)


def test_first_order_blocks_solve_their_equation(randomised):
    """Many steps of Euler come to what RK4 finds; leapfrog in the configuration means Euler here."""
    block = randomised(FirstOrderBlock(4, 4, EMB).double())
    x, emb = noise(2, 4, 4, 4), noise(2, EMB)
    ends = {}
    for name, solver in {"rk4": Solver("rk4", 50), "many": Solver("euler", 800), "few": Solver("leapfrog", 8)}.items():
        block.solver = solver
        ends[name] = block(x, emb)
    assert (ends["many"] - ends["rk4"]).norm() < 0.02 * (ends["few"] - ends["rk4"]).norm()


def test_the_released_block_grows_without_its_convolutions():
    """x' = h(x) + x with h = softplus(0) = log 2: one step of RK4 on an equation that is solved by hand."""
    block = ReleasedBlock(4, 4, EMB).double()
    for parameter in block.field.parameters():
        torch.nn.init.zeros_(parameter)
    x = noise(2, 4, 4, 4)
    growth = 1 + 1 + 1 / 2 + 1 / 6 + 1 / 24  # e, as RK4 has it
    expected = growth * x + (growth - 1) * math.log(2)
    torch.testing.assert_close(block(x, noise(2, EMB)), expected)


def test_the_continuous_preset_costs_a_third_or_less():
    unet, cunet = create_model("unet-digits"), create_model("cunet-digits")
    inputs = (torch.randn(1, 1, 16, 16), torch.ones(1))
    assert count_parameters(cunet) <= 0.30 * count_parameters(unet)
    assert count_flops(cunet, inputs) <= 0.35 * count_flops(unet, inputs)


def test_config_survives_json(tiny):
    assert UNetConfig.from_dict(json.loads(json.dumps(tiny.to_dict()))) == tiny


def test_unknown_preset_lists_the_known():
    with pytest.raises(ValueError, match=f"'unet-mega'.*{', '.join(PRESETS)}"):
        create_model("unet-mega")


def test_unknown_setting_lists_the_known():
    with pytest.raises(ValueError, match="'colour'.*channels, size, widths"):
        UNetConfig.from_dict({"colour": "red"})


BAD_CONFIGS = [
    ({"block": "transformer"}, "'transformer'.*res, dynamic"),
    ({"method": "verlet"}, "'verlet'.*leapfrog, euler"),
    ({"gradient": "magic"}, "'magic'.*backprop, adjoint, reversible"),
    ({"steps": 0}, "steps.*at least 1.*got 0"),
    ({"steps": (1, 2, 3)}, r"steps.*each of the 2 levels, got \(1, 2, 3\)"),
    ({"depth": (1,)}, r"depth.*each of the 2 levels, got \(1,\)"),
    ({"middle": 0}, "middle.*at least 1, got 0"),
    ({"widths": ()}, r"multiples of 4, got \(\)"),
    ({"widths": (6, 8)}, r"multiples of 4, got \(6, 8\)"),
    ({"widths": (8, 0)}, r"multiples of 4, got \(8, 0\)"),
    ({"widths": (8, -4)}, r"multiples of 4, got \(8, -4\)"),
    ({"channels": 0}, "channels.*at least 1, got 0"),
    ({"size": -8}, "size.*at least 1, got -8"),
    ({"depth": -1}, "depth.*at least 0.*got -1"),
    ({"widths": (8, 8), "attention": (2,)}, r"attention.*got \(2,\)"),
    ({"attention": (-1,)}, r"attention.*got \(-1,\)"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_CONFIGS, ids=[str(bad) for bad, _ in BAD_CONFIGS])
def test_config_refuses_what_cannot_be_built(settings, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig(**settings)


def test_whatever_width_is_accepted_can_attend():
    """100 channels do not split into heads of 32: refused when it is built, or made to work."""
    try:
        net = UNet(UNetConfig(size=4, widths=(100,), depth=1, attention=(0,)))
    except ValueError:
        return
    assert net(torch.randn(1, 1, 4, 4), torch.ones(1)).shape == (1, 1, 4, 4)


BAD_INPUTS = [
    ((2, 1, 8, 9), (2,), "divide by 2 for 2 levels, got 8x9"),
    ((2, 1, 7, 8), (2,), "divide by 2 for 2 levels, got 7x8"),
    ((2, 3, 8, 8), (2,), r"\(B, 1, H, W\), got \(2, 3, 8, 8\)"),
    ((1, 8, 8), (1,), r"\(B, 1, H, W\), got \(1, 8, 8\)"),
    ((2, 1, 8, 8), (1,), r"t must be \(2,\), got \(1,\)"),
    ((2, 1, 8, 8), (), r"t must be \(2,\), got \(\)"),
    ((2, 1, 8, 8), (2, 1), r"t must be \(2,\), got \(2, 1\)"),
]


@pytest.mark.parametrize(("x", "t", "message"), BAD_INPUTS)
def test_network_refuses_shapes_that_do_not_fit(x, t, message, tiny):
    with pytest.raises(ValueError, match=message):
        UNet(tiny)(torch.zeros(x), torch.zeros(t))
