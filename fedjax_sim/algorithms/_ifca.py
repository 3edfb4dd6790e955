"""IFCA, also known as HypCluster: several global models, each client trains the one that fits it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim import aggregation, rules
from fedjax_sim._src import checks, keys, tree
from fedjax_sim._src.types import Algorithm, Array, Delta, Mean, Stage, Task, Transform, Variables
from fedjax_sim.algorithms import _server
from fedjax_sim.algorithms._fedavg import one_pass


class IfcaState(NamedTuple):
    """``variables.params`` has a leading axis ``[models]``; ``popularity``: ``f32[models]``, members last round."""

    variables: Variables
    popularity: Array


def ifca(
    task: Task, client: optax.GradientTransformation, models: int, aggregate: Transform | None = None
) -> Algorithm:
    """IFCA with model averaging (Ghosh et al. 2020, algorithm 1; HypCluster, Mansour et al. 2020), in two stages.

    First every cohort client evaluates all models on its examples and remembers the best one. Then it trains that
    one, and each model moves to the mean of its members' end points; a model without members stays.

    Layers that clip or sparsify stand before ``mean_by_model()`` and act on the client's update alone:
    ``chain(clip_by_global_norm(C), mean_by_model())``. Refused are ``mean(...)``, which would divide each model by the
    whole cohort; gathers such as ``coordinate_median()``, to which every model that a client did not choose would look
    like an update of zero; and noise, because the divisor, the number of members, is neither public nor noised.

    ``Algorithm.params`` is the model with most members in the last round; a client's own is ``Algorithm.personal``.

    Args:
      task: model, loss and metrics; without batch statistics.
      client: the clients' optimizer.
      models: how many, drawn independently at the start.
      aggregate: around the sum; ``mean_by_model()`` by default, as in the paper.

    Raises:
      ValueError: ``models`` below 1; a task with batch statistics; an ``aggregate`` that is refused (some of them only
        when a simulation starts).
    """
    checks.task(task)
    checks.positive_int("models", models)
    if task.stats_policy != "none":
        raise ValueError(
            "ifca averages several models and has no rule for batch statistics; use a model without."
        )
    aggregate = aggregation.mean_by_model() if aggregate is None else aggregate
    _server.refuse_plain_mean("ifca", aggregate, "mean_by_model")

    def init_models(key, sample=None) -> Variables:
        drawn = [task.init(keys.fold(key, index), sample) for index in range(models)]
        return drawn[0]._replace(params=jax.tree.map(lambda *x: jnp.stack(x), *[d.params for d in drawn]))

    def init(variables: Variables) -> IfcaState:
        return IfcaState(variables, jnp.zeros(models, jnp.float32))

    def nothing(state: IfcaState, update, ctx):
        return state, {}

    def update(state: IfcaState, mean: Delta, ctx):
        params = tree.move(state.variables.params, mean.params)
        norm = Mean(tree.global_norm(mean.params), jnp.ones(()))
        popularity = jnp.where(ctx.clients > 0, ctx.aux["members"], state.popularity)
        return IfcaState(state.variables._replace(params=params), popularity), {"aggregate_norm": norm}

    def model(state: IfcaState, index) -> Variables:
        return state.variables._replace(params=jax.tree.map(lambda x: x[index], state.variables.params))

    choose = Stage(
        lambda state: state.variables, rules.choose_model(task), aggregation.identity(), nothing, one_pass
    )
    train = Stage(
        lambda state: state.variables, rules.train_chosen(rules.local_sgd(task, client)), aggregate, update
    )
    return Algorithm(
        "ifca",
        task._replace(init=init_models),
        init,
        (choose, train),
        lambda state: model(state, jnp.argmax(state.popularity)),
        model,
    )
