"""What does training cost beyond the network? `python benchmarks/training_loop.py`.

Steps of batch 64 on the very same network, in turn: dyndiff's `train`; a bare PyTorch loop, with and without
the clipping and the moving average that `train` also does; and the training loops of two popular packages,
where they can be imported (`pip install denoising-diffusion-pytorch smalldiffusion`): lucidrains'
`Trainer`, which reads pictures from a folder as it always does, and smalldiffusion's `training_loop`, which
neither clips nor averages. Images a second go to `dyndiff/results/training_loop.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dyndiff import Denoiser, Images, Run, TrainConfig, UNet, cosine, create_model, load_images, to_unit, train
from dyndiff.denoiser import denoising_loss
from dyndiff.files import output_folder
from dyndiff.records import RESULTS, write_record

BATCH = 64
DEVICE = Accelerator().device

Steps = Callable[[int], None]
"""Makes so many training steps."""


def ours(net: UNet, images: Images) -> Steps:
    """`train`, as the command line uses it."""
    run = Run(Denoiser(net, cosine(), "v"), TrainConfig(steps=10**6, batch_size=BATCH))
    steps = train(run, images)
    return lambda count: [next(steps) for _ in range(count)] and None


def bare(net: UNet, images: Images, whole: bool = True) -> Steps:
    """The least that trains; `whole` clips and averages too, as `train` does."""
    denoiser, pixels = Denoiser(net, cosine(), "v").to(DEVICE), images.pixels.to(DEVICE)
    weights, averages = list(net.parameters()), [weight.detach().clone() for weight in net.parameters()]
    optimizer = torch.optim.Adam(weights, lr=1e-3)

    def steps(count: int) -> None:
        for _ in range(count):
            x0 = to_unit(pixels[torch.randint(len(pixels), (BATCH,), device=DEVICE)])
            loss = denoising_loss(denoiser, x0, torch.rand(BATCH), torch.randn_like(x0))
            loss.backward()
            if whole:
                nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if whole:
                with torch.no_grad():
                    torch._foreach_lerp_(averages, weights, 0.005)

    return steps


class Wrapped(nn.Module):
    """A dyndiff network as lucidrains' `GaussianDiffusion` calls it."""

    self_condition = False

    def __init__(self, net: UNet) -> None:
        super().__init__()
        self.net, self.channels, self.out_dim = net, net.config.channels, net.config.channels

    def forward(self, x: Tensor, t: Tensor, x_self_cond: None = None) -> Tensor:
        return self.net(x, (t + 1) / 1000)


def lucidrains(net: UNet, images: Images) -> Steps:
    """denoising-diffusion-pytorch's `Trainer`, on a folder of PNGs."""
    _declare_torchvisions_operators()
    from denoising_diffusion_pytorch import GaussianDiffusion, Trainer
    from PIL import Image

    folder = Path(tempfile.mkdtemp())
    for n, pixels in enumerate(images.pixels):
        Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy()).save(folder / f"{n:05d}.png")
    trainer = Trainer(
        GaussianDiffusion(Wrapped(net), image_size=net.config.size, objective="pred_v").to(DEVICE), folder,
        train_batch_size=BATCH, train_num_steps=0, save_and_sample_every=10**9, calculate_fid=False,
        augment_horizontal_flip=False, results_folder=tempfile.mkdtemp(),
    )  # fmt: skip

    def steps(count: int) -> None:
        trainer.train_num_steps += count
        trainer.train()

    return steps


def smalldiffusion(net: UNet, images: Images) -> Steps:
    """smalldiffusion's `training_loop`, on tensors in memory."""
    _declare_torchvisions_operators()
    from smalldiffusion import ModelMixin, ScheduleDDPM, training_loop

    class Model(ModelMixin, nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, sigma: Tensor, cond: None = None) -> Tensor:
            return self.net(x, sigma.flatten() / 200)

    loader = torch.utils.data.DataLoader(to_unit(images.pixels), batch_size=BATCH, shuffle=True, drop_last=True)
    loop = training_loop(loader, Model(), ScheduleDDPM(), epochs=10**6)
    return lambda count: [next(loop) for _ in range(count)] and None


def _declare_torchvisions_operators() -> None:
    """PyPI's torchvision is built for CUDA; beside a CPU torch it wants two operators, which no loop here calls."""
    if not torch.backends.cuda.is_built() and not _LIBRARIES:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARIES.append(library)  # it lasts as long as the object


_LIBRARIES: list[torch.library.Library] = []

LOOPS: dict[str, Callable[[UNet, Images], Steps]] = {
    "dyndiff": ours,
    "bare loop, same work": bare,
    "bare loop, no clipping or average": lambda net, images: bare(net, images, whole=False),
    "denoising-diffusion-pytorch": lucidrains,
    "smalldiffusion": smalldiffusion,
}


def measure(preset: str, data: str, rounds: int, steps: int) -> dict[str, object]:
    """Images a second of every loop, `rounds` times `steps` steps each, in turn."""
    ways, skipped = {}, {}
    for name, make in LOOPS.items():
        torch.manual_seed(0)
        net = create_model(preset)
        try:
            ways[name] = make(net, load_images(data, size=net.config.size))
        except (ImportError, RuntimeError) as error:
            skipped[name] = str(error).splitlines()[0]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        for turn in range(-1, rounds):  # the first warms up
            names = list(ways)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:  # nobody always comes first
                started = time.perf_counter()
                ways[name](steps)
                if DEVICE.type == "cuda":
                    torch.cuda.synchronize()
                if turn >= 0:
                    seconds[name].append(time.perf_counter() - started)
    speeds = {name: [BATCH * steps / value for value in values] for name, values in seconds.items()}
    overheads = [a / b - 1 for a, b in zip(seconds["dyndiff"], seconds["bare loop, same work"], strict=True)]
    return {
        "network": preset, "data": data, "batch": BATCH, "rounds": rounds, "steps_a_round": steps,
        "images_per_second": {
            name: dict(zip(("low", "median", "high"), quantiles(values, n=4), strict=True))
            for name, values in speeds.items()
        },
        "best_images_per_second": {name: max(values) for name, values in speeds.items()},
        "overhead": median(overheads),
        "overhead_quartiles": quantiles(overheads, n=4),
        "best_overhead": min(seconds["dyndiff"]) / min(seconds["bare loop, same work"]) - 1,
        "skipped": skipped,
    }  # fmt: skip


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS / "training_loop.json")
    args = parser.parse_args()
    results = [
        measure(preset, data, args.rounds, args.steps)
        for preset, data in (("unet-mnist", "shapes"), ("unet-digits", "digits"), ("cunet-digits", "digits"))
    ]
    output_folder(args.out.parent)
    write_record(args.out, {"networks": results})
    for result in results:
        print(f"{result['network']}: overhead {result['overhead']:.1%} (best {result['best_overhead']:.1%})")
        for name, speed in result["images_per_second"].items():
            print(f"  {name:36} {speed['median']:8.1f} images/s  ({speed['low']:.1f} to {speed['high']:.1f})")
        for name, reason in result["skipped"].items():
            print(f"  {name:36} not here: {reason}")


if __name__ == "__main__":
    main()
