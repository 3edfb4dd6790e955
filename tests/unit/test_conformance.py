"""The golden numbers of ``../shared/conformance/fedavg.json``, carried here so that a fresh clone tests the same."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim import aggregation as agg

GOLDEN = {
    "tolerance": 1e-5,
    "weighted_mean": {
        "values": [[1, 2, 3], [2, 4, 6], [1, 3, 5]],
        "weights": [2, 4, 2],
        "mean": [1.5, 3.25, 5.0],
    },
    "weighted_mean_pairs": {
        "values": [[0, 1], [2, 3], [4, 5]],
        "weights": [6, 7, 8],
        "mean": [2.190476, 3.190476],
    },
    "fedavg_one_round": {
        "params": [0.0, 2.0, 4.0],
        "client_batches": [[[6, 4], [2, 2]], [[8, 10]]],
        "weights": [3, 2],
        "params_after": [0.0, 1.5655555, 3.131111],
        "update_l2_norms": [1.4534444, 0.2484521],
    },
    "local_training": {
        "cases": [
            {"batches": [[2, 4, 6], [8, 10, 12]], "update": 0.45555544},
            {"batches": [[1, 3, 5], [7, 9, 11]], "update": 0.5761316},
        ]
    },
    "fedprox_one_round": {"w": 4.0, "w_after": -3.77, "update_l2_norms": [6.95, 9.0]},
}
TOLERANCE = GOLDEN["tolerance"]
KEY = jax.random.key(0)


def test_the_literals_are_those_of_the_file(shared):
    """Every number carried here stands in the file, and no case of it is forgotten."""
    with open(shared / "conformance" / "fedavg.json") as file:
        golden = json.load(file)
    for name, case in GOLDEN.items():
        if isinstance(case, dict):
            assert {key: golden[name][key] for key in case} == case, name
        else:
            assert golden[name] == case
    in_words = {"top_k_accuracy_edges", "empty_client", "quantiser_identity", "drive", "terngrad_clip"}
    assert set(golden) == set(GOLDEN) | in_words


def scalar_task(loss_of_batch) -> fs.Task:
    """A task whose gradient on a batch is that of ``loss_of_batch(w, batch)``: each row has the whole batch's loss."""

    def apply(variables, batch, key, *, train):
        value = loss_of_batch(variables.params, batch)
        return jnp.broadcast_to(value, batch["mask"].shape), variables.stats

    return fs.Task(
        lambda key, sample=None: fs.Variables(jnp.zeros(())), apply, lambda outputs, batch: outputs
    )


# Gradient w / sum(x).
QUADRATIC = scalar_task(lambda w, batch: 0.5 * jnp.sum(w**2) / jnp.sum(batch["x"]))
# Gradient mean(x), over the rows that exist.
LINEAR = scalar_task(lambda w, batch: w * jnp.sum(batch["x"]) / jnp.sum(batch["mask"]))

CLIENTS = fs.ClientData({"x": np.array([2, 4, 6, 8, 10], np.float32)}, [0, 3, 5], [0, 1])


def given_batches(generator, size):
    """Rows of the golden batches: client 1 holds 2, 4, 6 and client 2 holds 8, 10."""
    return np.array([[2, 1], [0, 0]] if size == 3 else [[0, 1]])


GIVEN = fs.LocalWork(batch_size=2, max_steps=2, rows=given_batches)


def given(batches) -> dict:
    return {"x": jnp.asarray(batches, jnp.float32)}


def one_round(algorithm, variables, clients):
    """The model after one round of these clients, and its history."""
    sim = fs.Simulation(algorithm, CLIENTS, cohort=fs.cohorts.fixed(clients), local=GIVEN, rounds_per_chunk=1)
    state, history = sim.run(sim.init(seed=0, variables=variables), rounds=1)
    return sim.algorithm.params(state.server).params, history


@pytest.mark.parametrize("name", ["weighted_mean", "weighted_mean_pairs"])
def test_weighted_mean(name):
    case = GOLDEN[name]
    values = jnp.asarray(case["values"], jnp.float32)
    got, _, _ = agg.run(agg.mean(over="examples"), values, key=KEY, num_examples=case["weights"])
    np.testing.assert_allclose(got, case["mean"], rtol=TOLERANCE)


def test_the_given_batches_are_the_golden_ones():
    """Rows pick the batches that the file lists, and clients hold as many examples as the weights say."""
    case = GOLDEN["fedavg_one_round"]
    for client, batches in enumerate(case["client_batches"]):
        x = CLIENTS.client(client)["x"]
        assert x[given_batches(None, len(x))].tolist() == batches
    assert CLIENTS.sizes.tolist() == case["weights"]


