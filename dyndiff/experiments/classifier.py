"""Train the classifiers that come with the package: `python -m dyndiff.experiments.classifier digits` (or mnist).

Their digits are turned, scaled and shifted a little as they train, so that they learn what a digit is
and not which digits there were. The record keeps the accuracy on the test digits, how many of
them are called with confidence (the ceiling of any model's samples), and how much pure noise is.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor
from tqdm import trange

from ..classifier import FOLDERS, DigitClassifier, judge, load_classifier
from ..data import Images, load_images, to_unit
from ..files import output_folder, write_tensors
from ..metrics import extract, frechet_distance
from ..records import write_record

SIZES = {"digits": 16, "mnist": 28}


def train_classifier(images: Images, steps: int, seed: int) -> DigitClassifier:
    """Train on a split of digits with AdamW and one learning-rate cycle."""
    torch.manual_seed(seed)
    classifier = DigitClassifier(images.pixels.shape[-1])
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for _ in trange(steps, desc="classifier", unit="step"):
        batch = torch.randint(len(images), (128,))
        loss = F.cross_entropy(classifier(augment(to_unit(images.pixels[batch]))), images.labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return classifier.eval()


def augment(x: Tensor) -> Tensor:
    """Turn (about 9 degrees), scale (8%) and shift (half a pixel) each image of (B, 1, H, W) at random."""
    angle, scale = 0.15 * torch.randn(len(x)), 1 + 0.08 * torch.randn(len(x))
    shift = 0.07 * torch.randn(len(x), 2)
    rows = [scale * angle.cos(), -angle.sin(), shift[:, 0], angle.sin(), scale * angle.cos(), shift[:, 1]]
    grid = F.affine_grid(torch.stack(rows, dim=1).reshape(-1, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x + 1, grid, align_corners=False) - 1  # what enters from outside is black


@torch.no_grad()
def measure(train: Images, test: Images) -> dict[str, Any]:
    """The bundled classifier on digits that it has not seen, on as many training digits and on noise."""
    size, count = test.pixels.shape[-1], len(test)
    classifier = load_classifier(size)
    seen, unseen = to_unit(train.pixels[:count]), to_unit(test.pixels)
    noise = torch.randn(500, 1, size, size, generator=torch.Generator().manual_seed(0))
    called = torch.cat([classifier(batch).argmax(1) for batch in unseen.split(500)])
    return {
        "test_accuracy": (called == test.labels).float().mean().item(),
        "test_digits": asdict(judge(unseen)),
        "noise": asdict(judge(noise)),
        "frechet_train_test": frechet_distance(
            extract(classifier.features, seen), extract(classifier.features, unseen)
        ),
    }


def main(
    data: Literal["digits", "mnist"],
    /,
    out: Path | None = None,
    data_dir: Path | None = None,
    steps: int = 1500,
    seed: int = 0,
) -> None:
    """Train, bundle, measure and record.

    Args:
        data: what it is to tell apart.
        out: where the weights and the record go; by default into the package.
        data_dir: the folder that holds mnist.
        steps: optimiser steps of batch 128.
        seed: of weights, batches and augmentation.
    """
    size = SIZES[data]
    train, test = (load_images(data, split, size, data_dir) for split in ("train", "test"))
    folder = output_folder(out or FOLDERS[size])
    weights = train_classifier(train, steps, seed).half().state_dict()  # half the bytes, the same answers
    write_tensors(folder / "model.safetensors", weights)
    write_record(folder / "record.json", {"seed": seed, "steps": steps, **measure(train, test)})


if __name__ == "__main__":
    tyro.cli(main)
