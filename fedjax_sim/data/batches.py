"""Batches inside the program: which rows a step looks at, and their gather from flat columns."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from jax import lax

from fedjax_sim._src.types import Array, Batch
from fedjax_sim.data.local_work import LocalWork

_SHUFFLE_ROUNDS = 16


def shuffled(words: Array, epoch: Array, index: Array, size: Array) -> Array:
    """Places ``index`` of a permutation of ``range(size)`` that two random words and the epoch select, all traced.

    The cost follows the rows that are asked for, not the client's size, and nothing is stored: a client of a million
    rows costs no more per batch than one of ten. Swap-or-not shuffle (Hoang, Morris, Rogaway 2012): in every round
    each place has one partner, and a keyed coin decides whether the two swap. Its coins come from a hash, not from
    threefry: a step then draws no random number of its own, and an order of examples needs no more.

    Args:
      words: ``uint32[2]``, random bits of the client in this round.
      epoch: ``int32[]``; every epoch has its own order.
      index: ``int32[...]``; places outside ``[0, size)`` give an unspecified row inside it.
      size: ``int32[]``.

    Returns:
      ``int32[...]`` rows in ``[0, size)``; distinct for distinct places.
    """
    return _permuted(_permutation(words, epoch, size), index)


def _permutation(words: Array, epoch: Array, size: Array) -> Array:
    """What ``_permuted`` reads: a word, the size, the last place, and each round's salt and offset, ``uint32[3 + 2 rounds]``."""
    seed = _mix(words[0] ^ _mix(jnp.asarray(epoch).astype(jnp.uint32) + words[1]))
    # All rounds' salts at once: the compiler makes one small kernel of them instead of one per round.
    salts = _mix(seed + jnp.uint32(0x9E3779B9) * jnp.arange(1, _SHUFFLE_ROUNDS + 1, dtype=jnp.uint32))
    size = jnp.maximum(size, 1).astype(jnp.uint32)
    return jnp.concatenate([words[1:], size[None], size[None] - 1, salts, salts % size])


def _permuted(permutation: Array, index: Array) -> Array:
    word, size, last = permutation[0], permutation[1], permutation[2]

    def swap(place, round_):
        salt, offset = round_
        partner = offset + jnp.where(place > offset, size, jnp.uint32(0)) - place
        coin = _mix(jnp.maximum(place, partner) ^ salt ^ word)
        # The top bit: the low bits of a multiplicative hash are its weakest.
        return jnp.where(coin >> 31 == 1, partner, place), None

    rounds = permutation[3:].reshape(2, _SHUFFLE_ROUNDS)
    place = jnp.minimum(index.astype(jnp.uint32), last)
    # Written out when it is compiled, as one kernel; until then it is traced and batched once.
    return lax.scan(swap, place, (rounds[0], rounds[1]), unroll=True)[0].astype(jnp.int32)


def _mix(x: Array) -> Array:
    """Murmur3's finaliser: a bijection of uint32 in which every input bit reaches every output bit."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def turn_order(local: LocalWork, words: Array, size: Array) -> Array:
    """What ``step_rows`` reads: of the order of a turn's examples, all that can be worked out before its first step.

    Args:
      local: how much the client does, and in what order.
      words: ``uint32[2]``, random bits of the client in this round, or in all rounds where passes go on.
      size: ``int32[]``, the client's examples.

    Returns:
      ``uint32[words]``.
    """
    if local.shuffle and _one_pass(local):
        return _permutation(words, jnp.int32(0), size)
    return words if local.shuffle else words[:0]


def step_rows(local: LocalWork, order: Array, step: Array, size: Array, before: Array) -> Array:
    """Rows of one local step, ``int32[local.rows_per_step]``; -1 where there is none.

    Args:
      local: how much the client does, and in what order.
      order: as ``turn_order`` made it.
      step: ``int32[]``, of this round.
      size: ``int32[]``, the client's examples.
      before: ``int32[]``, steps of earlier rounds.
    """
    epoch, place_in_epoch = _epoch(local, step, size, before)
    place = place_in_epoch * local.rows_per_step + jnp.arange(local.rows_per_step, dtype=jnp.int32)
    if not local.shuffle:
        rows = place
    elif _one_pass(local):
        rows = _permuted(order, place)
    else:
        rows = shuffled(order, epoch, place, size)
    return jnp.where(place < size, rows, -1)


def _one_pass(local: LocalWork) -> bool:
    """Whether every turn is one epoch, the first of its client in that round."""
    return local.epochs == 1 and local.explicit_rows is None and not local.continue_epochs


def epoch_of(local: LocalWork, step: Array, size: Array, before: Array) -> Array:
    """Which pass over its data a client of ``size`` examples is in, ``int32[]``."""
    return _epoch(local, step, size, before)[0]


def _epoch(local: LocalWork, step: Array, size: Array, before: Array) -> tuple[Array, Array]:
    count = local.rows_per_step
    if _one_pass(local):
        return jnp.zeros_like(step), step
    if local.continue_epochs:
        step = before + step
    # Nothing here is negative: without the sign's corrections a division is one operation instead of five.
    size = jnp.asarray(size)
    rows = jnp.asarray(count, size.dtype)
    # Of size - 1: with size + rows - 1 the largest client of 32 bits would have no examples.
    whole = lax.div(size, rows) if local.drop_remainder else lax.div(size - 1, rows) + 1
    per_epoch = jnp.maximum(whole, 1)
    step = jnp.asarray(step, per_epoch.dtype)
    return lax.div(step, per_epoch), lax.rem(step, per_epoch)


def gather(columns: Mapping[str, Array], start: Array, rows: Array) -> Batch:
    """Rows of one client as a batch with its mask; where a row is below 0 there is none, and the batch is zero.

    It is zeroed here, and not only masked in the loss, because NaN times zero is NaN in a gradient.
    """
    valid = rows >= 0
    index = start + jnp.where(valid, rows, 0)

    def take(column: Array) -> Array:
        picked = column.at[index].get(mode="clip")
        return jnp.where(valid.reshape(valid.shape + (1,) * (picked.ndim - 1)), picked, 0).astype(
            column.dtype
        )

    return {**{name: take(column) for name, column in columns.items()}, "mask": valid}
