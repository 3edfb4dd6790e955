"""FedAvg whose clients train with DP-SGD."""

from __future__ import annotations

import optax

from fedjax_sim import aggregation, rules
from fedjax_sim._src.types import Algorithm, Task, Transform
from fedjax_sim.algorithms._fedavg import from_rule


def fedavg_dp_sgd(
    task: Task,
    client: optax.GradientTransformation,
    clip_norm: float,
    noise_multiplier: float,
    expected_batch_size: float,
    block_size: int | None = None,
    server: optax.GradientTransformation | None = None,
    aggregate: Transform | None = None,
) -> Algorithm:
    """FedAvg whose clients hide single examples, also from the server (Noble et al. 2022, "Differentially Private Federated
    Learning on Heterogeneous Data", without control variates).

    Use it with ``LocalWork(poisson_rate=...)``; epochs work, too, but then chance lowers no price. It claims nothing for a
    client as a whole: for that, ``aggregate`` clips and adds noise as in every other algorithm, and both claims hold.

    Args:
      task: model, loss and metrics; a model without batch statistics.
      client: the clients' optimizer, new in every round, fed with the noisy gradients.
      clip_norm: bound on one example's gradient.
      noise_multiplier: standard deviation of the noise on a batch's sum over ``clip_norm``.
      expected_batch_size: what the noisy sum is divided by, a public constant.
      block_size: examples whose gradients are in memory at a time; as for ``rules.dp_sgd``.
      server: the server's optimizer; SGD with step size 1 by default.
      aggregate: transforms around the sum; the mean over clients by default. Weights by examples take the clients' numbers
        of examples to be public.

    Raises:
      ValueError: as ``rules.dp_sgd``.

    Example:
      >>> import fedjax_sim as fs, optax
      >>> data = fs.data.load("digits", clients=10, alpha=1.0, seed=0)
      >>> task = fs.tasks.classification(fs.models.linear(classes=10))
      >>> algorithm = fs.algorithms.fedavg_dp_sgd(
      ...     task, optax.sgd(0.5), clip_norm=1.0, noise_multiplier=1.0, expected_batch_size=10)
      >>> local = fs.LocalWork(poisson_rate=0.1, max_steps=10, batch_size=300)
      >>> sim = fs.Simulation(algorithm, data.train, cohort=fs.cohorts.all_clients(), local=local)
      >>> price = sim.privacy(rounds=5, delta=1e-4, unit="example")
      >>> round(price.epsilon, 2), price.neighbour, price.sampling
      (4.26, 'replace_special', ('poisson',))
    """
    rule = rules.dp_sgd(
        task,
        client,
        clip_norm=clip_norm,
        noise_multiplier=noise_multiplier,
        expected_batch_size=expected_batch_size,
        block_size=block_size,
    )
    server = optax.sgd(1.0) if server is None else server
    aggregate = aggregation.mean(over="clients") if aggregate is None else aggregate
    return from_rule("fedavg_dp_sgd", task, rule, server, aggregate)
