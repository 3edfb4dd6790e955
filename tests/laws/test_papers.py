"""Law 9: every algorithm equals a plain loop written from its paper.

The loops below know nothing of the package: float64 numpy on one flat vector of parameters, a gradient derived by
hand, batches in the order of storage. They share with the engine the start, the data and who came in which round.
The model is a tanh network of one hidden layer; one client of seven is empty and comes at least once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import fedjax_sim as fs
from fedjax_sim import aggregation as agg

SIZES = (5, 1, 0, 9, 3, 12, 2)
FEATURES, HIDDEN, CLASSES = 3, 4, 3
BATCH, EPOCHS, ROUNDS, COHORT, SEED = 4, 2, 3, 4, 3
RATE = 0.3


# --- the problem, once for the package and once in numpy ---


def task_of(hidden: int = HIDDEN) -> fs.Task:
    def init(key, sample=None):
        first, second, third = jax.random.split(key, 3)
        return fs.Variables(
            {
                "bias": 0.1 * jax.random.normal(first, (CLASSES,)),
                "hidden": jax.random.normal(second, (FEATURES, hidden)),
                "out": jax.random.normal(third, (hidden, CLASSES)),
            }
        )

    def apply(variables, batch, key, *, train):
        w = variables.params
        return jnp.tanh(batch["x"] @ w["hidden"]) @ w["out"] + w["bias"], variables.stats

    return fs.Task(init, apply, fs.tasks.losses.softmax_cross_entropy())


TASK = task_of()


def make_data() -> fs.ClientData:
    generator = np.random.default_rng(7)
    offsets = np.concatenate([[0], np.cumsum(SIZES)])
    x = generator.normal(size=(offsets[-1], FEATURES)).astype(np.float32)
    x += np.repeat(np.arange(len(SIZES)) / 4, SIZES)[:, None].astype(np.float32)
    y = generator.integers(0, CLASSES, offsets[-1]).astype(np.int32)
    return fs.ClientData({"x": x, "y": y}, offsets, np.arange(len(SIZES)))


DATA = make_data()


def examples(client: int) -> tuple[np.ndarray, np.ndarray]:
    columns = DATA.client(client)
    return columns["x"].astype(np.float64), columns["y"]


def batches(client: int):
    x, y = examples(client)
    for _ in range(EPOCHS):
        for start in range(0, len(y), BATCH):
            yield x[start : start + BATCH], y[start : start + BATCH]


def leaves(w: np.ndarray, hidden: int = HIDDEN) -> list[np.ndarray]:
    """Bias, hidden and output weights of a flat vector, as views."""
    ends = np.cumsum([CLASSES, FEATURES * hidden, hidden * CLASSES])
    bias, first, second = w[: ends[0]], w[ends[0] : ends[1]], w[ends[1] : ends[2]]
    return [bias, first.reshape(FEATURES, hidden), second.reshape(hidden, CLASSES)]


def forward(w, x, hidden):
    bias, first, second = leaves(w, hidden)
    h = np.tanh(x @ first)
    z = h @ second + bias
    z = z - z.max(axis=1, keepdims=True)
    return h, np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)


def loss(w, x, y) -> float:
    _, p = forward(w, x, HIDDEN)
    return -float(np.log(p[np.arange(len(y)), y]).mean())


def grad(w, x, y, hidden: int = HIDDEN) -> np.ndarray:
    """Of the mean cross-entropy: dz = (p - onehot) / n, tanh' = 1 - h^2."""
    h, p = forward(w, x, hidden)
    dz = (p - np.eye(CLASSES)[y]) / len(y)
    back = (dz @ leaves(w, hidden)[2].T) * (1 - h**2)
    return np.concatenate([dz.sum(axis=0), (x.T @ back).ravel(), (h.T @ dz).ravel()])


