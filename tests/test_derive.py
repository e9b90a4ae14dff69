"""The derivations: what they prove, and that the library computes the same numbers."""

import ast
import importlib
import math
from pathlib import Path

import pytest
import sympy
import torch
from torch import nn
from torchdiffeq import odeint, odeint_adjoint

import dyndiff.derive
from dyndiff import Denoiser, create_model, linear
from dyndiff.derive import DERIVATIONS, Derivation
from dyndiff.derive.costs import network
from dyndiff.ideal import gaussian_flow, ideal_gaussian, ideal_mixture, mixture_log_density
from dyndiff.likelihood import BIN, variational_bound
from dyndiff.ode import leapfrog
from dyndiff.presets import PRESETS
from dyndiff.profile import count_flops, count_parameters
from dyndiff.samplers import ancestral, ddim, dpmpp_2m, euler_maruyama, heun
from dyndiff.schedules import Schedule
from dyndiff.seeds import noise_like

FOLDER = Path(dyndiff.derive.__file__).parent
TIMES = [(1.0, 0.75), (0.6, 0.55), (0.3, 0.02)]
"""Steps from t to s, long and short, early and late."""


@pytest.fixture(scope="module")
def derived():
    """Each derivation, made once."""
    return {name: derive() for name, derive in DERIVATIONS.items()}


def near(number):
    return pytest.approx(float(number), rel=1e-12, abs=1e-12)


def tensor(*values):
    """One pixel a sample, in float64."""
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1, 1)


def double(values):
    """A tensor that no number has been rounded for."""
    return torch.tensor(values, dtype=torch.float64)


def scales(schedule, t, s):
    """alpha and sigma at both times, by the symbols' names."""
    values = {f"alpha_{name}": float(schedule.alpha(time)) for name, time in (("t", t), ("s", s))}
    return values | {f"sigma_{name}": float(schedule.sigma(time)) for name, time in (("t", t), ("s", s))}


def value(derivation, step, **symbols):
    return derivation.function(step, *symbols)(*symbols.values())


def constant(answer):
    """A denoiser that says the same whatever it sees."""
    return lambda x, t: torch.full_like(x, answer)


def one_step(sampler, denoise, x, t, s, **options):
    ts = torch.tensor([t, s], dtype=torch.float64)
    *_, step = sampler(denoise, linear(), x, ts, generator=torch.Generator().manual_seed(0), **options)
    return step.x


# --- what they are


@pytest.mark.parametrize("name", DERIVATIONS)
def test_every_identity_vanishes(derived, name):
    derivation = derived[name]
    assert derivation.identities and derivation.steps and derivation.title and derivation.statement.endswith(".")
    derivation.check()


@pytest.mark.parametrize("name", DERIVATIONS)
def test_steps_can_be_displayed(derived, name):
    """No equation has collapsed into True, and all have LaTeX."""
    for step in derived[name].steps.values():
        assert isinstance(step, sympy.Expr | sympy.Equality | sympy.MatrixBase)
        assert sympy.latex(step)


def wrong(name, difference):
    return Derivation("Sums", "Two and two.", {}, {"right": sympy.S.Zero, name: difference})


def test_a_wrong_identity_is_named():
    a, b = sympy.symbols("a b")
    wrong("a square", (a + b) ** 2 - a**2 - 2 * a * b - b**2).check()
    with pytest.raises(ValueError, match=r"'a square' does not vanish, what is left is 2\*a\*b"):
        wrong("a square", (a + b) ** 2 - a**2 - b**2).check()
    with pytest.raises(ValueError, match="no identity"):
        Derivation("Sums", "Nothing.", {}, {}).check()
    with pytest.raises(ValueError, match="does not vanish"):
        wrong("not a number", sympy.nan).check()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("posterior", "mean"),
        ("posterior", "variance"),
        ("bound", "WEIGHT"),
        ("ddim", "ddim"),
        ("ddim", "dpmpp_2m"),
        ("euler_maruyama", "RATE"),
        ("second_order", "A"),
        ("leapfrog", "decay"),
        ("leapfrog", "gain"),
        ("leapfrog", "MODIFIED"),
        ("adjoint", "decay"),
        ("lipschitz", "RATE"),
    ],
)
def test_a_mistake_in_a_formula_is_found(monkeypatch, module, name):
    """A formula of the library's, one percent off: some identity fails."""
    formula = f"dyndiff.derive.{module}.{name}"
    right = getattr(importlib.import_module(f"dyndiff.derive.{module}"), name)
    monkeypatch.setattr(formula, right * sympy.Rational(101, 100))
    with pytest.raises(ValueError, match="does not vanish"):
        DERIVATIONS[module]().check()


