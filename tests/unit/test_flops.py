"""Operations of a step: those of the model as it is written, loops included."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fedjax_sim_kernels.products import panels
from flax import linen as nn

import fedjax_sim as fs
from fedjax_sim import models
from fedjax_sim.engines._flops import flops

X, W = jax.ShapeDtypeStruct((8, 32), jnp.float32), jax.ShapeDtypeStruct((32, 32), jnp.float32)


def count(function, *arguments):
    return flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def xla(function, *arguments):
    """XLA's own count, of a program without loops."""
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return jax.jit(function).lower(*arguments).cost_analysis().get("flops", 0)


def test_a_loop_counts_as_often_as_it_runs():
    def chain(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, length=7)[0]

    assert count(lambda x, w: x @ w, X, W) == 2 * 8 * 32 * 32
    assert count(chain, X, W) == 7 * 2 * 8 * 32 * 32
    # Forth once and back twice, in loops of their own.
    gradient = jax.grad(lambda x, w: chain(x, w).sum(), argnums=(0, 1))
    assert count(gradient, X, W) == pytest.approx(3 * 7 * 2 * 8 * 32 * 32, rel=0.05)


@pytest.mark.parametrize("layout", ["product", "turned", "gradient"])
def test_products_in_panels_count_as_products(layout):
    rows, weights, results = jnp.ones((3, 8, 32)), jnp.ones((3, 4, 32, 16)), jnp.ones((3, 8, 64))
    operands = {"product": (rows, weights), "turned": (results, weights), "gradient": (rows, results)}[layout]
    product = lambda *a: panels.panels_p.bind(*a, layout=layout, precision=None)  # noqa: E731
    assert count(product, *operands) == 3 * 2 * 8 * 32 * 64


@pytest.mark.parametrize("unroll", [2, 3, 4, 8, True])
def test_an_unrolled_loop_is_not_counted_twice(unroll):
    def chain(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, length=8, unroll=unroll)[0]

    assert count(chain, X, W) == 8 * 2 * 8 * 32 * 32


def test_loops_in_loops_and_in_branches():
    def inner(x, w):
        return jax.lax.scan(lambda x, _: (jax.nn.relu(x) @ w, None), x, length=3)[0]

    def outer(x, w):
        return jax.lax.scan(lambda x, _: (jax.checkpoint(inner)(x, w), None), x, length=5)[0]

    def either(x, w):
        return jax.lax.cond(x[0, 0] > 0, inner, lambda x, w: x + 1, x, w)

    assert count(outer, X, W) == 15 * (2 * 8 * 32 * 32 + 8 * 32)
    assert count(either, X, W) == 3 * (2 * 8 * 32 * 32 + 8 * 32)


def test_arithmetic_on_numbers_and_not_their_places():
    assert count(lambda x: jnp.exp(x) + 2 * x, X) == 3 * 8 * 32
    assert count(lambda x: x.sum(), X) == 8 * 32
    assert count(lambda x: jnp.concatenate([x.T.reshape(8, 32), x[::-1]]), X) == 0
    assert count(lambda i: i * 2 + 1, jax.ShapeDtypeStruct((8,), jnp.int32)) == 0


@pytest.mark.parametrize("padding", [[(0, 0), (0, 0)], [(1, 1), (0, 1)], [(2, 0), (1, 3)]], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilations", [(1, 1), (1, 2), (2, 1), (2, 2)])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_are_counted_as_xla_counts_them(padding, stride, dilations, groups):
    """Without the products with padding, and the zeros between dilated elements."""
    spread, taps = dilations

    def conv(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (stride, 1), padding, (spread, 1), (taps, taps), ("NHWC", "HWIO", "NHWC"), groups
        )

    def gradients(x, w):
        result, back = jax.vjp(conv, x, w)
        return result, back(result)

    x, w = jnp.ones((3, 9, 8, 4)), jnp.ones((3, 2, 4 // groups, 6))
    assert count(conv, x, w) == xla(conv, x, w)
    if groups == 1:
        assert count(gradients, x, w) == pytest.approx(xla(gradients, x, w), rel=0.01)


@pytest.mark.parametrize(
    ("module", "shape", "within"),
    [
        (models.linear(10), (60,), 0.05),
        (models.mlp(10), (784,), 0.01),
        (models.cifar10_cnn(), (32, 32, 3), 0.01),
        (models.emnist_cnn(62), (28, 28, 1), 0.01),
    ],
    ids=["linear", "mlp", "cifar10_cnn", "emnist_cnn"],
)
def test_a_gradient_is_counted_as_xla_counts_it(module, shape, within):
    """But for integers, which XLA counts, and functions such as ``exp``, which it does not."""
    task = fs.tasks.classification(module)
    batch = {"x": np.zeros((10, *shape), np.float32), "y": np.zeros(10, np.int32)}
    variables = jax.eval_shape(task.init, jax.random.key(0), batch)

    def loss(params, batch):
        outputs, _ = task.apply(variables._replace(params=params), batch, jax.random.key(0), train=True)
        return task.loss(outputs, batch).sum()

    step = jax.value_and_grad(loss)
    assert count(step, variables.params, batch) == pytest.approx(
        xla(step, variables.params, batch), rel=within
    )


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