def sgd(w, client, *, momentum=0.0, mu=0.0, hidden=HIDDEN, mask=1.0) -> np.ndarray:
    """ClientUpdate of FedAvg: the client's end point."""
    start, velocity = w, np.zeros_like(w)
    for x, y in batches(client):
        g = grad(w, x, y, hidden) + mu * (w - start)
        velocity = momentum * velocity + g
        w = w - RATE * mask * velocity
    return w


def came(cohort) -> list[int]:
    return [client for client in cohort if SIZES[client] > 0]


def by_examples(cohort, value: Callable[[int], np.ndarray]) -> np.ndarray:
    total = sum(SIZES[k] for k in came(cohort))
    return sum(SIZES[k] / total * value(k) for k in came(cohort))


def by_clients(cohort, value: Callable[[int], np.ndarray]) -> np.ndarray:
    return sum(value(k) for k in came(cohort)) / len(came(cohort))


# --- the papers ---


def fedavg(w, cohorts, **client):
    """McMahan et al. 2017, algorithm 1: w <- sum n_k / n w_k."""
    for cohort in cohorts:
        w = by_examples(cohort, lambda k, w=w: sgd(w, k, **client))
    return w


def fedsgd(w, cohorts):
    """McMahan et al. 2017, section 2: w <- w - eta sum n_k / n grad F_k(w)."""
    for cohort in cohorts:
        w = w - RATE * by_examples(cohort, lambda k, w=w: grad(w, *examples(k)))
    return w


def fedavgm(w, cohorts, rate=0.7, beta=0.8):
    """Hsu et al. 2019, section 3: v <- beta v + dw, w <- w - rate v, with dw = w - sum n_k / n w_k."""
    v = 0
    for cohort in cohorts:
        v = beta * v + (w - by_examples(cohort, lambda k, w=w: sgd(w, k)))
        w = w - rate * v
    return w


def adaptive_server(w, cohorts, second, b1=0.9, b2=0.99, tau=1e-2, rate=0.05):
    """Reddi et al. 2021, algorithm 2, with the weights n_k / n of their appendix; v starts at tau^2."""
    m, v = 0, np.full_like(w, tau**2)
    for cohort in cohorts:
        delta = by_examples(cohort, lambda k, w=w: sgd(w, k) - w)
        m = b1 * m + (1 - b1) * delta
        v = second(v, delta**2, b2)
        w = w + rate * m / (np.sqrt(v) + tau)
    return w


def adagrad_moment(v, square, b2):
    return v + square


def adam_moment(v, square, b2):
    return b2 * v + (1 - b2) * square


def yogi_moment(v, square, b2):
    return v - (1 - b2) * square * np.sign(v - square)


def fedprox(w, cohorts):
    """Li et al. 2020, algorithm 2: local loss F_k(w) + mu / 2 |w - w_t|^2, here with FedAvg's weights."""
    return fedavg(w, cohorts, mu=0.5)


def scaffold(w, cohorts, server_rate=0.9):
    """Karimireddy et al. 2020, algorithm 1, option II. Returns x, c and all c_i."""
    x, c, own = w, np.zeros_like(w), np.zeros((len(SIZES), len(w)))
    for cohort in cohorts:
        dx, dc = [], []
        for i in came(cohort):
            y, steps = x, 0
            for batch in batches(i):
                y = y - RATE * (grad(y, *batch) - own[i] + c)
                steps += 1
            new = own[i] - c + (x - y) / (steps * RATE)
            dx.append(y - x)
            dc.append(new - own[i])
            own[i] = new
        x = x + server_rate * np.mean(dx, axis=0)
        c = c + np.sum(dc, axis=0) / len(SIZES)
    return np.concatenate([x, c, own.ravel()])


