"""Weights in safetensors files, and tasks that start from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from fedjax_sim._src.types import Batch, Key, Task, Variables
from fedjax_sim.tasks.freeze import flat_params
from fedjax_sim.tasks.lora import Adapters

__all__ = ["load_weights", "pretrained", "save_weights"]


def save_weights(path: str | Path, variables: Variables) -> None:
    """Writes parameters and statistics to a safetensors file, by names such as ``params/Dense_0/kernel``.

    The file is written beside its place and moved there when it is complete.

    Args:
      path: of the file.
      variables: nested dicts with string keys, as ``tasks.from_flax`` makes them; of adapters what ``merge_lora`` gives,
        of ``trainable`` tasks what ``merge_trainable`` does.

    Raises:
      TypeError: variables of another form.
      OSError: the file cannot be written.

    >>> import jax, tempfile, pathlib
    >>> from fedjax_sim import models, tasks
    >>> task = tasks.classification(models.linear(10), sample_input=(1, 64))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder) / "linear.safetensors"
    ...     tasks.save_weights(file, task.init(jax.random.key(0)))
    ...     tasks.load_weights(file)["params/Dense_0/kernel"].shape
    (64, 10)
    """
    from safetensors.numpy import save_file

    arrays = {name: np.ascontiguousarray(value) for name, value in _named(variables).items()}
    target = Path(path)
    partial = target.with_name(f"{target.name}.partial")
    try:
        save_file(arrays, partial, metadata={"format": "flax"})
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def load_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Every array of a safetensors file, by name. The format holds numbers and names, and nothing that could run.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is truncated, or of another format.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is no file, expected weights in the safetensors format.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no complete safetensors file: {error}") from None


def pretrained(
    task: Task,
    weights: Variables | str | Path,
    *,
    names: Mapping[str, str] | None = None,
    fresh: str | None = None,
) -> Task:
    """The same task, whose first model has weights of its own: from variables, or from a safetensors file.

    Args:
      task: whose parameters are nested dicts with string keys.
      weights: of a model with these parameters and statistics. They are the first model whatever the seed.
      names: a file's name for each of the task's names that is another there; the task's are such as
        ``"params/Dense_0/kernel"``.
      fresh: start of the names that are drawn from the seed instead, such as ``"params/Dense_2"`` for a new head.

    Raises:
      FileNotFoundError, ValueError: as ``load_weights``; at ``init``, a name that is missing, or of another shape or type;
        ``fresh`` finds nothing.

    >>> import jax
    >>> from fedjax_sim import models, tasks
    >>> plain = tasks.classification(models.linear(10), sample_input=(1, 64))
    >>> task = tasks.pretrained(plain, plain.init(jax.random.key(3)))
    >>> bool((task.init(jax.random.key(0)).params["Dense_0"]["kernel"] != 0).any())
    True
    """
    given = _named(weights) if isinstance(weights, Variables) else load_weights(weights)
    source = "weights" if isinstance(weights, Variables) else str(weights)
    renamed = dict(names or {})

    def init(key: Key, sample: Batch | None = None) -> Variables:
        drawn = task.init(key, sample)
        wanted = _named(drawn)
        kept = [name for name in wanted if fresh is not None and name.startswith(fresh)]
        if fresh is not None and not kept:
            raise ValueError(f"fresh {fresh!r} begins no name; the task's are {', '.join(wanted)}.")
        for name in renamed:
            if name not in wanted:
                raise ValueError(f"names has {name!r}, which the task does not have: {', '.join(wanted)}.")
        values = {}
        for name, own in wanted.items():
            values[name] = own if name in kept else _fitting(given, renamed.get(name, name), own, source)
        parts = {
            part: traverse_util.unflatten_dict(
                {tuple(name.split("/")[1:]): x for name, x in values.items() if name.split("/")[0] == part}
            )
            for part in ("params", "stats")
        }
        return drawn._replace(params=parts["params"], stats=parts["stats"] or drawn.stats)

    return task._replace(init=init)


def _fitting(given: Mapping[str, Any], name: str, own: Any, source: str) -> jax.Array:
    if name not in given:
        raise ValueError(
            f"{source} has no array {name!r}; it has {', '.join(sorted(given)) or 'none'}. Say what it is called there with "
            "names={...}, or begin anew with fresh=..."
        )
    value = given[name]
    if value.shape != own.shape:
        raise ValueError(
            f"{source} has {name!r} of shape {list(value.shape)}, the task's has {list(own.shape)}."
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(f"{source} has {name!r} of type {value.dtype}, expected floating-point numbers.")
    return jnp.asarray(value).astype(own.dtype)


def _named(variables: Variables) -> dict[str, Any]:
    return {
        "/".join((part, *path)): value
        for part in ("params", "stats")
        for path, value in _dicts(part, getattr(variables, part)).items()
    }


def _dicts(part: str, value: Any) -> dict[tuple[str, ...], Any]:
    if part == "stats" and isinstance(value, tuple) and not value:
        return {}
    if isinstance(value, Adapters):
        raise TypeError(
            "the variables hold adapters beside a frozen model, expected the model as a whole: give tasks.merge_lora(variables)."
        )
    return flat_params(value)
