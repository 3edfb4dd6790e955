"""FedAvg as one writes it in JAX at first: a jitted training step, called for every batch from Python."""

import sys

from _common import Job

job = Job(sys.argv[1])

import jax  # noqa: E402  after the job has chosen the core
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from _jax_model import make_loss  # noqa: E402


def batches(client: int):
    """Short batches are padded with zeros, so that there is one shape to compile for."""
    columns = job.client(client)
    for rows in job.slices(client):
        count = rows.stop - rows.start
        batch = {
            name: np.concatenate(
                [column[rows], np.zeros((job.batch_size - count, *column.shape[1:]), column.dtype)]
            )
            if count < job.batch_size
            else column[rows]
            for name, column in columns.items()
        }
        yield {**batch, "__mask__": np.arange(job.batch_size) < count}


def main() -> None:
    loss = make_loss(job.layers, job.scale)
    learning_rate = job.learning_rate

    @jax.jit
    def step(params, batch):
        grads = jax.grad(loss)(params, batch)
        return jax.tree_util.tree_map(lambda w, g: w - learning_rate * g, params, grads)

    @jax.jit
    def add(sums, own, params, weight):
        return jax.tree_util.tree_map(lambda s, w, w0: s + weight * (w - w0), sums, own, params)

    @jax.jit
    def move(params, sums, total):
        return jax.tree_util.tree_map(lambda w, s: w + s / total, params, sums)

    params = {name: jnp.asarray(value) for name, value in job.params.items()}
    for cohort in job.schedule():
        job.start_round()
        sums, total = jax.tree_util.tree_map(jnp.zeros_like, params), 0.0
        for client in cohort:
            own = params
            for _ in range(job.epochs):
                for batch in batches(client):
                    own = step(own, batch)
            sums = add(sums, own, params, job.weight(client))
            total += job.weight(client)
        params = jax.block_until_ready(move(params, sums, total))
        job.end_round()
    job.finish({name: np.asarray(value) for name, value in params.items()}, ["jax", "numpy"])


main()
