"""Which dynamic block learns most for its FLOPs? `python benchmarks/block_search.py --data-dir DIR`.

    python benchmarks/block_search.py --data-dir DIR --steps 1000 --names unet "the presets' block" "weak forces"

Each try is the continuous U-Net at MNIST's scale with one thing changed: where the velocity starts from, how strong
forces are, what the force is made of, widths, steps, blocks, attention. All are trained with the same short recipe
beside the standard U-Net, and judged by the validation loss of v. A finished try is kept in the record, and not run
again. The presets take what won here; what lost stays in this file alone. "The promise" is that of the paper's
abstract: 25% of the U-Net's parameters, and 30% of its FLOPs.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from dyndiff import Denoiser, Run, TrainConfig, UNet, UNetConfig, cosine, load_images, train
from dyndiff.blocks import PULL, conv3, norm, zeroed
from dyndiff.experiments.equal import validation_loss
from dyndiff.files import read_json
from dyndiff.ode import Solver, leapfrog
from dyndiff.presets import PRESETS
from dyndiff.profile import count_flops, count_parameters
from dyndiff.records import RESULTS, provenance, write_record
from dyndiff.unet import BLOCKS


@dataclass(frozen=True)
class Try:
    """One thing to try; as it stands, the block of the presets.

    Attributes:
        widths, steps: a number a level, finest first.
        depth: blocks a level each way; one number for all, or one for each.
        middle: blocks at the coarsest level, between the two ways.
        attention: the levels that attend.
        force: a key of `FORCES`.
        velocity: a key of `VELOCITIES`.
        pull: how strong forces are.
        damping: what its rate starts from, before softplus.
    """

    widths: tuple[int, ...] = (12, 20, 24)
    steps: tuple[int, ...] = (1, 1, 1)
    depth: int | tuple[int, ...] = 1
    middle: int = 2
    attention: tuple[int, ...] = (2,)
    force: str = "two"
    velocity: str = "bent 3x3 of the input"
    pull: float = PULL
    damping: float = 0.0


class Two(nn.Module):
    """The residual block's two convolutions, scaled and shifted between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.films = 2 * width
        self.norm1, self.conv1 = norm(width), conv3(width, width)
        self.norm2, self.conv2 = norm(width), zeroed(conv3(width, width))

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        scale, shift = film.chunk(2, 1)
        return self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x)))) * (1 + scale) + shift))


class Gain(Two):
    """The same, and time also scales the force as a whole."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.films = 3 * width
        nn.init.normal_(self.conv2.weight, std=0.01)

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        between, gain = film.split([2 * x.shape[1], x.shape[1]], 1)
        return (1 + gain) * super().forward(x, between)


class One(nn.Module):
    """A single convolution: half the price of an evaluation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.films, self.norm, self.conv = 2 * width, norm(width), zeroed(conv3(width, width))

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        scale, shift = film.chunk(2, 1)
        return self.conv(F.silu(self.norm(x) * (1 + scale) + shift))


class Gated(nn.Module):
    """1x1, depthwise 3x3, a product of halves, a gain from the mean over all pixels, 1x1: after NAFNet (Chen, 2022)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.films, self.norm = 2 * width, norm(width)
        self.mix = nn.Conv2d(width, 2 * width, 1)
        self.spread = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.whole, self.out = nn.Linear(width, width), zeroed(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        scale, shift = film.chunk(2, 1)
        a, b = self.spread(self.mix(self.norm(x) * (1 + scale) + shift)).chunk(2, 1)
        h = a * b
        return self.out(h * self.whole(h.mean((2, 3)))[:, :, None, None])


FORCES = {"two": Two, "gain": Gain, "one": One, "gated": Gated}
VELOCITIES = {
    "none": None,
    "1x1 of the position": lambda a, b: zeroed(nn.Conv2d(b, b, 1)),
    "3x3 of the position": lambda a, b: zeroed(conv3(b, b)),
    "3x3 of the input": lambda a, b: zeroed(conv3(a, b)),
    "bent 1x1 of the input": lambda a, b: nn.Sequential(norm(a), nn.SiLU(), zeroed(nn.Conv2d(a, b, 1))),
    "bent 3x3 of the input": lambda a, b: nn.Sequential(norm(a), nn.SiLU(), zeroed(conv3(a, b))),
}
"""Where the initial velocity comes from: from the block's input, or from the position that a 1x1 made of it."""


class Block(nn.Module):
    """A second-order block with a force, a velocity and their strengths to choose."""

    def __init__(self, c_in: int, width: int, emb: int, *, spec: Try, solver: Solver) -> None:
        super().__init__()
        self.spec, self.steps = spec, solver.steps
        self.position = nn.Conv2d(c_in, width, 1) if c_in != width else nn.Identity()
        velocity = VELOCITIES[spec.velocity]
        self.velocity = velocity(c_in, width) if velocity else None
        self.force = FORCES[spec.force](width)
        self.film = nn.Linear(emb, self.force.films)
        self.slope = nn.Parameter(torch.zeros(self.force.films))
        self.damping = nn.Parameter(torch.full((width,), spec.damping))

    def start(self, h: Tensor, x: Tensor) -> Tensor:
        """The initial velocity, from the input h and the position x."""
        if self.velocity is None:
            return torch.zeros_like(x)
        return self.velocity(x if self.spec.velocity.endswith("position") else h)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        x, film, gamma = self.position(h), self.film(emb), F.softplus(self.damping)[:, None, None]

        def force(x: Tensor, tau: float | Tensor) -> Tensor:
            return self.spec.pull * self.force(x, (film + tau * self.slope)[:, :, None, None])

        return leapfrog(force, x, self.start(h, x), gamma, 0.0, 1.0, self.steps)[0]


