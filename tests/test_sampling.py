"""What can be put around a denoiser, class labels, the objectives' weights, time grids, and the bound."""

import math
from dataclasses import replace

import pytest
import torch

from dyndiff import (
    Denoiser,
    Images,
    Run,
    TrainConfig,
    UNet,
    ancestral,
    cosine,
    ddim,
    denoising_loss,
    guided,
    inpainting,
    linear,
    perturb,
    sample,
    sigmoid,
    train,
)
from dyndiff.ideal import ideal_gaussian
from dyndiff.likelihood import variational_bound
from dyndiff.sampling import ORDERS, SAMPLERS
from dyndiff.schedules import SPACINGS


def last(steps):
    *_, step = steps
    return step.x


@pytest.fixture
def labelled(tiny, randomised):
    return Denoiser(randomised(UNet(replace(tiny, classes=3))).eval().requires_grad_(False), cosine(), "v")


def test_every_sampler_declares_an_order():
    assert set(ORDERS) == set(SAMPLERS)


def test_a_label_changes_the_answer_and_none_is_a_class_of_its_own(labelled):
    x, t = torch.randn(2, 1, 8, 8), torch.full((2,), 0.5)
    nothing = torch.tensor([3, 3])
    assert not labelled(x, t, torch.tensor([0, 1])).allclose(labelled(x, t, torch.tensor([1, 0])))
    torch.testing.assert_close(labelled(x, t), labelled(x, t, nothing))


def test_guidance_goes_from_no_class_through_the_class_and_beyond(labelled):
    x, t, labels = torch.randn(2, 1, 8, 8), torch.full((2,), 0.5), torch.tensor([0, 2])
    free, told = labelled(x, t), labelled(x, t, labels)
    for scale in (0.0, 1.0, 3.0):
        torch.testing.assert_close(guided(labelled, labels, scale)(x, t), free + scale * (told - free))


@pytest.mark.parametrize("labels", [[3], [-1]])
def test_guidance_names_labels_out_of_range(labelled, labels):
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2"):
        guided(labelled, torch.tensor(labels))


def test_a_network_without_classes_takes_no_labels(tiny):
    plain = Denoiser(UNet(tiny), cosine())
    with pytest.raises(ValueError, match="without classes"):
        guided(plain, torch.tensor([0]))
    with pytest.raises(ValueError, match="without classes"):
        plain(torch.zeros(1, 1, 8, 8), torch.ones(1), torch.tensor([0]))


def test_labels_reach_the_samples_and_must_match_the_count(labelled):
    zeros, ones = (sample(labelled, 2, steps=3, labels=torch.full((2,), k)) for k in (0, 1))
    assert not zeros.allclose(ones)
    with pytest.raises(ValueError, match="one label per image"):
        sample(labelled, 2, labels=torch.tensor([0]))


def test_training_teaches_labels(tiny):
    """Class 0 is black, class 1 white: after a little training, a guess from pure noise tells them apart."""
    torch.manual_seed(0)
    pixels = torch.tensor([0, 255], dtype=torch.uint8).repeat(32).reshape(64, 1, 1, 1).expand(64, 1, 8, 8)
    images = Images(pixels, torch.tensor([0, 1]).repeat(32), ("black", "white"))
    config = TrainConfig(steps=60, batch_size=32, learning_rate=1e-2, ema_decay=0.9)
    run = Run(Denoiser(UNet(replace(tiny, classes=2)), cosine(), "x0"), config)
    for _ in train(run, images):
        pass
    guess = run.ema(torch.randn(2, 1, 8, 8), torch.ones(2), torch.tensor([0, 1])).mean((1, 2, 3))
    assert guess[0] < -0.5 and guess[1] > 0.5


def test_inpainting_keeps_what_is_known():
    known, mask = torch.rand(1, 1, 8, 8) * 2 - 1, torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    denoise = inpainting(ideal_gaussian(cosine(), 0.0, 0.5), known, mask)
    drawn = last(ddim(denoise, cosine(), torch.randn(3, 1, 8, 8), cosine().grid(20)))
    torch.testing.assert_close(drawn[..., :4], known[..., :4].expand(3, -1, -1, -1))
    assert drawn[..., 4:].std() > 0.2


