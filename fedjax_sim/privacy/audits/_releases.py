"""What a chain releases in round after round, in one program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim._src import keys, tree
from fedjax_sim._src.types import Message, Transform
from fedjax_sim.aggregation import chain, run
from fedjax_sim.privacy.audits._counts import COUNTED, counts_clients, shown


def sizes_of(clients: int) -> np.ndarray:
    """Examples of the clients. The canary, the first, has many: with noise the weights are uniform. Who has none adds noise, too."""
    return np.array([50, 0, 3, 7, *[1] * clients][:clients])


class Rounds(NamedTuple):
    """Rounds to run, one after the other.

    Attributes:
      sent: what the first client sends, a pytree of ``[rounds, ...]``; the others send zeros.
      seeds: ``uint32[rounds]``.
      index: ``int32[rounds]``, of the round.
      first: ``bool[rounds]``, it begins a run.
    """

    sent: Any
    seeds: np.ndarray
    index: np.ndarray
    first: np.ndarray


class Released(NamedTuple):
    """Of rounds, in float64.

    Attributes:
      sums: ``[rounds, coordinates]``, the decoded sum: what is released, times the public divisor.
      integers: ``[rounds, dimension]``, the sum modulo a power of two that the server sees; ``None`` of other chains.
      counts: of each layer that counts clients, ``[rounds, 1 + numbers]``: the noisy sum of bits and its next state.
    """

    sums: np.ndarray
    integers: np.ndarray | None
    counts: list[np.ndarray]


def program(
    transform: Transform, clients: int, expected: float, carried: bool
) -> Callable[[Rounds], Released]:
    """A function that runs rounds.

    Args:
      transform: the chain.
      clients: who send.
      expected: the public divisor.
      carried: the server's state goes from round to round within a run; else each round begins with that of a first one.
        The clients' state is always that of a first round.
    """
    probed = _probed(transform)
    sizes = sizes_of(clients)

    def one(server, row):
        sent, seed, index, first = row
        updates = jax.tree.map(
            lambda x: jnp.concatenate([x[None], jnp.zeros((clients - 1, *x.shape), x.dtype)]), sent
        )
        fresh, part = probed.init(Message(tree.spec(sent)))
        state = tree.where(first, fresh, server) if carried else fresh
        released, (after, _), metrics = run(
            probed,
            updates,
            key=keys.fold(jax.random.key(seed, impl="threefry2x32"), 0),
            num_examples=sizes,
            expected_clients=expected,
            state=(state, jax.tree.map(lambda x: jnp.broadcast_to(x, (clients, *jnp.shape(x))), part)),
            round_=index,
        )
        sums = jnp.concatenate([jnp.ravel(x) * expected for x in jax.tree.leaves(released)])
        seen, counted = ([x for name, x in metrics.items() if name.endswith(end)] for end in (_SEEN, COUNTED))
        return after if carried else (), (sums, seen, counted)

    # One round after the other: vmap would unroll the generator of each layer's numbers, which takes long to compile.
    @jax.jit
    def all_rounds(rounds: Rounds):
        spec = Message(tree.spec(jax.tree.map(lambda x: x[0], rounds.sent)))
        start = probed.init(spec)[0] if carried else ()
        return jax.lax.scan(one, start, tuple(rounds))[1]

    def released(rounds: Rounds) -> Released:
        sums, seen, counted = all_rounds(rounds)
        return Released(
            np.asarray(sums, np.float64),
            np.asarray(seen[0], np.int64) if seen else None,
            [np.asarray(each, np.float64) for each in counted],
        )

    return released


_SEEN = "/seen"


def _probed(transform: Transform) -> Transform:
    """Shows what is released beside the sum: counts of clients, and the sum modulo a power of two, behind which lies post-processing alone."""
    layers = [shown(layer) if counts_clients(layer) else layer for layer in transform.parts or (transform,)]
    last = layers[-1]

    def decode(message, server, ctx):
        decoded, server, metrics = last.decode(message, server, ctx)
        return decoded, server, {**metrics, _SEEN[1:]: message.value.vector}

    if last.facts[0].reduction == "modular_sum":
        layers[-1] = last._replace(decode=decode)
    return chain(*layers)
