"""The key policy: every random number comes from ``fold_in(root, purpose, round, stage, client, draw, step)``.

Lanes and devices never enter a key, so layout cannot change a result. Only threefry keys are accepted: under
``rbg`` the bits that ``vmap`` draws differ from those of a loop.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

# Purposes under the root key of a run.
INIT = 0
COHORT = 1
CLIENT = 2
SERVER = 3
PERSONAL = 4
STRAGGLERS = 5
PASSES = 6
ADAPTERS = 7
ROTATION = 8
IMPORTANCE = 9

# Purposes under a client's key.
ORDER = 0
BEGIN = 1
STEP = 2
FINISH = 3
ENCODE = 4

# Purpose under the key of one call of a model. Far from the small integers by which the model's own random streams
# (dropout) and the batches of one step are told apart.
AUGMENT = 2**30
# Purposes under the key of one local step, for rules that look at each example by itself and add noise; as far away.
EXAMPLE = 2**30 + 1
STEP_NOISE = 2**30 + 2


def root_key(seed: int | jax.Array) -> jax.Array:
    """Key of a run, ``key[]``, from an integer or a threefry key.

    Raises:
      TypeError: ``seed`` is neither an integer nor a scalar typed threefry key.
      ValueError: an integer of more than 32 bits.
    """
    if isinstance(seed, (int, np.integer)) and not isinstance(seed, bool):
        if not -(2**31) <= seed < 2**32:
            raise ValueError(f"seed is {seed}, expected an integer of 32 bits, at most {2**32 - 1}.")
        return jax.random.key(int(seed), impl="threefry2x32")
    if isinstance(seed, jax.Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
        name = str(jax.random.key_impl(seed))
        if "threefry2x32" not in name:
            raise TypeError(
                f"seed is a key of implementation {name!r}, expected 'threefry2x32': the numbers that other "
                "implementations draw change under vmap, so results would depend on the lanes. "
                "Use jax.random.key(seed, impl='threefry2x32')."
            )
        if seed.shape != ():
            raise TypeError(f"seed is an array of keys of shape {seed.shape}, expected one key, shape ().")
        return seed
    raise TypeError(
        f"seed is {type(seed).__name__}, expected an int or a typed key such as jax.random.key(0) "
        "(raw uint32 keys: wrap them with jax.random.wrap_key_data)."
    )


def fold(key: jax.Array, *data) -> jax.Array:
    """``fold_in`` of several integers in order: of two and more in a loop, so that a program has one threefry for them."""
    if len(data) < 2:
        return jax.random.fold_in(key, *data) if data else key
    return jax.lax.scan(_folded, key, jnp.stack([jnp.uint32(item) for item in data]))[0]


def _folded(key: jax.Array, item) -> tuple[jax.Array, None]:
    # A function of the module: outside of a program, too, it is then compiled once.
    return jax.random.fold_in(key, item), None


def client_key(root: jax.Array, round_, stage: int, client, draw) -> jax.Array:
    return fold(root, CLIENT, round_, stage, client, draw)


def server_key(root: jax.Array, round_, stage: int) -> jax.Array:
    return fold(root, SERVER, round_, stage)


def host_generator(seed_words: tuple[int, ...], *data: int) -> np.random.Generator:
    """A numpy generator for decisions made on the host, keyed like everything else (Philox, counter-based).

    Raises:
      TypeError, ValueError: a seed that is no integer, or below 0.
    """
    entropy = [*seed_words, *data]
    try:
        # Of an array the same numbers, in half the time; the largest integers have several words.
        small = all(isinstance(word, int) and 0 <= word < 2**32 for word in entropy)
        words = np.random.SeedSequence(np.array(entropy, np.uint32) if small else entropy)
    except (TypeError, ValueError) as error:
        shown = ", ".join(map(repr, seed_words))
        raise type(error)(f"seed is {shown}, expected a non-negative integer.") from error
    return np.random.Generator(np.random.Philox(words))
