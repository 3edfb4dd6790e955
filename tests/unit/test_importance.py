"""``fs.privacy.most_important``: what is chosen from private data, and what that costs."""

import dp_accounting as dp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim import aggregation as agg
from fedjax_sim import tasks

TASK = tasks.classification(fs.models.mlp(10, hidden=(16, 8)), sample_input=(1, 8, 8, 1))
VARIABLES = TASK.init(jax.random.key(1))
PATHS = [f"Dense_{layer}/{name}" for layer in range(3) for name in ("kernel", "bias")]
DATA = fs.data.load("digits", clients=12, alpha=1.0, seed=0).train
POISSON = fs.cohorts.poisson(0.4)


def choose(numbers=600, data=DATA, **options):
    options = {
        "cohort": fs.cohorts.all_clients(),
        "clip_norm": 10.0,
        "noise_multiplier": 1e-10,
        "seed": 0,
        "batch_size": 400,
    } | options
    return fs.privacy.most_important(TASK, VARIABLES, data, numbers, **options)


def paths(predicate):
    return {path for path in PATHS if predicate(path)}


@pytest.mark.parametrize("numbers", [10, 200, 600, 1200, 10**6])
def test_with_little_noise_it_is_the_public_choice(numbers):
    """One client that holds all data, and clients whose batches are those of the public data."""
    whole = fs.ClientData.from_clients({0: DATA.columns})
    public = tasks.most_important(TASK, VARIABLES, dict(DATA.columns), numbers, batch_size=10**4)
    assert paths(choose(numbers, whole, batch_size=10**4).predicate) == paths(public)
    even = fs.ClientData.from_clients(
        {
            start: {name: x[start : start + 100] for name, x in DATA.columns.items()}
            for start in range(0, 1000, 100)
        }
    )
    public = tasks.most_important(TASK, VARIABLES, dict(even.columns), numbers, batch_size=100)
    assert paths(choose(numbers, even, batch_size=100).predicate) == paths(public)


def test_scores_are_means_of_clipped_vectors():
    """Against plain gradients of each client, with a clip that most feel and one client without examples."""

    @jax.jit
    @jax.grad
    def gradient_of(params, columns):
        batch = {**columns, "mask": jnp.ones(len(columns["y"]), bool)}
        return jnp.mean(
            TASK.loss(TASK.apply(VARIABLES._replace(params=params), batch, None, train=False)[0], batch)
        )

    vectors = []
    for client in range(DATA.num_clients):
        gradient = gradient_of(VARIABLES.params, DATA.client(client))
        vectors.append([float(jnp.mean(gradient[p.split("/")[0]][p.split("/")[1]] ** 2)) for p in PATHS])
    vectors = np.array(vectors)
    norm = float(np.median(np.linalg.norm(vectors, axis=1)))
    factors = np.minimum(1, norm / np.linalg.norm(vectors, axis=1))[:, None]
    empty = {name: x[:0] for name, x in DATA.columns.items()}
    data = fs.ClientData.from_clients({**{c: DATA.client(c) for c in range(DATA.num_clients)}, 12: empty})
    found = choose(data=data, clip_norm=norm)
    got = [found.scores[path] for path in PATHS]
    np.testing.assert_allclose(got, (vectors * factors).sum(axis=0) / 13, rtol=1e-3)


def test_the_noise_is_that_of_the_ledger():
    noisy = [choose(clip_norm=1e-9, noise_multiplier=3.0, seed=seed).scores for seed in range(30)]
    values = np.array([[scores[path] for path in PATHS] for scores in noisy]) * 12 / (3.0 * 1e-9)
    # The signal is at most 12 clipped vectors, four deviations in norm, the same each time.
    residue = values - values.mean(axis=0)
    assert abs(residue.var() * 30 / 29 - 1) < 5 * np.sqrt(2 / residue.size)
    assert choose(clip_norm=1e-9, noise_multiplier=3.0, seed=7).scores == noisy[7]


@pytest.mark.parametrize("rate", [0.4, 1.0])
def test_the_price_is_that_of_dp_accounting(rate):
    """Choice and training compose, as releases with cohorts of their own."""
    private = agg.chain(
        agg.clip_by_global_norm(1.0), agg.mean(over="expected_cohort"), agg.gaussian_noise(2.0)
    )
    cohort = fs.cohorts.poisson(rate) if rate < 1 else fs.cohorts.all_clients()
    choice = choose(cohort=cohort, noise_multiplier=5.0)
    sim = fs.Simulation(
        fs.algorithms.fedavg(tasks.trainable(TASK, lambda path: True), optax.sgd(0.1), aggregate=private),
        DATA,
        cohort=cohort,
    )
    got = fs.privacy.price(choice.ledger + sim.ledger(rounds=6), 1e-3)

    def event(z):
        if rate == 1:
            return dp.GaussianDpEvent(z)
        (sampling,) = {entry.sampling for entry in choice.ledger.entries}
        if sampling.law == "poisson":
            return dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(z))
        return dp.TruncatedSubsampledGaussianDpEvent(12, rate, sampling.size, z)

    relation = dp.NeighboringRelation[got.neighbour.upper()]
    book = dp.pld.PLDAccountant(relation, value_discretization_interval=1e-4)
    expected = book.compose(event(5.0)).compose(event(2.0), 6).get_epsilon(1e-3)
    assert got.epsilon == pytest.approx(expected, rel=1e-6)
    assert got.epsilon > sim.privacy(6, 1e-3).epsilon
    assert got.rounds == 7


def test_cohort_and_noise_are_not_those_of_a_run_with_the_same_seed():
    """Or the two releases would not be independent."""
    from fedjax_sim._src import keys

    root = keys.root_key(3)
    words = tuple(int(word) for word in jax.random.key_data(root))
    run = POISSON.sample(keys.host_generator(words, keys.COHORT, 0), 0, 12)
    drawn = []
    spied = POISSON._replace(sample=lambda *arguments: drawn.append(POISSON.sample(*arguments)) or drawn[-1])
    choose(cohort=spied, seed=3)
    assert sorted(drawn[0]) != sorted(run)


def test_a_cohort_of_nobody_is_noise_alone():
    nobody = POISSON._replace(sample=lambda generator, round_, population: np.zeros(0, np.int64))
    found = choose(cohort=nobody, noise_multiplier=1.0)
    assert all(np.isfinite(score) and score != 0 for score in found.scores.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"numbers": 3}, "numbers is 3, but the smallest leaf has 8"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        choose(**options)


def test_a_sampler_without_a_price_is_refused():
    with pytest.raises(ValueError, match="with_replacement"):
        choose(cohort=fs.cohorts.uniform(4, replace=True))
