"""Are the samples digits? The Fréchet distance, and what the bundled classifier says."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import Tensor

from ..classifier import judge, load_classifier
from ..data import load_images, to_unit
from ..metrics import extract, frechet_distance


def digit_quality(samples: Tensor) -> dict[str, Any]:
    """Compare samples with the 500 test digits.

    Args:
        samples: (N, 1, 16, 16) in [-1, 1].

    Returns:
        `frechet` (to the test digits, in the classifier's 64 features), `confident` (the share that
        is called with over 90% confidence) and `classes` (each digit's share of the calls).
    """
    features = load_classifier().features
    test = to_unit(load_images("digits", "test", size=16).pixels)
    distance = frechet_distance(extract(features, samples.clamp(-1, 1)), extract(features, test))
    return {"frechet": distance, **asdict(judge(samples.clamp(-1, 1)))}


def digit_reference(count: int) -> dict[str, Any]:
    """What real digits reach: as many training digits in the samples' place (the distance's floor),
    and the share of the test digits that are called with confidence (the ceiling).
    """
    train, test = (to_unit(load_images("digits", split, size=16).pixels) for split in ("train", "test"))
    return {"frechet": digit_quality(train[:count])["frechet"], "confident": judge(test).confident}
