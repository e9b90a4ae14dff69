"""The Fréchet distance against closed forms, and the classifier against its record."""

import json

import pytest
import scipy.linalg
import torch

from dyndiff import load_images, to_unit
from dyndiff.classifier import FOLDERS, judge, load_classifier
from dyndiff.metrics import extract, frechet_distance


def features(count, dim, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(mean, spread, seed):
    """Features whose own mean and covariance are exactly those asked for, diagonal."""
    x = features(40, len(mean), seed)
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T.cov()), x.T, upper=False).T
    return torch.tensor(mean) + white * torch.tensor(spread)


def test_diagonal_gaussians_have_a_closed_form():
    """|mean difference|^2 + |spread difference|^2."""
    a, b = gaussian([0.0, 1.0, 2.0], [1.0, 2.0, 3.0], 0), gaussian([1.0, 1.0, 0.0], [2.0, 0.5, 3.0], 1)
    assert frechet_distance(a, b) == pytest.approx((1 + 0 + 4) + (1 + 2.25 + 0), abs=1e-9)


def test_any_gaussians_agree_with_scipys_matrix_root():
    a, b = features(50, 6) @ features(6, 6, seed=2), features(70, 6, seed=1) + 0.5
    cov_a, cov_b = a.T.cov().numpy(), b.T.cov().numpy()
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = float((a.mean(0) - b.mean(0)).square().sum()) + (cov_a + cov_b - 2 * root).trace()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_equal_sets_are_at_no_distance():
    a = features(50, 6)
    assert frechet_distance(a, a.flip(0)) == pytest.approx(0, abs=1e-12)


def test_distance_is_symmetric_and_positive():
    a, b = features(50, 6), features(60, 6, seed=1)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, b) > 0.01


def test_a_shift_adds_its_square():
    a = features(50, 6)
    assert frechet_distance(a, a + 2) == pytest.approx(6 * 4, rel=1e-9)


def test_fewer_samples_than_features_are_allowed():
    """The covariances have no full rank then, and roots of rounding errors in the place of zeros."""
    a = features(5, 30)
    # float64's 1e-16, under a root, times 30 features
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_half_precision_features_are_computed_in_double():
    a, b = features(50, 6).half(), features(50, 6, seed=1).half()
    assert frechet_distance(a, b) == frechet_distance(a.double(), b.double())


@pytest.mark.parametrize(
    ("a", "b"), [((1, 3), (5, 3)), ((5, 3), (1, 3)), ((5, 3), (5, 4)), ((5,), (5,)), ((5, 3, 1), (5, 3))]
)
def test_shapes_that_do_not_match_are_refused(a, b):
    with pytest.raises(ValueError, match="N, M >= 2"):
        frechet_distance(torch.zeros(a), torch.zeros(b))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_must_be_finite(value):
    a = features(5, 3)
    a[2, 1] = value
    with pytest.raises(ValueError, match="finite"):
        frechet_distance(a, features(5, 3))


def test_extract_in_batches_is_extract_at_once():
    images = torch.randn(7, 1, 4, 4)
    assert torch.equal(extract(lambda x: x.flatten(1), images, batch_size=3), images.flatten(1))


def test_classifier_is_as_good_as_its_record_says():
    """Up to one digit in 500, and to 0.1% of the distance: convolutions round differently elsewhere."""
    record = json.loads((FOLDERS[16] / "record.json").read_text())
    digits, classifier = load_images("digits", "test", size=16), load_classifier()
    x = to_unit(digits.pixels)
    accuracy = (classifier(x).argmax(1) == digits.labels).float().mean()
    assert float(accuracy) == pytest.approx(record["test_accuracy"], abs=0.0021)
    assert judge(x).confident == pytest.approx(record["test_digits"]["confident"], abs=0.0021)
    train = to_unit(load_images("digits", "train", size=16).pixels)[:500]
    distance = frechet_distance(*(extract(classifier.features, images) for images in (train, x)))
    assert distance == pytest.approx(record["frechet_train_test"], rel=1e-3)


def test_verdict_shares_add_up():
    verdict = judge(to_unit(load_images("digits", "test", size=16).pixels))
    assert sum(verdict.classes) == pytest.approx(1)
    assert min(verdict.classes) > 0.05


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 16, 16)])
def test_classifier_refuses_other_images(shape):
    with pytest.raises(ValueError, match=r"\(B, 1, 16, 16\), got"):
        load_classifier().features(torch.zeros(shape))
