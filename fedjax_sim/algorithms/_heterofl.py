"""HeteroFL: clients with models of different widths inside one global model."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import optax

from fedjax_sim import aggregation, rules
from fedjax_sim._src import checks, keys
from fedjax_sim._src.types import Algorithm, Stage, Task, Transform
from fedjax_sim.algorithms import _server


def heterofl(
    tasks: Mapping[str, Task],
    client: optax.GradientTransformation,
    server: optax.GradientTransformation | None = None,
    aggregate: Transform | None = None,
) -> Algorithm:
    """HeteroFL (Diao et al. 2021, algorithm 1): each group trains the leading corner of every parameter.

    A coordinate moves by the mean over the clients whose model contains it. Which client belongs to which group is
    ``Simulation(groups=...)``.

    Layers that clip or sparsify stand before ``coverage_mean()`` and act on the update alone:
    ``chain(clip_by_global_norm(C), coverage_mean())``. Refused are ``mean(...)``, which would divide by clients that
    lack the coordinate; gathers such as ``coordinate_median()``, to which a coordinate that a client lacks would look
    like an update of zero; and noise, because the divisor, a count of clients, is neither public nor noised.

    Args:
      tasks: group name to task; the first is the global model, the others are narrower models with the same layers.
        They must know their input's shape (``sample_input`` or ``input_shape``).
      client: the clients' optimizer.
      server: the server's; SGD with step size 1 by default.
      aggregate: ``coverage_mean()`` by default; layers may be added before it.

    Raises:
      ValueError: no task, or one that keeps batch statistics; an ``aggregate`` that is refused (some of them only when
        a simulation starts).
    """
    if not tasks:
        raise ValueError("tasks is empty, expected at least the global model's task.")
    for name, task in tasks.items():
        checks.task(task)
        if task.stats_policy != "none":
            raise ValueError(
                f"task {name!r} keeps batch statistics, which models of different widths cannot share; use a model "
                "without (the paper uses static batch normalisation)."
            )
    server = optax.sgd(1.0) if server is None else server
    aggregate = aggregation.coverage_mean() if aggregate is None else aggregate
    _server.refuse_plain_mean("heterofl", aggregate, "coverage_mean")
    whole = next(iter(tasks.values()))

    def narrow(task: Task):
        shapes = jax.eval_shape(lambda: task.init(keys.root_key(0)).params)
        return rules.sliced(rules.local_sgd(task, client), shapes)

    stage = Stage(
        lambda state: state.variables,
        {name: narrow(task) for name, task in tasks.items()},
        aggregate,
        _server.update(server),
    )
    return Algorithm("heterofl", whole, _server.init(server), (stage,), lambda state: state.variables)
