"""The samplers' orders, and the flow's two directions and its likelihood, on data whose answers are known."""

import math

import pytest
import torch

from dyndiff import (
    cosine,
    ddim,
    decode,
    dpmpp_2m,
    encode,
    euler_maruyama,
    heun,
    linear,
    pf_ode,
    slerp,
    zero_terminal_snr,
)
from dyndiff import samplers as samplers_module
from dyndiff.flow import log_likelihood
from dyndiff.ideal import gaussian_flow, ideal_dataset, ideal_gaussian, ideal_mixture, mixture_log_density
from dyndiff.schedules import expand
from dyndiff.seeds import noise_like

MEAN, STD = 0.4, 0.3


def last(steps):
    *_, step = steps
    return step.x


def slope(counts, errors):
    x, y = torch.tensor(counts).double().log(), torch.tensor(errors).double().log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


@pytest.mark.parametrize("make", [linear, cosine])
@pytest.mark.parametrize(("sampler", "order"), [(ddim, 1), (heun, 2), (dpmpp_2m, 2), (pf_ode, 4)])
def test_errors_fall_with_the_declared_order(sampler, order, make):
    """Against the exact flow of Gaussian data, on grids uniform in the log-SNR."""
    schedule, counts, errors = make(), [40, 80, 160], []
    denoise = ideal_gaussian(schedule, MEAN, STD)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(9, 1, 1, 1)
    for count in counts:
        ts = schedule.time_of(torch.linspace(-6, 5, count + 1, dtype=torch.float64))
        exact = gaussian_flow(schedule, MEAN, STD, x, float(ts[0]), float(ts[-1]))
        errors.append(float((last(sampler(denoise, schedule, x, ts)) - exact).abs().max()))
    assert slope(counts, errors) == pytest.approx(-order, abs=0.1)


def test_euler_maruyama_has_strong_order_one(monkeypatch):
    """The noise is additive, so not the 1/2 of general SDEs: one Brownian path, seen ever more finely."""
    schedule, finest = cosine(), 2048
    start, end = (-2 * float(schedule.alpha(schedule.time_of(snr)).log()) for snr in (-4.0, 2.0))  # of rho
    rho = torch.linspace(start, end, finest + 1, dtype=torch.float64)
    ts = schedule.time_of(-torch.log(torch.expm1(rho)))
    generator = torch.Generator().manual_seed(0)
    fine = torch.randn(finest, 500, 1, 1, 1, generator=generator, dtype=torch.float64)
    x = torch.randn(500, 1, 1, 1, generator=generator, dtype=torch.float64)
    ends, counts = [], [32, 64, 128, finest]
    for count in counts:
        each = finest // count
        path = iter(fine.reshape(count, each, 500, 1, 1, 1).sum(1) / math.sqrt(each))
        monkeypatch.setattr(samplers_module, "noise_like", lambda x, generator, path=path: next(path))
        ends.append(last(euler_maruyama(ideal_gaussian(schedule, MEAN, STD), schedule, x, ts[::each])))
    errors = [float((end - ends[-1]).square().mean().sqrt()) for end in ends[:-1]]
    assert slope(counts[:-1], errors) == pytest.approx(-1, abs=0.1)


def test_an_adaptive_solver_meets_its_tolerance():
    schedule = cosine()
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(9, 1, 1, 1)
    ts = schedule.time_of(torch.tensor([-6.0, 5.0], dtype=torch.float64))
    end = last(pf_ode(ideal_gaussian(schedule, MEAN, STD), schedule, x, ts, method="dopri5", rtol=1e-8, atol=1e-8))
    exact = gaussian_flow(schedule, MEAN, STD, x, float(ts[0]), float(ts[-1]))
    torch.testing.assert_close(end, exact, atol=1e-6, rtol=0)


def test_unknown_solvers_are_named():
    with pytest.raises(ValueError, match="unknown method 'rk5'"):
        next(pf_ode(lambda x, t: x, cosine(), torch.zeros(1, 1, 1, 1), cosine().grid(2), method="rk5"))


