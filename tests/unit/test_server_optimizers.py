"""Server optimizers against the formulas of their papers, written in float64 numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs

optimizers = fs.algorithms.server_optimizers

ROUNDS = 6
PARAMS = {"a": jnp.array([1.0, -2.0, 0.5]), "b": jnp.float32(3.0)}
DELTAS = np.random.default_rng(0).normal(size=(ROUNDS, 4)) * np.array([1.0, 0.1, 0.01, 2.0])


def trained(optimizer) -> np.ndarray:
    """The parameters after six rounds whose mean update is given; the pseudo-gradient is minus the update."""
    params, state = PARAMS, optimizer.init(PARAMS)
    for delta in DELTAS:
        gradient = {"a": jnp.asarray(-delta[:3], jnp.float32), "b": jnp.float32(-delta[3])}
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return np.append(params["a"], params["b"])


def by_the_paper(second, *, rate, b1, b2, tau, start) -> np.ndarray:
    """Reddi et al. 2021, algorithm 2."""
    x, m, v = np.append(PARAMS["a"], PARAMS["b"]).astype(np.float64), np.zeros(4), np.full(4, float(start))
    for delta in DELTAS:
        m = b1 * m + (1 - b1) * delta
        v = {
            "fedadagrad": v + delta**2,
            "fedadam": b2 * v + (1 - b2) * delta**2,
            "fedyogi": v - (1 - b2) * delta**2 * np.sign(v - delta**2),
        }[second]
        x = x + rate * m / (np.sqrt(v) + tau)
    return x


@pytest.mark.parametrize("start", [None, 0.0, 0.5], ids=["paper", "flamby", "given"])
@pytest.mark.parametrize("name", ["fedadagrad", "fedadam", "fedyogi"])
def test_adaptive_optimizers_follow_algorithm_2(name, start):
    """No bias correction; v starts at tau^2, in FLamby at 0."""
    b1 = 0.3 if name == "fedadagrad" else 0.8
    arguments = {"learning_rate": 0.1, "b1": b1, "tau": 0.05, "initial_second": start}
    arguments |= {} if name == "fedadagrad" else {"b2": 0.9}
    expected = by_the_paper(
        name, rate=0.1, b1=b1, b2=0.9, tau=0.05, start=0.05**2 if start is None else start
    )
    np.testing.assert_allclose(trained(getattr(optimizers, name)(**arguments)), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "b1", "b2"), [("fedadagrad", 0.0, 0.0), ("fedadam", 0.9, 0.99), ("fedyogi", 0.9, 0.99)]
)
def test_defaults_are_the_papers(name, b1, b2):
    """beta_1 = 0.9 (0 for FedAdagrad), beta_2 = 0.99, tau = 0.001."""
    expected = by_the_paper(name, rate=0.1, b1=b1, b2=b2, tau=1e-3, start=1e-6)
    np.testing.assert_allclose(trained(getattr(optimizers, name)(0.1)), expected, rtol=1e-5)


def test_fedadam_is_not_optax_adam():
    difference = trained(optimizers.fedadam(0.1)) - trained(optax.adam(0.1, 0.9, 0.99, 1e-3))
    assert np.abs(difference).max() > 0.05


@pytest.mark.parametrize("nesterov", [False, True])
def test_fedavgm_is_server_momentum(nesterov):
    """Hsu et al. 2019: v <- beta v + g, x <- x - rate v; Nesterov's form looks ahead, x <- x - rate (g + beta v)."""
    x, v = np.append(PARAMS["a"], PARAMS["b"]).astype(np.float64), np.zeros(4)
    for delta in DELTAS:
        v = 0.7 * v - delta
        x = x - 0.5 * (0.7 * v - delta if nesterov else v)
    np.testing.assert_allclose(trained(optimizers.fedavgm(0.5, 0.7, nesterov=nesterov)), x, rtol=1e-5)


def test_hyperparameters_may_be_traced():
    """As in a sweep: one program, every value."""
    one = jax.jit(
        lambda rate: optimizers.fedadam(rate, b1=0.5).update(PARAMS, optimizers.fedadam(rate).init(PARAMS))[0]
    )
    for rate in (0.1, 1.0):
        optimizer = optimizers.fedadam(rate, b1=0.5)
        expected, _ = optimizer.update(PARAMS, optimizer.init(PARAMS))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one(rate), expected)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: optimizers.fedadam(-1.0), "learning_rate is -1.0"),
        (lambda: optimizers.fedyogi(0.1, tau=0.0), "tau is 0.0"),
        (lambda: optimizers.fedadagrad(0.1, initial_second=-1.0), "initial_second is -1.0"),
        (lambda: optimizers.fedavgm(1.0, -0.5), "momentum is -0.5"),
    ],
)
def test_values_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