def test_names_are_used_once():
    part = {"a": sympy.S.One}, {"b": sympy.S.Zero}
    with pytest.raises(ValueError, match="twice among a, a"):
        Derivation.of("Sums", "Two.", part, part)


def test_a_function_names_what_it_lacks(derived):
    with pytest.raises(ValueError, match="unknown step 'nothing'"):
        derived["targets"].function("nothing")
    with pytest.raises(ValueError, match="'SNR' is a function of alpha, sigma, got alpha"):
        derived["targets"].function("SNR", "alpha")


def test_modules_are_short_and_know_no_torch():
    for path in FOLDER.glob("*.py"):
        text = path.read_text()
        imported = {node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
        imported |= {a.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import) for a in node.names}
        standard = {"dataclasses", "functools", "importlib", "typing", "collections.abc", "__future__"}
        assert imported <= standard | {"sympy", "derivation", *DERIVATIONS, None}, path.name
        assert len(text.splitlines()) < 150, path.name


def test_every_module_is_listed():
    assert {path.stem for path in FOLDER.glob("*.py")} == {*DERIVATIONS, "__init__", "derivation"}


# --- that the library computes the same


def test_forward_is_the_schedule(derived):
    """The chain's closed form at its own times; here for the longest chain that is multiplied out, and one of 1000."""
    four = Schedule((0.1, 0.2, 0.3, 0.4))
    betas = {f"beta_{i + 1}": beta for i, beta in enumerate(four.betas)}
    assert value(derived["forward"], "alpha", **betas) == near(four.alpha(1.0))
    assert value(derived["forward"], "sigma", **betas) == near(four.sigma(1.0))
    schedule, kept = linear(), 1.0
    step = derived["forward"].function("induction variance", "alphabar", "beta")
    log_snr = derived["forward"].function("log_snr", "alphabar")
    for i, beta in enumerate(schedule.betas):
        variance, kept, t = step(kept, beta), kept * (1 - beta), torch.tensor((i + 1) / 1000, dtype=torch.float64)
        assert variance == near(schedule.sigma(t) ** 2)
        assert math.sqrt(kept) == near(schedule.alpha(t))
        assert log_snr(kept) == pytest.approx(float(schedule.log_snr(t)), abs=1e-10)  # 1 - alphabar is 1e-4 at first


@pytest.mark.parametrize("part", [0.0, 0.25, 0.9, 1.0])
def test_forward_within_a_step_is_the_schedule(derived, part):
    """Between the chain's times: one step of beta 0.3, seen after a part of it."""
    schedule, rate = Schedule((0.3,)), -math.log(0.7)
    assert value(derived["forward"], "mean within a step", r=rate, u=part) == near(schedule.alpha(part))
    assert value(derived["forward"], "variance within a step", r=rate, u=part) == near(schedule.sigma(part) ** 2)


@pytest.mark.parametrize(("t", "s"), TIMES)
@pytest.mark.parametrize("variance", ["small", "large"])
def test_posterior_is_ancestrals_step(derived, t, s, variance):
    """A step is of_x_t x + of_x_0 x0 + spread z: differences of steps with one z give the weights."""
    at, noise = scales(linear(), t, s), noise_like(tensor(0.0), torch.Generator().manual_seed(0))
    base, moved, other = (
        float(one_step(ancestral, constant(x0), tensor(x), t, s, variance=variance))
        for x, x0 in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))
    )
    assert moved - base == near(value(derived["posterior"], "weight of x_t", **at))
    assert other - base == near(value(derived["posterior"], "weight of x_0", **at))
    squared = value(derived["posterior"], {"small": "variance"}.get(variance, variance), **at)
    assert base / float(noise) == near(math.sqrt(squared))


