"""The price of noise other than central Gaussian noise: curves against the papers, against integrals, and through a run."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate, special, stats

import fedjax_sim as fs
from fedjax_sim import aggregation as agg
from fedjax_sim.privacy import Entry, Ledger, Sampling, _renyi, ledger_of, price

PARAMS = {"w": jax.ShapeDtypeStruct((300, 100), jnp.float32), "b": jax.ShapeDtypeStruct((100,), jnp.float32)}
L2 = (agg.clip_by_global_norm(1.0), agg.mean(over="expected_cohort"))
L1 = (agg.clip_by_l1_norm(1.0), agg.mean(over="expected_cohort"))
ALL, POISSON, UNIFORM = fs.cohorts.all_clients(), fs.cohorts.poisson(0.05, cap=1000), fs.cohorts.uniform(50)


def discrete(z=1.0, bits=20, clients=50):
    return agg.chain(
        *L2, agg.hadamard_rotation(), agg.discrete_gaussian_noise(z, min_clients=clients, bits=bits)
    )


def skellam(z=1.0, bits=20, clients=50):
    return agg.chain(*L2, agg.hadamard_rotation(), agg.skellam_noise(z, min_clients=clients, bits=bits))


GAUSSIAN = agg.chain(*L2, agg.gaussian_noise(1.0))


def cost(source, cohort, rounds=10, delta=1e-5, population=1000, **options):
    return price(ledger_of(source, cohort, population, rounds, message=PARAMS), delta, **options)


# --- discrete noise ---


def entry(law, **changes):
    details = {
        "min_clients": 3,
        "max_clients": 5,
        "bits": 8,
        "deviations": 4.0,
        "beta": math.exp(-0.5),
        "dimension": 64,
    }
    return Entry(law, 1.5, 0, 1, Sampling("all", 10), {**details, **changes})


def by_hand():
    """Levels, one client's deviation and the norm after rounding, from the papers' formulas."""
    levels = math.sqrt(4**8 - 5 * 16) / (8 * math.sqrt(25 / 64 + 1.5**2 * 5 / 3))
    squared = min(levels**2 + 16 + levels + 4, (levels + 8) ** 2)
    return 1.5 * levels / math.sqrt(3), math.sqrt(squared)


@pytest.mark.parametrize("alpha", [1.5, 2, 7, 64])
def test_the_curve_of_discrete_gaussians_is_proposition_14(alpha):
    """On 8 bits, where the sum of three is not yet a discrete Gaussian; and with one client, where tau is 0."""
    std, l2 = by_hand()
    l1 = min(8 * l2, l2**2)
    tau = 10 * sum(math.exp(-2 * math.pi**2 * std**2 * k / (k + 1)) for k in (1, 2))
    total = math.sqrt(3) * std
    expected = min(
        alpha * l2**2 / (2 * total**2) + tau * 64,
        alpha / 2 * (l2**2 / total**2 + 2 * l1 * tau / total + tau**2 * 64),
        alpha / 2 * (l2 / total + tau * 8) ** 2,
    )
    assert _renyi.discrete_gaussian(entry("discrete_gaussian"), 1.0)(alpha) == pytest.approx(expected)


@pytest.mark.parametrize("alpha", [2, 7, 64])
def test_the_curve_of_skellams_is_theorem_3_5(alpha):
    std, l2 = by_hand()
    l1, mu = min(8 * l2, l2**2), 3 * std**2
    expected = alpha * l2**2 / (2 * mu) + min(
        ((2 * alpha - 1) * l2**2 + 6 * l1) / (4 * mu**2), 3 * l1 / (2 * mu)
    )
    curve = _renyi.skellam(entry("skellam"), 1.0)
    assert curve(alpha) == pytest.approx(expected)
    assert curve(alpha - 0.5) == curve(alpha)


@pytest.mark.parametrize("alpha", [2, 3, 8])
@pytest.mark.parametrize("law", ["discrete_gaussian", "skellam"])
def test_a_curve_is_above_the_exact_divergence(law, alpha):
    """Of one coordinate moved by 1 to 5 steps: sums over all integers, of the sum of three clients' laws."""
    std = 1.5
    k = np.arange(-80, 81)
    if law == "skellam":
        p = stats.skellam.pmf(k, 3 * std**2 / 2, 3 * std**2 / 2)
    else:
        one = np.exp(-(k**2) / (2 * std**2))
        p = np.convolve(np.convolve(one / one.sum(), one / one.sum(), "same"), one / one.sum(), "same")
    for step in (1, 2, 5):
        inner = abs(k) < 20
        ratio = alpha * np.log(np.roll(p, step)[inner]) - (alpha - 1) * np.log(p[inner])
        exact = special.logsumexp(ratio) / (alpha - 1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                _renyi, "_on_the_grid", lambda e, moves, step=step: (float(step), float(step), std, 1)
            )
            assert exact <= _renyi.CURVES[law](entry(law), 1.0)(alpha) * (1 + 1e-6)


