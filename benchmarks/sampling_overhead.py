"""What does sampling cost beyond the network? `python benchmarks/sampling_overhead.py`.

50 DDIM steps of `unet-mnist`, batch 16, three ways in turn: dyndiff's `ddim`, 50 bare calls of the network,
and diffusers' `DDIMPipeline` around the very same network. Medians and quartiles of interleaved repeats
go to `dyndiff/results/sampling_overhead.json`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import quantiles

import torch
from diffusers import DDIMPipeline, DDIMScheduler
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput

from dyndiff import Denoiser, UNet, create_model, ddim, linear
from dyndiff.files import output_folder
from dyndiff.profile import latencies
from dyndiff.records import RESULTS, write_record

RESULT = RESULTS / "sampling_overhead.json"


class Wrapped(ModelMixin, ConfigMixin):
    """A dyndiff network as a diffusers pipeline calls it."""

    @register_to_config
    def __init__(self, sample_size: int, in_channels: int) -> None:
        super().__init__()
        self.net: UNet | None = None

    def forward(self, sample, timestep):
        t = ((timestep + 1) / 1000).expand(len(sample)).float()
        return UNet2DOutput(sample=self.net(sample, t))


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()

    torch.manual_seed(0)
    net, batch = create_model("unet-mnist").eval(), 16
    denoiser, schedule = Denoiser(net, linear(), "v").eval(), linear()
    x, t, ts = torch.randn(batch, 1, 28, 28), torch.rand(batch), schedule.grid(args.steps)
    wrapped = Wrapped(sample_size=28, in_channels=1)
    wrapped.net = net
    pipeline = DDIMPipeline(wrapped, DDIMScheduler(prediction_type="v_prediction", clip_sample=False))
    pipeline.set_progress_bar_config(disable=True)

    def ours() -> None:
        for _ in ddim(denoiser, schedule, x, ts):
            pass

    def bare() -> None:
        for _ in range(args.steps):
            net(x, t)

    def theirs() -> None:
        pipeline(batch_size=batch, num_inference_steps=args.steps, output_type="np")

    ways = {"dyndiff": ours, "bare network calls": bare, "diffusers DDIMPipeline": theirs}
    seconds = dict(zip(ways, latencies(list(ways.values()), args.repeats, warmup=2), strict=True))
    spread = {name: quantiles(times, n=4) for name, times in seconds.items()}
    best = {name: min(times) for name, times in seconds.items()}  # what nothing else on the machine disturbed
    pairs = {
        other: quantiles([a / b for a, b in zip(seconds["dyndiff"], seconds[name], strict=True)], n=4)
        for other, name in {"bare": "bare network calls", "diffusers": "diffusers DDIMPipeline"}.items()
    }
    result = {
        "network": "unet-mnist", "batch": batch, "steps": args.steps, "repeats": args.repeats,
        "seconds": {name: dict(zip(("low", "median", "high"), q, strict=True)) for name, q in spread.items()},
        "best_seconds": best,
        "best_dyndiff_over_bare": best["dyndiff"] / best["bare network calls"],
        "best_dyndiff_over_diffusers": best["dyndiff"] / best["diffusers DDIMPipeline"],
        "dyndiff_over_bare": spread["dyndiff"][1] / spread["bare network calls"][1],
        "dyndiff_over_bare_pairs": dict(zip(("low", "median", "high"), pairs["bare"], strict=True)),
        "dyndiff_over_diffusers_pairs": dict(zip(("low", "median", "high"), pairs["diffusers"], strict=True)),
        "dyndiff_over_diffusers": spread["dyndiff"][1] / spread["diffusers DDIMPipeline"][1],
    }  # fmt: skip
    output_folder(args.out.parent)
    write_record(args.out, result)
    for name, (low, median, high) in spread.items():
        print(f"{name:24} {median:.3f} s  ({low:.3f} to {high:.3f})")
    for kind, prefix in {"medians": "", "best runs": "best_"}.items():
        bare, theirs_too = (result[f"{prefix}dyndiff_over_{other}"] for other in ("bare", "diffusers"))
        print(f"{kind}: dyndiff over bare {bare:.3f}, over diffusers {theirs_too:.3f}")


if __name__ == "__main__":
    main()
