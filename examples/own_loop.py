"""One update rule and one chain inside a training loop of your own: no simulation and no engine of fedjax_sim.

The loop below is plain JAX and optax. It vmaps FedProx's client over a cohort, aggregates with clipping, a public
divisor and noise, and feeds the result to optax's Adam as a pseudo-gradient.

A rule takes a plain function from parameters and a batch to one loss per example; parameters and updates are then
pytrees of your own.

    python examples/own_loop.py --rounds 40
"""

import argparse

import jax
import jax.numpy as jnp
import optax

from fedjax_sim import aggregation as agg
from fedjax_sim.rules import fedprox, run

CLIENTS, STEPS, BATCH, FEATURES = 32, 5, 16, 8


def predict(params, x: jax.Array) -> jax.Array:
    return x @ params["w"] + params["b"]


def squared_errors(params, batch) -> jax.Array:
    return jnp.square(predict(params, batch["x"]) - batch["y"])


def clients_data(key: jax.Array) -> dict[str, jax.Array]:
    """Batches ``[clients, steps, batch, ...]`` of noisy linear data, a little different for every client."""
    kx, kw, kn = jax.random.split(key, 3)
    x = jax.random.normal(kx, (CLIENTS, STEPS, BATCH, FEATURES))
    w = jnp.arange(1.0, FEATURES + 1) + 0.1 * jax.random.normal(kw, (CLIENTS, FEATURES))
    y = jnp.einsum("csbf,cf->csb", x, w) + 0.1 * jax.random.normal(kn, (CLIENTS, STEPS, BATCH))
    return {"x": x, "y": y}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds

    rule = fedprox(squared_errors, optax.sgd(0.05), mu=0.1)
    chain = agg.chain(agg.clip_by_global_norm(5.0), agg.mean(over="expected_cohort"), agg.gaussian_noise(0.1))
    optimizer = optax.adam(0.5)
    batches = clients_data(jax.random.key(0))
    params = {"w": jnp.zeros(FEATURES), "b": jnp.zeros(())}

    @jax.jit
    def one_round(params, optimizer_state, aggregate_state, key):
        # Split first: a key is either split or used, or the noise would be drawn from the clients' own keys.
        clients_key, noise_key = jax.random.split(key)
        keys = jax.random.split(clients_key, CLIENTS)
        updates = jax.vmap(lambda own, k: run(rule, params, own, k))(batches, keys)
        mean, aggregate_state, _ = agg.run(chain, updates, key=noise_key, state=aggregate_state)
        step, optimizer_state = optimizer.update(jax.tree.map(jnp.negative, mean), optimizer_state)
        params = optax.apply_updates(params, step)
        return params, optimizer_state, aggregate_state, jnp.mean(squared_errors(params, batches))

    optimizer_state, aggregate_state = optimizer.init(params), None
    for index in range(rounds):
        key = jax.random.fold_in(jax.random.key(2), index)
        params, optimizer_state, aggregate_state, loss = one_round(
            params, optimizer_state, aggregate_state, key
        )
        if index % 10 == 0 or index == rounds - 1:
            print(f"round {index:3d}  mean squared error {float(loss):9.4f}")


if __name__ == "__main__":
    main()
