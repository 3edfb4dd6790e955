"""The price of noise that is correlated between rounds: golden numbers, brute force over who can take part, and refusals."""

from __future__ import annotations

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from unit.small import make_data, task

import fedjax_sim as fs
from fedjax_sim import aggregation as agg
from fedjax_sim.privacy import Entry, Ledger, Sampling
from fedjax_sim.privacy._correlated import sensitivities

GOLDEN = {
    "tree_aggregation": {"rounds": 1024, "z": 5.0, "delta": 1e-6, "epsilon": 3.300257},
    "banded_matrix_amplified": {
        "bands": 10,
        "q": 0.1,
        "rounds": 1000,
        "z": 1.0,
        "delta": 1e-5,
        "epsilon": 7.046603,
    },
}
"""Of ``../shared/conformance/privacy.json``."""


def private(noise: fs.Transform) -> fs.Transform:
    return agg.chain(agg.clip_by_global_norm(1.0), agg.mean(over="expected_cohort"), noise)


def tree(z=5.0, restart=None):
    return private(agg.tree_noise(z, restart))


def banded(z=1.0, bands=10, rounds=1000):
    return private(agg.banded_noise(z, bands, rounds))


def test_the_literals_are_those_of_the_file(shared):
    with open(shared / "conformance" / "privacy.json") as file:
        cases = {case["name"]: case for case in json.load(file)["accounting"]}
    for name, case in GOLDEN.items():
        assert {key: cases[name][key] for key in case} == case


def test_tree_aggregation():
    """Each client once in 1024 rounds, under both samplers whose passes are that long."""
    case = GOLDEN["tree_aggregation"]
    for cohort in (fs.cohorts.cyclic(3), fs.cohorts.shuffled(3)):
        ledger = fs.privacy.ledger_of(tree(case["z"]), cohort, 3 * 1024, case["rounds"])
        got = fs.privacy.price(ledger, case["delta"], accountant="rdp")
        assert got.epsilon == pytest.approx(case["epsilon"], rel=1e-4)
        assert (got.neighbour, got.amplified) == ("replace_special", False)


def test_a_tree_costs_what_dp_accounting_says():
    """Its own event for single-epoch trees, with and without restarts, at lengths around powers of two."""
    import dp_accounting as dp

    for rounds in (1, 2, 3, 4, 7, 8, 9, 31, 32, 33):
        for restart in (None, 1, 3, 8):
            lengths = [min(restart or rounds, rounds - s) for s in range(0, rounds, restart or rounds)]
            book = dp.rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_SPECIAL)
            for length in lengths:
                book.compose(dp.SingleEpochTreeAggregationDpEvent(5.0, length))
            # A pass for each tree, so that a client can take part once in every one.
            cohort = fs.cohorts.shuffled(1)
            got = fs.privacy.epsilon(
                tree(5.0, restart), cohort, rounds=rounds, delta=1e-6, population=restart or rounds,
                accountant="rdp",
            )  # fmt: skip
            assert got == pytest.approx(book.get_epsilon(1e-6), rel=1e-9)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_banded_matrix_amplified(accountant):
    """Ceil(T / b) subsampled Gaussians; the golden number is PLD's, RDP is above it."""
    case = GOLDEN["banded_matrix_amplified"]
    got = fs.privacy.price(
        fs.privacy.ledger_of(
            banded(case["z"], case["bands"], case["rounds"]),
            fs.cohorts.cyclic_poisson(case["q"], case["bands"]),
            None,
            case["rounds"],
        ),
        case["delta"],
        accountant=accountant,
    )
    assert (got.neighbour, got.amplified, got.sampling) == ("add_or_remove_one", True, ("cyclic_poisson",))
    if accountant == "pld":
        assert got.epsilon == pytest.approx(case["epsilon"], rel=1e-4)
    else:
        assert case["epsilon"] < got.epsilon < 1.3 * case["epsilon"]


# --- how far one client can move a release ---


