"""The samplers against closed forms, against diffusers, and against each other."""

import math

import pytest
import torch

from dyndiff import (
    Denoiser,
    UNet,
    ancestral,
    clamped,
    cosine,
    ddim,
    dpmpp_2m,
    euler_maruyama,
    heun,
    linear,
    pf_ode,
    sample,
)
from dyndiff.sampling import SAMPLERS
from dyndiff.schedules import SCHEDULES, create_schedule, expand
from dyndiff.seeds import noise_like, per_sample

MEAN, SPREAD = 0.4, 0.3
"""The oracle's data: every pixel is drawn from N(MEAN, SPREAD^2)."""


def ideal(schedule):
    """E[x0 | x_t], what a perfect network would say."""

    def denoise(x, t):
        alpha, sigma = expand(schedule.alpha(t), x), expand(schedule.sigma(t), x)
        return MEAN + SPREAD**2 * alpha * (x - alpha * MEAN) / ((SPREAD * alpha) ** 2 + sigma**2)

    return denoise


def spread_at(schedule, t):
    """The standard deviation of x_t."""
    return ((SPREAD * schedule.alpha(t)) ** 2 + schedule.sigma(t) ** 2).sqrt()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def last(steps):
    *_, step = steps
    return step


@pytest.fixture
def denoiser(tiny, randomised):
    """A tiny network with random weights."""
    return Denoiser(randomised(UNet(tiny)).eval().requires_grad_(False), linear(), "v")


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
def test_ddim_is_first_order(name):
    """Against the exact flow map of Gaussian data, which keeps (x - alpha MEAN) / spread, in log-SNR."""
    schedule = create_schedule(name)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(9, 1, 1, 1)
    counts, errors = [32, 64, 128, 256], []
    for count in counts:
        ts = schedule.time_of(torch.linspace(schedule.log_snr(1.0), 6.0, count + 1, dtype=torch.float64))
        start, end = ts[0], ts[-1]
        whitened = (x - schedule.alpha(start) * MEAN) / spread_at(schedule, start)
        exact = schedule.alpha(end) * MEAN + spread_at(schedule, end) * whitened
        errors.append((last(ddim(ideal(schedule), schedule, x, ts)).x - exact).abs().max())
    log_n, log_error = torch.tensor(counts).log(), torch.stack(errors).float().log()
    slope = torch.linalg.lstsq(torch.stack([log_n, torch.ones(4)], dim=1), log_error).solution[0]
    assert float(-slope) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("name", SCHEDULES)
def test_ancestral_reaches_the_datas_mean_and_spread(name):
    schedule = create_schedule(name)
    x = torch.randn(20_000, 1, 1, 1, generator=seeded())
    end = last(ancestral(ideal(schedule), schedule, x, schedule.grid(500), generator=seeded(1))).x
    assert float(end.mean()) == pytest.approx(MEAN, abs=4 * SPREAD / math.sqrt(20_000))
    # four standard errors of a spread are 2%; 500 steps themselves leave it 0.2% short
    assert float(end.std()) == pytest.approx(SPREAD, rel=0.022)


@pytest.mark.parametrize("sampler", [ancestral, lambda *args, **kwargs: ddim(*args, eta=0.5, **kwargs)])
def test_knowing_x0_any_three_steps_keep_the_forward_marginal(sampler):
    """q(x_s | x0) = N(alpha x0, sigma^2) at every time, however long the steps: what the variances are for."""
    schedule, x0 = cosine(), torch.full((20_000, 1, 1, 1), 0.5, dtype=torch.float64)
    ts = torch.tensor([0.9, 0.6, 0.5, 0.1])
    x = schedule.alpha(ts[0]) * x0 + schedule.sigma(ts[0]) * noise_like(x0, seeded())
    for step in sampler(lambda x, t: x0, schedule, x, ts, generator=seeded(1)):
        alpha, sigma = schedule.alpha(step.t), schedule.sigma(step.t)
        assert float((step.x - alpha * x0).mean() / sigma) == pytest.approx(0, abs=4 / math.sqrt(20_000))
        assert float((step.x - alpha * x0).std() / sigma) == pytest.approx(1, abs=4 / math.sqrt(40_000))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_samplers_arrive_at_time_zero_with_the_last_estimate(sampler, name, denoiser):
    schedule = create_schedule(name)
    steps = sampler(denoiser, schedule, torch.randn(2, 1, 8, 8), schedule.grid(5), generator=seeded())
    if name.endswith("-zero") and sampler in (euler_maruyama, heun, pf_ode):
        with pytest.raises(ValueError, match="no signal at t = 1"):
            last(steps)
        return
    step = last(steps)
    assert step.t == 0
    assert step.x.isfinite().all()
    if sampler is not euler_maruyama:  # it takes a step of the SDE there, too
        torch.testing.assert_close(step.x, step.x0)


PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


@pytest.fixture(params=["ancestral", "ddim"])
def diffusers_pair(request):
    """One of our samplers and a function that makes diffusers' scheduler for it.

    Its coefficients are given in float64: its own float32 table leaves 1 - alpha^2 three digits near the data,
    3e-4 of an image in a step. Times are our grid's: diffusers' step i is our (i + 1) / T.
    """
    from diffusers import DDIMScheduler, DDPMScheduler

    def make(target, count):
        options = {"beta_schedule": "linear", "clip_sample": False, "prediction_type": PREDICTIONS[target]}
        if request.param == "ancestral":
            scheduler = DDPMScheduler(variance_type="fixed_small", **options)
        else:
            scheduler = DDIMScheduler(set_alpha_to_one=True, **options)
        scheduler.alphas_cumprod = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
        scheduler.set_timesteps(count)
        return scheduler, torch.cat([(scheduler.timesteps.double() + 1) / 1000, torch.zeros(1)])

    noise = (lambda: {"generator": seeded(1)}) if request.param == "ancestral" else dict
    return SAMPLERS[request.param], make, noise


def test_each_of_the_thousand_steps_equals_diffusers(diffusers_pair, denoiser):
    """From one state of unit variance: a random network that predicts the noise would let a chain explode."""
    sampler, make, noise = diffusers_pair
    scheduler, ts = make("eps", 1000)
    x, denoiser = torch.randn(2, 1, 8, 8, generator=seeded()), Denoiser(denoiser.net, linear(), "eps")
    for n, i in enumerate(scheduler.timesteps):
        expected = scheduler.step(denoiser.net(x, ((i + 1) / 1000).expand(2)), i, x, **noise()).prev_sample
        step = next(sampler(denoiser, linear(), x, ts[n : n + 2], generator=seeded(1)))
        torch.testing.assert_close(step.x, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("target", "count"), [("x0", 100), ("v", 50)])
