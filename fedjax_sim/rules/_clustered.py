"""IFCA's client: find the model that fits best, then train that one."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_sim._src import checks, forward
from fedjax_sim._src.types import ClientRule, Message, Task, Variables
from fedjax_sim.metrics import batch_means


def choose_model(task: Task) -> ClientRule:
    """Evaluates every model on the client's examples and remembers the best (Ghosh et al. 2020, algorithm 1, line 7).

    The broadcast is ``Variables`` whose params have a leading axis ``[models]``; the client's state is the index of
    its model, ``int32[]``; nothing is sent. A model whose loss is NaN is the worst.
    """
    checks.task(task)

    def models(broadcast: Variables) -> int:
        return jax.tree.leaves(broadcast.params)[0].shape[0]

    def begin(broadcast: Variables, state, ctx):
        return jnp.zeros(models(broadcast), jnp.float32)

    def step(broadcast: Variables, losses, batch, ctx):
        def loss(params):
            outputs, _ = forward.apply(task, broadcast._replace(params=params), batch, None, train=False)
            return batch_means(task, outputs, batch)["loss"].total

        return losses + jax.vmap(loss)(broadcast.params), {}

    def finish(broadcast: Variables, losses, state, ctx):
        # argmin would return the index of a NaN.
        losses = jnp.where(jnp.isnan(losses), jnp.inf, losses)
        return (), jnp.argmin(losses).astype(jnp.int32), {}

    return ClientRule(lambda broadcast: jnp.zeros((), jnp.int32), begin, step, finish)


def train_chosen(rule: ClientRule) -> ClientRule:
    """Runs ``rule`` on the model that the client has chosen and sends its update in that model's place.

    The update is a ``Delta`` whose leaves have a leading axis ``[models]``, zero but for the chosen one. Beside it
    travels, as ``mean_by_model`` wants it, ``{"members": ...}``: the choice as a one-hot, ``f32[models]``, zero for a
    client without examples.

    ``rule`` takes ``Variables`` without the leading axis and keeps no state; its update is a ``Delta``.
    """

    def own(broadcast: Variables, chosen) -> Variables:
        return broadcast._replace(params=jax.tree.map(lambda x: x[chosen], broadcast.params))

    def init(broadcast: Variables):
        return jnp.zeros((), jnp.int32)

    def begin(broadcast: Variables, chosen, ctx):
        return rule.begin(own(broadcast, chosen), (), ctx), chosen

    def step(broadcast: Variables, work, batch, ctx):
        inner, chosen = work
        inner, metrics = rule.step(own(broadcast, chosen), inner, batch, ctx)
        return (inner, chosen), metrics

    def finish(broadcast: Variables, work, chosen, ctx):
        inner, _ = work
        update, _, metrics = rule.finish(own(broadcast, chosen), inner, (), ctx)
        models = jax.tree.leaves(broadcast.params)[0].shape[0]
        member = jax.nn.one_hot(chosen, models, dtype=jnp.float32)
        placed = jax.tree.map(lambda x: jnp.zeros((models, *x.shape), x.dtype).at[chosen].set(x), update)
        came = jnp.asarray(ctx.num_examples) > 0
        return Message(placed, {"members": jnp.where(came, member, 0)}), chosen, metrics

    inner_model = rule.model
    if inner_model is None:
        return ClientRule(init, begin, step, finish, most_steps=rule.most_steps)

    def model(broadcast: Variables, work) -> Variables:
        inner, chosen = work
        return inner_model(own(broadcast, chosen), inner)

    return ClientRule(init, begin, step, finish, model, most_steps=rule.most_steps)
