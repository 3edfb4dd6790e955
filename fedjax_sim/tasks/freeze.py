"""Training a part of the parameters."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from flax import traverse_util

from fedjax_sim._src.types import Batch, Key, Outputs, PyTree, Task, Variables

__all__ = ["trainable"]


def trainable(task: Task, predicate: str | Callable[[str], bool]) -> Task:
    """The same task with only some parameters trained; the others are broadcast once, never sent, never noised.

    ``init`` moves them from ``params`` to ``frozen``, so all clients share one copy and one matrix product. Both parts
    are nested dicts that lack the other's keys. Statistics of frozen layers stay in ``stats``.

    Args:
      task: a task whose parameters are nested dicts with string keys, as those of ``tasks.from_flax`` are.
      predicate: of a parameter's path, such as ``"Dense_1/kernel"``: a function, or a regular expression that is found
        anywhere in the path.

    Raises:
      ValueError: at ``init``, when no parameter is trained.
      TypeError: at ``init``, when the parameters are not nested dicts.

    >>> import jax
    >>> from fedjax_sim import models, tasks
    >>> task = tasks.trainable(tasks.classification(models.mlp(10), sample_input=(1, 64)), "^Dense_2/")
    >>> variables = task.init(jax.random.key(0))
    >>> sorted(variables.params), sorted(variables.frozen[0])
    (['Dense_2'], ['Dense_0', 'Dense_1'])
    """
    is_trained = predicate if callable(predicate) else lambda path: re.search(predicate, path) is not None

    def init(key: Key, sample: Batch | None = None) -> Variables:
        variables = task.init(key, sample)
        flat = flat_params(variables.params)
        trained = {path for path in flat if is_trained("/".join(path))}
        if not trained:
            raise ValueError(
                f"predicate {predicate!r} selects no parameter to train; the paths are "
                f"{', '.join('/'.join(path) for path in flat)}."
            )
        params = {path: value for path, value in flat.items() if path in trained}
        frozen = {path: value for path, value in flat.items() if path not in trained}
        return Variables(
            traverse_util.unflatten_dict(params),
            (traverse_util.unflatten_dict(frozen), variables.frozen),
            variables.stats,
        )

    def apply(variables: Variables, batch: Batch, key: Key | None, *, train: bool) -> tuple[Outputs, PyTree]:
        frozen, inner = variables.frozen
        params = traverse_util.unflatten_dict({**flat_params(frozen), **flat_params(variables.params)})
        return task.apply(Variables(params, inner, variables.stats), batch, key, train=train)

    return task._replace(init=init, apply=apply)


def flat_params(params: PyTree) -> dict[tuple[str, ...], Any]:
    """Path to array; TypeError for what is no nested dict."""
    if not isinstance(params, dict):
        raise TypeError(
            f"the parameters are {type(params).__name__}, expected nested dicts with string keys."
        )
    return dict(traverse_util.flatten_dict(params))
