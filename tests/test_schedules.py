"""The schedules against Ho et al., diffusers, and their own inverse."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dyndiff.schedules import SCHEDULES, SPACINGS, Schedule, cosine, create_schedule, expand, linear, sigmoid

NAMES = list(SCHEDULES)
times = st.floats(0, 1)
beta_lists = st.lists(st.floats(1e-5, 0.999), min_size=1, max_size=300)
quick = settings(max_examples=60, deadline=None, derandomize=True)


def chain_alpha_bar(schedule: Schedule) -> torch.Tensor:
    """alpha^2 at i / T for i = 1..T."""
    return schedule.alpha(torch.arange(1, schedule.steps + 1).double() / schedule.steps).square()


def test_linear_betas_are_those_of_ho_et_al():
    expected = [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
    assert linear().betas == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(("ours", "theirs"), [(linear, "linear"), (cosine, "squaredcos_cap_v2")])
def test_chain_equals_diffusers(ours, theirs):
    from diffusers import DDPMScheduler

    reference = DDPMScheduler(num_train_timesteps=1000, beta_schedule=theirs).alphas_cumprod
    # diffusers multiplies a thousand float32 numbers: 1e-6 is its accuracy, not ours
    torch.testing.assert_close(chain_alpha_bar(ours()), reference.double(), atol=1e-6, rtol=0)


def test_cosine_is_nichol_and_dhariwals():
    t = torch.linspace(0, 0.99, 100, dtype=torch.float64)
    alpha_bar = ((t + 0.008) / 1.008 * math.pi / 2).cos() ** 2
    torch.testing.assert_close(cosine().alpha(t) ** 2, alpha_bar / alpha_bar[0], atol=1e-12, rtol=0)


def test_sigmoid_is_jabri_et_als():
    t = torch.linspace(0, 0.99, 100, dtype=torch.float64)
    high, low = 1 / (1 + math.exp(-3)), 1 / (1 + math.exp(3))
    alpha_bar = (high - torch.sigmoid(6 * t - 3)) / (high - low)
    torch.testing.assert_close(sigmoid().alpha(t) ** 2, alpha_bar, atol=1e-12, rtol=0)


def test_chain_is_the_product_of_its_betas():
    betas = (0.1, 0.5, 0.9)
    alpha_bar = torch.tensor([0.9, 0.9 * 0.5, 0.9 * 0.5 * 0.1], dtype=torch.float64)
    torch.testing.assert_close(chain_alpha_bar(Schedule(betas)), alpha_bar, atol=1e-15, rtol=0)


@pytest.mark.parametrize("steps", [50, 200, 1000])
@pytest.mark.parametrize("name", NAMES)
def test_chains_of_any_length_end_equally_noisy(name, steps):
    """Within the cap on the last beta, which a shorter chain feels more."""
    assert create_schedule(name, steps).alpha(1.0) < 0.05


@pytest.mark.parametrize("name", NAMES)
@given(t=times)
@quick
def test_signal_and_noise_share_a_unit_of_variance(name, t):
    schedule = create_schedule(name)
    assert float(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2) == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_ends_are_finite(name):
    schedule = create_schedule(name)
    assert (float(schedule.alpha(0.0)), float(schedule.sigma(0.0))) == (1, 0)
    if name.endswith("-zero"):
        assert (float(schedule.alpha(1.0)), float(schedule.sigma(1.0))) == (0, 1)
    else:
        assert 0 < schedule.alpha(1.0) < 0.02
        assert 0.999 < schedule.sigma(1.0) < 1
    assert schedule.log_snr(0.0) == math.inf


@given(betas=beta_lists, t=times, gap=st.floats(1e-6, 1))
@example(betas=[0.999] * 200, t=0.6, gap=0.1)  # alpha^2 is below the smallest float64 there, its logarithm is not
@quick
def test_log_snr_falls_strictly(betas, t, gap):
    schedule, later = Schedule(tuple(betas)), min(1.0, t + gap)
    if later - t >= 1e-6:
        assert schedule.log_snr(later) < schedule.log_snr(t)


@pytest.mark.parametrize("name", NAMES)
@given(t=times)
@quick
def test_time_of_inverts_log_snr(name, t):
    schedule = create_schedule(name)
    assert float(schedule.time_of(schedule.log_snr(t))) == pytest.approx(t, abs=1e-9)


@given(betas=beta_lists, t=times)
@quick
def test_time_of_inverts_log_snr_for_any_betas(betas, t):
    """To 1e-6: where a beta of 1e-5 follows many near 1, a time hides in the last digits of log_snr."""
    schedule = Schedule(tuple(betas))
    assert float(schedule.time_of(schedule.log_snr(t))) == pytest.approx(t, abs=1e-6)


def test_time_of_clamps_to_the_ends():
    assert cosine().time_of(torch.tensor([-1e3, -math.inf, math.inf])).tolist() == [1, 1, 0]


def test_a_python_float_is_as_good_as_a_float64_tensor():
    assert torch.equal(cosine().log_snr(0.1), cosine().log_snr(torch.tensor(0.1, dtype=torch.float64)))


def test_methods_keep_the_shape_and_return_float64():
    t = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    for method in (cosine().log_snr, cosine().alpha, cosine().sigma, cosine().time_of):
        assert (method(t).shape, method(t).dtype) == ((2, 3), torch.float64)


def test_grid_is_uniform_from_noise_to_data():
    assert linear().grid(4).tolist() == [1, 0.75, 0.5, 0.25, 0]


@pytest.mark.parametrize("name", NAMES)
def test_moments_say_what_the_methods_say(name):
    schedule = create_schedule(name)
    ts = torch.tensor([1.0, 0.95, 0.5, 0.001, 0.0], dtype=torch.float64)
    for t, moment in zip(ts, schedule.moments(ts), strict=True):
        assert moment == (t, schedule.alpha(t), schedule.sigma(t), schedule.log_snr(t))


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_grid_may_start_later_even_where_the_chain_ends_without_signal(spacing):
    ts = create_schedule("cosine-zero").grid(20, spacing, start=0.95)
    assert float(ts[0]) == pytest.approx(0.95, abs=1e-9)
    assert ts[-1] == 0 and len(ts) == 21 and bool((ts.diff() < 0).all())


@pytest.mark.parametrize("start", [0.0, 0.001, 1.1, math.nan])
def test_a_grid_starts_within_the_chain(start):
    with pytest.raises(ValueError, match="starts at a time above 0.001 and at most 1"):
        linear().grid(10, start=start)


def test_expand_gives_each_sample_its_own_number_where_batch_equals_width():
    """The trap: (B,) against (B, C, H, B) broadcasts along the width without complaint."""
    x = torch.ones(4, 1, 4, 4)
    scaled = expand(torch.arange(4.0), x) * x
    assert [image.unique().tolist() for image in scaled] == [[0], [1], [2], [3]]


@pytest.mark.parametrize("shape", [(5,), (5, 2), (5, 3, 4, 4)])
def test_expand_fits_any_number_of_dimensions(shape):
    assert expand(torch.ones(5), torch.ones(shape)).shape == (5, *[1] * (len(shape) - 1))


def test_expand_keeps_a_scalar_and_takes_the_dtype():
    expanded = expand(torch.tensor(2.0, dtype=torch.float64), torch.ones(3, 1, 2, 2))
    assert (expanded.shape, expanded.dtype) == ((), torch.float32)


@pytest.mark.parametrize("shape", [(1,), (3,), (4, 1), (4, 4)])
def test_expand_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match="one value per sample"):
        expand(torch.ones(shape), torch.ones(4, 1, 4, 4))


@pytest.mark.parametrize("t", [-1e-9, 1 + 1e-9, 500.0, math.nan])
@pytest.mark.parametrize("method", ["log_snr", "alpha", "sigma"])
def test_times_outside_the_unit_interval_are_refused(method, t):
    with pytest.raises(ValueError, match=r"lies in \[0, 1\]"):
        getattr(linear(), method)(torch.tensor([0.5, t], dtype=torch.float64))


@pytest.mark.parametrize("betas", [(), (0.0,), (0.5, -0.1), (1.1,), (math.nan,), (1.0, 0.5)])
def test_bad_betas_are_refused(betas):
    with pytest.raises(ValueError, match="betas"):
        Schedule(betas)


def test_a_chain_too_short_for_its_betas_is_refused():
    """19 steps of the linear schedule would end with a beta above 1."""
    with pytest.raises(ValueError, match="betas"):
        linear(19)


@pytest.mark.parametrize("steps", [0, -3])
def test_grid_needs_a_step(steps):
    with pytest.raises(ValueError, match=f"at least 1 step, got {steps}"):
        linear().grid(steps)


def test_unknown_schedule_lists_the_known():
    with pytest.raises(ValueError, match=r"'quadratic'.*linear, cosine, sigmoid"):
        create_schedule("quadratic")


def test_a_chain_needs_a_step():
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        create_schedule("linear", 0)
