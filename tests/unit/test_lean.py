"""Programs without dead code: the same results, the same effects, and fewer operations at any depth."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params
from laws.members import CLASSES, Dropped

import fedjax_sim as fs
from fedjax_sim import engines
from fedjax_sim._src.lean import lean


def names(program) -> list[str]:
    """Of all primitives, at any depth."""
    found = [equation.primitive.name for equation in program.eqns]
    inside = [names(one) for equation in program.eqns for one in jaxprs_in_params(equation.params)]
    return sum(inside, found)


def unused(x):
    """What is recognised wherever it is left."""
    return jnp.tanh(x)


def in_a_loop(x):
    def body(_, x):
        unused(x)
        return jnp.sin(x)

    return jax.lax.fori_loop(0, jnp.int32(x[0]), body, x)


def in_a_scan(x):
    def body(x, y):
        unused(x)
        return x + y, None

    return jax.lax.scan(body, x, jnp.ones((3, 2)))[0]


def in_a_branch(x):
    def one(x):
        unused(x)
        return x + 1

    return jax.lax.cond(x[0] > 0, one, jnp.negative, x)


def in_a_call(x):
    @jax.jit
    def called(x):
        unused(x)
        return x * 2

    return called(x) + called(x + 1)


def at_depth(x):
    def body(_, x):
        return in_a_branch(in_a_scan(in_a_call(x)))

    return jax.lax.fori_loop(0, jnp.int32(x[1]), body, x)


def of_a_loop(x):
    """A loop none of whose results is used."""
    jax.lax.fori_loop(0, jnp.int32(x[0]), lambda _, x: jnp.tanh(x), x)
    return x, jnp.float32(3), 4


@pytest.mark.parametrize(
    "function", [in_a_loop, in_a_scan, in_a_branch, in_a_call, at_depth, of_a_loop], ids=lambda f: f.__name__
)
def test_what_nobody_uses_is_gone(function):
    x = jnp.array([2.0, 3.0])
    whole, without = jax.make_jaxpr(function)(x), jax.make_jaxpr(lean(function))(x)
    assert "tanh" in names(whole.jaxpr) and "tanh" not in names(without.jaxpr)
    got, expected = jax.jit(lean(function))(x), jax.jit(function)(x)
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and a.weak_type == b.weak_type
        np.testing.assert_array_equal(a, b)


def test_a_function_of_trees():
    def function(tree, *, nothing=None):
        return {"sum": tree["a"] + tree["b"][0], "same": tree["b"], "none": nothing}

    tree = {"a": jnp.ones(2), "b": (jnp.zeros(2), jax.random.key(1))}
    got = jax.jit(lean(function), donate_argnums=0)(jax.tree.map(lambda x: x.copy(), tree))
    assert got["none"] is None and got["sum"].tolist() == [1, 1]
    assert jax.random.key_data(got["same"][1]).tolist() == jax.random.key_data(tree["b"][1]).tolist()


def test_effects_stay():
    seen = []

    def function(x):
        def body(index, x):
            jax.debug.callback(lambda x: seen.append(float(x)), x)
            return x + index

        jax.lax.fori_loop(0, 3, body, x)
        return x

    jax.block_until_ready(jax.jit(lean(function))(jnp.float32(0)))
    jax.effects_barrier()
    assert sorted(seen) == [0, 0, 1]


def test_a_program_in_several_places_is_lowered_once():
    @jax.jit
    def called(x):
        unused(x)
        return jnp.sin(x)

    program = jax.make_jaxpr(lean(lambda x: called(called(x))))(1.0)
    calls = [
        equation.params["jaxpr"]
        for equation in program.jaxpr.eqns
        if equation.primitive.name in ("jit", "pjit")
    ]
    assert len(calls) == 2 and calls[0] is calls[1]


@pytest.mark.parametrize("mesh", [None, 1], ids=["lanes", "sharded"])
def test_a_round_has_no_key_that_nobody_draws_from(mesh):
    """All keys of turns are made at once, in one loop before the first round; further ones are for rules that draw random numbers."""

    def calls(module):
        task = fs.tasks.classification(module, classes=CLASSES)
        columns = {"x": np.ones((8, 3), np.float32), "y": np.zeros(8, np.int32)}
        sim = fs.Simulation(
            fs.algorithms.fedavg(task, optax.sgd(0.1)),
            fs.ClientData.from_arrays(columns, np.arange(8) % 4),
            cohort=fs.cohorts.all_clients(),
            local=fs.LocalWork(batch_size=2),
            engine=engines.lanes(2) if mesh is None else engines.sharded(engines.client_mesh(mesh), lanes=2),
        )
        return sim.lower(sim.init(0)).as_text().count("call @_threefry_fold_in")

    assert calls(fs.models.linear(CLASSES)) == 1
    assert calls(Dropped()) > 1
