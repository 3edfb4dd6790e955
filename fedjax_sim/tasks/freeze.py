"""Training a part of the parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from fedjax_sim._src import checks
from fedjax_sim._src.types import Batch, Key, Outputs, PyTree, Task, Variables

__all__ = ["merge_trainable", "most_important", "trainable"]


def trainable(task: Task, predicate: str | Callable[[str], bool]) -> Task:
    """The same task with only some parameters trained; the others are broadcast once, never sent, never noised.

    ``init`` moves them from ``params`` to ``frozen``, so all clients share one copy and one matrix product. Both parts
    are nested dicts that lack the other's keys. Statistics of frozen layers stay in ``stats``.

    Args:
      task: a task whose parameters are nested dicts with string keys, as those of ``tasks.from_flax`` are.
      predicate: of a parameter's path, such as ``"Dense_1/kernel"``: a function, or a regular expression that is found
        anywhere in the path.

    Raises:
      ValueError: text that is no regular expression; at ``init``, when no parameter is trained.
      TypeError: at ``init``, when the parameters are not nested dicts.

    >>> import jax
    >>> from fedjax_sim import models, tasks
    >>> task = tasks.trainable(tasks.classification(models.mlp(10), sample_input=(1, 64)), "^Dense_2/")
    >>> variables = task.init(jax.random.key(0))
    >>> sorted(variables.params), sorted(variables.frozen[0])
    (['Dense_2'], ['Dense_0', 'Dense_1'])
    """
    if callable(predicate):
        is_trained = predicate
    else:
        pattern = compiled("predicate", predicate)
        is_trained = lambda path: pattern.search(path) is not None  # noqa: E731

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
        return task.apply(merge_trainable(variables), batch, key, train=train)

    return task._replace(init=init, apply=apply)


def merge_trainable(variables: Variables) -> Variables:
    """The whole model of a ``trainable`` task, as the plain task has it: what was trained and what stayed frozen.

    ``save_weights`` of the variables themselves writes what was trained alone.

    Raises:
      TypeError: variables of another task.

    >>> import jax
    >>> from fedjax_sim import models, tasks
    >>> task = tasks.trainable(tasks.classification(models.mlp(10), sample_input=(1, 64)), "^Dense_2/")
    >>> sorted(tasks.merge_trainable(task.init(jax.random.key(0))).params)
    ['Dense_0', 'Dense_1', 'Dense_2']
    """
    frozen = variables.frozen
    if not (isinstance(frozen, tuple) and len(frozen) == 2 and isinstance(frozen[0], dict)):
        raise TypeError(
            "merge_trainable was given variables that tasks.trainable did not make: they are whole as they are."
        )
    held, inner = frozen
    params = traverse_util.unflatten_dict({**flat_params(held), **flat_params(variables.params)})
    return Variables(params, inner, variables.stats)


def most_important(
    task: Task, variables: Variables, batch: Batch, numbers: int, *, batch_size: int = 256
) -> Callable[[str], bool]:
    """Chooses what to train from PUBLIC data: the parameters whose gradients are largest, up to so many numbers.

    Whole leaves are taken, in the order of their mean squared gradient per number (of the loss on single batches), while
    they fit. The choice costs no privacy where the data are public; made from the clients' data it has to be paid for:
    ``fs.privacy.most_important``.

    Args:
      task: whose parameters are nested dicts with string keys.
      variables: the pretrained model.
      batch: columns ``[examples, ...]`` of public data.
      numbers: the most that may be trained, over all leaves.
      batch_size: examples of a gradient.

    Returns:
      What ``trainable`` takes as its predicate.

    Raises:
      ValueError: not even the smallest leaf fits; no examples.

    Source: after Lee et al. 2022, "Surgical Fine-Tuning", section 4 (Auto-RGN without the norm of the weights).

    >>> import jax, jax.numpy as jnp
    >>> from fedjax_sim import models, tasks
    >>> task = tasks.classification(models.mlp(10), sample_input=(1, 64))
    >>> public = {"x": jnp.ones((4, 64)), "y": jnp.arange(4)}
    >>> chosen = tasks.most_important(task, task.init(jax.random.key(0)), public, numbers=3000)
    >>> chosen("Dense_2/kernel"), chosen("Dense_0/kernel")
    (True, False)
    """
    checks.positive_int("numbers", numbers)
    examples = len(next(iter(batch.values()))) if batch else 0
    if not examples:
        raise ValueError("the public data has no examples: there is nothing to choose by.")
    scores = leaf_scores(task, variables, batch_size)(batch)
    return fitting(scores, variables.params, numbers)


def leaf_scores(
    task: Task, variables: Variables, batch_size: int
) -> Callable[[Mapping[str, Any]], dict[str, float]]:
    """From columns ``[examples, ...]`` to the mean squared gradient per number of each leaf, by path, added up over batches."""
    checks.positive_int("batch_size", batch_size)
    flat_params(variables.params)

    def loss(params: PyTree, part: Batch):
        outputs, _ = task.apply(variables._replace(params=params), part, None, train=False)
        mask = part["mask"]
        return jnp.sum(jnp.where(mask, task.loss(outputs, part), 0.0)) / jnp.sum(mask)

    @jax.jit
    def of_batch(part: Batch):
        gradient = flat_params(jax.grad(loss)(variables.params, part))
        return {"/".join(path): jnp.mean(jnp.square(g.astype(jnp.float32))) for path, g in gradient.items()}

    def scores(columns: Mapping[str, Any]) -> dict[str, float]:
        examples = len(next(iter(columns.values())))
        total = {"/".join(path): 0.0 for path in flat_params(variables.params)}
        for start in range(0, examples, batch_size):
            part = {name: np.asarray(x[start : start + batch_size]) for name, x in columns.items()}
            size = min(batch_size, examples - start)
            # Filled up with zeros, so that one program serves batches of all sizes.
            part = {
                name: np.concatenate([x, np.zeros((batch_size - size, *x.shape[1:]), x.dtype)])
                for name, x in part.items()
            }
            part["mask"] = np.arange(batch_size) < size
            for path, score in of_batch(part).items():
                total[path] += float(score)
        return total

    return scores


def fitting(scores: Mapping[str, float], params: PyTree, numbers: int) -> Callable[[str], bool]:
    """The leaves of the largest scores, in their order, while they fit into so many numbers.

    Raises:
      ValueError: not even the smallest leaf fits.
    """
    sizes = {"/".join(path): int(np.size(x)) for path, x in flat_params(params).items()}
    chosen, left = set(), numbers
    for path in sorted(scores, key=lambda path: (-scores[path], path)):
        if sizes[path] <= left:
            chosen.add(path)
            left -= sizes[path]
    if not chosen:
        raise ValueError(f"numbers is {numbers}, but the smallest leaf has {min(sizes.values())}.")
    return chosen.__contains__


def compiled(name: str, pattern: str) -> re.Pattern[str]:
    """A regular expression; ValueError for text that is none."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{name} is {pattern!r}, which is no regular expression: {error}.") from None


def flat_params(params: PyTree) -> dict[tuple[str, ...], Any]:
    """Path to array; TypeError for what is no nested dict."""
    if not isinstance(params, dict):
        raise TypeError(
            f"the parameters are {type(params).__name__}, expected nested dicts with string keys."
        )
    return dict(traverse_util.flatten_dict(params))
