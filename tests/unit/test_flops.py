"""Operations of a step: those of the model as it is written, loops included."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import fedjax_sim as fs
from fedjax_sim.engines._flops import flops

X, W = jax.ShapeDtypeStruct((8, 32), jnp.float32), jax.ShapeDtypeStruct((32, 32), jnp.float32)


def count(function, *arguments):
    return flops(jax.jit(function).trace(*arguments))


def test_a_loop_counts_as_often_as_it_runs():
    def chain(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, length=7)[0]

    assert count(lambda x, w: x @ w, X, W) == 2 * 8 * 32 * 32
    assert count(chain, X, W) == pytest.approx(7 * 2 * 8 * 32 * 32, rel=1e-3)
    # Forth once and back twice, in loops of their own.
    gradient = jax.grad(lambda x, w: chain(x, w).sum(), argnums=(0, 1))
    assert count(gradient, X, W) == pytest.approx(3 * 7 * 2 * 8 * 32 * 32, rel=0.05)


@pytest.mark.parametrize("unroll", [2, 3, 4, 8, True])
def test_an_unrolled_loop_is_not_counted_twice(unroll):
    def chain(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, length=8, unroll=unroll)[0]

    assert count(chain, X, W) == pytest.approx(8 * 2 * 8 * 32 * 32, rel=1e-3)


def test_loops_in_loops_and_in_branches():
    def inner(x, w):
        return jax.lax.scan(lambda x, _: (jax.nn.relu(x) @ w, None), x, length=3)[0]

    def outer(x, w):
        return jax.lax.scan(lambda x, _: (jax.checkpoint(inner)(x, w), None), x, length=5)[0]

    assert count(outer, X, W) == pytest.approx(15 * 2 * 8 * 32 * 32, rel=0.02)


def test_the_count_is_that_of_a_program_for_the_cpu(monkeypatch):
    """XLA counts for no other backend."""
    asked, of = [], jax.default_device
    monkeypatch.setattr(jax, "default_device", lambda device: asked.append(device) or of(device))
    assert count(lambda x, w: x @ w, X, W) == 2 * 8 * 32 * 32
    assert [device.platform for device in asked] == ["cpu"]


@pytest.mark.parametrize("broken", ["no CPU", "no count", "no lowering"])
def test_where_xla_does_not_count_products_are(monkeypatch, broken):
    """On a GPU it says nothing, and JAX may have been told to see no CPU."""

    def absent(backend=None):
        raise RuntimeError("Unknown backend cpu")

    def model(x, w):
        return jax.lax.scan(lambda x, _: (jax.nn.relu(x @ w), None), x, length=7)[0] @ w

    exact = count(model, X, W)

    def refused(self, **_):
        raise ValueError("Only interpret mode is supported on CPU backend.")

    if broken == "no lowering":
        monkeypatch.setattr(jax.stages.Traced, "lower", refused)
    elif broken == "no CPU":
        monkeypatch.setattr(jax, "local_devices", absent)
    else:
        monkeypatch.setattr(jax.stages.Lowered, "cost_analysis", lambda self: None)
    products = count(model, X, W)
    assert products == 8 * 2 * 8 * 32 * 32
    assert products == pytest.approx(exact, rel=0.02)


class Conv(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.relu(nn.Conv(16, (1, 1))(x))
        x = nn.relu(nn.Conv(16, (3, 3), padding="VALID")(x))
        return nn.Dense(2)(x.mean(axis=(1, 2)))


def test_a_faster_form_does_not_change_what_a_step_costs():
    """Winograd's form multiplies less than half as often; a step's costs are those of the convolution."""
    columns = {"x": np.zeros((8, 18, 18, 3), np.float32), "y": np.zeros(8, np.int32)}
    data = fs.data.ClientData.from_arrays(columns, np.arange(8) % 2)
    sim = fs.Simulation(
        fs.algorithms.fedavg(fs.tasks.classification(Conv()), optax.sgd(0.1)),
        data,
        cohort=fs.cohorts.all_clients(),
        local=fs.LocalWork(batch_size=4),
    )
    _, history = sim.run(sim.init(0), rounds=1)
    forth = 2 * 4 * 16 * 16 * 9 * 16 * 16  # 3 x 3, 16 to 16 channels, and back twice
    of_step = history.costs.flops / history.costs.steps
    assert of_step == pytest.approx(3 * forth, rel=0.2) and of_step > 3 * forth
