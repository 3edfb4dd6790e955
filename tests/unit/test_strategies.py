"""Banded strategies against jax-privacy's, against closed forms, and against a search over a grid."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim import aggregation as agg
from fedjax_sim.aggregation._strategies import _loss, _shares, square_root

# jax-privacy 2.0.0, toeplitz.optimize_banded_toeplitz in float64: rounds, bands, error, its value at sensitivity 1, and the
# first coefficients.
JAX_PRIVACY = [
    (8, 2, "mean", 1.7495382377062363, [0.8858011, 0.464065]),
    (8, 8, "mean", 1.5439884697382744, [0.8291975, 0.3970869, 0.272392, 0.2007196, 0.1492897, 0.1077153]),
    (64, 4, "mean", 3.240593597021358, [0.7080608, 0.4745528, 0.3977449, 0.3394828]),
    (64, 4, "max", 4.3502534679238085, [0.6711279, 0.4871094, 0.4220323, 0.3663339]),
    (1000, 10, "mean", 7.590657143717792, [0.4866125, 0.359302, 0.3272412, 0.309489, 0.2965353, 0.2855207]),
    (256, 32, "mean", 3.086810400296227, [0.5888269, 0.3176301, 0.2508905, 0.2176573, 0.196816, 0.1820987]),
    (16, 16, "max", 1.9438788471567707, [0.7172415, 0.3586207, 0.2689656, 0.224138, 0.1961207, 0.1765086]),
]


def value(coefficients, rounds, error="mean") -> float:
    """The error by matrices: ``A C^-1`` at sensitivity 1."""
    c = np.zeros(rounds)
    c[: len(coefficients)] = np.asarray(coefficients) / np.linalg.norm(coefficients)
    strategy = np.array([[c[i - j] if i >= j else 0.0 for j in range(rounds)] for i in range(rounds)])
    variances = np.sum((np.tril(np.ones((rounds, rounds))) @ np.linalg.inv(strategy)) ** 2, axis=1)
    return float(np.sqrt(variances.mean() if error == "mean" else variances.max()))


@pytest.mark.parametrize(("rounds", "bands", "error", "expected", "first"), JAX_PRIVACY)
def test_the_solver_equals_jax_privacy(rounds, bands, error, expected, first):
    got = agg.banded_coefficients(rounds, bands, error)
    assert got.dtype == np.float64 and got.shape == (bands,)
    assert np.linalg.norm(got) == pytest.approx(1, abs=1e-12)
    assert value(got, rounds, error) == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(got[: len(first)], first, atol=2e-5)


@pytest.mark.parametrize("rounds", [2, 5, 16, 40])
def test_the_best_for_the_largest_error_is_the_square_root(rounds):
    """With all bands: binomial coefficients over powers of 4 (Fichtenberger et al. 2023, Dvijotham et al. 2024)."""
    k = np.arange(rounds)
    binomial = np.array([float(np.prod([(n + i) / i / 4 for i in range(1, n + 1)])) for n in k])
    best = binomial / np.linalg.norm(binomial)
    np.testing.assert_allclose(square_root(rounds), binomial, rtol=1e-12)
    np.testing.assert_allclose(agg.banded_coefficients(rounds, rounds, "max"), best, atol=2e-5)
    # Its error and sensitivity are one number, which grows like the logarithm of the rounds.
    assert value(best, rounds, "max") == pytest.approx(np.sum(binomial**2), rel=1e-12)


@pytest.mark.parametrize("error", ["mean", "max"])
@pytest.mark.parametrize("rounds", [2, 3, 7])
def test_two_bands_are_the_best_of_a_grid(rounds, error):
    got = agg.banded_coefficients(rounds, 2, error)
    grid = [value([1.0, x], rounds, error) for x in np.linspace(-0.5, 1.5, 2001)]
    assert value(got, rounds, error) <= min(grid) + 1e-9
    assert got[1] / got[0] == pytest.approx(np.linspace(-0.5, 1.5, 2001)[np.argmin(grid)], abs=1.1e-3)


@pytest.mark.parametrize("error", ["mean", "max"])
def test_the_gradient_is_that_of_differences(error):
    c, shares = np.array([0.8, 0.4, -0.1, 0.2]), _shares(9, error)
    _, slope = _loss(c, shares)
    differences = [
        (_loss(c + 1e-6 * e, shares)[0] - _loss(c - 1e-6 * e, shares)[0]) / 2e-6 for e in np.eye(len(c))
    ]
    np.testing.assert_allclose(slope, differences, rtol=1e-6)


def test_more_bands_never_have_more_error():
    errors = [value(agg.banded_coefficients(24, bands), 24) for bands in range(1, 25)]
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(errors))
    assert errors[0] == pytest.approx(np.sqrt(25 / 2))


def test_a_prefix_has_the_deviation_of_the_matrices():
    c = [2.0, 1.0, -0.5]
    for rounds in (3, 4, 9):
        assert agg.prefix_std(c, rounds)[-1] == pytest.approx(value(c, rounds, "max"))
    np.testing.assert_allclose(agg.prefix_std([3.0], 5), np.sqrt(np.arange(1, 6)))


# --- what it is good for, by computation ---


def rms(std) -> float:
    return float(np.sqrt(np.mean(np.square(std))))


def test_at_one_price_correlated_noise_hides_the_sums_less():
    """Four passes of 32 rounds in one order: the root mean square of the noise in the model, all at the same epsilon.

    The multipliers are calibrated by the accountant for each mechanism, so prices and errors are those of what would run.
    """
    cohort, clients, rounds = fs.cohorts.cyclic(10), 320, 128

    def error(layer, std) -> float:
        chain = lambda z: agg.chain(agg.clip_by_global_norm(1.0), agg.mean(over="expected_cohort"), layer(z))  # noqa: E731
        z = fs.privacy.calibrate(
            4.0, cohort, rounds=rounds, delta=1e-5, population=clients, accountant="rdp", source=chain
        )
        return z * rms(std)

    bits = np.array([bin(t).count("1") for t in range(1, 33)])
    restarted = np.sqrt(np.concatenate([done * bits[-1] + bits for done in range(4)]))
    independent = error(agg.gaussian_noise, agg.prefix_std([1.0], rounds))
    tree = error(lambda z: agg.tree_noise(z, 32), restarted)
    banded = error(
        lambda z: agg.banded_noise(z, 32, rounds),
        agg.prefix_std(agg.banded_coefficients(rounds, 32), rounds),
    )
    assert banded < 0.55 * tree and tree < 0.65 * independent


def test_at_one_price_bands_help_amplified_noise():
    """Block-cyclic Poisson sampling, epsilon 8: eight bands beat independent noise, though they lower amplification."""
    clients, members, rounds, errors = 4000, 40, 400, {}
    for bands in (1, 2, 4, 8):
        cohort = fs.cohorts.cyclic_poisson(bands * members / clients, bands)
        z = fs.privacy.calibrate(8.0, cohort, rounds=rounds, delta=1e-6, accountant="rdp")
        errors[bands] = z * rms(agg.prefix_std(agg.banded_coefficients(rounds, bands), rounds))
    assert errors[8] < errors[4] < errors[2] < errors[1]
    assert errors[8] < 0.6 * errors[1]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: agg.banded_coefficients(4, 5), "bands is 5, but there are 4 rounds"),
        (lambda: agg.banded_coefficients(0, 1), "rounds is 0"),
        (lambda: agg.banded_coefficients(4, 0), "bands is 0"),
        (lambda: agg.banded_coefficients(4, 2, "median"), "error is 'median', expected one of 'mean', 'max'"),  # type: ignore[arg-type]
        (lambda: agg.prefix_std([0.0, 1.0], 4), r"coefficients has shape \[2\], expected a list of finite numbers"),
        (lambda: agg.prefix_std([1.0, np.inf], 4), "expected a list of finite numbers"),
        (lambda: agg.prefix_std([], 4), r"coefficients has shape \[0\]"),
    ],
)  # fmt: skip
def test_what_is_no_strategy_is_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()
