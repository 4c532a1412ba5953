"""Metrics against results from other code."""

import numpy as np
import pytest

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.moments import CHUNK, moments
from quantwatt.score.metrics import Undefined, clip_score, fid, kid, psnr, ssim


def gaussian(n, mean, deviations, seed):
    """A sample [n, d] whose mean and covariance are exactly `mean` and diag(deviations^2)."""
    d = len(deviations)
    x = np.random.default_rng(seed).normal(size=(n, d))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return mean + x * deviations


def test_fid_is_the_closed_form_of_two_gaussians():
    one, two = np.array([1.0, 2.0, 0.5, 3.0]), np.array([1.5, 1.0, 0.5, 0.2])
    shift = np.array([1.0, 0.0, -2.0, 0.5])
    expected = (shift**2).sum() + ((one - two) ** 2).sum()  # diagonal covariances commute
    found = fid.score(gaussian(500, shift, one, 0), moments(gaussian(700, np.zeros(4), two, 1)))
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert found.low < expected < found.high and found.resamples == fid.RESAMPLES


@pytest.mark.filterwarnings("ignore")  # SciPy's, of an argument that clean-fid gives it
def test_fid_and_kid_are_those_of_clean_fid_to_the_last_bit():
    import quantwatt.jobs.torchvision_ops  # noqa: F401, I001  before clean-fid imports torchvision
    from cleanfid import fid as clean_fid

    rng = np.random.default_rng(0)
    samples, reference = (rng.normal(0.1 * i, 1, (40 + 80 * i, 16)).astype(np.float32) for i in range(2))
    flat = np.concatenate([samples[:, :8], np.zeros_like(samples[:, 8:])], axis=1)  # the product is singular
    for one in (samples, flat):
        ours, theirs = moments(one), moments(reference)
        expected = clean_fid.frechet_distance(ours.mean, ours.covariance, theirs.mean, theirs.covariance)
        assert fid.score(one, theirs, resamples=0).value == expected
    np.random.seed(7)
    expected = clean_fid.kernel_distance(reference, samples, num_subsets=100, max_subset_size=1000)
    assert kid.score(samples, reference, resamples=0, seed=7).value == expected


def test_fid_interval_has_the_spread_of_new_samples():
    rng = np.random.default_rng(0)
    reference = moments(rng.normal(size=(400, 4)))
    values = [fid.score(rng.normal(0.5, 1, (200, 4)), reference, resamples=0).value for _ in range(60)]
    found = fid.score(rng.normal(0.5, 1, (200, 4)), reference)
    spread = np.subtract(*np.percentile(values, [97.5, 2.5]))
    assert 0.6 < (found.high - found.low) / spread < 1.6


def test_fid_says_why_it_has_no_interval(monkeypatch):
    rng = np.random.default_rng(0)
    samples, reference = rng.normal(size=(50, 4)), moments(rng.normal(size=(50, 4)))
    monkeypatch.setattr(fid, "MAX_DIMS", 3)
    found = fid.score(samples, reference)
    assert np.isfinite(found.value) and np.isnan(found.low) and found.resamples == 0
    assert "4 dimensions" in found.reason
    assert fid.score(samples, reference, resamples=5).high > 0

    def no_root(distance, *args):
        distance(np.arange(50))
        raise ValueError("Imaginary component 1.0")

    monkeypatch.setattr(fid, "bootstrap_statistic", no_root)
    lost = fid.score(samples, reference, resamples=5)
    assert (lost.value, lost.resamples) == (found.value, 0) and "of a resample of 50 images" in lost.reason


