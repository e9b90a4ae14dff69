"""Which dynamic block learns most for its FLOPs? `python benchmarks/block_search.py --data-dir DIR`.

Each try is the continuous U-Net at MNIST's scale with one thing changed: widths, steps, what the force is made
of, where the initial velocity comes from, how skips are merged. All are trained with the same short recipe beside
the standard U-Net, and judged by the validation loss of v. A finished try is a line of `--out`; what is there
is not run again. The presets take what won here; what lost stays in this file alone.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from dyndiff import Denoiser, Run, TrainConfig, cosine, create_model, load_images, train
from dyndiff.blocks import Attention, Downsample, TimeEmbedding, Upsample, conv3, zeroed
from dyndiff.experiments.equal import validation_loss
from dyndiff.ode import leapfrog
from dyndiff.profile import count_flops, count_parameters
from dyndiff.records import provenance


@dataclass(frozen=True)
class Try:
    """One thing to try.

    Attributes:
        widths, steps: a number a level, finest first.
        force: a key of `FORCES`.
        velocity: the size of the convolution that gives the initial velocity; 0 for none.
        merge: skips by concatenation ("cat") or addition ("add").
        attention: the levels that attend.
        depth: blocks a level each way, but for the coarsest, which has one.
        groups: of the normalisation.
    """

    widths: tuple[int, ...] = (16, 32, 56)
    steps: tuple[int, ...] = (1, 1, 2)
    force: str = "two"
    velocity: int = 1
    merge: str = "cat"
    attention: tuple[int, ...] = (2,)
    depth: int = 1
    groups: int = 4


class Two(nn.Module):
    """The residual block's two convolutions, scaled and shifted between."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.films = 2 * width
        self.norm1, self.conv1 = nn.GroupNorm(groups, width), conv3(width, width)
        self.norm2, self.conv2 = nn.GroupNorm(groups, width), zeroed(conv3(width, width))

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        scale, shift = film.chunk(2, 1)
        return self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x)))) * (1 + scale) + shift))


class Gain(Two):
    """The same, and time also scales the force as a whole."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__(width, groups)
        self.films = 3 * width
        nn.init.normal_(self.conv2.weight, std=0.01)

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        between, gain = film.split([2 * x.shape[1], x.shape[1]], 1)
        return (1 + gain) * super().forward(x, between)


class One(nn.Module):
    """A single convolution: half the price of an evaluation."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.films, self.norm, self.conv = 2 * width, nn.GroupNorm(groups, width), zeroed(conv3(width, width))

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        scale, shift = film.chunk(2, 1)
        return self.conv(F.silu(self.norm(x) * (1 + scale) + shift))


class Gated(nn.Module):
    """1x1, depthwise 3x3, a product of halves, a gain from the mean over all pixels, 1x1: after NAFNet (Chen, 2022)."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.films, self.norm = 2 * width, nn.GroupNorm(groups, width)
        self.mix = nn.Conv2d(width, 2 * width, 1)
        self.spread = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.whole, self.out = nn.Linear(width, width), zeroed(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        scale, shift = film.chunk(2, 1)
        a, b = self.spread(self.mix(self.norm(x) * (1 + scale) + shift)).chunk(2, 1)
        h = a * b
        return self.out(h * self.whole(h.mean((2, 3)))[:, :, None, None])


FORCES = {"two": Two, "gain": Gain, "one": One, "gated": Gated}


class Block(nn.Module):
    """A second-order block with a force to choose."""

    def __init__(self, c_in: int, width: int, emb: int, steps: int, spec: Try) -> None:
        super().__init__()
        self.steps, k = steps, spec.velocity
        self.enter = nn.Conv2d(c_in, width, 1) if c_in != width else nn.Identity()
        self.velocity = zeroed(nn.Conv2d(width, width, k, padding=k // 2)) if k else None
        self.force = FORCES[spec.force](width, spec.groups)
        self.film = nn.Linear(emb, self.force.films)
        self.slope = nn.Parameter(torch.zeros(self.force.films))
        self.damping = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        x, film, gamma = self.enter(x), self.film(emb), F.softplus(self.damping)[:, None, None]
        v = torch.zeros_like(x) if self.velocity is None else self.velocity(x)
        force = lambda x, tau: self.force(x, (film + tau * self.slope)[:, :, None, None])  # noqa: E731
        return leapfrog(force, x, v, gamma, 0.0, 1.0, self.steps)[0]


class Net(nn.Module):
    """The continuous U-Net's skeleton around `Block`."""

    def __init__(self, spec: Try) -> None:
        super().__init__()
        self.spec, widths, emb = spec, spec.widths, 4 * spec.widths[0]
        last, double = len(widths) - 1, 2 if spec.merge == "cat" else 1

        def blocks(level: int, c_in: int, count: int) -> nn.ModuleList:
            return nn.ModuleList(Block(c_in, widths[level], emb, spec.steps[level], spec) for _ in range(count))

        def attend(level: int) -> nn.Module:
            return Attention(widths[level]) if level in spec.attention else nn.Identity()

        self.embedding, self.stem = TimeEmbedding(emb), conv3(1, widths[0])
        self.down = nn.ModuleList(blocks(n, widths[n], spec.depth) for n in range(last))
        self.up = nn.ModuleList(blocks(n, double * widths[n], spec.depth) for n in range(last))
        self.shrink = nn.ModuleList(Downsample(widths[n], widths[n + 1]) for n in range(last))
        self.grow = nn.ModuleList(Upsample(widths[n + 1], widths[n]) for n in range(last))
        self.attend = nn.ModuleList(attend(n) for n in [*range(last + 1), *range(last)])
        self.middle = blocks(last, widths[last], 1)[0]
        self.head = nn.Sequential(nn.GroupNorm(spec.groups, widths[0]), nn.SiLU(), zeroed(conv3(widths[0], 1)))
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        emb, h, last, skips = self.embedding(t), self.stem(x), len(self.down), []
        for n in range(last):
            for block in self.down[n]:
                h = block(h, emb)
                skips.append(h)
            h = self.shrink[n](self.attend[n](h))
        h = self.middle(self.attend[last](h), emb)
        for n in reversed(range(last)):
            h = self.grow[n](h)
            for block in self.up[n]:
                skip = skips.pop()
                h = block(torch.cat([h, skip], 1) if self.spec.merge == "cat" else h + skip, emb)
            h = self.attend[last + 1 + n](h)
        return self.head(h)


