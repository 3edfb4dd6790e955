"""Flax modules, linen and nnx, as two pure functions over ``Variables`` with nested dicts of arrays."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import linen, nnx, traverse_util

from fedjax_sim._src.types import Key, PyTree, Variables


class Call(Protocol):
    """Runs the model on one array; returns outputs and statistics."""

    def __call__(
        self, variables: Variables, x: jax.Array, key: Key | None, /, *, train: bool, **extra: Any
    ) -> tuple[Any, PyTree]: ...


class PureModule(NamedTuple):
    """A flax module without its object.

    Attributes:
      init: a key, and an input ``[1, ...]`` for the modules that need one, to ``Variables``.
      call: see ``Call``.
      needs_sample: the parameters' shapes depend on an input.
    """

    init: Callable[[Key, jax.Array | None], Variables]
    call: Call
    needs_sample: bool


def pure_module(module: Any) -> PureModule:
    """Takes a linen module, an nnx module, or a function from ``nnx.Rngs`` to an nnx module.

    Raises:
      TypeError: ``module`` is none of them.
    """
    if isinstance(module, linen.Module):
        return _from_linen(module)
    if isinstance(module, nnx.Module) or callable(module):
        return _from_nnx(module)
    raise TypeError(
        f"module is {type(module).__name__}, expected a flax linen module, an nnx module, or a function of nnx.Rngs "
        "that returns an nnx module."
    )


def _mode_arguments(call: Callable[..., Any]) -> Callable[[bool], dict[str, Any]]:
    """How a module wants to be told whether it trains; ``{}`` when it does not ask."""
    names = inspect.signature(call).parameters
    if "train" in names:
        return lambda train: {"train": train}
    if "training" in names:
        return lambda train: {"training": train}
    if "deterministic" in names:
        return lambda train: {"deterministic": not train}
    return lambda train: {}


# --- linen -------------------------------------------------------------------------------------------------


def _from_linen(module: linen.Module) -> PureModule:
    mode = _mode_arguments(type(module).__call__)

    def init(key: Key, x: jax.Array | None) -> Variables:
        # "params" gets the key itself, so that the weights are those of module.init(key, x).
        rngs = {"params": key, "dropout": jax.random.fold_in(key, 1)}
        collections = linen.meta.unbox(dict(module.init(rngs, x, **mode(False))))
        params, stats = collections.pop("params", {}), collections.pop("batch_stats", ())
        return Variables(params, collections or (), stats)

    def call(variables: Variables, x: jax.Array, key: Key | None, *, train: bool, **extra: Any):
        collections = {**(variables.frozen or {}), "params": variables.params}
        if variables.stats:
            collections["batch_stats"] = variables.stats
        # Streams of other names than "dropout" fall back to "params" in linen.
        rngs = None if key is None else {"dropout": key, "params": jax.random.fold_in(key, 1)}
        mutable = ["batch_stats"] if train else []
        outputs, changed = module.apply(collections, x, rngs=rngs, mutable=mutable, **mode(train), **extra)
        return outputs, changed.get("batch_stats", variables.stats)

    return PureModule(init, call, needs_sample=True)


# --- nnx ---------------------------------------------------------------------------------------------------

_KINDS = (nnx.Param, nnx.BatchStat, nnx.RngState, ...)


def _from_nnx(module: Any) -> PureModule:
    if isinstance(module, nnx.Module):
        # The weights that it was built with, pretrained ones for instance; the key has nothing to decide.
        create, example = (lambda key: module), module
    else:
        create, example = (
            (lambda key: _built(module, key)),
            nnx.eval_shape(lambda: _built(module, jax.random.key(0))),
        )
    graph, *states = nnx.split(example, *_KINDS)
    params_of, stats_of, random_of, rest_of = (dict(nnx.to_flat_state(state)) for state in states)
    mode = _mode_arguments(type(example).__call__)

    def init(key: Key, x: jax.Array | None) -> Variables:
        del x
        _, params, stats, _, rest = nnx.split(create(key), *_KINDS)
        return Variables(_as_dict(params) or {}, _as_dict(rest), _as_dict(stats))

    def call(variables: Variables, x: jax.Array, key: Key | None, *, train: bool, **extra: Any):
        if random_of and key is None and train:
            raise ValueError(
                "the nnx module draws random numbers in training (dropout), but no key was given."
            )
        model = nnx.merge(
            graph,
            _as_state(params_of, variables.params),
            _as_state(stats_of, variables.stats),
            _random_state(random_of, key),
            _as_state(rest_of, variables.frozen),
        )
        model.train() if train else model.eval()
        outputs = model(x, **mode(train), **extra)
        return outputs, _as_dict(nnx.state(model, nnx.BatchStat)) if train else variables.stats

    return PureModule(init, call, needs_sample=False)


def _built(create: Callable[[nnx.Rngs], Any], key: Key) -> nnx.Module:
    model = create(nnx.Rngs(key))
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"module is a function, which is called with nnx.Rngs to make an nnx module, but it returned {type(model).__name__}. A "
            "model that is a function of parameters and inputs is a task of its own: fs.Task(init, apply, loss)."
        )
    return model


def _as_dict(state: nnx.State) -> PyTree:
    """A nested dict of arrays with string keys (places in lists included); ``()`` when empty."""
    flat = {tuple(map(str, path)): variable.get_value() for path, variable in nnx.to_flat_state(state)}
    return traverse_util.unflatten_dict(flat) if flat else ()


def _as_state(example: dict, values: PyTree) -> nnx.State:
    flat = traverse_util.flatten_dict(values) if values else {}
    return nnx.from_flat_state(
        [(path, variable.replace(flat[tuple(map(str, path))])) for path, variable in example.items()]
    )


def _random_state(example: dict, key: Key | None) -> nnx.State:
    """Every stream starts anew from the call's key, so that nothing is left over from an earlier call."""
    key = jax.random.key(0) if key is None else key
    streams = []
    for i, (path, variable) in enumerate(example.items()):
        shape = variable.get_value().shape
        if isinstance(variable, nnx.RngKey):
            fresh = jax.random.split(jax.random.fold_in(key, i), shape)
        else:
            fresh = jnp.zeros(shape, jnp.uint32)
        streams.append((path, variable.replace(fresh)))
    return nnx.from_flat_state(streams)
