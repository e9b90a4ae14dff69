"""The command line: one function a command; its docstring is its help."""

from __future__ import annotations

import sys
from collections.abc import Callable
from json import dumps
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from .cli_data import data
from .run import TrainConfig

Preset = Annotated[Positional[str], arg(metavar="PRESET")]
Presets = Annotated[Positional[tuple[str, ...]], arg(metavar="PRESET...")]
Model = Annotated[Positional[str], arg(metavar="RUN_OR_NAME")]
Settings = Annotated[TrainConfig, arg(name="")]


def demo(
    out: Path = Path("demo"),
    steps: int = 1200,
    batch_size: int = 64,
    samples: int = 500,
    sampling_steps: int = 50,
    seed: int = 0,
) -> None:
    """Train both denoisers on the handwritten digits and compare them: the first five minutes.

    Writes samples.png, training.png and comparison.json. Ctrl-C keeps what is done; the same
    command goes on from there.

        dyndiff demo --out demo

    Args:
        out: folder for the pictures, the numbers and the two training runs.
        steps: training steps of each model. Fewer than 600 give blurs, not digits.
        batch_size: images a training step.
        samples: images drawn from each model for the comparison.
        sampling_steps: network calls to draw an image.
        seed: of the weights, the training and the samples.
    """
    from .experiments.demo import comparison_table
    from .experiments.demo import demo as run_demo

    config = TrainConfig(steps=steps, batch_size=batch_size, seed=seed)
    comparison = run_demo(out, config, samples, sampling_steps)
    print(f"\n{comparison_table(comparison)}\n")
    print(f"Fréchet distances are to 500 test digits, in the features of the bundled classifier.\n"
          f"{comparison['seconds']:.0f} s in all. Look at {out / 'samples.png'} and {out / 'training.png'}; "
          f"the numbers are in {out / 'comparison.json'}.")  # fmt: skip


def train(
    preset: Preset,
    out: Path,
    config: Settings,
    data: str = "digits",
    data_dir: Path | None = None,
    schedule: str = "cosine",
    target: str = "v",
    checkpoint_every: int = 500,
    keep: int = 1,
    sample_every: int = 0,
    tracker: str | None = None,
    resume: bool = True,
) -> None:
    """Train a named network on a data set.

    Ctrl-C saves and stops; the same command goes on from there, bit for bit as if it had never
    stopped. The model to use afterwards is the moving average of the weights.

        dyndiff train cunet-digits --data digits --out runs/cunet
        dyndiff sample runs/cunet --out pictures
        accelerate launch --num_processes 4 -m dyndiff train unet-cifar10 --data cifar10 --out runs/unet

    Args:
        preset: the network's name, such as unet-digits or cunet-digits.
        out: folder for the checkpoints.
        config: how to train.
        data: digits or shapes, which come with the package; another name that `dyndiff data list` shows; or a
            folder of images or a parquet file.
        data_dir: the folder of data sets; by default what the environment's DYNDIFF_DATA names, else
            ~/.cache/dyndiff.
        schedule: of the noise: linear (Ho et al.), cosine or sigmoid; linear-zero and so on end in pure noise.
        target: what the network predicts: eps, x0 or v.
        checkpoint_every: steps between checkpoints.
        keep: how many checkpoints stay, the newest ones.
        sample_every: steps between pictures of what the model draws by then, in samples/; 0 for none.
        tracker: what shows the curves, such as tensorboard: any of accelerate's that is installed.
        resume: go on with the run that the folder holds; without, such a folder is an error.
    """
    from .experiments.training import train_preset

    run = train_preset(preset, data, out, config, schedule, target, checkpoint_every, data_dir, keep, sample_every,
                       tracker, resume)  # fmt: skip
    run.accelerator.print(f"Trained. Next: dyndiff sample {out} --out pictures")