def test_the_large_variance_is_that_of_white_noise():
    """For white-noise data the chain with the forward step's variance keeps the variance at 1."""
    x = torch.randn(20_000, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    schedule, generator = linear(), torch.Generator().manual_seed(1)
    ts = schedule.time_of(torch.linspace(-6, 6, 21, dtype=torch.float64))
    denoise = ideal_gaussian(schedule, 0.0, 1.0)
    large = last(ancestral(denoise, schedule, x, ts, generator=generator, variance="large"))
    small = last(ancestral(denoise, schedule, x, ts, generator=generator))
    assert float(large.var()) == pytest.approx(1, abs=0.04)
    assert float(small.var()) < 0.9
    with pytest.raises(ValueError, match="unknown variance"):
        next(ancestral(denoise, schedule, x, ts, variance="huge"))


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
def test_min_snr_weighs_the_error_of_x0(target):
    """Whatever the target, the loss is min(SNR, 5) times the squared error of the estimate of x0."""
    schedule, net = cosine(), lambda x, t: 0.3 * x
    x0, eps = torch.randn(2, 6, 1, 2, 2, dtype=torch.float64)
    t = torch.linspace(0.05, 0.95, 6, dtype=torch.float64)
    estimate = Denoiser(net, schedule, target)(perturb(schedule, x0, t, eps), t)
    weight = schedule.log_snr(t).exp().clamp(max=5)
    wanted = (weight * (estimate - x0).square().flatten(1).mean(1)).mean()
    loss = denoising_loss(Denoiser(net, schedule, target), x0, t, eps, min_snr=5.0)
    torch.testing.assert_close(loss, wanted, atol=0, rtol=1e-9)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("make", [linear, cosine, sigmoid])
def test_grids_are_uniform_in_what_they_say(make, spacing):
    schedule = make()
    ts = schedule.grid(10, spacing)
    assert len(ts) == 11 and ts[0] == pytest.approx(1) and ts[-1] == 0
    inner = ts if spacing == "time" else ts[:-1]
    scale = {"time": lambda s: s, "log_snr": lambda s: s, "karras": lambda s: torch.exp(-s / 14)}[spacing]
    steps = scale(inner if spacing == "time" else schedule.log_snr(inner)).diff()
    torch.testing.assert_close(steps, steps.mean().expand_as(steps), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_all_samplers_are_finite_at_both_ends(sampler, spacing, dtype):
    schedule = linear()
    x = torch.randn(2, 1, 4, 4, dtype=dtype)
    end = last(sampler(ideal_gaussian(schedule, 0.0, 0.5), schedule, x, schedule.grid(8, spacing)))
    assert end.dtype == dtype and end.isfinite().all()


def test_the_bound_of_a_gaussian_is_the_analytic_one():
    """Each L is half the gain in SNR times the least mean squared error, known for a Gaussian; 2% is chance."""
    schedule, mean, std = linear(), 0.1, 0.25
    generator = torch.Generator().manual_seed(0)
    x0 = mean + std * torch.randn(64, 1, 8, 8, dtype=torch.float64, generator=generator)
    x0 = ((x0.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    bound = variational_bound(ideal_gaussian(schedule, mean, std), schedule, x0, generator=generator)
    ts = schedule.grid(1000)[:-1]
    alpha, sigma, snr = schedule.alpha(ts), schedule.sigma(ts), schedule.log_snr(ts).exp()
    least = (std * sigma) ** 2 / ((alpha * std) ** 2 + sigma**2)
    expected = 0.5 * snr.diff() * least[:-1] / math.log(2)
    assert float(bound.steps.mean(0).sum()) == pytest.approx(float(expected.sum()), rel=0.02)
    torch.testing.assert_close(bound.steps.mean(0), expected, atol=0, rtol=0.1)
    normal = torch.distributions.Normal(torch.tensor(mean).double(), std)
    exact = -torch.log2(normal.cdf(x0 + 1 / 255) - normal.cdf(x0 - 1 / 255)).flatten(1).mean(1)
    assert float(bound.total.mean()) > float(exact.mean())  # a bound it is
    torch.testing.assert_close(bound.total, bound.prior + bound.steps.sum(1) + bound.decoder)
