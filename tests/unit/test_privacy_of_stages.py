"""Everything that leaves a client is inside a clip and a noise that is in the ledger, or has no price."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest
from unit import small

import fedjax_sim as fs
from fedjax_sim import aggregation as agg


def _after_one_round(algorithm, gone: bool):
    """The server's state; the client that may be gone has its data or none."""
    data = small.make_data((3, 3, 5, 9))
    columns = {name: np.array(column) for name, column in data.columns.items()}
    columns["x"][11:] *= 50  # of the last client: whatever it sends is long
    sizes = (3, 3, 5, 0 if gone else 9)
    kept = {name: column[: sum(sizes)] for name, column in columns.items()}
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    sim = small.simulation(
        algorithm, fs.ClientData(kept, offsets, list(data.ids)), cohort=fs.cohorts.all_clients()
    )
    return sim.run(sim.init(0), rounds=1)[0].server


def _length(*trees) -> float:
    return float(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(trees))))


def _moved(a, b):
    return jax.tree.map(lambda x, y: np.asarray(x, np.float64) - np.asarray(y, np.float64), a, b)


def _chain(clip, z=1e-3):
    return agg.chain(agg.clip_by_global_norm(clip), agg.mean(over="expected_cohort"), agg.gaussian_noise(z))


def test_scaffolds_controls_are_inside_the_clip_and_the_noise():
    """A client moves model and control together by one bound; the noise of one seed is the same in both runs."""
    algorithm = fs.algorithms.scaffold(small.task(), 0.1, aggregate=_chain(0.5))
    with_it, without = (_after_one_round(algorithm, gone) for gone in (False, True))
    model = _moved(with_it.variables.params, without.variables.params)
    control = _moved(with_it.control, without.control)
    # Four are expected of a population of four: the mean update and the mean change of controls, each a quarter.
    assert _length(control) > 0.01
    assert _length(model, control) == pytest.approx(0.5 / 4, rel=1e-3)
    noisy = fs.algorithms.scaffold(small.task(), 0.1, aggregate=_chain(0.5, 1000.0))
    noise = _moved(_after_one_round(noisy, False).control, with_it.control)
    assert min(np.abs(leaf).min() for leaf in jax.tree.leaves(noise)) > 0


def test_the_gradient_of_mimes_first_stage_is_inside_its_clip_and_both_stages_are_in_the_ledger():
    gradient, update = _chain(0.25, 2.0), _chain(0.5, 3.0)
    algorithm = fs.algorithms.mime(small.task(), optax.sgd(0.1), 1.0, update, gradient)
    with_it, without = (_after_one_round(algorithm, gone) for gone in (False, True))
    assert _length(_moved(with_it.gradient, without.gradient)) == pytest.approx(0.25 / 4, rel=1e-3)
    sim = small.simulation(algorithm)
    assert sorted(entry.multiplier for entry in sim.ledger(3).entries) == [2.0, 3.0]
    assert all(entry.rounds == 3 for entry in sim.ledger(3).entries)


def test_a_stage_without_noise_has_no_price():
    halves = [
        fs.algorithms.mime(small.task(), optax.sgd(0.1), 1.0, _chain(0.5)),
        fs.algorithms.mime(small.task(), optax.sgd(0.1), 1.0, None, _chain(0.5)),
        fs.algorithms.ifca(small.task(), optax.sgd(0.1), 2),
    ]
    for algorithm in halves:
        with pytest.raises(ValueError, match="adds no noise to what it releases"):
            small.simulation(algorithm).ledger(1)


def test_counts_beside_an_update_are_refused_with_noise():
    noisy = _chain(1.0)
    with pytest.raises(ValueError, match="mean"):
        fs.algorithms.ifca(small.task(), optax.sgd(0.1), 2, noisy)
    with pytest.raises(ValueError, match="mean"):
        fs.algorithms.heterofl({"whole": small.task()}, optax.sgd(0.1), aggregate=noisy)


@pytest.mark.parametrize(
    "cohort", [fs.cohorts.uniform(5), fs.cohorts.poisson(0.1, cap=8)], ids=["fixed size", "cut"]
)
def test_clients_that_remember_are_not_amplified_where_cohorts_depend_on_each_other(cohort):
    def price(algorithm, cohort, **local):
        sim = fs.Simulation(
            algorithm, small.make_data((4,) * 50), cohort=cohort, local=fs.LocalWork(batch_size=4, **local)
        )
        return sim.privacy(rounds=4, delta=1e-3)

    private = _chain(0.5, 2.0)
    fedavg = fs.algorithms.fedavg(small.task(), optax.sgd(0.1), aggregate=private)
    scaffold = fs.algorithms.scaffold(small.task(), 0.1, aggregate=private)
    everybody = price(scaffold, fs.cohorts.all_clients()).epsilon
    assert price(fedavg, cohort).epsilon < everybody
    assert price(scaffold, cohort).sampling == ("unamplified",)
    assert price(scaffold, cohort).epsilon == pytest.approx(everybody)
    assert price(fedavg, cohort, continue_epochs=True).epsilon == pytest.approx(everybody)
    uncut = fs.cohorts.poisson(0.1, cap=50)
    assert price(scaffold, uncut).epsilon == pytest.approx(price(fedavg, uncut).epsilon)
    assert price(scaffold, uncut).epsilon < everybody