def test_fid_takes_more_images_than_dimensions_on_both_sides():
    rng = np.random.default_rng(0)
    few, enough = rng.normal(size=(16, 16)), rng.normal(size=(17, 16))
    assert fid.score(enough, moments(enough), resamples=0).value == pytest.approx(0, abs=1e-4)
    for samples, reference in ((few, enough), (enough, few)):
        words = f"16 features needs more than 16 images on both sides, not {len(samples)} and {len(reference)}"
        with pytest.raises(Undefined, match=words):
            fid.score(samples, moments(reference))
        with pytest.raises(Undefined, match=words):
            fid.change(samples, samples, moments(reference))
    # One distribution on both sides: what is left of the distance is bias, which is why.
    rng, reference = np.random.default_rng(1), moments(rng.normal(size=(20_000, 16)))
    bias = [fid.score(rng.normal(size=(n, 16)), reference, resamples=0).value for n in (17, 170, 1700)]
    assert bias[0] > 5 * bias[1] > 25 * bias[2]


def test_moments_are_numpys_whatever_the_chunks():
    values = np.random.default_rng(0).normal(3, 2, (CHUNK + 7, 5)).astype(np.float32)
    found = moments(values)
    assert found.n == CHUNK + 7 and found.mean.dtype == found.covariance.dtype == np.float64
    np.testing.assert_allclose(found.mean, values.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(values.astype(np.float64), rowvar=False), rtol=1e-9)


def plain_mmd(x, y):
    """Unbiased squared MMD, pair by pair, from the definition."""

    def kernel(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    within = [
        sum(kernel(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j) / (len(s) * (len(s) - 1))
        for s in (x, y)
    ]
    across = sum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))
    return sum(within) - 2 * across


def test_kid_is_the_definition():
    rng = np.random.default_rng(0)
    x, y = rng.normal(0.5, 1, (30, 3)), rng.normal(size=(30, 3))
    found = kid.score(x, y, resamples=200)
    assert found.value == pytest.approx(plain_mmd(x.tolist(), y.tolist()), rel=1e-5)
    assert found.low < found.value < found.high


def test_kid_of_one_distribution_is_zero_within_its_interval():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        found = kid.score(rng.normal(size=(300, 8)), rng.normal(size=(600, 8)), resamples=200)
        assert found.low < 0 < found.high
        shifted = kid.score(rng.normal(0.5, 1, (300, 8)), rng.normal(size=(600, 8)), resamples=200)
        assert shifted.low > 0


def test_kid_interval_has_the_spread_of_new_samples():
    rng = np.random.default_rng(0)

    def draw(resamples):
        return kid.score(rng.normal(0.5, 1, (100, 4)), rng.normal(size=(150, 4)), resamples)

    values = [draw(resamples=0).value for _ in range(80)]
    found = draw(resamples=1000)
    spread = np.subtract(*np.percentile(values, [97.5, 2.5]))
    assert 0.6 < (found.high - found.low) / spread < 1.6


def test_kid_is_repeatable_and_leaves_the_global_generator_alone(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 4)), rng.normal(size=(90, 4))
    np.random.seed(7)
    state = np.random.get_state()[1].copy()
    first = kid.score(x, y, resamples=20)
    assert np.array_equal(np.random.get_state()[1], state)
    np.random.seed(8)
    assert kid.score(x, y, resamples=20) == first
    assert kid.score(x, y, resamples=20, seed=1).value != first.value
    monkeypatch.setattr(kid, "MAX_IMAGES", 89)
    large = kid.score(x, y)
    assert large.value == first.value and np.isnan(large.low) and "40 and 90" in large.reason
    few = kid.score(x[:19], y[:50])
    assert np.isfinite(few.value) and np.isnan(few.low) and "no interval" in few.reason
    with pytest.raises(Undefined, match="at least two"):
        kid.score(x[:1], y)


def test_clip_score():
    angles = np.radians([0.0, 60.0, 90.0, 180.0])
    text = np.array([[3.0, 0.0]] * 4)  # lengths do not matter
    image = 5 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    found = clip_score.score(image, text)
    assert found.value == pytest.approx(100 * (1 + 0.5 + 0 - 1) / 4)
    assert found.low < found.value < found.high
    with pytest.raises(DataError, match="different shapes"):
        clip_score.score(image, text[:3])
    with pytest.raises(Undefined, match="image 2, or of its partner, is zero"):
        clip_score.score(image, text * np.array([[1], [1], [0], [1]]))