@pytest.mark.parametrize("chain", [discrete, skellam])
def test_fewer_bits_cost_more_and_many_cost_as_a_gaussian_does(chain):
    few, some, many = (cost(chain(bits=bits), ALL).epsilon for bits in (12, 14, 24))
    gaussian = cost(GAUSSIAN, ALL, accountant="rdp", neighbour="replace_special").epsilon
    assert few > some > many > gaussian * (1 - 1e-9)
    assert cost(discrete(8.0, 24), ALL).epsilon == pytest.approx(
        cost(agg.chain(*L2, agg.gaussian_noise(8.0)), ALL, accountant="rdp").epsilon, rel=1e-3
    )


def test_the_relation_is_that_a_client_stays_and_its_data_go():
    """Its share of the noise is there in either case; taking the client away is no relation whose price is known."""
    guarantee = cost(discrete(), POISSON)
    assert (guarantee.neighbour, guarantee.accountant) == ("replace_special", "rdp")
    assert guarantee.trust == "distributed" and "distributed noise" in str(guarantee)
    with pytest.raises(
        ValueError, match=r"noise of the law 'discrete_gaussian' the price is known for 'replace_special'"
    ):
        cost(discrete(), POISSON, neighbour="add_or_remove_one")
    with pytest.raises(ValueError, match=r"noise of the law skellam are known to 'rdp' alone"):
        cost(skellam(), POISSON, accountant="pld")


def test_a_replaced_client_moves_the_sum_by_two_bounds():
    for law in ("discrete_gaussian", "skellam", "gaussian"):
        curve = _renyi.CURVES[law]
        assert curve(entry(law), 2.0)(2) > 3.9 * curve(entry(law), 1.0)(2)


def test_the_size_of_the_message_must_be_known():
    with pytest.raises(
        ValueError, match=r"depends on the size of the message: use Simulation.privacy, .* message=params"
    ):
        fs.privacy.epsilon(discrete(), ALL, rounds=1, delta=1e-5)
    got = fs.privacy.epsilon(discrete(), ALL, rounds=10, delta=1e-5, message=PARAMS)
    assert got == cost(discrete(), ALL).epsilon


def test_a_simulation_knows_the_size_of_its_messages():
    """650 numbers, 1,024 after the rotation; and the ledger survives JSON."""
    data = fs.data.load("digits", clients=20, alpha=1.0, seed=0)
    task = fs.tasks.classification(fs.models.linear(classes=10))
    sim = fs.Simulation(
        fs.algorithms.fedavg(task, optax.sgd(0.1), aggregate=discrete(clients=5)),
        data.train,
        cohort=fs.cohorts.uniform(5),
    )
    ledger = sim.ledger(3)
    assert [e.details["dimension"] for e in ledger.entries] == [1024]
    assert Ledger.from_json(ledger.as_json()) == ledger
    message = jax.ShapeDtypeStruct((650,), jnp.float32)
    same = fs.privacy.epsilon(
        discrete(clients=5), fs.cohorts.uniform(5), rounds=3, delta=1e-3, population=20, message=message
    )
    assert sim.privacy(rounds=3, delta=1e-3).epsilon == same


def test_calibration_finds_the_multiplier():
    z = fs.privacy.calibrate(3.0, ALL, rounds=10, delta=1e-5, source=discrete, message=PARAMS)
    assert 2.9 < cost(discrete(z), ALL).epsilon <= 3.0


# --- amplification by who takes part ---


def test_amplification_is_above_the_exact_divergence_of_a_mixture():
    """Gaussians as an example whose mixture can be integrated: (1 - q) P0 + q P1 against (1 - q) P0 + q P0."""
    q, z, alpha = 0.2, 1.3, 3.0
    p0, p1 = stats.norm(0, z).pdf, stats.norm(1, z).pdf
    integrand = lambda x: ((1 - q) * p0(x) + q * p1(x)) ** alpha / p0(x) ** (alpha - 1)  # noqa: E731
    exact = math.log(integrate.quad(integrand, -20, 20)[0]) / (alpha - 1)
    curve = _renyi.drawn(lambda a: a / (2 * z**2), q)
    assert exact < curve(alpha) < alpha / (2 * z**2)


def test_a_client_who_brings_its_noise_along_is_covered():
    """Absent: noise of one; there with data or without: of two. The mixtures' divergence, by sums over integers."""
    q, alpha, k = 0.3, 4.0, np.arange(-60, 61)
    absent, there = stats.skellam.pmf(k, 2, 2), stats.skellam.pmf(k, 4, 4)
    moved = np.roll(there, 2)
    first, second = (1 - q) * absent + q * moved, (1 - q) * absent + q * there
    inner = np.abs(k) < 45
    exact = lambda p, r: math.log(np.sum(p[inner] ** alpha / r[inner] ** (alpha - 1))) / (alpha - 1)  # noqa: E731
    whole = exact(moved, there)
    assert exact(first, second) <= _renyi.drawn(lambda a: whole, q)(alpha) < whole