def mime(w, cohorts, beta=0.9):
    """Karimireddy et al. 2021, algorithm 1 (Mime) with momentum: U(g, s) = V(g, s) = (1 - beta) g + beta s.

    Returns x and s.
    """
    x, s = w, np.zeros_like(w)
    for cohort in cohorts:
        c = by_clients(cohort, lambda i, x=x: grad(x, *examples(i)))
        ends = []
        for i in came(cohort):
            y = x
            for batch in batches(i):
                g = grad(y, *batch) - grad(x, *batch) + c
                y = y - RATE * ((1 - beta) * g + beta * s)
            ends.append(y)
        x = np.mean(ends, axis=0)
        s = (1 - beta) * c + beta * s
    return np.concatenate([x, s])


def clipped(v: np.ndarray, norm: float) -> np.ndarray:
    return v * min(1, norm / np.linalg.norm(v))


def ifca(models, cohorts, norm=np.inf):
    """Ghosh et al. 2020, algorithm 1, model averaging, of updates clipped to a norm. Returns all models."""
    models, chosen = models.copy(), set()
    for cohort in cohorts:
        members: dict[int, list[np.ndarray]] = {}
        for i in came(cohort):
            best = int(np.argmin([loss(w, *examples(i)) for w in models]))
            members.setdefault(best, []).append(clipped(sgd(models[best], i) - models[best], norm))
        for j, deltas in members.items():
            models[j] = models[j] + np.mean(deltas, axis=0)
        chosen |= set(members)
    assert len(chosen) > 1, "the problem is too easy: every client prefers the same model"
    return models.ravel()


def largest(v: np.ndarray, share: float) -> np.ndarray:
    """The largest coordinates of each layer."""
    kept = []
    for leaf in leaves(v):
        flat = leaf.ravel()
        keep = np.argsort(-np.abs(flat))[: max(1, round(share * flat.size))]
        kept.append(np.where(np.isin(np.arange(flat.size), keep), flat, 0))
    return np.concatenate(kept)


def top_k(w, cohorts, share=0.25):
    """Stich et al. 2018, algorithm 1: send comp(m_i + u_i), keep the rest. Returns x and all memories."""
    memory = np.zeros((len(SIZES), len(w)))
    for cohort in cohorts:
        sent = []
        for i in came(cohort):
            whole = memory[i] + sgd(w, i) - w
            sent.append(largest(whole, share))
            memory[i] = whole - sent[-1]
        w = w + np.mean(sent, axis=0)
    return np.concatenate([w, memory.ravel()])


def adaptive_clipping(w, cohorts, norm=1.0, quantile=0.6, rate=0.4):
    """Andrew et al. 2021, algorithm 1, without noise; m is the expected cohort. Returns x and C.

    Bits are sent less a half (theorem 1); a client without examples adds nothing, as if it were not there.
    """
    fractions = []
    for cohort in cohorts:
        total, bits = np.zeros_like(w), COHORT / 2
        for i in came(cohort):
            delta = sgd(w, i) - w
            total = total + delta * min(1, norm / np.linalg.norm(delta))
            bits += (np.linalg.norm(delta) <= norm) - 0.5
        w = w + total / COHORT
        norm = norm * np.exp(-rate * (bits / COHORT - quantile))
        fractions.append(bits / COHORT)
    assert 0 < np.mean(fractions) < 1, "the problem is too easy: nobody or everybody is clipped"
    return np.append(w, norm)


def coordinate_median(w, cohorts):
    """Yin et al. 2018, algorithm 1 (option I), on the end points of local training."""
    for cohort in cohorts:
        w = np.median([sgd(w, i) for i in came(cohort)], axis=0)
    return w


def trimmed_mean(w, cohorts, share=0.4):
    """Yin et al. 2018, algorithm 1 (option II), on the end points of local training."""
    for cohort in cohorts:
        ends = np.sort([sgd(w, i) for i in came(cohort)], axis=0)
        cut = int(share * len(ends))
        assert cut, "too few clients: nothing is trimmed"
        w = ends[cut : len(ends) - cut].mean(axis=0)
    return w