def patterns(law: str, rounds: int, period: int):
    """Every set of rounds in which one client can take part, as the largest ones: ``[rounds]`` of 0 and 1."""
    if law == "all":
        yield np.ones(rounds)
        return
    if law == "cyclic":
        for place in range(period):
            yield (np.arange(rounds) % period == place).astype(float)
        return
    for places in itertools.product(range(period), repeat=-(-rounds // period)):
        here = np.zeros(-(-rounds // period) * period)
        here[[number * period + place for number, place in enumerate(places)]] = 1
        yield here[:rounds]


def node_rows(rounds: int) -> np.ndarray:
    """The nodes of a tree that are full, each as the rounds that it sums."""
    rows = []
    for level in range(rounds.bit_length()):
        for start in range(0, rounds - 2**level + 1, 2**level):
            rows.append((np.arange(rounds) >= start) & (np.arange(rounds) < start + 2**level))
    return np.array(rows, float)


def sampling(law: str, period: int) -> Sampling:
    return {
        "all": Sampling("all", period, 1.0, period),
        "cyclic": Sampling("cyclic", period, None, 1, separation=period),
        "shuffled": Sampling("shuffled", period, None, 1),
    }[law]


@pytest.mark.parametrize("law", ["all", "cyclic", "shuffled"])
@pytest.mark.parametrize("restart", [None, 2, 3, 4, 8])
@pytest.mark.parametrize("period", [1, 2, 3, 4, 5])
def test_no_client_moves_the_trees_more_than_is_charged(law, restart, period):
    """Against the matrix of all nodes, for everybody who can be drawn; exact for one time in a tree, and for every round."""
    for rounds in range(1, 11):
        entry = Entry("tree_gaussian", 1.0, 0, rounds, sampling(law, period), {"restart_every": restart})
        charged = sum(value * trees for value, trees in sensitivities(entry).items())
        worst = 0.0
        for here in patterns(law, rounds, period):
            moved = 0.0
            for start in range(0, rounds, restart or rounds):
                mine = here[start : start + (restart or rounds)]
                moved += float(np.sum((node_rows(len(mine)) @ mine) ** 2))
            worst = max(worst, moved)
        assert worst <= charged
        length = restart or rounds
        if (law == "cyclic" and period >= rounds) or (
            law == "all" and length & (length - 1) == 0 and rounds % length == 0
        ):
            assert worst == charged


@pytest.mark.parametrize("restart", [None, 3, 8])
def test_a_ledger_in_two_parts_costs_no_less(restart):
    """A tree that began before is charged as a whole, since its nodes still hold what came first."""
    for law, period in (("all", 1), ("cyclic", 3), ("shuffled", 3)):
        of = lambda first, rounds: sum(  # noqa: E731
            value * trees
            for value, trees in sensitivities(
                Entry("tree_gaussian", 1.0, first, rounds, sampling(law, period), {"restart_every": restart})  # noqa: B023
            ).items()
        )
        for rounds in range(2, 14):
            for cut in range(1, rounds):
                assert of(0, cut) + of(cut, rounds - cut) >= of(0, rounds)


@pytest.mark.parametrize("bands", [1, 2, 3])
def test_contributions_apart_are_orthogonal_under_bands(bands):
    """``|C x|^2 <= k`` for ``k`` contributions of norm 1 that lie ``bands`` or more apart, whatever their signs."""
    rounds = 9
    c = np.zeros(rounds)
    c[:bands] = agg.banded_coefficients(rounds, bands)
    strategy = np.array([[c[i - j] if i >= j else 0.0 for j in range(rounds)] for i in range(rounds)])
    closer = 0.0
    for times in itertools.chain.from_iterable(
        itertools.combinations(range(rounds), k) for k in range(1, rounds + 1)
    ):
        x = np.zeros(rounds)
        x[list(times)] = 1
        moved, apart = float(np.sum((strategy @ x) ** 2)), min(np.diff(times), default=rounds)
        if apart >= bands:
            assert moved <= len(times) + 1e-12
        else:
            closer = max(closer, moved / len(times))
    assert bands == 1 or closer > 1.3  # so that the refusal below is needed


def test_banded_noise_costs_a_release_for_each_time_that_a_client_comes():
    """Under fixed passes; a run longer than the strategy's rounds pays for what it takes, as independent noise would."""
    cohort, z = fs.cohorts.cyclic(10), 4.0
    for rounds, times in ((7, 1), (10, 1), (11, 2), (30, 3), (55, 6)):
        got = fs.privacy.epsilon(banded(z, 10, 30), cohort, rounds=rounds, delta=1e-5, population=100)
        from_one = fs.privacy.gaussian_delta(z / math.sqrt(times), got)
        assert from_one == pytest.approx(1e-5, rel=2e-3)
        same = fs.privacy.epsilon(z, cohort, rounds=rounds, delta=1e-5, population=100)
        assert got == pytest.approx(same, rel=1e-12)


def test_two_noises_in_a_round_are_one_release():
    """A banded and an independent layer under the same draws fold before the sampling: 1 / z^2 adds up."""
    cohort = fs.cohorts.cyclic_poisson(0.2, 4)
    layers = (agg.clip_by_global_norm(1.0), agg.mean(over="expected_cohort"), agg.banded_noise(2.0, 4, 40))
    both = agg.chain(*layers, agg.gaussian_noise(2.0))
    got = fs.privacy.epsilon(both, cohort, rounds=40, delta=1e-5)
    assert got == pytest.approx(fs.privacy.epsilon(math.sqrt(2), cohort, rounds=40, delta=1e-5), rel=1e-9)


def test_replacing_a_client_costs_twice_the_sensitivity():
    for chain, cohort in ((tree(), fs.cohorts.cyclic(1)), (banded(3.0, 4, 40), fs.cohorts.cyclic(1))):
        known = {"rounds": 40, "delta": 1e-5, "population": 40}
        for accountant in ("pld", "rdp"):
            double = private(
                agg.tree_noise(2.5) if chain.facts[-1].name == "tree_noise" else agg.banded_noise(1.5, 4, 40)
            )
            got = fs.privacy.epsilon(chain, cohort, accountant=accountant, neighbour="replace_one", **known)
            assert got == pytest.approx(
                fs.privacy.epsilon(double, cohort, accountant=accountant, **known), rel=1e-3
            )


def test_a_simulation_knows_its_price():
    """Read off chain and sampler; the ledger is JSON and says bands, restarts and separation."""
    for noise, details in (
        (agg.tree_noise(2.0, 4), {"restart_every": 4}),
        (
            agg.banded_noise(2.0, 4, 8, coefficients=[2.0, 0.0, 0.0, 0.0]),
            {"bands": 4, "coefficients": [1.0, 0.0, 0.0, 0.0]},
        ),
    ):
        sim = fs.Simulation(
            fs.algorithms.fedavg(task(), optax.sgd(0.1), aggregate=private(noise)),
            make_data(),
            cohort=fs.cohorts.cyclic(1),
        )
        ledger = sim.ledger(rounds=8)
        assert [(e.details, e.sampling.separation) for e in ledger.entries] == [(details, 4)]
        assert Ledger.from_json(json.loads(json.dumps(ledger.as_json()))) == ledger
        times = 2 * (3 if "restart_every" in details else 1)
        assert fs.privacy.gaussian_delta(
            2.0 / math.sqrt(times), sim.privacy(8, 1e-5).epsilon
        ) == pytest.approx(1e-5, rel=2e-3)


@pytest.mark.parametrize(
    ("chain", "cohort", "match"),
    [
        (tree(), fs.cohorts.uniform(5), "tree_noise has no price with 'without_replacement' cohorts: sampling does not"),
        (tree(), fs.cohorts.poisson(0.1), "Use fs.cohorts.cyclic"),
        (tree(), fs.cohorts.cyclic_poisson(0.1, 4), "no price with 'cyclic_poisson'"),
        (tree(), fs.cohorts.uniform(5, replace=True), "'with_replacement' have no epsilon"),
        (banded(), fs.cohorts.uniform(5), r"10 rounds or more must lie between .* it can be 1. Use fs.cohorts.cyclic_poisson"),
        (banded(), fs.cohorts.poisson(0.1), r"cyclic_poisson\(rate, bands=10\)"),
        (banded(), fs.cohorts.shuffled(5), "with 'shuffled' cohorts it can be 1"),
        (banded(), fs.cohorts.all_clients(), "with 'all' cohorts it can be 1"),
        (banded(), fs.cohorts.cyclic(20), "it can be 5. Use at most 5 bands, or more rounds of a pass"),
        (banded(), fs.cohorts.cyclic_poisson(0.1, 9), "it can be 9. Use at most 9 bands, or more groups"),
    ],
)  # fmt: skip
def test_samplers_without_a_price_are_refused(chain, cohort, match):
    with pytest.raises(ValueError, match=match):
        fs.privacy.epsilon(chain, cohort, rounds=20, delta=1e-5, population=100)


def test_the_price_of_fixed_passes_needs_the_population():
    with pytest.raises(ValueError, match=r"depends on the number of clients: give population="):
        fs.privacy.epsilon(banded(), fs.cohorts.cyclic(5), rounds=20, delta=1e-5)


# --- what the layers refuse ---


@pytest.mark.parametrize("noise", [agg.tree_noise(1.0), agg.banded_noise(1.0, 2, 8)], ids=["tree", "banded"])
def test_a_bound_that_moves_is_refused(noise):
    adaptive = agg.adaptive_clip(count_noise_std=1.0)
    with pytest.raises(
        ValueError, match=r"_noise correlates the noise of rounds.*adaptive_clip moves the bound"
    ):
        agg.chain(adaptive, agg.mean(over="expected_cohort"), noise)
    with pytest.raises(ValueError, match="needs a bound on each client's message"):
        agg.chain(agg.mean(over="expected_cohort"), noise)
    with pytest.raises(ValueError, match="stands behind a mean whose divisor depends on the data"):
        agg.chain(agg.clip_by_global_norm(1.0), agg.mean(over="examples"), noise)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: agg.tree_noise(0.0), ValueError, "noise_multiplier is 0.0"),
        (lambda: agg.tree_noise(lambda round_: 1.0), TypeError, "one scale in all of them. gaussian_noise takes"),  # type: ignore[arg-type]
        (lambda: agg.tree_noise(1.0, 0), ValueError, "restart_every is 0"),
        (lambda: agg.banded_noise(-1.0, 2, 8), ValueError, "noise_multiplier is -1.0"),
        (lambda: agg.banded_noise(lambda round_: 1.0, 2, 8), TypeError, "noise_multiplier is a function"),  # type: ignore[arg-type]
        (lambda: agg.banded_noise(1.0, 9, 8), ValueError, "bands is 9, but there are 8 rounds"),
        (lambda: agg.banded_noise(1.0, 2, 8, coefficients=[1.0]), ValueError, "has 1 numbers, expected one for each of the 2"),
        (lambda: agg.banded_noise(1.0, 2, 8, coefficients=[-1.0, 0.0]), ValueError, "the first of them above 0"),
    ],
)  # fmt: skip
def test_what_is_no_correlated_noise_is_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_a_strategy_of_ones_own_is_scaled_to_sensitivity_one():
    """Three times the coefficients are the same noise, not a third of it."""
    zeros = jnp.zeros((2, 5))
    chains = [private(agg.banded_noise(1.0, 2, 8, coefficients=[s * 2.0, s * 1.0])) for s in (1, 3)]
    got = [agg.run(chain, zeros, key=jax.random.key(0))[0] for chain in chains]
    np.testing.assert_allclose(got[0], got[1], rtol=1e-6)


def test_the_state_is_small():
    """A key and a count for a tree; ``bands - 1`` models, in float32, for bands."""
    spec = fs.Message({"w": jax.ShapeDtypeStruct((3, 2), jnp.bfloat16)})
    state, client = agg.tree_noise(1.0).init(spec)
    assert client == () and sum(np.size(x) for x in jax.tree.leaves(state)) == 3
    state, _ = agg.banded_noise(1.0, 4, 8).init(spec)
    assert state.earlier["w"].shape == (3, 3, 2) and state.earlier["w"].dtype == jnp.float32