@pytest.mark.parametrize("chain", [discrete, skellam])
def test_chance_lowers_the_price_and_certainty_does_not(chain):
    certain = cost(chain(), ALL).epsilon
    for cohort in (POISSON, UNIFORM, fs.cohorts.poisson(0.05, cap=60)):
        guarantee = cost(chain(), cohort)
        assert guarantee.epsilon < 0.6 * certain and guarantee.amplified
    assert cost(chain(), fs.cohorts.poisson(1.0)).epsilon == pytest.approx(certain)
    assert not cost(chain(), fs.cohorts.shuffled(50)).amplified
    once = cost(chain(), ALL, rounds=1).epsilon
    assert cost(chain(), fs.cohorts.shuffled(50), rounds=20).epsilon == pytest.approx(once)


def test_noises_of_one_round_are_added_up_before_they_are_amplified():
    """Two stages with the same cohort: amplified apart, one draw of the cohort would count as two."""
    q, sampling = 0.05, Sampling("poisson", 1000, 0.05, 1000)
    two = [Entry("gaussian", 1.0, 0, 1, sampling), Entry("laplace", 1.0, 0, 1, sampling)]
    ((event, count),) = _renyi.events(two, 1.0)
    together = sum(_renyi.CURVES[e.law](e, 1.0)(3.0) for e in two)
    assert count == 1 and event.curve(3.0) == pytest.approx(_renyi.drawn(lambda a: together, q)(3.0))
    guarantee = price(Ledger(tuple(two)), 1e-5)
    apart = [price(Ledger((e,)), 1e-5, accountant="rdp").epsilon for e in two]
    assert guarantee.accountant == "rdp" and guarantee.epsilon > max(apart)


# --- Laplace ---


def test_one_laplace_release_costs_one_over_its_multiplier():
    chain = agg.chain(*L1, agg.laplace_noise(2.0))
    assert cost(chain, ALL, rounds=1, delta=1e-12).epsilon == pytest.approx(0.5, rel=1e-3)
    replaced = cost(chain, ALL, rounds=1, delta=1e-12, neighbour="replace_one")
    assert replaced.accountant == "rdp" and replaced.epsilon == pytest.approx(1.0, rel=0.03)


@pytest.mark.parametrize("alpha", [1.5, 2.0, 10.0])
def test_the_curve_of_laplace_is_the_divergence(alpha):
    p, r = stats.laplace(0, 1.5).pdf, stats.laplace(1, 1.5).pdf
    pieces = [
        integrate.quad(lambda x: p(x) ** alpha / r(x) ** (alpha - 1), *ends)[0]
        for ends in ((-60, 0), (0, 1), (1, 60))
    ]
    exact = math.log(sum(pieces)) / (alpha - 1)
    assert _renyi.laplace(Entry("laplace", 1.5, 0, 1, Sampling("all")), 1.0)(alpha) == pytest.approx(exact)


@pytest.mark.parametrize(
    ("cohort", "accountant"), [(POISSON, "pld"), (UNIFORM, "rdp"), (fs.cohorts.poisson(0.05, cap=60), "rdp")]
)
def test_laplace_noise_is_amplified(cohort, accountant):
    chain = agg.chain(*L1, agg.laplace_noise(2.0))
    guarantee = cost(chain, cohort)
    assert guarantee.accountant == accountant and guarantee.amplified
    assert guarantee.epsilon < cost(chain, ALL).epsilon


# --- local noise ---


@pytest.mark.parametrize("cohort", [ALL, POISSON, UNIFORM, fs.cohorts.poisson(0.05, cap=60)])
def test_a_local_message_costs_the_same_whoever_is_drawn(cohort):
    """Exactly one Gaussian release per participation, between any two messages: twice the bound apart."""
    chain = agg.chain(*L2, agg.local_gaussian_noise(4.0))
    guarantee = cost(chain, cohort, rounds=5)
    sigma = fs.privacy.gaussian_sigma(guarantee.epsilon, 1e-5, sensitivity=2.0)
    assert sigma * math.sqrt(5) == pytest.approx(4.0, rel=1e-3)
    assert (guarantee.neighbour, guarantee.trust, guarantee.amplified) == ("replace_one", "local", False)
    assert "local noise" in str(guarantee) and "It covers the messages" in str(guarantee)


def test_a_client_pays_for_the_rounds_it_takes_part_in():
    """Shuffled cohorts of a tenth: two of twenty rounds."""
    chain = agg.chain(*L2, agg.local_gaussian_noise(4.0))
    assert cost(chain, fs.cohorts.shuffled(100), rounds=20).epsilon == cost(chain, ALL, rounds=2).epsilon


def test_local_laplace_noise_is_pure():
    chain = agg.chain(*L1, agg.local_laplace_noise(4.0))
    one, three = (cost(chain, POISSON, rounds=rounds, delta=1e-12).epsilon for rounds in (1, 3))
    assert one == pytest.approx(0.5, rel=0.05) and three == pytest.approx(1.5, rel=0.05)
    special = cost(chain, POISSON, rounds=1, delta=1e-12, neighbour="replace_special")
    assert special.accountant == "pld" and special.epsilon == pytest.approx(0.25, rel=1e-3)
