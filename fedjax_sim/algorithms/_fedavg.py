"""FedAvg, FedSGD, and FedAvg with the server rules of their papers."""

from __future__ import annotations

import dataclasses

import optax

from fedjax_sim import aggregation, rules
from fedjax_sim._src import checks
from fedjax_sim._src.types import Algorithm, ClientRule, Stage, Task, Transform
from fedjax_sim.algorithms import _server, server_optimizers
from fedjax_sim.data.local_work import LocalWork


def from_rule(
    name: str,
    task: Task,
    rule: ClientRule,
    server: optax.GradientTransformation,
    aggregate: Transform,
    local=None,
) -> Algorithm:
    """An algorithm of one stage whose rule takes ``Variables`` and sends a ``Delta``."""
    checks.task(task)
    stage = Stage(lambda state: state.variables, rule, aggregate, _server.update(server), local)
    return Algorithm(name, task, _server.init(server), (stage,), lambda state: state.variables)


def fedavg(
    task: Task,
    client: optax.GradientTransformation,
    server: optax.GradientTransformation | None = None,
    aggregate: Transform | None = None,
) -> Algorithm:
    """Federated averaging (McMahan et al. 2017), with a server optimizer (Reddi et al. 2021, algorithm 1).

    Args:
      task: model, loss and metrics.
      client: the clients' optimizer, new in every round.
      server: the server's, fed with minus the mean update; SGD with step size 1 by default, which is FedAvg proper.
      aggregate: transforms around the sum; the mean over examples by default. A chain without a mean adds updates up.

    Example:
      >>> import optax, fedjax_sim as fs
      >>> task = fs.tasks.classification(fs.models.mlp(classes=10))
      >>> fs.algorithms.fedavg(task, client=optax.sgd(0.1)).name
      'fedavg'
    """
    server = optax.sgd(1.0) if server is None else server
    aggregate = aggregation.mean(over="examples") if aggregate is None else aggregate
    return from_rule("fedavg", task, rules.local_sgd(task, client), server, aggregate)


def fedprox(
    task: Task,
    client: optax.GradientTransformation,
    mu: float,
    server: optax.GradientTransformation | None = None,
    aggregate: Transform | None = None,
) -> Algorithm:
    """FedAvg whose clients are pulled towards the broadcast model (Li et al. 2020, algorithm 2).

    Args:
      task: model, loss and metrics.
      client: the clients' optimizer, new in every round.
      mu: strength of the pull, the factor of ``|w - w_broadcast|^2 / 2`` in a client's loss.
      server: the server's optimizer; SGD with step size 1 by default.
      aggregate: transforms around the sum; the mean over examples by default. (The paper draws clients by their
        examples and takes the plain mean.)
    """
    server = optax.sgd(1.0) if server is None else server
    aggregate = aggregation.mean(over="examples") if aggregate is None else aggregate
    return from_rule("fedprox", task, rules.fedprox(task, client, mu=mu), server, aggregate)


def fedsgd(task: Task, learning_rate: float = 0.1, aggregate: Transform | None = None) -> Algorithm:
    """One gradient step per round on the examples of the whole cohort (McMahan et al. 2017, FedSGD).

    A client passes over its examples once, in batches that only say how its gradient is summed.

    Args:
      task: model, loss and metrics.
      learning_rate: the server's step size; clients take no step.
      aggregate: transforms around the sum of gradients; the mean over examples by default.
    """
    aggregate = aggregation.mean(over="examples") if aggregate is None else aggregate
    return from_rule(
        "fedsgd", task, rules.full_gradient(task), optax.sgd(learning_rate), aggregate, local=one_pass
    )


def one_pass(local: LocalWork) -> LocalWork:
    """Local work of a stage that looks at every example once, whatever the training does."""
    return dataclasses.replace(
        local, epochs=1, max_steps=None, batches_per_step=1, shuffle=False, drop_remainder=False, rows=None, poisson_rate=None
    )  # fmt: skip


def fedavgm(
    task: Task,
    client: optax.GradientTransformation,
    learning_rate: float = 1.0,
    momentum: float = 0.9,
    aggregate: Transform | None = None,
) -> Algorithm:
    """FedAvg with server momentum (Hsu et al. 2019).

    Args:
      task: model, loss and metrics.
      client: the clients' optimizer, new in every round.
      learning_rate: the server's step size.
      momentum: of the server, without dampening.
      aggregate: transforms around the sum; the mean over examples by default.
    """
    server = server_optimizers.fedavgm(learning_rate, momentum)
    return fedavg(task, client, server, aggregate)._replace(name="fedavgm")


def fedadam(
    task: Task,
    client: optax.GradientTransformation,
    learning_rate: float = 1e-2,
    b1: float = 0.9,
    b2: float = 0.99,
    tau: float = 1e-3,
    aggregate: Transform | None = None,
) -> Algorithm:
    """FedAvg with the FedAdam server (Reddi et al. 2021, algorithm 2).

    Args:
      task: model, loss and metrics.
      client: the clients' optimizer, new in every round.
      learning_rate: the server's step size.
      b1: decay of the first moment.
      b2: decay of the second moment.
      tau: adaptivity, added to the root of the second moment, which starts at ``tau**2``.
      aggregate: transforms around the sum. The default is the mean over examples, as for FedAvg; the paper's algorithm
        takes all clients alike, ``mean(over="clients")``.
    """
    server = server_optimizers.fedadam(learning_rate, b1, b2, tau)
    return fedavg(task, client, server, aggregate)._replace(name="fedadam")


def fedyogi(
    task: Task,
    client: optax.GradientTransformation,
    learning_rate: float = 1e-2,
    b1: float = 0.9,
    b2: float = 0.99,
    tau: float = 1e-3,
    aggregate: Transform | None = None,
) -> Algorithm:
    """FedAvg with the FedYogi server (Reddi et al. 2021, algorithm 2).

    Args:
      task: model, loss and metrics.
      client: the clients' optimizer, new in every round.
      learning_rate: the server's step size.
      b1: decay of the first moment.
      b2: decay of the second moment.
      tau: adaptivity, added to the root of the second moment, which starts at ``tau**2``.
      aggregate: transforms around the sum. The default is the mean over examples, as for FedAvg; the paper's algorithm
        takes all clients alike, ``mean(over="clients")``.
    """
    server = server_optimizers.fedyogi(learning_rate, b1, b2, tau)
    return fedavg(task, client, server, aggregate)._replace(name="fedyogi")


def fedadagrad(
    task: Task,
    client: optax.GradientTransformation,
    learning_rate: float = 1e-1,
    tau: float = 1e-3,
    aggregate: Transform | None = None,
) -> Algorithm:
    """FedAvg with the FedAdagrad server (Reddi et al. 2021, algorithm 2).

    Args:
      task: model, loss and metrics.
      client: the clients' optimizer, new in every round.
      learning_rate: the server's step size.
      tau: adaptivity, added to the root of the second moment, which starts at ``tau**2``.
      aggregate: transforms around the sum. The default is the mean over examples, as for FedAvg; the paper's algorithm
        takes all clients alike, ``mean(over="clients")``.
    """
    server = server_optimizers.fedadagrad(learning_rate, tau=tau)
    return fedavg(task, client, server, aggregate)._replace(name="fedadagrad")