def test_fedavg_one_round():
    case = GOLDEN["fedavg_one_round"]
    variables = fs.Variables(jnp.asarray(case["params"]))
    task = QUADRATIC._replace(init=lambda key, sample=None: fs.Variables(jnp.zeros(3)))
    algorithm = fs.algorithms.fedavg(task, client=optax.sgd(1.0), server=optax.sgd(1.0))
    params, history = one_round(algorithm, variables, [0, 1])
    np.testing.assert_allclose(params, case["params_after"], rtol=TOLERANCE)
    np.testing.assert_allclose(history["update_norm"][0], np.mean(case["update_l2_norms"]), rtol=TOLERANCE)

    rule = fs.rules.local_sgd(task, optax.sgd(1.0))
    for batches, norm in zip(case["client_batches"], case["update_l2_norms"], strict=True):
        update = fs.rules.run(rule, variables, given(batches), KEY)
        np.testing.assert_allclose(jnp.linalg.norm(update.params), norm, rtol=TOLERANCE)


@pytest.mark.parametrize("case", GOLDEN["local_training"]["cases"], ids=["even", "odd"])
def test_local_training(case):
    """One scalar parameter w = 4; the file's update is start minus end."""
    rule = fs.rules.local_sgd(QUADRATIC, optax.sgd(1.0))
    update = fs.rules.run(rule, fs.Variables(jnp.float32(4.0)), given(case["batches"]), KEY)
    np.testing.assert_allclose(-update.params, case["update"], rtol=TOLERANCE)


def test_fedprox_one_round():
    """Loss w * mean(x) + 0.01 / 2 * (w - w_server)^2."""
    case = GOLDEN["fedprox_one_round"]
    variables = fs.Variables(jnp.float32(case["w"]))
    algorithm = fs.algorithms.fedprox(LINEAR, optax.sgd(1.0), mu=0.01)
    params, _ = one_round(algorithm, variables, [0, 1])
    np.testing.assert_allclose(params, case["w_after"], rtol=TOLERANCE)

    rule = fs.rules.fedprox(LINEAR, optax.sgd(1.0), mu=0.01)
    batches = GOLDEN["fedavg_one_round"]["client_batches"]
    for client, norm in zip(batches, case["update_l2_norms"], strict=True):
        update = fs.rules.run(rule, variables, given(client), KEY)
        np.testing.assert_allclose(abs(update.params), norm, rtol=TOLERANCE)


@pytest.mark.parametrize(
    ("k", "hits"),
    [(-1, [0, 0, 0]), (0, [0, 0, 0]), (1, [1, 0, 0]), (2, [1, 1, 0]), (3, [1, 1, 1]), (9, [1, 1, 1])],
)
def test_top_k_accuracy_edges(k, hits):
    """``k <= 0`` gives 0; ties count once: of three equal logits one is among the first one, two among two."""
    batch = {"y": jnp.array([0, 1, 2])}
    got, weight = fs.metrics.top_k_accuracy(k)(jnp.zeros((3, 3)), batch)
    assert got.tolist() == hits
    assert weight.tolist() == [1, 1, 1]


def test_top_k_accuracy_of_an_empty_batch_is_0():
    task = QUADRATIC._replace(
        metrics={"top": fs.metrics.top_k_accuracy(2)}, loss=lambda outputs, batch: outputs[:, 0]
    )
    empty = {"y": jnp.zeros(4, jnp.int32), "mask": jnp.zeros(4, bool)}
    measured = fs.metrics.batch_means(task, jnp.full((4, 3), jnp.nan), empty)
    assert float(fs.metrics.mean(measured["top"])) == 0


def test_an_empty_client_leaves_the_aggregate_unchanged():
    """It sends weight 0, whatever its row holds; nobody but empty clients decodes to zero."""
    values = jnp.asarray(GOLDEN["weighted_mean"]["values"], jnp.float32)
    weights = jnp.asarray(GOLDEN["weighted_mean"]["weights"])
    more = jnp.concatenate([values, jnp.full((1, 3), 1e6)])
    with_empty, _, _ = agg.run(agg.mean(), more, key=KEY, num_examples=jnp.append(weights, 0))
    np.testing.assert_allclose(with_empty, GOLDEN["weighted_mean"]["mean"], rtol=TOLERANCE)
    nobody, _, _ = agg.run(agg.mean(), values, key=KEY, num_examples=[0, 0, 0])
    assert nobody.tolist() == [0, 0, 0]


def test_a_round_of_empty_clients_leaves_the_model_unchanged():
    data = fs.ClientData({"x": np.ones(3, np.float32)}, [0, 0, 3, 3], [0, 1, 2])
    sim = fs.Simulation(
        fs.algorithms.fedavg(QUADRATIC, optax.sgd(1.0)),
        data,
        cohort=fs.cohorts.fixed([0, 2]),
        local=fs.LocalWork(batch_size=2),
    )
    state = sim.init(seed=0, variables=fs.Variables(jnp.float32(4.0)))
    after, history = sim.run(state, rounds=2)
    assert float(after.server.variables.params) == 4.0
    assert np.isnan(history["loss"]).all()


@pytest.mark.parametrize("name", ["quantiser_identity", "drive", "terngrad_clip"])
def test_quantisers(name):
    pytest.skip(f"{name}: quantisers are not in the package yet")
