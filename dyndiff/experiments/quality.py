"""Are the samples digits? The Fréchet distance, and what a bundled classifier says."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import Tensor

from ..classifier import judge, load_classifier
from ..data import Images, load_images, to_unit
from ..metrics import extract, frechet_distance


def quality(samples: Tensor, test: Images) -> dict[str, Any]:
    """Compare samples with a test set, in the eyes of the classifier for images of their size.

    Args:
        samples: (N, 1, H, H) in [-1, 1].
        test: as wide; the same for all that is to be compared.

    Returns:
        `frechet` (to the test images, in the classifier's features), `confident` (the share that is called
        with over 90% confidence) and `classes` (each digit's share of the calls).

    Raises:
        ValueError: if no classifier sees images of this size.
    """
    classifier, samples = load_classifier(samples.shape[-1]), samples.clamp(-1, 1)
    seen = extract(classifier.features, samples), extract(classifier.features, to_unit(test.pixels))
    return {"frechet": frechet_distance(*seen), **asdict(judge(samples))}


def digit_quality(samples: Tensor) -> dict[str, Any]:
    """`quality` of samples (N, 1, 16, 16), held against the 500 test digits."""
    return quality(samples, load_images("digits", "test", size=16))


def digit_reference(count: int) -> dict[str, Any]:
    """What real digits reach: as many training digits in the samples' place (the distance's floor),
    and the share of the test digits that are called with confidence (the ceiling).
    """
    train, test = (to_unit(load_images("digits", split, size=16).pixels) for split in ("train", "test"))
    return {"frechet": digit_quality(train[:count])["frechet"], "confident": judge(test).confident}