def test_posterior_of_neighbours_is_ancestrals_step(derived):
    """Ho et al.'s own letters, at three steps of the chain of 1000."""
    schedule = linear()
    for i in (2, 400, 1000):
        before, beta = float(schedule.alpha((i - 1) / 1000)) ** 2, schedule.betas[i - 1]
        x = {"alphabar_s": before, "beta": beta, "x_t": 0.7, "x_0": -0.4}
        mean = value(derived["posterior"], "mean of neighbours", **x)
        tilde = value(derived["posterior"], "beta-tilde", alphabar_s=before, beta=beta)
        noise = float(noise_like(tensor(0.0), torch.Generator().manual_seed(0)))
        step = float(one_step(ancestral, constant(-0.4), tensor(0.7), i / 1000, (i - 1) / 1000))
        assert step == pytest.approx(mean + math.sqrt(tilde) * noise, rel=1e-10)


def test_bound_is_variational_bound(derived):
    """Errors of 1 leave the weights; the rest is the prior's and the decoder's cost."""
    schedule, shown, said = linear(50), 51 / 127.5 - 1, 51 / 127.5 - 0.75
    bound = variational_bound(constant(said), schedule, tensor(shown))
    grid = schedule.grid(50)
    for i, (t, s) in enumerate(zip(grid[:-2].tolist(), grid[1:-1].tolist(), strict=True)):
        by_x0 = value(derived["bound"], "weight of x_0", **scales(schedule, t, s)) * (said - shown) ** 2
        assert float(bound.steps[0, i]) * math.log(2) == pytest.approx(by_x0, rel=1e-12)
    at = {"alpha": float(schedule.alpha(1.0)), "sigma": float(schedule.sigma(1.0)), "x_0": shown}
    assert float(bound.prior) * math.log(2) == near(value(derived["bound"], "prior", **at))
    at = {"sigma": float(schedule.sigma(1 / 50)), "mu": said, "x_0": shown, "delta": BIN / 2}
    assert float(bound.decoder) * math.log(2) == near(-math.log(value(derived["bound"], "decoder", **at)))


@pytest.mark.parametrize(("byte", "step"), [(-1.0, "first byte"), (1.0, "last byte")])
def test_open_bins_are_the_decoders(derived, byte, step):
    schedule = linear(50)
    bound = variational_bound(constant(0.97 * byte), schedule, tensor(byte))
    mass = value(derived["bound"], step, sigma=float(schedule.sigma(1 / 50)), mu=0.97 * byte)
    assert float(bound.decoder) * math.log(2) == near(-math.log(mass))


def test_bound_by_noise_is_the_same_number(derived):
    """Ho et al.'s weight of the noise's error is SNR(t) times smaller than that of x_0, between neighbours."""
    schedule = linear()
    for i in (2, 500, 1000):
        at = scales(schedule, i / 1000, (i - 1) / 1000)
        by_x0 = value(derived["bound"], "weight of x_0", **at) * (at["sigma_t"] / at["alpha_t"]) ** 2
        ho = value(derived["bound"], "weight of eps", alphabar_s=at["alpha_s"] ** 2, beta=schedule.betas[i - 1])
        assert ho == pytest.approx(by_x0, rel=1e-6)  # a difference of two almost equal SNRs
        gain = float(schedule.log_snr((i - 1) / 1000) - schedule.log_snr(i / 1000))
        assert value(derived["bound"], "dropped weight of h", h=gain) == pytest.approx(ho, rel=1e-6)


class Says(nn.Module):
    """A network with one answer."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x, t):
        """The answer, in x's shape."""
        return torch.full_like(x, self.answer)


@pytest.mark.parametrize("t", [0.05, 0.5, 1.0])
def test_targets_are_the_denoisers(derived, t):
    schedule, x, said = linear(), 0.8, 0.3
    at = {"alpha": float(schedule.alpha(t)), "sigma": float(schedule.sigma(t)), "x_t": x}
    for target, symbol in (("eps", "epsilon"), ("v", "v")):
        denoised = Denoiser(Says(said), schedule, target)(tensor(x), double([t]))
        assert float(denoised) == near(value(derived["targets"], f"x_0 from {target}", **at, **{symbol: said}))
    x0 = value(derived["targets"], "x_0 from v", **at, v=said)
    assert value(derived["targets"], "v from x_0", **at, x_0=x0) == pytest.approx(said)


@pytest.mark.parametrize(("t", "s"), [*TIMES, (0.2, 0.9)])
def test_flow_is_gaussian_flow(derived, t, s):
    schedule, mean, std = linear(), 0.4, 0.3
    at = {name: number for name, number in scales(schedule, t, s).items() if name.startswith("alpha")}
    arrived = value(derived["flow"], "flow map", **at, m=mean, c=std, x_t=1.3)
    assert float(gaussian_flow(schedule, double(mean), double(std), tensor(1.3), t, s)) == near(arrived)


