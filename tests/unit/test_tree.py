"""Arithmetic on pytrees that the rest relies on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_sim._src import tree


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 70, 132])
def test_one_element_that_is_not_finite_is_found(dtype, value, place):
    """In any place of any leaf, compiled or not, also where many are looked at side by side."""
    good = jnp.linspace(-3.0, 3.0, 133).astype(dtype).reshape(7, 19)
    bad = good.reshape(-1).at[place].set(value).reshape(7, 19)
    other = {"count": jnp.arange(3), "none": jnp.zeros((0, 4), dtype), "one": jnp.ones((), dtype)}
    for finite in (tree.all_finite, jax.jit(tree.all_finite)):
        assert finite({"x": good, **other})
        assert not finite({"x": bad, **other})
        assert not finite({"x": good, "y": bad.reshape(-1)[place], **other})
    both = jax.vmap(lambda x: tree.all_finite({"x": x, **other}))(jnp.stack([good, bad, -good]))
    np.testing.assert_array_equal(both, [True, False, True])


@pytest.mark.parametrize("size", [4095, 4096, 4097, 100_000])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_of_many_elements_is_found(size, value):
    """The CPU's library for maxima, to which XLA hands long rows, passes over NaN; in a loop, in short leaves that are joined, too."""
    good = jnp.linspace(-3.0, 3.0, size)
    bad = good.at[size // 2].set(value)
    looped = jax.jit(lambda x: jax.lax.fori_loop(0, 3, lambda _, found: found & tree.all_finite(x), True))
    for finite in (tree.all_finite, jax.jit(tree.all_finite), looped):
        assert finite(good)
        assert not finite(bad)
        assert not finite(jnp.full(size, value))
        assert finite(jnp.array_split(good, 50))
        assert not finite(jnp.array_split(bad, 50))
    assert jax.vmap(tree.all_finite)(jnp.stack([good, bad])).tolist() == [True, False]


def test_the_largest_numbers_are_finite():
    """Nothing is squared or added up on the way."""
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        largest = jnp.finfo(dtype).max
        assert tree.all_finite([jnp.full((300, 40), largest, dtype), jnp.full(9, -largest, dtype)])


def test_what_cannot_be_infinite_is_finite():
    assert tree.all_finite({"integers": jnp.full(3, jnp.iinfo(jnp.int32).min), "mask": jnp.ones(2, bool)})
    assert tree.all_finite(())


@pytest.mark.parametrize("dtypes", [("float32",), ("float32", "bfloat16")])
def test_a_norm_is_that_of_all_elements(dtypes):
    """Of leaves that are joined on the way, of longer ones, scalars and empty ones, under ``vmap``, too."""
    generator = np.random.default_rng(0)
    shapes = [(), (0, 3), (5,), (64, 64), (64, 65), (3, 3, 7)]
    leaves = [jnp.asarray(generator.normal(size=(2, *shape)), dtype) for shape in shapes for dtype in dtypes]
    got = jax.vmap(tree.global_norm)(leaves)
    flat = np.concatenate([np.asarray(x, np.float64).reshape(2, -1) for x in leaves], axis=1)
    np.testing.assert_allclose(got, np.linalg.norm(flat, axis=1), rtol=1e-6)