TRIES = {
    "first": Try(),
    "fewer FLOPs, one step": Try(widths=(16, 28, 48), steps=(1, 1, 1)),
    "fewer FLOPs, two steps": Try(widths=(16, 28, 40)),
    "wider at the finest": Try(widths=(24, 32, 48)),
    "wider in the middle": Try(widths=(12, 48, 64)),
    "wider at the coarsest": Try(widths=(16, 32, 96)),
    "two blocks a level, narrower": Try(widths=(12, 24, 40), depth=2),
    "attention at two levels": Try(attention=(1, 2)),
    "skips added": Try(merge="add"),
    "no initial velocity": Try(velocity=0),
    "3x3 velocity, one step": Try(widths=(16, 28, 48), steps=(1, 1, 1), velocity=3),
    "time scales the force": Try(force="gain"),
    "3x3 velocity, time scales the force": Try(widths=(16, 28, 40), steps=(1, 1, 1), velocity=3, force="gain"),
    "one convolution, twice the steps": Try(force="one", steps=(2, 2, 4)),
    "one convolution, 3x3 velocity": Try(force="one", steps=(2, 2, 2), velocity=3),
    "gated depthwise": Try(widths=(24, 40, 64), steps=(1, 2, 4), force="gated"),
    "one group": Try(groups=1),
    "eight groups": Try(groups=8),
}


def search(
    out: Path,
    data_dir: Path,
    steps: int = 600,
    batch_size: int = 64,
    learning_rates: tuple[float, ...] = (4e-3, 8e-3),
    seed: int = 0,
) -> None:
    """Train the standard U-Net and all tries, and write a line for each.

    Args:
        out: a file of JSON lines.
        data_dir: the folder that holds `mnist/train.parquet` and `mnist/test.parquet`.
        steps, batch_size, learning_rates, seed: of the short recipe; the U-Net runs at every learning rate,
            a try at the last.
    """
    images, test = (load_images("mnist", split, 28, data_dir) for split in ("train", "test"))
    done = {(line["name"], line["learning_rate"]) for line in map(json.loads, out.open())} if out.exists() else set()
    plan = [("unet", rate) for rate in learning_rates] + [(name, learning_rates[-1]) for name in TRIES]
    for name, rate in plan:
        if (name, rate) in done:
            continue
        torch.manual_seed(seed)  # the initial weights
        net: nn.Module = create_model("unet-mnist") if name == "unet" else Net(TRIES[name])
        config = TrainConfig(steps=steps, batch_size=batch_size, learning_rate=rate, seed=seed)
        costs = {
            "params": count_parameters(net),
            "flops": count_flops(net, (torch.zeros(1, 1, 28, 28), torch.ones(1))),
        }
        result = {"name": name, "learning_rate": rate, **costs, **_trained(net, config, images, test)}
        spec = None if name == "unet" else asdict(TRIES[name])
        with out.open("a") as file:
            file.write(
                json.dumps({**result, "steps": steps, "seed": seed, "try": spec, "measured": provenance()}) + "\n"
            )
        print(f"{name:38} lr {rate:g}  v {result['v']:.5f}  eps {result['eps']:.5f}")


def _trained(net: nn.Module, config: TrainConfig, images, test) -> dict[str, float]:
    net.config = create_model("unet-mnist").config  # the trainer asks it for classes
    run, started = Run(Denoiser(net, cosine(), "v"), config), time.perf_counter()
    for _ in train(run, images):
        pass
    return {**validation_loss(run.ema, test, 2000), "seconds": time.perf_counter() - started}


if __name__ == "__main__":
    tyro.cli(search)