@pytest.mark.parametrize("t", [0.01, 0.3, 0.8])
def test_flows_estimates_are_the_ideal_denoisers(derived, t):
    schedule, time = linear(), torch.tensor([t], dtype=torch.float64)
    at = {"rho": -2 * float(schedule.alpha(t).log()), "x": 0.35, "c": 0.25}
    ideal = ideal_gaussian(schedule, double(0.4), double(0.25))(tensor(0.35), time)
    assert float(ideal) == near(value(derived["flow"], "x_0 of a Gaussian", **at, m=0.4))
    weights, means = double([0.25, 0.75]), tensor(0.5, -0.5)
    two = {**at, "w": 0.25, "m_1": 0.5, "m_2": -0.5}
    ideal = ideal_mixture(schedule, weights, means, 0.25)(tensor(0.35), time)
    assert float(ideal) == near(value(derived["flow"], "x_0 of a mixture", **two))
    density = mixture_log_density(schedule, weights, means, 0.25, tensor(0.35), time)[0].exp()
    assert float(density) == near(value(derived["flow"], "mixture", **two))


@pytest.mark.parametrize(("t", "s"), TIMES)
def test_ddim_is_ddims_step(derived, t, s):
    at = scales(linear(), t, s)
    step = float(one_step(ddim, constant(-0.4), tensor(0.7), t, s))
    assert step == near(value(derived["ddim"], "ddim", **at, x_t=0.7, x_0=-0.4))


def test_dpmpp_2m_is_its_second_step(derived):
    schedule, ts = linear(), torch.tensor([0.9, 0.6, 0.4], dtype=torch.float64)
    answers = iter([0.5, -0.4])
    first, second = dpmpp_2m(lambda x, t: torch.full_like(x, next(answers)), schedule, tensor(0.7), ts)
    half = (0.5 * schedule.log_snr(ts)).diff().tolist()
    at = {**scales(schedule, 0.6, 0.4), "h_p": half[0], "h": half[1], "x_0p": 0.5, "x_0": -0.4}
    assert float(second.x) == near(value(derived["ddim"], "dpmpp_2m", **at, x_t=float(first.x)))


GAIN, STD, T = 0.35, 0.4, 0.4
"""A step's gain in half log-SNR; the data's spread about 0; the time that the step starts from."""


@pytest.fixture
def gaussian():
    """The ideal denoiser of that data, the step's times, one of 1.5 GAIN before, and k."""
    schedule = linear()
    log_snr = float(schedule.log_snr(T))
    ts = schedule.time_of(log_snr + 2 * GAIN * torch.tensor([-1.5, 0, 1], dtype=torch.float64))
    return ideal_gaussian(schedule, 0.0, double(STD)), ts, STD**2 * math.exp(log_snr)


def test_factors_are_the_samplers(derived, gaussian):
    """What DDIM, Heun and the exact flow make of Gaussian data in one step."""
    ideal, (_, t, s), k = gaussian
    at, exact = scales(linear(), t, s), gaussian_flow(linear(), 0.0, double(STD), tensor(1.0), t, s)
    across, along = at["sigma_s"] / at["sigma_t"], at["alpha_s"] / at["alpha_t"]
    names = ("DDIM factor", "Heun factor", "exact factor", "exact factor of x / alpha")
    factors = {name: value(derived["ddim"], name, k=k, h=GAIN) for name in names}
    assert float(one_step(ddim, ideal, tensor(1.0), t, s)) == near(across * factors["DDIM factor"])
    assert float(one_step(heun, ideal, tensor(1.0), t, s)) == near(along * factors["Heun factor"])
    assert float(exact) == near(across * factors["exact factor"])
    assert float(exact) == near(along * factors["exact factor of x / alpha"])


def test_2m_factor_is_the_samplers(derived, gaussian):
    """The step before ends on the exact path, where the factor supposes it to."""
    ideal, ts, k = gaussian
    start = gaussian_flow(linear(), 0.0, double(STD), tensor(1.0), ts[1], ts[0])
    steps = dpmpp_2m(ideal, linear(), start, ts)
    next(steps).x.fill_(1.0)
    at = scales(linear(), ts[1], ts[2])
    factor = value(derived["ddim"], "2M factor", k=k, h=GAIN, q=1.5)
    assert float(next(steps).x) == near(at["sigma_s"] / at["sigma_t"] * factor)