def test_decode_undoes_encode():
    schedule = cosine()
    means = torch.tensor([-0.5, 0.5]).reshape(2, 1, 1, 1)
    denoise = ideal_mixture(schedule, torch.tensor([0.5, 0.5]), means, 0.2)
    x = torch.linspace(-0.9, 0.9, 7, dtype=torch.float64).reshape(7, 1, 1, 1)
    latent = encode(denoise, schedule, x, steps=100, generator=torch.Generator().manual_seed(0))
    assert latent.abs().max() < 4  # a point of the standard normal
    first_noise = noise_like(x, torch.Generator().manual_seed(0))
    expected = x + torch.exp(-schedule.log_snr(1 / schedule.steps) / 2) * first_noise
    torch.testing.assert_close(decode(denoise, schedule, latent, steps=100), expected, atol=2e-3, rtol=0)


def test_latents_are_as_loud_as_noise_even_where_images_are_silent():
    """Data in a plane of 2 of 64 dimensions: the first step's noise fills the rest."""
    schedule, plane = linear(), torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    images = torch.einsum("nk,kchw->nchw", torch.randn(200, 2, generator=torch.Generator().manual_seed(2)), plane)
    denoise = ideal_dataset(schedule, images)
    latent = encode(denoise, schedule, images[:8], steps=20, generator=torch.Generator().manual_seed(0))
    assert float(latent.std()) == pytest.approx(1, abs=0.1)


def test_slerp_keeps_the_length_of_noise():
    a, b = torch.randn(2, 3, 1, 16, 16)
    assert slerp(a, b, 0.0).allclose(a, atol=1e-5) and slerp(a, b, 1.0).allclose(b, atol=1e-5)
    assert slerp(a, b, 0.5).std() == pytest.approx(1, abs=0.1)


def test_likelihood_of_a_mixture_is_the_analytic_one():
    """Of the mixture as it is at the chain's first step, where the path begins: a little wider."""
    schedule, weights = cosine(), torch.tensor([0.3, 0.7])
    means, std = torch.tensor([-0.5, 0.4]).reshape(2, 1, 1, 1), 0.15
    x = torch.linspace(-0.9, 0.8, 9, dtype=torch.float64).reshape(9, 1, 1, 1)
    found = log_likelihood(ideal_mixture(schedule, weights, means, std), schedule, x, steps=200)
    first = torch.full((9,), 1 / 1000, dtype=torch.float64)
    scale = schedule.alpha(first)  # the density of x / alpha is alpha times that of x
    exact = mixture_log_density(schedule, weights, means, std, expand(scale, x) * x, first)[0] + scale.log()
    torch.testing.assert_close(found, exact, atol=2e-4, rtol=0)
    clean = mixture_log_density(schedule, weights, means, std, x, torch.zeros(9, dtype=torch.float64))[0]
    torch.testing.assert_close(found, clean, atol=1e-2, rtol=0)


def test_an_ideal_data_set_draws_its_images_and_nothing_else():
    schedule, images = cosine(), torch.randn(5, 1, 4, 4).clamp(-1, 1)
    drawn = last(ddim(ideal_dataset(schedule, images), schedule, torch.randn(20, 1, 4, 4), schedule.grid(100)))
    nearest = torch.cdist(drawn.flatten(1), images.flatten(1)).min(1).values
    assert nearest.max() < 1e-3


@pytest.mark.parametrize("sampler", [heun, pf_ode, euler_maruyama])
def test_no_signal_no_step(sampler):
    schedule = zero_terminal_snr(linear())
    with pytest.raises(ValueError, match="no signal at t = 1"):
        next(sampler(lambda x, t: x, schedule, torch.zeros(1, 1, 1, 1), schedule.grid(3)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_name_their_step(value):
    steps = ddim(lambda x, t: x if t[0] > 0.5 else x * value, cosine(), torch.ones(1, 1, 1, 1), cosine().grid(4))
    next(steps)
    next(steps)
    with pytest.raises(ValueError, match=r"not finite, in the step at t = 0\.5"):
        next(steps)


def test_another_shape_is_named():
    with pytest.raises(ValueError, match="returned shape"):
        next(ddim(lambda x, t: x[:, :1], cosine(), torch.zeros(2, 3, 4, 4), cosine().grid(2)))
