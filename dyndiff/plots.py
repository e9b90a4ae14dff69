"""Arrays and records to figures, in one style.

Figures have a white ground and dark ink of their own, so that they read the same on a light and on a
dark page. The colours are Okabe and Ito's: told apart with any colour vision.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .data import to_bytes
from .files import replacing
from .samplers import Step

if TYPE_CHECKING:
    from IPython.display import Image
    from matplotlib.figure import Figure

COLOURS = {"unet": "#0072B2", "cunet": "#D55E00", "data": "#6B6B6B"}
"""One colour for one thing, in every figure of the book: `unet-*` blue, `cunet-*` vermilion, data grey."""

STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.dpi": 150,
}


def colour(name: str) -> str:
    """The colour of a model or a data set, by its name's first word."""
    return COLOURS.get(name.split("-")[0], COLOURS["data"])


def tile(images: Tensor, columns: int, gap: int = 2) -> Tensor:
    """Lay images out row by row: (N, C, H, W) in [-1, 1] -> (H', W', C) in [0, 1], on white."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    sheet = torch.ones(channels, rows * (height + gap) - gap, columns * (width + gap) - gap)
    for i, image in enumerate(images.clamp(-1, 1).cpu()):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = (image + 1) / 2
    return sheet.permute(1, 2, 0)


def image_grids(panels: dict[str, Tensor], columns: int = 10, across: int | None = None) -> Figure:
    """Sheets of images, titled.

    Args:
        panels: a title and images (N, C, H, W) in [-1, 1] for each sheet.
        columns: images in a row of a sheet.
        across: sheets beside each other; all of them if not given.
    """
    import matplotlib.pyplot as plt

    across = across or len(panels)
    down = -(-len(panels) // across)
    with plt.rc_context(STYLE):
        sheets = {title: tile(images, columns) for title, images in panels.items()}
        height, width = next(iter(sheets.values())).shape[:2]
        figure, axes = plt.subplots(
            down,
            across,
            squeeze=False,
            figsize=(3.4 * across, (3.4 * height / width + 0.35) * down),
            layout="constrained",
            gridspec_kw={"wspace": 0.08},
        )
        for ax in axes.flat:
            ax.axis("off")
        for ax, (title, sheet) in zip(axes.flat, sheets.items(), strict=False):
            ax.imshow(sheet.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            ax.set_title(title, fontsize=11, color=colour(title))
    return figure


def training_curves(losses: dict[str, list[float]], ylabel: str = "loss", window: int = 25) -> Figure:
    """Loss against step for each run: every step faintly, and the mean of the last `window` steps."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
        for name, values in losses.items():
            raw = torch.tensor(values, dtype=torch.float64)
            width = min(window, len(raw))
            mean = raw.unfold(0, width, 1).mean(1)
            ax.plot(range(1, len(raw) + 1), raw, color=colour(name), alpha=0.15, linewidth=0.8)
            ax.plot(range(width, len(raw) + 1), mean, color=colour(name), linewidth=1.8, label=name)
        ax.set(xlabel="optimiser step", ylabel=ylabel, yscale="log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.legend(frameon=False)
    return figure


def sampling_gif(steps: Iterable[Step], scale: int = 3, seconds: float = 4.0, frames: int = 25) -> Image:
    """Show every step of a sampler, and hold the last one.

    Args:
        steps: a sampler's steps, of grey images; 8 or so are enough for a row.
        scale: screen pixels for an image's pixel.
        seconds: how long the film runs before it holds.
        frames: shown at most, evenly spread over the steps; the last step always is.

    Returns:
        An animated GIF for a notebook to display.
    """
    from IPython.display import Image
    from PIL import Image as Picture

    path = list(steps)
    shown = torch.linspace(0, len(path) - 1, min(frames, len(path))).round().int().tolist()
    pictures = []
    for step in (path[i] for i in shown):
        both = torch.cat([step.x, step.x0])  # (2B, 1, H, W)
        sheet = to_bytes(2 * tile(both, len(step.x)).squeeze(-1) - 1)
        picture = Picture.fromarray(sheet.numpy()).quantize(32)  # shades; noise hardly compresses otherwise
        pictures.append(picture.resize((picture.width * scale, picture.height * scale), Picture.Resampling.NEAREST))
    file = io.BytesIO()
    # The last frame comes first too: a reader who sees no motion sees digits.
    durations = [1200, *[int(1000 * seconds / len(pictures))] * (len(pictures) - 1), 2500]
    pictures[-1].save(file, "gif", save_all=True, append_images=pictures, duration=durations, loop=0)
    return Image(data=file.getvalue(), format="gif")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, in one rename, and close it."""
    import matplotlib.pyplot as plt

    with replacing(path) as temporary, plt.rc_context(STYLE):
        figure.savefig(temporary)
    plt.close(figure)
