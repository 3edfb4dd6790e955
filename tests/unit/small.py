"""A small simulation to break: four clients of 0, 1, 5 and 9 examples, and a linear model."""

import jax
import numpy as np
import optax

import fedjax_sim as fs

SIZES = (0, 1, 5, 9)


def columns(sizes=SIZES):
    generator = np.random.default_rng(0)
    total = sum(sizes)
    x = generator.normal(size=(total, 3)).astype(np.float32)
    return {"x": x, "y": generator.integers(0, 2, total).astype(np.int32)}


def make_data(sizes=SIZES, **replaced) -> fs.ClientData:
    ids = [f"client-{i}" for i in range(len(sizes))]
    return fs.ClientData(columns(sizes) | replaced, np.concatenate([[0], np.cumsum(sizes)]), ids)


def task() -> fs.Task:
    return fs.tasks.classification(fs.models.linear(classes=2))


def fedavg(aggregate=None, rate=0.1) -> fs.Algorithm:
    return fs.algorithms.fedavg(task(), optax.sgd(rate), aggregate=aggregate)


def simulation(algorithm=None, data=None, cohort=None, **options) -> fs.Simulation:
    options = {"local": fs.LocalWork(batch_size=4, shuffle=False), "engine": fs.engines.lanes(2)} | options
    return fs.Simulation(
        fedavg() if algorithm is None else algorithm,
        make_data() if data is None else data,
        cohort=fs.cohorts.all_clients() if cohort is None else cohort,
        **options,
    )


def params(state: fs.SimState):
    return jax.tree.map(np.asarray, state.server.variables.params)