def frozen_hidden(w, cohorts):
    """FedAvg on the output layer alone; the hidden layer keeps its start."""
    mask = np.concatenate([np.ones(CLASSES), np.zeros(FEATURES * HIDDEN), np.ones(HIDDEN * CLASSES)])
    return fedavg(w, cohorts, mask=mask)


NARROW = 2
GROUPS = ["wide", "narrow", "wide", "narrow", "wide", "narrow", "narrow"]


def heterofl(w, cohorts, norm=np.inf):
    """Diao et al. 2021, algorithm 1: each coordinate is the mean over the models that contain it, clipped to a norm."""
    for cohort in cohorts:
        total, count = np.zeros_like(w), np.zeros_like(w)
        for i in came(cohort):
            width = HIDDEN if GROUPS[i] == "wide" else NARROW
            bias, first, second = leaves(w)
            small = np.concatenate([bias, first[:, :width].ravel(), second[:width].ravel()])
            end = leaves(small + clipped(sgd(small, i, hidden=width) - small, norm), width)
            for all_, new in zip(leaves(total), end, strict=True):
                all_[tuple(map(slice, new.shape))] += new
            for all_, new in zip(leaves(count), end, strict=True):
                all_[tuple(map(slice, new.shape))] += 1
        w = np.where(count > 0, total / np.maximum(count, 1), w)
    return w


# --- the battery ---


class Case(NamedTuple):
    """``result``: what is compared, of algorithm and final state; ``start``: what the plain loop begins with."""

    algorithm: fs.Algorithm
    plain: Callable[[np.ndarray, list], np.ndarray]
    result: Callable[[Any, fs.SimState], Any] = lambda algorithm, state: algorithm.params(state.server).params
    start: Callable[[Any, fs.SimState], Any] | None = None
    groups: list[str] | None = None


def server(rule, **arguments):
    return lambda w, cohorts: adaptive_server(w, cohorts, rule, **arguments)


def per_client(tree):
    """Leaves ``[clients, ...]`` as ``[clients, parameters]``."""
    return jax.vmap(lambda row: ravel_pytree(row)[0])(tree)


LOCAL = optax.sgd(RATE)
algorithms = fs.algorithms
SERVER = {"learning_rate": 0.05, "tau": 1e-2}

