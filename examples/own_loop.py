"""One update rule and one chain inside a training loop of your own: no simulation and no engine of fedjax_sim.

The loop below is plain JAX and optax. It vmaps FedProx's client over a cohort, aggregates with clipping, a public
divisor and noise, and feeds the result to optax's Adam as a pseudo-gradient.

Besides the rule and the chain it imports two named tuples, because a rule has to be told what it trains: ``Task``, three
functions of a model, and ``Variables``, what those compute with. Neither does anything by itself.

    python examples/own_loop.py --rounds 40
"""

import argparse

import jax
import jax.numpy as jnp
import optax

from fedjax_sim import Task, Variables
from fedjax_sim import aggregation as agg
from fedjax_sim.rules import fedprox, run

CLIENTS, STEPS, BATCH, FEATURES = 32, 5, 16, 8


def linear_regression() -> Task:
    """A task is three functions; with a flax module, ``fs.tasks.from_flax`` writes them for you."""
    return Task(
        init=lambda key, sample=None: Variables({"w": jnp.zeros(FEATURES), "b": jnp.zeros(())}),
        apply=lambda v, batch, key, *, train: (batch["x"] @ v.params["w"] + v.params["b"], v.stats),
        loss=lambda outputs, batch: jnp.square(outputs - batch["y"]),
    )


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

    task = linear_regression()
    rule = fedprox(task, optax.sgd(0.05), mu=0.1)
    chain = agg.chain(agg.clip_by_global_norm(5.0), agg.mean(over="expected_cohort"), agg.gaussian_noise(0.1))
    optimizer = optax.adam(0.5)
    batches = clients_data(jax.random.key(0))
    variables = task.init(jax.random.key(1))

    @jax.jit
    def one_round(variables, optimizer_state, aggregate_state, key):
        # Split first: a key is either split or used, or the noise would be drawn from the clients' own keys.
        clients_key, noise_key = jax.random.split(key)
        keys = jax.random.split(clients_key, CLIENTS)
        updates = jax.vmap(lambda own, k: run(rule, variables, own, k))(batches, keys)
        mean, aggregate_state, _ = agg.run(chain, updates, key=noise_key, state=aggregate_state)
        gradient = jax.tree.map(jnp.negative, mean.params)
        step, optimizer_state = optimizer.update(gradient, optimizer_state)
        variables = variables._replace(params=optax.apply_updates(variables.params, step))
        outputs, _ = task.apply(variables, batches, None, train=False)
        return variables, optimizer_state, aggregate_state, jnp.mean(task.loss(outputs, batches))

    optimizer_state, aggregate_state = optimizer.init(variables.params), None
    for index in range(rounds):
        key = jax.random.fold_in(jax.random.key(2), index)
        variables, optimizer_state, aggregate_state, loss = one_round(
            variables, optimizer_state, aggregate_state, key
        )
        if index % 10 == 0 or index == rounds - 1:
            print(f"round {index:3d}  mean squared error {float(loss):9.4f}")


if __name__ == "__main__":
    main()