@pytest.mark.parametrize(
    ("exact", "factor", "leading"),
    [
        ("exact factor", "DDIM factor", "DDIM local error, Gaussian"),
        ("exact factor", "2M factor", "2M local error, Gaussian"),
        ("exact factor of x / alpha", "Heun factor", "Heun local error"),
    ],
)
def test_leading_errors_are_the_factors(derived, exact, factor, leading):
    numbers = {"k": 0.4, "h": 0.002, "q": 1.5}
    error = value(derived["ddim"], exact, **numbers) - value(derived["ddim"], factor, **numbers)
    assert error == pytest.approx(value(derived["ddim"], leading, **numbers), rel=0.01)


@pytest.mark.parametrize(("t", "s"), TIMES)
def test_euler_maruyama_is_the_samplers_step(derived, t, s):
    schedule, mean, std = linear(), 0.4, 0.3
    at = scales(schedule, t, s)
    elapsed = 2 * math.log(at["alpha_s"] / at["alpha_t"])
    spread = (at["alpha_t"] * std) ** 2 + at["sigma_t"] ** 2
    factor = value(derived["euler_maruyama"], "Euler-Maruyama factor", h=elapsed, V=spread)
    ideal = ideal_gaussian(schedule, double(mean), double(std))
    here, there = (float(one_step(euler_maruyama, ideal, tensor(x), t, s)) for x in (0.3, 1.3))
    assert there - here == pytest.approx(factor, rel=1e-11)
    exact = value(derived["euler_maruyama"], "exact variance", h=elapsed, V=spread)
    total = value(derived["posterior"], "variance given x_t alone", **at, c=std)
    assert exact == pytest.approx(total, rel=1e-9)


