"""A job's model in plain JAX, old and new: ``loss(params, batch)`` with the usual operations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def make_loss(layers: list[str], scale: float | None):
    """``(params, batch)`` to the mean cross-entropy over the rows that ``batch["__mask__"]`` marks."""

    def loss(params, batch):
        x = batch["x"]
        if scale is not None:
            x = x.astype(jnp.float32) * jnp.float32(scale)
        for layer in layers:
            kind, _, argument = layer.partition(":")
            x = _LAYERS[kind](x, argument, params)
        labels = jnp.take_along_axis(jax.nn.log_softmax(x), batch["y"][..., None], axis=-1)[..., 0]
        values = -labels.reshape(labels.shape[0], -1).mean(axis=1)
        mask = batch["__mask__"].astype(x.dtype)
        return jnp.sum(values * mask) / jnp.maximum(jnp.sum(mask), 1)

    return loss


def _conv(x, name, params):
    numbers = ("NHWC", "HWIO", "NHWC")
    kernel = params[f"{name}/kernel"]
    return (
        lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=numbers)
        + params[f"{name}/bias"]
    )


def _pool(x, argument, params):
    window = (1, int(argument), int(argument), 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")


def _lstm(x, name, params):
    recurrent = params[f"{name}/recurrent_kernel"]
    inputs = jnp.moveaxis(x @ params[f"{name}/kernel"] + params[f"{name}/bias"], 1, 0)
    zeros = jnp.zeros((x.shape[0], recurrent.shape[0]))

    def step(carry, gates):
        hidden, cell = carry
        i, f, g, o = jnp.split(gates + hidden @ recurrent, 4, axis=-1)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
        return (hidden, cell), hidden

    return jnp.moveaxis(lax.scan(step, (zeros, zeros), inputs)[1], 0, 1)


_LAYERS = {
    "conv": _conv,
    "pool": _pool,
    "lstm": _lstm,
    "dense": lambda x, name, params: x @ params[f"{name}/kernel"] + params[f"{name}/bias"],
    "embed": lambda x, name, params: params[f"{name}/embedding"][x],
    "relu": lambda x, name, params: jax.nn.relu(x),
    "flatten": lambda x, name, params: x.reshape(x.shape[0], -1),
}
