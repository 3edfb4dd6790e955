"""FedAvg with FedJAX: its ``for_each_client``, client datasets, optimizers and tree arithmetic.

``fedjax.algorithms.fed_avg.federated_averaging`` fills a client's short last batch with its first examples. This is the
same algorithm, line by line, over ``padded_batch``, whose missing rows are masked, so that everybody does the same
work. ``weights="clients"`` gives every client the weight 1.
"""

import sys

from _common import Job

job = Job(sys.argv[1])

import fedjax  # noqa: E402  after the job has chosen the core
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from _jax_model import make_loss  # noqa: E402
from fedjax.algorithms import fed_avg  # noqa: E402
from fedjax.core import tree_util  # noqa: E402


def main() -> None:
    loss = make_loss(job.layers, job.scale)
    train_for_each_client = fed_avg.create_train_for_each_client(
        lambda params, batch, rng: jax.grad(loss)(params, batch), fedjax.optimizers.sgd(job.learning_rate)
    )
    server_optimizer = fedjax.optimizers.sgd(1.0)
    datasets = {client: fedjax.ClientDataset(job.client(client)) for client in np.unique(job.schedule())}

    def batches(client: int):
        for _ in range(job.epochs):
            yield from datasets[client].padded_batch(batch_size=job.batch_size)

    params = {name: jnp.asarray(value) for name, value in job.params.items()}
    opt_state = server_optimizer.init(params)
    rng = jax.random.PRNGKey(0)
    for cohort in job.schedule():
        job.start_round()
        rng, *keys = jax.random.split(rng, len(cohort) + 1)
        # A client may be drawn twice: its place in the cohort names its turn.
        turns = [(place, batches(client), keys[place]) for place, client in enumerate(cohort)]
        sums, total = tree_util.tree_zeros_like(params), 0.0
        for place, delta in train_for_each_client(params, turns):
            weight = job.weight(cohort[place])
            sums = tree_util.tree_add(sums, tree_util.tree_weight(delta, weight))
            total += weight
        opt_state, params = server_optimizer.apply(
            tree_util.tree_inverse_weight(sums, total), opt_state, params
        )
        jax.block_until_ready(params)
        job.end_round()
    job.finish({name: np.asarray(value) for name, value in params.items()}, ["fedjax", "jax", "numpy"])


main()