def sample(
    model: Model,
    out: Path,
    count: int = 60,
    size: int | None = None,
    sampler: str = "ancestral",
    steps: int = 50,
    seed: int = 0,
    batch_size: int = 500,
) -> None:
    """Draw images from a trained model.

    Writes one picture of them all, samples.png, and each on its own, images/0000.png and so on.

        dyndiff sample cunet-digits --out pictures

    Args:
        model: a training run's folder, a saved model's folder, or a bundled model: unet-digits, cunet-digits.
        out: folder for the pictures.
        count: how many images.
        size: their side in pixels; by default the one that the network is meant for.
        sampler: ancestral (the DDPM's own chain), ddim or dpmpp_2m (deterministic, good with few steps),
            euler_maruyama, heun or pf_ode.
        steps: network calls for each image.
        seed: image number i depends on this seed and i alone.
        batch_size: images at a time; less needs less memory.
    """
    from .experiments.sampling import sample_to_folder

    sample_to_folder(model, out, count, size, sampler, steps, seed, batch_size)
    print(f"Look at {out / 'samples.png'}.")


def evaluate(
    model: Model,
    samples: int = 500,
    sampler: str = "ancestral",
    steps: int = 50,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Ask how near a digit model's samples are to real digits.

    Prints their Fréchet distance to the 500 test digits, and the share that the bundled classifier
    calls with over 90% confidence, each beside what real digits reach.

        dyndiff evaluate cunet-digits

    Args:
        model: a training run's folder, a saved model's folder, or a bundled model: unet-digits, cunet-digits.
        samples: how many to draw; the distance falls with the count, so compare equal counts alone.
        sampler: ancestral, ddim, dpmpp_2m, euler_maruyama, heun or pf_ode.
        steps: network calls for each image.
        seed: of the samples.
        out: a JSON file for the result, with how it was measured.
    """
    from .experiments.sampling import evaluate_model

    result = evaluate_model(model, samples, sampler, steps, seed, out)
    real = result["real_digits"]
    print(f"Fréchet distance  {result['frechet']:.2f}   ({real['frechet']:.2f} for as many training digits)")
    print(f"called with >90%  {result['confident']:.1%}  ({real['confident']:.1%} of the test digits)")
    print("each digit        " + "  ".join(f"{digit}: {share:.0%}" for digit, share in enumerate(result["classes"])))


def profile(
    presets: Presets,
    size: int | None = None,
    batch_size: int = 1,
    repeats: int = 30,
    device: str = "cpu",
    compiled: bool = False,
    steps: int | None = None,
    reversible: bool = False,
    json: bool = False,
) -> None:
    """Measure networks side by side: parameters, FLOPs, function evaluations, latency, memory.

    Calls are interleaved and warmed up; latency is the median. Percentages are of the first network.

        dyndiff profile unet-digits cunet-digits --batch-size 16
        dyndiff profile cunet-digits --steps 16 --reversible

    Args:
        presets: the networks' names.
        size: side of the images in pixels; by default the one that each network is meant for.
        batch_size: images a call; latency, FLOPs and memory are those of the whole call.
        repeats: timed calls of each network, after three that warm it up.
        device: where to measure, such as cuda.
        compiled: time the networks as torch.compile makes them; on CUDA with graphs.
        steps: of the dynamic blocks' solver, at all levels, in place of the preset's own.
        reversible: let dynamic blocks find their gradient by walking back; it shows in the training memory.
        json: print a list of {name, params, flops, evaluations, latency_s, latency_quartiles_s, peak_bytes,
            training_peak_bytes}.
    """
    from .experiments.efficiency import profile_presets
    from .profile import table

    profiles = profile_presets(
        presets, size, batch_size, repeats, device=device, compiled=compiled, reversible=reversible, steps=steps
    )
    print(dumps([p.to_dict() for p in profiles], indent=2) if json else table(profiles))


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "train": train,
    "sample": sample,
    "evaluate": evaluate,
    "profile": profile,
    "data": data,
}


def main(args: list[str] | None = None) -> None:
    """Run a command; a user's mistake is one line and exit code 2."""
    from .progress import Interrupted

    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="dyndiff",
            description="Diffusion models whose denoiser is a continuous dynamical system. Start with: dyndiff demo",
            args=(sys.argv[1:] if args is None else args) or ["--help"],
        )
    except (ValueError, OSError) as error:
        _stop(f"dyndiff: {error}", 2)
    except Interrupted as error:
        _stop(f"\ndyndiff: {error}. The same command goes on from there.", 128 + error.signum)
    except KeyboardInterrupt:
        _stop("\ndyndiff: stopped", 130)


def _stop(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
