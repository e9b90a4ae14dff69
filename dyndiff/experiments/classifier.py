"""Train the digit classifier that comes with the package: `python -m dyndiff.experiments.classifier`.

Its digits are turned, scaled and shifted a little as it trains, so that it learns what a digit is
and not which digits there were. The record keeps its accuracy on the 500 test digits, how many of
them it calls with confidence (the ceiling of any model's samples), and how much pure noise it does.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import trange

from ..classifier import FOLDER, DigitClassifier, judge, load_classifier
from ..data import load_images, to_unit
from ..files import output_folder, write_tensors
from ..metrics import extract, frechet_distance
from ..records import write_record


def train_classifier(steps: int, seed: int) -> DigitClassifier:
    """Train on the 1,297 training digits with AdamW and one learning-rate cycle."""
    torch.manual_seed(seed)
    images = load_images("digits", "train", size=16)
    x, y = to_unit(images.pixels), images.labels
    classifier = DigitClassifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for _ in trange(steps, desc="classifier", unit="step"):
        batch = torch.randint(len(x), (128,))
        loss = F.cross_entropy(classifier(augment(x[batch])), y[batch])
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


def measure() -> dict:
    """The bundled classifier on digits that it has not seen, on training digits and on noise."""
    classifier = load_classifier()
    train, test = (load_images("digits", split, size=16) for split in ("train", "test"))
    seen, unseen = to_unit(train.pixels)[:500], to_unit(test.pixels)
    noise = torch.randn(500, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    return {
        "test_accuracy": (classifier(unseen).argmax(1) == test.labels).float().mean().item(),
        "test_digits": asdict(judge(unseen)),
        "noise": asdict(judge(noise)),
        "frechet_train_test": frechet_distance(
            extract(classifier.features, seen), extract(classifier.features, unseen)
        ),
    }


def main() -> None:
    """Train, bundle, measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER, help="where the weights and the record go")
    parser.add_argument("--steps", type=int, default=1500, help="optimiser steps (default: 1500)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and augmentation")
    args = parser.parse_args()
    folder = output_folder(args.out)
    write_tensors(folder / "model.safetensors", train_classifier(args.steps, args.seed).state_dict())
    write_record(folder / "record.json", {"seed": args.seed, "steps": args.steps, **measure()})


if __name__ == "__main__":
    main()
