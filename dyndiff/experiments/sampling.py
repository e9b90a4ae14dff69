"""Images from a trained model, as pictures and as numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ..data import to_bytes
from ..denoiser import Denoiser
from ..files import output_folder, replacing_folder
from ..plots import image_grids, save_figure
from ..progress import progress_bar
from ..records import write_record
from ..sampling import check_settings, sample
from .quality import digit_quality, digit_reference


def sample_to_folder(
    model: str,
    out: str | Path,
    count: int,
    size: int | None = None,
    sampler: str = "ancestral",
    steps: int = 50,
    seed: int = 0,
    batch_size: int = 500,
) -> Tensor:
    """Draw images and write `samples.png` and `images/NNNN.png`.

    Raises:
        ValueError: on an unknown model or sampler, or a number out of range, before anything is written.
    """
    from PIL import Image

    denoiser = Denoiser.load(model)
    with progress_bar("sampling", count * steps, unit="call") as bar:
        images = sample(denoiser, count, size=size, sampler=sampler, steps=steps, seed=seed,
                        batch_size=batch_size, progress=bar.update)  # fmt: skip
    out = output_folder(out)
    with replacing_folder(out / "images") as folder:
        for i, pixels in enumerate(to_bytes(images).permute(0, 2, 3, 1).squeeze(-1).numpy()):
            Image.fromarray(pixels).save(folder / f"{i:04d}.png")
    title = f"{model}: {sampler}, {steps} steps"
    save_figure(image_grids({title: images[:400]}, columns=10 if count <= 100 else 20), out / "samples.png")
    return images


def evaluate_model(
    model: str, samples: int, sampler: str = "ancestral", steps: int = 50, seed: int = 0, out: Path | None = None
) -> dict[str, Any]:
    """Draw samples from a model of 16x16 digits and compare them with the test digits.

    Returns:
        `digit_quality` of the samples, and the same of real digits under `real_digits`; written to
        `out` too, if given.

    Raises:
        ValueError: on an unknown model or sampler, a number out of range, or a model of other images.
    """
    denoiser = Denoiser.load(model)
    if (denoiser.net.config.channels, denoiser.net.config.size) != (1, 16):
        raise ValueError(f"only models of 16x16 grey digits can be evaluated, {model!r} is another")
    if samples < 2:
        raise ValueError(f"a distance needs at least 2 samples, got {samples}")
    check_settings(sampler, samples, steps, seed)
    if out is not None and out.is_dir():
        raise ValueError(f"{str(out)!r} is a folder: the result needs a file's name")
    if out is not None:
        output_folder(out.parent)
    with progress_bar("sampling", samples * steps, unit="call") as bar:
        images = sample(denoiser, samples, sampler=sampler, steps=steps, seed=seed, progress=bar.update)
    settings = {"model": model, "samples": samples, "sampler": sampler, "steps": steps, "seed": seed}
    result = {**settings, **digit_quality(images), "real_digits": digit_reference(samples)}
    if out is not None:
        write_record(out, result)
    return result