CASES = {
    "fedavg": Case(algorithms.fedavg(TASK, LOCAL), fedavg),
    "fedavg_client_momentum": Case(
        algorithms.fedavg(TASK, optax.sgd(RATE, momentum=0.5)),
        lambda w, cohorts: fedavg(w, cohorts, momentum=0.5),
    ),
    "fedsgd": Case(algorithms.fedsgd(TASK, RATE), fedsgd),
    "fedavgm": Case(algorithms.fedavgm(TASK, LOCAL, 0.7, 0.8), fedavgm),
    "fedadagrad": Case(algorithms.fedadagrad(TASK, LOCAL, **SERVER), server(adagrad_moment, b1=0.0)),
    "fedadam": Case(algorithms.fedadam(TASK, LOCAL, **SERVER), server(adam_moment)),
    "fedyogi": Case(algorithms.fedyogi(TASK, LOCAL, **SERVER), server(yogi_moment)),
    "fedprox": Case(algorithms.fedprox(TASK, LOCAL, mu=0.5), fedprox),
    "scaffold": Case(
        algorithms.scaffold(TASK, RATE, server=optax.sgd(0.9)),
        scaffold,
        lambda algorithm, state: (
            state.server.variables.params,
            state.server.control,
            per_client(state.clients.states[0]),
        ),
    ),
    "mime": Case(
        algorithms.mime(TASK, optax.chain(optax.ema(0.9, debias=False), optax.scale(-RATE))),
        mime,
        lambda algorithm, state: (state.server.variables.params, state.server.optimizer[0].ema),
    ),
    "ifca": Case(
        algorithms.ifca(TASK, LOCAL, models=3),
        ifca,
        lambda algorithm, state: per_client(state.server.variables.params),
        lambda algorithm, state: per_client(state.server.variables.params),
    ),
    "ifca_clipped": Case(
        algorithms.ifca(
            TASK, LOCAL, models=3, aggregate=agg.chain(agg.clip_by_global_norm(0.2), agg.mean_by_model())
        ),
        lambda models, cohorts: ifca(models, cohorts, norm=0.2),
        lambda algorithm, state: per_client(state.server.variables.params),
        lambda algorithm, state: per_client(state.server.variables.params),
    ),
    "top_k_error_feedback": Case(
        algorithms.fedavg(TASK, LOCAL, aggregate=agg.chain(agg.top_k(0.25), agg.mean(over="clients"))),
        top_k,
        lambda algorithm, state: (
            state.server.variables.params,
            per_client(state.clients.parts[0][0].params),
        ),
    ),
    "adaptive_clipping": Case(
        algorithms.fedavg(
            TASK,
            LOCAL,
            aggregate=agg.chain(agg.adaptive_clip(1.0, 0.6, 0.4), agg.mean(over="expected_cohort")),
        ),
        adaptive_clipping,
        lambda algorithm, state: (state.server.variables.params, state.aggregate[0][0].clip_norm),
    ),
    "coordinate_median": Case(
        algorithms.fedavg(TASK, LOCAL, aggregate=agg.coordinate_median()), coordinate_median
    ),
    "trimmed_mean": Case(algorithms.fedavg(TASK, LOCAL, aggregate=agg.trimmed_mean(0.4)), trimmed_mean),
    "frozen_hidden_layer": Case(
        algorithms.fedavg(fs.tasks.trainable(TASK, "^(bias|out)$"), LOCAL),
        frozen_hidden,
        lambda algorithm, state: {**state.server.variables.params, **state.server.variables.frozen[0]},
    ),
    "heterofl": Case(
        algorithms.heterofl({"wide": TASK, "narrow": task_of(NARROW)}, LOCAL), heterofl, groups=GROUPS
    ),
    "heterofl_clipped": Case(
        algorithms.heterofl(
            {"wide": TASK, "narrow": task_of(NARROW)},
            LOCAL,
            aggregate=agg.chain(agg.clip_by_global_norm(0.2), agg.coverage_mean()),
        ),
        lambda w, cohorts: heterofl(w, cohorts, norm=0.2),
        groups=GROUPS,
    ),
}


def cohorts_of(sim: fs.Simulation, state: fs.SimState) -> list[list[int]]:
    """Who comes in each round, from the plan."""
    plan = sim.plan(state, ROUNDS)
    return [
        [int(c) for q in plan.queues for c in q.entries.client[round_, 0, : q.count[round_, 0]]]
        for round_ in range(ROUNDS)
    ]


@pytest.mark.parametrize("name", CASES)
def test_equals_the_plain_loop_of_its_paper(name):
    case = CASES[name]
    sim = fs.Simulation(
        case.algorithm,
        DATA,
        cohort=fs.cohorts.uniform(COHORT),
        groups=case.groups,
        local=fs.LocalWork(epochs=EPOCHS, batch_size=BATCH, shuffle=False),
        engine=fs.engines.lanes(2),
    )
    state = sim.init(seed=SEED)
    cohorts = cohorts_of(sim, state)
    assert {client for cohort in cohorts for client in cohort} == set(range(len(SIZES))), (
        "somebody never comes"
    )

    start = np.asarray(ravel_pytree((case.start or case.result)(case.algorithm, state))[0], np.float64)
    size = CLASSES + FEATURES * HIDDEN + HIDDEN * CLASSES
    start = start.reshape(-1, size) if case.start else start[:size]
    final, _ = sim.run(state, rounds=ROUNDS)
    got = np.asarray(ravel_pytree(case.result(case.algorithm, final))[0])
    expected = case.plain(start, cohorts)

    assert np.abs(expected.ravel()[:size] - start.ravel()[:size]).max() > 0.05, "nothing was learned"
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=2e-5)
