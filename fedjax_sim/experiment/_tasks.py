"""Tables that change what of a model is trained, and what it starts from: they wrap the task, one around the other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

from fedjax_sim._src.types import Task
from fedjax_sim.experiment._forms import ConfigError
from fedjax_sim.tasks import lora, pretrained, trainable, with_precision

WRAPPERS: dict[str, Callable[..., Task]] = {
    "pretrained": pretrained,
    "trainable": trainable,
    "lora": lora,
    "precision": with_precision,
}
"""From the inside: a model is given its weights before a part of it is frozen, or has adapters put beside it."""


def wrapped(
    task: Task,
    settings: Mapping[str, Any],
    row: Mapping[str, jax.ShapeDtypeStruct],
    blame: Callable[[str], contextlib.AbstractContextManager],
) -> Task:
    """The task with what the tables say.

    Args:
      task: of the tables ``task`` and ``model``.
      settings: the experiment's.
      row: specs of a batch of one example. Each wrapper is asked for the model's shapes at once, so that a name that it does
        not find, or weights of another model, are known to be its mistake.
      blame: makes errors say which table they come from.

    Raises:
      ConfigError: what the wrappers raise, and ``trainable`` beside ``lora``.
    """
    if "trainable" in settings and "lora" in settings:
        raise ConfigError(
            "trainable and lora both say what is trained, expected one of them: beside adapters, lora.full names what is trained as "
            "it is."
        )
    for name, wrapper in WRAPPERS.items():
        if name in settings:
            with blame(name):
                task = wrapper(task, **settings[name])
                jax.eval_shape(task.init, jax.eval_shape(lambda: jax.random.key(0)), dict(row))
    return task
