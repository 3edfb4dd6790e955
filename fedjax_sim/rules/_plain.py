"""Rules over a plain loss function: bare parameters in, a bare update out, for loops that know no ``Task``."""

from __future__ import annotations

from typing import Protocol

from fedjax_sim._src.types import Array, Batch, ClientRule, Delta, PyTree, Task, Variables


class ParamsLoss(Protocol):
    """Loss of each row, ``f32[batch]``, of parameters on a batch; the mask is applied by the rule."""

    def __call__(self, params: PyTree, batch: Batch, /) -> Array: ...


def task_of(loss: ParamsLoss) -> Task:
    """A task whose outputs are its losses; ``init`` is the caller's business.

    Raises:
      TypeError: neither a ``Task`` nor a function.
    """
    if not callable(loss):
        raise TypeError(
            f"task is {type(loss).__name__}, expected a Task, or a function (params, batch) to one loss per example."
        )

    def init(key, sample=None) -> Variables:
        raise TypeError("a plain loss function draws no parameters: pass a Task to whatever asks for them.")

    return Task(
        init, lambda v, batch, key, *, train: (loss(v.params, batch), v.stats), lambda out, batch: out
    )


def over_params(rule: ClientRule) -> ClientRule:
    """The rule with parameters as its broadcast and their change as its update."""

    def finish(params, work, state, ctx):
        update, state, metrics = rule.finish(Variables(params), work, state, ctx)
        assert isinstance(update, Delta)
        return update.params, state, metrics

    return ClientRule(
        lambda params: rule.init(Variables(params)),
        lambda params, state, ctx: rule.begin(Variables(params), state, ctx),
        lambda params, work, batch, ctx: rule.step(Variables(params), work, batch, ctx),
        finish,
        noise=rule.noise,
        most_steps=rule.most_steps,
    )
