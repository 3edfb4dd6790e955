"""A network of one's own, in linen or nnx and as its tutorials write one, costs what the package's own does: the same program."""

import jax
import numpy as np
import optax
import pytest
from fedjax_sim_kernels import as_written
from flax import linen as nn
from flax import nnx

import fedjax_sim as fs


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        for features in (32, 64):
            x = nn.relu(nn.Conv(features=features, kernel_size=(3, 3))(x))
            x = nn.max_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(features=128)(x))
        return nn.Dense(features=10)(x)


class Nnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 32, kernel_size=(3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, kernel_size=(3, 3), rngs=rngs)
        self.linear1 = nnx.Linear(256, 128, rngs=rngs)
        self.linear2 = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x):
        for conv in (self.conv1, self.conv2):
            x = nnx.max_pool(nnx.relu(conv(x)), window_shape=(2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        return self.linear2(nnx.relu(self.linear1(x)))


def program(task):
    """A chunk of rounds, without the line that names its arguments."""
    data = fs.data.load("digits", clients=20, alpha=0.3, seed=0).train
    sim = fs.Simulation(
        fs.algorithms.fedavg(task, client=optax.sgd(0.1)),
        data,
        cohort=fs.cohorts.uniform(5),
        local=fs.LocalWork(epochs=1, batch_size=20),
        engine=fs.engines.lanes(2),
    )
    lines = sim.lower(sim.init(0)).as_text().splitlines()
    return [line for line in lines if "func.func public @main" not in line]


@pytest.mark.parametrize("network", [Linen(), Nnx], ids=["linen", "nnx"])
def test_a_network_of_ones_own_is_the_same_program(network):
    own = program(fs.tasks.from_flax(network, loss="softmax_cross_entropy", classes=10))
    ours = program(fs.tasks.classification(fs.models.cnn(classes=10)))
    assert own == ours
    assert not any("stablehlo.convolution" in line for line in own) or jax.default_backend() != "cpu"


class Recurrent(nn.Module):
    """Reads an image row by row."""

    @nn.compact
    def __call__(self, x):
        carry, _ = nn.RNN(nn.OptimizedLSTMCell(12), return_carry=True)(x.reshape(-1, 8, 8))
        return nn.Dense(features=10)(carry[1])


ENGINES = [fs.engines.sequential(), fs.engines.lanes(1), fs.engines.lanes(3, finish="masked")]


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_a_recurrent_network_of_ones_own_trains_as_it_is_written(engine):
    def trained(engine):
        sim = fs.Simulation(
            fs.algorithms.fedavg(fs.tasks.classification(Recurrent()), client=optax.sgd(0.5)),
            fs.data.load("digits", clients=6, alpha=0.5, seed=0).train,
            cohort=fs.cohorts.uniform(4),
            local=fs.LocalWork(epochs=1, batch_size=16),
            engine=engine,
        )
        return sim.run(sim.init(0), 2)[0].server.variables.params

    actual = trained(engine)
    with as_written():
        expected = trained(fs.engines.sequential())
    near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)  # noqa: E731
    jax.tree.map(near, actual, expected)