def test_euler_maruyamas_noise_is_the_samplers(derived):
    """White-noise data, many even steps on the clock rho: the samples' variance is what was derived, not 1."""
    schedule, steps = linear(), 20
    alpha_start, h = schedule.alpha(1.0), 0.4
    log_alpha = alpha_start.log() + 0.5 * h * torch.arange(steps + 1, dtype=torch.float64)
    ts = schedule.time_of(2 * log_alpha - torch.log(-torch.expm1(2 * log_alpha)))
    x = torch.randn(40_000, 1, 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ideal = ideal_gaussian(schedule, 0.0, 1.0)
    *_, last = euler_maruyama(ideal, schedule, x, ts, generator=torch.Generator().manual_seed(2))
    variance = value(derived["euler_maruyama"], "variance of Euler-Maruyama's samples", h=h)
    assert float(last.x.var()) == pytest.approx(variance, rel=0.03)  # 4 standard errors; the excess is 0.11
    assert variance == pytest.approx(1 / 0.9)


def test_accumulated_error_is_that_of_shared_noise(derived):
    """Exact and Euler-Maruyama paths of white-noise data, driven by one Brownian motion, its two integrals exact."""
    h, count = 0.4, 40_000
    step, shared = value(derived["euler_maruyama"], "exact variance", h=h, V=1.0), 2 * (1 - math.exp(-h / 2))
    generator = torch.Generator().manual_seed(0)
    exact = euler = torch.zeros(count, dtype=torch.float64)
    for _ in range(30):
        z = torch.randn(2, count, generator=generator, dtype=torch.float64)
        increment = math.sqrt(h) * z[0]
        noise = shared / h * increment + math.sqrt(step - shared**2 / h) * z[1]
        exact, euler = math.exp(-h / 2) * exact + noise, (1 - h / 2) * euler + increment
    measured = float((exact - euler).square().mean())
    assert measured == pytest.approx(value(derived["euler_maruyama"], "accumulated mean square error", h=h), rel=0.3)


# --- the dynamic block's depth, on the clock tau

SPRINGS = [("underdamped", 7.0, 1.5), ("overdamped", 0.8, 2.5), ("critically damped", 1.44, 2.4)]
"""A case, its k and its gamma."""


def rooted(k, gamma):
    """A spring's numbers by the symbols' names, its frequency or its rate among them."""
    root = math.sqrt(abs(k - gamma**2 / 4))
    return {"k": k, "gamma": gamma, "omega": root, "kappa": root}


def end_of(force, x, v, gamma, solver=odeint, **how):
    """Position and velocity at tau = 1, by 200 steps of Runge-Kutta's fourth order."""

    def field(tau, state):
        return state[1], force(state[0], tau) - gamma * state[1]

    times = torch.linspace(0, 1, 201, dtype=torch.float64)
    return [path[-1] for path in solver(field, (x, v), times, method="rk4", **how)]


def wave(x, tau):
    """A force that is neither linear nor the same at all depths; its Lipschitz constant is 3."""
    return torch.sin(3 * x) - 0.5 * tau


@pytest.mark.parametrize(("name", "k", "gamma"), SPRINGS)
def test_second_order_is_leapfrogs_limit(derived, name, k, gamma):
    """Leapfrog's error falls by 4 as its steps double; Runge-Kutta's is too small to see."""
    numbers = {**rooted(k, gamma), "c": 0.6, "q": 0.9, "p": -0.4, "tau": 1.0}
    exact = [value(derived["second_order"], f"{letter}, {name}", **numbers) for letter in "xv"]
    start = (lambda x, tau: 0.6 - k * x), double(0.9), double(-0.4), double(gamma)
    assert [float(last) for last in end_of(*start)] == pytest.approx(exact, rel=1e-8)
    for i in (0, 1):
        coarse, fine = (float(leapfrog(*start, 0.0, 1.0, steps)[i]) - exact[i] for steps in (100, 200))
        assert coarse / fine == pytest.approx(4, rel=0.01) and abs(fine) < 1e-3


def test_half_a_period_crosses_in_leapfrog(derived):
    """The slope of x(1) against x(0), by autograd: -exp(-gamma / 2) for the half period, and 1 + s without a force."""
    k, gamma, x = math.pi**2 + 0.04, double(0.4), double(0.7).requires_grad_()
    numbers = {"omega": math.pi, "gamma": 0.4}
    for s in (0.0, -2.0):
        end, _ = leapfrog(lambda x, tau: -k * x, x, s * x, gamma, 0.0, 1.0, 2000)
        (slope,) = torch.autograd.grad(end, x)
        assert float(slope) == pytest.approx(value(derived["second_order"], "slope", **numbers, s=s), abs=1e-5)
        end, _ = leapfrog(lambda x, tau: 0 * x, x, s * x, double(0.0), 0.0, 1.0, 3)
        (slope,) = torch.autograd.grad(end, x)
        assert float(slope) == near(value(derived["second_order"], "slope without a force", s=s))
    assert float(end.detach()) < 0 < float(x.detach())


def test_first_order_keeps_the_order(derived):
    x, times = double([0.05, 0.5, 0.9]).requires_grad_(), torch.linspace(0, 1, 201, dtype=torch.float64)
    end = odeint(lambda tau, x: 2.5 * x * (1 - x), x, times, method="rk4")[-1]
    (slopes,) = torch.autograd.grad(end.sum(), x)
    for q, arrived, slope in zip(x.tolist(), end.tolist(), slopes.tolist(), strict=True):
        numbers = {"q": q, "r": 2.5, "tau": 1.0}
        assert arrived == pytest.approx(value(derived["second_order"], "logistic x", **numbers), rel=1e-9)
        assert slope == pytest.approx(value(derived["second_order"], "logistic slope", **numbers), rel=1e-9)


@pytest.mark.parametrize(("step", "gamma"), [("matrix", 1.5), ("inverse", 1.5), ("undamped matrix", 0.0)])
def test_leapfrogs_matrix_is_the_librarys(derived, step, gamma):
    """What a step makes of (1, 0) and of (0, 1); the inverse is the step back."""
    x, v, ends = double([1.0, 0.0]), double([0.0, 1.0]), (0.3, 0.0) if step == "inverse" else (0.0, 0.3)
    moved = leapfrog(lambda x, tau: -7 * x, x, v, double(gamma), *ends, 1)
    found = value(derived["leapfrog"], step, k=7.0, gamma=gamma, h=0.3)
    assert [row.tolist() for row in moved] == [[near(number) for number in row] for row in found]


def test_leapfrog_shrinks_volumes_by_the_damping_alone():
    """Three pixels, a force that mixes them, four steps: exp(-gamma) for each pixel."""
    mix = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def end(state):
        return torch.cat(leapfrog(lambda x, tau: wave(mix @ x, tau), state[:3], state[3:], double(1.5), 0.0, 1.0, 4))

    jacobian = torch.autograd.functional.jacobian(end, double([0.3, -0.2, 0.5, 0.1, 0.4, -0.6]))
    assert float(torch.linalg.det(jacobian)) == near(math.exp(-3 * 1.5))


def test_leapfrogs_local_error_is_the_leading_term(derived):
    x, v, gamma, h = 0.4, -0.3, 1.5, 0.01
    jet = {"f_0": math.sin(3 * x), "f_x": 3 * math.cos(3 * x), "f_xx": -9 * math.sin(3 * x), "f_t": -0.5}
    numbers = {**jet, "f_xt": 0.0, "f_tt": 0.0, "v": v, "gamma": gamma, "h": h}
    start = wave, double(x), double(v), double(gamma), 0.0, h
    for letter, one, many in zip("xv", leapfrog(*start, 1), leapfrog(*start, 1000), strict=True):
        error = value(derived["leapfrog"], f"{letter}'s local error", **numbers)
        assert float(many - one) == pytest.approx(error, rel=0.03)


@pytest.mark.parametrize("gamma", [0.0, 6.0])
def test_leapfrog_breaks_at_the_limit(derived, gamma):
    """Just below it 400 steps of length 1/2 stay bounded, just above they do not."""
    limit = value(derived["leapfrog"], "damped limit", y=gamma / 4) if gamma else 4.0
    for part, bounded in ((0.99, True), (1.01, False)):
        k = part * limit / 0.5**2
        x, _ = leapfrog(lambda x, tau, k=k: -k * x, double(1.0), double(0.3), double(gamma), 0.0, 200.0, 400)
        assert (abs(float(x)) < 20) is bounded


def test_leapfrog_keeps_the_modified_energy(derived):
    start = (lambda x, tau: -7 * x), double(0.9), double(-0.4), double(0.0)
    states = [start[1:3], *(leapfrog(*start, 0.0, 0.3 * steps, steps) for steps in range(1, 60, 7))]
    energy = derived["leapfrog"].function("modified energy", "x", "v", "k", "h")
    energies = [energy(float(x), float(v), 7.0, 0.3) for x, v in states]
    assert energies == pytest.approx([energies[0]] * len(energies), rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_leapfrog_turns_x_round_exactly(derived, n):
    """From rest, in n steps; one evaluation of the force is enough."""
    k = value(derived["leapfrog"], "k that turns x round", n=n)
    x, _ = leapfrog(lambda x, tau: -k * x, double(0.9), double(0.0), double(0.0), 0.0, 1.0, n)
    assert float(x) == near(-0.9)


@pytest.mark.parametrize("how", ["backprop", "adjoint"])
def test_adjoint_is_the_gradient(derived, how):
    """Of x(1) by k, gamma, c, and by where it starts; c = 0 stands for an embedding's shift."""
    k, gamma, c, x, v = (double(number).requires_grad_() for number in (7.0, 1.5, 0.0, 0.9, -0.4))
    options = {"solver": odeint_adjoint, "adjoint_params": (k, gamma, c)} if how == "adjoint" else {}
    end = end_of(lambda x, tau: c - k * x, x, v, gamma, **options)[0]
    found = dict(zip(("k", "gamma", "c", "a", "b"), torch.autograd.grad(end, (k, gamma, c, x, v)), strict=True))
    numbers = {**rooted(7.0, 1.5), "q": 0.9, "p": -0.4, "tau": 0.0}
    for name, gradient in found.items():
        step = f"{name} of a spring" if name in "ab" else f"x(1) by {name}"
        assert float(gradient) == pytest.approx(value(derived["adjoint"], step, **numbers), rel=1e-7)


def test_adjoint_gives_nothing_to_what_it_is_not_told_of():
    """torchdiffeq's trap: a tensor that the force closes over has its integral only if it is named."""
    k, shift = double(7.0).requires_grad_(), double(0.2).requires_grad_()
    start = (lambda x, tau: shift - k * x), double(0.9), double(-0.4), double(1.5)
    told = end_of(*start, solver=odeint_adjoint, adjoint_params=(k,))[0]
    assert torch.autograd.grad(told, (k, shift), allow_unused=True)[1] is None


def test_discrete_adjoint_is_backprop(derived):
    """One step, from both costates at its end; f_x and f_theta are the slopes of sin(theta x) at its middle."""
    h, gamma, theta = 0.3, 1.5, double(3.0).requires_grad_()
    x, v, a, b = double(0.4).requires_grad_(), double(-0.3).requires_grad_(), 0.8, -0.5
    moved = leapfrog(lambda x, tau: torch.sin(theta * x), x, v, double(gamma), 0.0, h, 1)
    found = torch.autograd.grad(a * moved[0] + b * moved[1], (x, v, theta))
    middle = 0.4 - 0.3 * h / 2
    slopes = {"f_x": 3 * math.cos(3 * middle), "f_theta": middle * math.cos(3 * middle)}
    numbers = {**slopes, "h": h, "gamma": gamma, "a_1": a, "b_1": b}
    for gradient, step in zip(found, ("a before the step", "b before the step", "a step's gradient"), strict=True):
        assert float(gradient) == near(value(derived["adjoint"], step, **numbers))


@pytest.mark.parametrize("gamma", [0.0, 1.5])
@pytest.mark.parametrize("n", [1, 4])
def test_lipschitz_bound_is_attained_by_leapfrog(derived, n, gamma):
    """The force 5 x, from rest: what n steps make of 1."""
    x, _ = leapfrog(lambda x, tau: 5 * x, double(1.0), double(0.0), double(gamma), 0.0, 1.0, n)
    bound = value(derived["lipschitz"], "undamped discrete bound", L=5.0, n=n)
    if gamma:
        s = gamma / (2 * n)
        theta = value(derived["lipschitz"], "theta", L=5.0, h=1 / n, s=s)
        bound = value(derived["lipschitz"], "discrete bound", theta=theta, s=s, n=n)
    assert float(x) == near(bound)


@pytest.mark.parametrize("gamma", [0.0, 1.5])
def test_lipschitz_bound_holds_and_is_attained(derived, gamma):
    """Of 3 x and of a force with the same constant; the velocity starts from 0.7 x, or from 0.7 sin(x)."""
    numbers = {"gamma": gamma, "L": 3.0}
    kappa = value(derived["lipschitz"], "kappa", **numbers)
    bound = value(derived["lipschitz"], "block's bound", gamma=gamma, kappa=kappa, G=0.7)
    one = end_of(lambda x, tau: 3 * x, double(1.0), double(0.7), gamma)[0]
    assert float(one) == pytest.approx(bound, rel=1e-8)
    x = torch.randn(2, 500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for steps in (1, 4, 50):
        end = leapfrog(wave, x, 0.7 * torch.sin(x), double(gamma), 0.0, 1.0, steps)[0]
        apart = ((end[0] - end[1]) / (x[0] - x[1])).abs()
        assert 0.5 * bound < float(apart.max()) <= bound


@pytest.mark.parametrize("gamma", [0.0, 1.5])
def test_states_part_no_faster_than_gronwall(derived, gamma):
    """In the scaled norm: L x along its fastest motion at exactly that rate, another force more slowly."""
    growth = value(derived["lipschitz"], "Gronwall's bound", L=3.0, gamma=gamma)
    fastest = math.log(growth)

    def norm(x, v):
        return (3 * x**2 + v**2).sqrt()

    x, v = double(1.0), double(fastest)
    assert float(norm(*end_of(lambda x, tau: 3 * x, x, v, gamma)) / norm(x, v)) == pytest.approx(growth, rel=1e-8)
    state = torch.randn(2, 2, 500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first, second = (end_of(wave, *pair, gamma) for pair in state)
    apart = norm(first[0] - second[0], first[1] - second[1]) / norm(*(state[0] - state[1]))
    assert 0.5 * growth < float(apart.max()) <= growth


@pytest.mark.parametrize("name", PRESETS)
def test_costs_are_those_that_are_counted(name):
    """To the last parameter and operation."""
    config, net = PRESETS[name], create_model(name)
    steps = [config.solver(level).steps for level in range(len(config.widths))]
    formula = network(
        config.widths, config.size, channels=config.channels, depths=config.depths, middle=config.middle,
        attending=config.attention, steps=steps, block=config.block,
    )  # fmt: skip
    image = torch.zeros(1, config.channels, config.size, config.size), torch.ones(1)
    assert formula == (count_parameters(net), count_flops(net, image))