def test_psnr_of_known_errors():
    baseline = np.full((16, 16, 3), 100, np.uint8)
    assert psnr.psnr(baseline + np.uint8(5), baseline) == pytest.approx(20 * np.log10(255 / 5))
    rng = np.random.default_rng(0)
    noisy = np.clip(np.round(baseline + rng.normal(0, 10, (64, 16, 16, 3))), 0, 255).astype(np.uint8)
    found = psnr.score(noisy, [baseline] * 64)
    assert found.value == pytest.approx(20 * np.log10(255 / np.sqrt(100 + 1 / 12)), abs=0.05)
    assert found.low < found.value < found.high
    one_off = baseline.copy()
    one_off[3, 4, 1] -= 1  # uint8 arithmetic must not wrap
    finest = 10 * np.log10(255**2 * 16 * 16 * 3)
    assert psnr.psnr(one_off, baseline) == psnr.psnr(baseline, baseline) == pytest.approx(finest)
    assert psnr.psnr(np.zeros_like(baseline), np.full_like(baseline, 255)) == 0


def test_psnr_is_the_mean_over_images_and_refuses_unequal_numbers():
    baseline = np.full((2, 8, 8, 3), 100, np.uint8)
    image = baseline + np.array([1, 10], np.uint8)[:, None, None, None]
    assert psnr.score(image, baseline).value == pytest.approx(20 * np.log10(255) - 10)
    with pytest.raises(ValueError, match="shorter"):
        psnr.score(image, baseline[:1])


def test_ssim_is_the_formula_of_its_paper():
    """Wang et al. 2004, eq. 13, with an 11 x 11 Gaussian window, written out for the inner pixels."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (14, 14, 3), dtype=np.uint8)
    y = np.clip(x + rng.normal(0, 30, x.shape), 0, 255).astype(np.uint8)
    line = np.exp(-np.square(np.arange(-5, 6) / 1.5) / 2)
    window = np.outer(line, line) / np.outer(line, line).sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for channel in range(3):
        a, b = x[..., channel].astype(float), y[..., channel].astype(float)
        for row in range(4):
            for column in range(4):
                p, q = (s[row : row + 11, column : column + 11] for s in (a, b))
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * p * p).sum() - mp**2, (window * q * q).sum() - mq**2
                cov = (window * p * q).sum() - mp * mq
                values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    assert ssim.ssim(x, y) == pytest.approx(np.mean(values), rel=1e-6)


def test_ssim_score():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    y = np.clip(x + rng.normal(0, 40, x.shape), 0, 255).astype(np.uint8)
    found = ssim.score(y, x)
    assert 0 < found.low < found.value < found.high < 1
    assert ssim.score(x, x).value == 1


@pytest.mark.parametrize(("height", "width"), [(8, 8), (10, 64), (64, 10)])
def test_ssim_is_undefined_below_its_window(height, width):
    images = np.zeros((2, height, width, 3), np.uint8)
    with pytest.raises(Undefined, match=f"window is 11 x 11 pixels, and images are {height} x {width}"):
        ssim.score(images, images)
    images = np.zeros((2, max(height, 11), max(width, 11), 3), np.uint8)
    assert ssim.score(images, images).value == 1


@pytest.mark.filterwarnings("ignore")
def test_distances_of_constant_features_are_their_closed_forms():
    """A model that draws one image again and again has no spread, and is no error."""
    reference = np.random.default_rng(0).normal(size=(60, 4))
    same = np.full((50, 4), 2.0)
    expected = np.square(2 - reference.mean(axis=0)).sum() + np.trace(np.cov(reference, rowvar=False))
    assert fid.score(same, moments(reference), resamples=5).value == pytest.approx(expected)
    assert fid.score(same, moments(same), resamples=5)[:3] == (0, 0, 0)
    assert kid.score(same, same, resamples=5).value == pytest.approx(0, abs=1e-9)
    assert kid.score(same, reference, resamples=5).value == pytest.approx(
        plain_mmd(same[:50].tolist(), reference.tolist()), rel=0.3
    )
