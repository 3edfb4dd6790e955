"""The key policy: every random number comes from ``fold_in(root, purpose, round, stage, client, draw, step)``.

Lanes and devices never enter a key, so layout cannot change a result. Only threefry keys are accepted: under
``rbg`` the bits that ``vmap`` draws differ from those of a loop.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

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


def along(root: jax.Array, *paths: Sequence) -> list[jax.Array]:
    """The keys ``key[integers]`` behind every integer of each path, ``fold`` of its beginning; all paths in one loop.

    A program then has one threefry for them.
    """
    longest = max(map(len, paths))
    filled = [
        jnp.stack([jnp.uint32(item) for item in (*path, *[0] * (longest - len(path)))]) for path in paths
    ]
    start = jnp.broadcast_to(root, (len(paths),))
    made = jax.lax.scan(_folded_each, start, jnp.stack(filled, axis=1))[1]
    return [made[: len(path), place] for place, path in enumerate(paths)]


def _folded_each(roots: jax.Array, items: jax.Array) -> tuple[jax.Array, jax.Array]:
    folded = jax.vmap(jax.random.fold_in)(roots, items)
    return folded, folded


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


def host_generators(rows: Sequence[tuple[int, ...]]) -> Iterator[np.random.Generator]:
    """The generators ``host_generator(row)`` of many rows, each of as many integers of 32 bits, one after the other.

    It is one generator, which stands anew at each row's beginning: what is wanted of a row is drawn before the next is asked
    for. To make one takes numpy 20 microseconds, most of them to hash its words; here all rows are hashed at once.
    """
    if not rows:
        return
    entropy = np.array(rows, np.uint32)
    seed = _SeedOfRow(entropy[0])
    bits = np.random.Philox(seed)  # type: ignore[arg-type]  # any seed that can spawn
    generator, state = np.random.Generator(bits), bits.state
    for row, key in zip(entropy, _philox_keys(entropy), strict=True):
        seed.row, state["state"]["key"] = row, key
        bits.state = state
        yield generator


class _SeedOfRow(np.random.bit_generator.ISpawnableSeedSequence):
    """What ``Generator.spawn`` asks for children; made of the present row when it does."""

    def __init__(self, row: np.ndarray) -> None:
        self.row = row
        self._made: tuple[np.ndarray, np.random.SeedSequence] | None = None

    def _sequence(self) -> np.random.SeedSequence:
        if self._made is None or self._made[0] is not self.row:
            self._made = self.row, np.random.SeedSequence(self.row)
        return self._made[1]

    def generate_state(self, n_words, dtype=np.uint32) -> np.ndarray:
        return self._sequence().generate_state(n_words, dtype)

    def spawn(self, n_children) -> list[np.random.SeedSequence]:
        return self._sequence().spawn(n_children)


_SHIFT, _LEFT, _RIGHT = np.uint32(16), np.uint32(0xCA01F9DD), np.uint32(0x4973F715)


def _philox_keys(entropy: np.ndarray) -> np.ndarray:
    """Keys ``uint64[rows, 2]`` that ``np.random.Philox(np.random.SeedSequence(row))`` has, for ``uint32[rows, words]``.

    The algorithm is numpy's, which keeps it the same from version to version: four words of a pool take in each other and
    what words are left, then the pool is hashed once more. (M. O'Neill, "Developing a seed_seq alternative", 2015.)
    """
    rows, words = entropy.shape
    pool = np.zeros((rows, 4), np.uint32)
    pool[:, :words] = entropy[:, :4]
    first, *others = _hash_constants(words)
    pool = _hashed(pool, first)
    for source, constants in enumerate(others):
        own = source < 4
        word = (pool if own else entropy)[:, source, None]
        mixed = pool * _LEFT - _hashed(word, constants) * _RIGHT
        mixed ^= mixed >> _SHIFT
        if own:
            mixed[:, source] = pool[:, source]
        pool = mixed
    return _hashed(pool, _powers(0x8B51F9DD, 0x58F38DED, 4)).astype("<u4").view("<u8").astype(np.uint64)


def _hashed(values: np.ndarray, constants: np.ndarray) -> np.ndarray:
    """numpy's hash of 32-bit words, ``uint32[rows, 4]``, with constants ``uint32[2, 4]``: one to flip bits and one as factor."""
    values = (values ^ constants[0]) * constants[1]
    return values ^ (values >> _SHIFT)


@functools.cache
def _hash_constants(words: int) -> list[np.ndarray]:
    """Constants of the hashes that fill the pool and that mix each word into it; a word of the pool leaves itself out."""
    used = [[0, 1, 2, 3]] + [[c for c in range(4) if c != source] for source in range(max(words, 4))]
    all_of_them = _powers(0x43B0D7E5, 0x931E8875, sum(map(len, used)))
    found, at = [], 0
    for columns in used:
        constants = np.zeros((2, 4), np.uint32)
        constants[:, columns] = all_of_them[:, at : at + len(columns)]
        found.append(constants)
        at += len(columns)
    return found


@functools.cache
def _powers(first: int, factor: int, count: int) -> np.ndarray:
    """``first * factor**i`` modulo 2^32 and the one after it, for ``i`` below ``count``: ``uint32[2, count]``."""
    values = [first * pow(factor, i, 2**32) % 2**32 for i in range(count + 1)]
    return np.array([values[:-1], values[1:]], np.uint32)
