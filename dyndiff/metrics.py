r"""How near samples are to data: the Fréchet distance, in the eyes of an extractor that you choose.

$$d^2 = \lVert \mu_a - \mu_b \rVert^2 + \operatorname{tr}\bigl(\Sigma_a + \Sigma_b
- 2 (\Sigma_a^{1/2} \Sigma_b \Sigma_a^{1/2})^{1/2}\bigr)$$

Source: Heusel et al. (2017), equation 6. With Inception features it is called FID; with any other
extractor the numbers compare with each other only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Extractor = Callable[[Tensor], Tensor]
"""`(images (B, C, H, W) in [-1, 1]) -> features (B, D)`."""


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """The squared Fréchet distance between two Gaussians fitted to two sets of features.

    Args:
        a, b: features, shapes (N, D) and (M, D), N and M at least 2; computed in float64.

    Returns:
        A number >= 0; 0 for equal means and covariances. It is biased upwards for small N and M, so
        compare only distances of equal counts.

    Raises:
        ValueError: on shapes that don't match, or features that are not finite.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"features must be (N, D) and (M, D) with N, M >= 2, got {tuple(a.shape)}, {tuple(b.shape)}")
    a, b = a.double(), b.double()
    if not bool(a.isfinite().all() and b.isfinite().all()):
        raise ValueError("features must be finite; the samples may have diverged")
    cov_a, cov_b = a.T.cov(), b.T.cov()
    root_a = _psd_root(cov_a)
    cross = _psd_root(root_a @ cov_b @ root_a).trace()
    distance = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(0.0, float(distance))


def _psd_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


@torch.no_grad()
def extract(extractor: Extractor, images: Tensor, batch_size: int = 500) -> Tensor:
    """Features of all images, a batch at a time: (N, C, H, W) in [-1, 1] -> (N, D)."""
    return torch.cat([extractor(batch) for batch in images.split(batch_size)])
