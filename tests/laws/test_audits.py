"""Law 10, second half: an end-to-end audit does not exceed the claimed epsilon, and finds a claim that is not kept."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim import aggregation as agg
from fedjax_sim.privacy import audits

ROUNDS, DELTA, CLAIMED, COUNT = 8, 1e-3, 2.0, 40
NOISES = (CLAIMED, CLAIMED, CLAIMED, CLAIMED / 10)
"""Three runs that keep their claim, and a mutant with a tenth of the noise."""
TASK = fs.tasks.classification(fs.models.linear(classes=10))


@functools.cache
def population() -> tuple[fs.ClientData, audits.Canaries]:
    data, first = audits.add_canaries(fs.data.load("digits", clients=10, alpha=1.0, seed=0).train, COUNT)
    return data, audits.Canaries(first, COUNT, norm=1.0, seed=5)


def private(noise_multiplier) -> fs.Algorithm:
    chain = agg.chain(
        agg.clip_by_global_norm(1.0), agg.mean(over="expected_cohort"), agg.gaussian_noise(noise_multiplier)
    )
    return fs.algorithms.fedavg(TASK, optax.sgd(0.01), aggregate=chain)


@functools.cache
def runs() -> tuple[fs.privacy.Guarantee, list[list[fs.Variables]]]:
    """The claim, and the first and last model of each run; one program for all."""
    data, canaries = population()
    sim = fs.Simulation(
        canaries.join(private(CLAIMED)),
        data,
        cohort=fs.cohorts.poisson(0.5),
        local=fs.LocalWork(batch_size=64),
    )
    seeds = list(range(len(NOISES)))
    swept = sim.sweep(
        seeds, ROUNDS, algorithm=lambda z: canaries.join(private(z)), hyperparameters={"z": NOISES}
    )
    models = [
        [sim.algorithm.params(state.server) for state in (sim.init(seed), swept.states[seed])]
        for seed in seeds
    ]
    return sim.privacy(ROUNDS, DELTA), models


@pytest.mark.slow
@pytest.mark.parametrize("run", range(len(NOISES)))
def test_a_bound_exceeds_a_claim_only_where_it_is_not_kept(run):
    claim, models = runs()
    audit = audits.audit_canaries(population()[1], models[run], DELTA)
    kept = NOISES[run] == CLAIMED
    assert audit.contradicts(claim) == (not kept), f"{claim}\n{audit}"
    if not kept:
        assert audit.lower_bound > 2 * claim.epsilon
        assert audit.one_run_bound > 0.5  # 40 canaries cannot reach the claim


@pytest.mark.slow
def test_an_audit_of_runs_that_keep_their_claim_has_power():
    """It sees that canaries took part: their cosines are above those of nobody, by more than four standard errors."""
    _, models = runs()
    found = [
        audits.audit_canaries(population()[1], pair, DELTA)
        for pair, noise in zip(models, NOISES, strict=True)
        if noise == CLAIMED
    ]
    scores = np.concatenate([audit.included / audit.null_std for audit in found])
    assert scores.mean() > 4 / np.sqrt(len(scores))


@pytest.mark.slow
def test_cosines_are_those_of_the_paper():
    """A run's canaries stand k / (z sqrt(T d)) above nobody's, less what they do to one another and the clients to all."""
    canaries = population()[1]
    _, models = runs()
    change = np.concatenate(
        [np.ravel(b - a) for a, b in zip(*(jax.tree.leaves(m.params) for m in models[0]), strict=True)]
    )
    for number in (0, 7, COUNT + 3):
        direction = canaries.direction(number, models[0][0].params)
        flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(direction)])
        cosine = flat @ change / np.linalg.norm(change)
        assert np.linalg.norm(flat) == pytest.approx(1, abs=1e-5)
        assert canaries.scores(models[0], COUNT + 4)[number] == pytest.approx(cosine, abs=1e-5)


@pytest.mark.slow
def test_claims_that_an_audit_is_not_about_are_refused():
    claim, models = runs()
    audit = audits.audit_canaries(population()[1], models[0], 1e-4, unobserved=2)
    with pytest.raises(ValueError, match=r"claim is at delta 0.001, the audit at 0.0001"):
        audit.contradicts(claim)
    with pytest.raises(ValueError, match="simulated cohort"):
        audit.contradicts(dataclasses.replace(claim, simulated=True, delta=1e-4))


# --- what a canary does in a round ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "scaffold", "mime"])
def test_a_canary_sends_its_direction_and_everybody_else_what_he_did(name):
    """One round without noise over ordinary clients and canaries equals the mean of their messages."""
    sgd = optax.sgd(0.1)
    mean = agg.mean(over="clients")
    algorithm = {
        "fedavg": lambda: fs.algorithms.fedavg(TASK, sgd, aggregate=mean),
        "fedprox": lambda: fs.algorithms.fedprox(TASK, sgd, mu=0.1, aggregate=mean),
        "scaffold": lambda: fs.algorithms.scaffold(TASK, 0.1),
        "mime": lambda: fs.algorithms.mime(TASK, sgd),
    }[name]()
    data = fs.data.load("digits", clients=4, alpha=1.0, seed=0).train
    data = data.select([0, 1]) if name in ("fedavg", "fedprox") else data.select([0])
    larger, first = audits.add_canaries(data, 6)
    canaries = audits.Canaries(first, 6, norm=2.5, seed=3)

    def moved(algorithm, clients, these):
        sim = fs.Simulation(
            algorithm, these, cohort=fs.cohorts.fixed(clients), local=fs.LocalWork(batch_size=256, shuffle=False),
            engine=fs.engines.sequential(),
        )  # fmt: skip
        start = sim.init(seed=2)
        end, _ = sim.run(start, rounds=1)
        before, after = (sim.algorithm.params(state.server).params for state in (start, end))
        return before, jax.tree.map(lambda a, b: np.asarray(b - a), before, after)

    joined = canaries.join(algorithm)
    for number in np.flatnonzero(canaries.included)[:1]:
        like, change = moved(joined, [first + int(number)], larger)
        expected = canaries.direction(number, like)
        jax.tree.map(lambda c, e: np.testing.assert_allclose(c, 2.5 * e, atol=1e-5), change, expected)
    for number in np.flatnonzero(~canaries.included)[:1]:
        _, change = moved(joined, [first + int(number)], larger)
        assert all(not x.any() for x in jax.tree.leaves(change))
    ordinary = list(range(first))
    _, with_canaries = moved(joined, ordinary, larger)
    _, without = moved(algorithm, ordinary, larger)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), with_canaries, without)