def test_whole_chains_equal_diffusers_step_by_step(target, count, diffusers_pair, denoiser):
    sampler, make, noise = diffusers_pair
    scheduler, ts = make(target, count)
    x, options = torch.randn(2, 1, 8, 8, generator=seeded()), noise()
    steps = sampler(Denoiser(denoiser.net, linear(), target), linear(), x, ts, generator=seeded(1))
    for i, step in zip(scheduler.timesteps, steps, strict=True):
        x = scheduler.step(denoiser.net(x, ((i + 1) / 1000).expand(2)), i, x, **options).prev_sample
        torch.testing.assert_close(step.x, x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("target", ["x0", "v"])
@pytest.mark.parametrize("count", [10, 50])
def test_dpmpp_2m_equals_diffusers_step_by_step(target, count, denoiser):
    """Multistep: a step leans on the one before, so whole chains are compared. The last step is first order in both."""
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(beta_schedule="linear", prediction_type=PREDICTIONS[target])
    scheduler.set_timesteps(count)
    ts = torch.cat([(scheduler.timesteps.double() + 1) / 1000, torch.zeros(1)])
    scheduler.sigmas = torch.exp(-linear().log_snr(ts) / 2)  # in float64, as above
    x = torch.randn(2, 1, 8, 8, generator=seeded())
    steps = dpmpp_2m(Denoiser(denoiser.net, linear(), target), linear(), x, ts)
    for i, step in zip(scheduler.timesteps, steps, strict=True):
        x = scheduler.step(denoiser.net(x, ((i + 1) / 1000).expand(2)), i, x).prev_sample
        torch.testing.assert_close(step.x, x, atol=1e-5, rtol=0)


def test_ddim_with_all_the_noise_is_ancestral(denoiser):
    x = torch.randn(2, 1, 8, 8, generator=seeded(), dtype=torch.float64)
    args = (denoiser.double(), denoiser.schedule, x, denoiser.schedule.grid(20))
    for one, other in zip(ancestral(*args, generator=seeded(1)), ddim(*args, generator=seeded(1), eta=1), strict=True):
        torch.testing.assert_close(one.x, other.x, atol=1e-10, rtol=0)


def test_ddim_needs_no_generator_and_draws_nothing(denoiser):
    x, ts = torch.randn(2, 1, 8, 8, generator=seeded()), denoiser.schedule.grid(3)
    before = torch.get_rng_state()
    runs = [last(ddim(denoiser, denoiser.schedule, x, ts)).x for _ in range(2)]
    assert torch.equal(*runs)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_image_i_depends_on_the_seed_and_i_alone(sampler, denoiser):
    """Up to rounding: a float32 convolution may add up in another order when the batch is another."""
    settings = {"sampler": sampler, "steps": 5, "seed": 3}
    whole = sample(denoiser, 5, batch_size=5, **settings)
    parts = sample(denoiser, 3, batch_size=2, **settings)
    torch.testing.assert_close(parts, whole[:3], atol=1e-4, rtol=0)


def test_images_and_seeds_differ_from_each_other(denoiser):
    images = torch.cat([sample(denoiser, 2, steps=2, seed=seed) for seed in (0, 1, 2**32)])
    assert len(torch.unique(images, dim=0)) == 6


def test_noise_of_one_sample_is_its_own_generators():
    noise = noise_like(torch.empty(3, 1, 2, 2), per_sample(7, 3))
    for i in range(3):
        assert torch.equal(noise[i], torch.randn(1, 2, 2, generator=per_sample(7, 3)[i]))


def test_sample_gives_images_of_the_asked_size_on_the_cpu(denoiser):
    assert sample(denoiser, 3, steps=1).shape == (3, 1, 8, 8)
    assert sample(denoiser, 1, size=12, steps=1).shape == (1, 1, 12, 12)
    assert sample(denoiser, 1, steps=1).device.type == "cpu"


def test_progress_hears_of_every_network_call(denoiser):
    heard = []
    sample(denoiser, 5, steps=3, batch_size=2, progress=heard.append)
    assert heard == [2, 2, 2, 2, 2, 2, 1, 1, 1]


def test_sampling_leaves_no_graph(denoiser):
    assert not sample(Denoiser(denoiser.net.requires_grad_(), linear(), "v"), 1, steps=1).requires_grad


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_nothing_is_computed_before_it_is_asked_for(sampler):
    each = {heun: 2, pf_ode: 4}.get(sampler, 1)  # network calls a step; one in a step to t = 0
    calls = []

    def denoise(x, t):
        calls.append(t)
        return x

    steps = sampler(denoise, cosine(), torch.randn(2, 1, 4, 4), cosine().grid(3), generator=seeded())
    assert calls == []
    next(steps)
    assert calls[0].tolist() == [1, 1]
    assert len(calls) == each
    assert [step.t for step in steps] == pytest.approx([1 / 3, 0])
    assert len(calls) == 2 * each + 1


def test_clamped_keeps_estimates_in_range():
    wild = clamped(lambda x, t: 10 * x, -0.5, 2)
    assert wild(torch.tensor([-1.0, 0.1, 1.0]), torch.zeros(3)).tolist() == [-0.5, 1, 2]


@pytest.mark.parametrize(
    "ts", [[0, 0.6], [0.5, 0.6, 0.4], [1, 0.5, 0.5, 0], [1.1, 0], [1, -0.1], [1], [], [[1, 0.5]], [1, math.nan]]
)
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_times_must_fall_within_the_unit_interval(sampler, ts):
    with pytest.raises(ValueError, match="times"):
        next(sampler(lambda x, t: x, cosine(), torch.randn(1, 1, 4, 4), torch.tensor(ts)))


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_eta_lies_between_none_and_all(eta):
    with pytest.raises(ValueError, match=f"eta must lie in .* got {eta}"):
        next(ddim(lambda x, t: x, cosine(), torch.randn(1, 1, 4, 4), cosine().grid(2), eta=eta))


def test_generators_must_be_one_per_sample():
    with pytest.raises(ValueError, match="got 2 for a batch of 3"):
        next(ancestral(lambda x, t: x, cosine(), torch.randn(3, 1, 4, 4), cosine().grid(2), generator=per_sample(0, 2)))


BAD_SETTINGS = [
    ({"sampler": "nosuch"}, "'nosuch'.*ancestral, ddim"),
    ({"count": 0}, "at least 1.* 0 "),
    ({"batch_size": 0}, "at least 1.* 0"),
    ({"steps": 0}, "at least 1 step, got 0"),
    ({"seed": -1}, "negative, got -1"),
    ({"size": 9}, "divide by 2"),
    ({"size": 0}, "size"),
    ({"size": -8}, "size"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS, ids=[str(bad) for bad, _ in BAD_SETTINGS])
def test_sample_refuses_what_it_cannot_do(settings, message, denoiser):
    with pytest.raises(ValueError, match=message):
        sample(denoiser, **{"count": 1, "steps": 1, **settings})