COARSE = {"depth": (1, 1, 0), "middle": 1}  # one block at the coarsest level
TRIES = {
    "the presets' block": Try(),
    "the first one: 1x1 velocity, weak forces": Try(
        widths=(16, 28, 40), steps=(1, 1, 2), velocity="1x1 of the position", pull=1, **COARSE
    ),
    "the same, strong forces": Try(widths=(16, 28, 40), steps=(1, 1, 2), velocity="1x1 of the position", **COARSE),
    "weak forces": Try(pull=1),
    "strong by weak damping": Try(pull=2, damping=-4.0),
    "no velocity, wider": Try(widths=(16, 24, 32), velocity="none"),
    "1x1 velocity, wider": Try(widths=(16, 24, 28), velocity="1x1 of the position"),
    "bent 1x1 velocity, wider": Try(widths=(16, 24, 28), velocity="bent 1x1 of the input"),
    "3x3 velocity of the position": Try(widths=(12, 24, 28), velocity="3x3 of the position"),
    "3x3 velocity of the input, not bent": Try(velocity="3x3 of the input"),
    "one block at the coarsest, wider": Try(widths=(12, 24, 40), **COARSE),
    "wider at the finest": Try(widths=(16, 16, 20)),
    "up to the promise, wider at the finest": Try(widths=(16, 20, 24)),
    "up to the promise, bent 1x1 velocity": Try(widths=(16, 28, 36), velocity="bent 1x1 of the input"),
    "the same, wider at the finest": Try(widths=(20, 24, 28), velocity="bent 1x1 of the input"),
    "up to the promise, no velocity": Try(widths=(16, 28, 40), velocity="none"),
    "two steps everywhere, narrower": Try(widths=(8, 20, 24), steps=(2, 2, 2)),
    "three steps at the coarsest": Try(steps=(1, 1, 3)),
    "two blocks in the middle level": Try(widths=(12, 16, 20), depth=(1, 2, 1)),
    "attention at two levels": Try(attention=(1, 2)),
    "no attention": Try(attention=()),
    "time scales the force": Try(force="gain"),
    "one convolution in the force, wider": Try(widths=(16, 20, 28), force="one"),
    "gated depthwise force, wider": Try(widths=(16, 24, 32), force="gated"),
}


def search(
    data_dir: Path,
    out: Path | None = None,
    names: tuple[str, ...] = (),
    steps: int = 400,
    batch_size: int = 64,
    learning_rates: tuple[float, ...] = (4e-3, 8e-3),
    seed: int = 0,
) -> None:
    """Train the standard U-Net and all tries, and keep what each of them reached.

    Args:
        data_dir: the folder that holds `mnist/train.parquet` and `mnist/test.parquet`.
        out: the record; by default block_search-STEPS.json among the package's results.
        names: which tries, `unet` among them; by default all.
        steps, batch_size, learning_rates, seed: of the short recipe; the U-Net and the presets' block run at
            every learning rate, the other tries at the last.
    """
    if other := sorted(set(names) - {"unet", *TRIES}):
        raise ValueError(f"unknown try {other[0]!r}; choose from unet, {', '.join(TRIES)}")
    out = out or RESULTS / f"block_search-{steps}.json"
    images, test = (load_images("mnist", split, 28, data_dir) for split in ("train", "test"))
    tries: list[dict[str, Any]] = read_json(out)["tries"] if out.exists() else []
    first = next(iter(TRIES))
    plan = [(name, rate) for rate in learning_rates for name in ("unet", first)]
    plan += [(name, learning_rates[-1]) for name in TRIES if name != first]
    for name, rate in plan:
        if names and name not in names:
            continue
        if any((row["name"], row["learning_rate"], row["seed"]) == (name, rate, seed) for row in tries):
            continue
        config = TrainConfig(steps=steps, batch_size=batch_size, learning_rate=rate, seed=seed)
        result = _trained(_network(name), config, images, test)
        spec = {} if name == "unet" else asdict(TRIES[name])
        tries.append({"name": name, "learning_rate": rate, "seed": seed, "try": spec, **result, "run": provenance()})
        write_record(out, {"data": "mnist", "steps": steps, "batch_size": batch_size, "tries": tries})
        print(f"{name:42} lr {rate:g}  v {result['v']:.5f}  eps {result['eps']:.5f}", flush=True)


def _network(name: str) -> UNetConfig:
    unet = PRESETS["unet-mnist"]
    if name == "unet":
        return unet
    spec = TRIES[name]
    BLOCKS["try"] = lambda solver: partial(Block, spec=spec, solver=solver)  # the skeleton is the library's
    return UNetConfig(**{
        **unet.to_dict(), "widths": spec.widths, "steps": spec.steps, "depth": spec.depth, "middle": spec.middle,
        "attention": spec.attention, "block": "try",
    })  # fmt: skip


def _trained(net_config: UNetConfig, config: TrainConfig, images: Any, test: Any) -> dict[str, float]:
    torch.manual_seed(config.seed)  # the initial weights
    net = UNet(net_config)
    run, started = Run(Denoiser(net, cosine(), "v"), config), time.perf_counter()
    for _ in train(run, images):
        pass
    flops = count_flops(net, (torch.zeros(1, 1, 28, 28), torch.ones(1)))
    costs = {"params": count_parameters(net), "flops": flops, "seconds": time.perf_counter() - started}
    return {**costs, **validation_loss(run.ema, test, 2000)}


if __name__ == "__main__":
    tyro.cli(search)
