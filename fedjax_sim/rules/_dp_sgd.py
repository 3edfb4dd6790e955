"""DP-SGD on the client: each example's gradient is clipped by itself, and every step adds noise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from fedjax_sim._src import checks, keys, tree
from fedjax_sim._src.types import Batch, ClientRule, Key, Mean, Noise, PyTree, Task, Variables
from fedjax_sim.rules._gradients import gradient
from fedjax_sim.rules._local_sgd import training
from fedjax_sim.rules._plain import ParamsLoss, over_params, task_of


def dp_sgd(
    task: Task | ParamsLoss,
    optimizer: optax.GradientTransformation,
    *,
    clip_norm: float,
    noise_multiplier: float,
    expected_batch_size: float,
    block_size: int | None = None,
) -> ClientRule:
    """Local training that keeps single examples private, also from the server (Abadi et al. 2016, algorithm 1).

    A step's gradient is ``(sum over examples of clip(gradient, C) + N(0, (z C)^2)) / expected_batch_size``. Its price
    depends on how batches are drawn: with ``LocalWork(poisson_rate=...)`` chance amplifies, with epochs nothing does. A
    simulation reads both, as in ``sim.privacy(rounds, delta, unit="example")``.

    Guarantees:
      One example moves the sum by at most ``clip_norm`` up to rounding, by L2 norm over the whole pytree in float32.
      Rows that are padding add nothing. An example whose gradient is not finite, or whose squares leave float32, adds
      nothing and is counted in ``dp_sgd/nonfinite``; how many were clipped is ``dp_sgd/clipped``. These metrics, the loss and
      the accuracy come from private data without noise.
      Noise has one standard deviation, ``noise_multiplier * clip_norm``, on every coordinate of the sum; every step of every
      client has draws of its own, steps whose batch is empty included.
      The divisor is the public constant, never the size of the batch.

    Each example goes through the model alone, as a batch of one: dropout draws a mask for each, an augmentation that mixes
    examples (mixup) has nothing to mix, and batch statistics, which would carry an example past the clip, are refused.

    Args:
      task: as for ``local_sgd``: a task, or a function ``(params, batch)`` to one loss per example.
      optimizer: any optax transformation; what it makes of noisy gradients costs no privacy.
      clip_norm: C, the bound on one example's gradient, 1e-12 or above; may be traced.
      noise_multiplier: z, standard deviation of the noise on the sum over ``clip_norm``; above 0; may be traced.
      expected_batch_size: what the noisy sum is divided by. The same for all clients, so that a client with more examples
        than others, under one Poisson rate, moves further; may be traced.
      block_size: examples whose gradients are in memory at a time; by default one on CPU, where that is also the fastest,
        and the whole batch elsewhere.

    Raises:
      ValueError: a number that is not above 0, or a task with batch statistics.

    Example:
      >>> import jax, jax.numpy as jnp, optax, fedjax_sim as fs
      >>> loss = lambda w, batch: (batch["x"] @ w - batch["y"]) ** 2
      >>> rule = fs.rules.dp_sgd(loss, optax.sgd(0.1), clip_norm=1.0, noise_multiplier=1e-6, expected_batch_size=4)
      >>> batches = {"x": 100 * jnp.ones((1, 4, 2)), "y": jnp.ones((1, 4))}       # gradients far above the bound
      >>> change = fs.rules.run(rule, jnp.ones(2), batches, jax.random.key(0))
      >>> f"{jnp.linalg.norm(change):.4f}"        # the step size times the bound
      '0.1000'
    """
    checks.clip_norm("clip_norm", clip_norm)
    checks.positive("noise_multiplier", noise_multiplier)
    checks.positive("expected_batch_size", expected_batch_size)
    if block_size is not None:
        checks.positive_int("block_size", block_size)
    if not isinstance(task, Task):
        rule = dp_sgd(
            task_of(task),
            optimizer,
            clip_norm=clip_norm,
            noise_multiplier=noise_multiplier,
            expected_batch_size=expected_batch_size,
            block_size=block_size,
        )
        return over_params(rule)
    if task.stats_policy != "none":
        raise ValueError(
            f"dp_sgd clips each example by itself, but the task's model keeps batch statistics (stats_policy="
            f"{task.stats_policy!r}), which mix the examples of a batch and leave without noise. Use a model without batch "
            "normalisation: group or layer normalisation looks at one example at a time."
        )

    def private(variables: Variables, start: PyTree, batch: Batch, key: Key):
        total, metrics = _clipped_sum(task, variables, batch, key, clip_norm, block_size)
        noisy = _add_noise(total, noise_multiplier * clip_norm, keys.fold(key, keys.STEP_NOISE))
        direction = jax.tree.map(
            lambda x, like: (x / expected_batch_size).astype(like.dtype), noisy, variables.params
        )
        return direction, variables.stats, metrics

    return training(task, optimizer, private)._replace(noise=Noise("gaussian", noise_multiplier))


def _clipped_sum(task: Task, variables: Variables, batch: Batch, key: Key, clip_norm, block_size: int | None):
    """Sum over examples of their clipped gradients, at least float32; metrics as sums over examples."""

    def one(number, row):
        alone = jax.tree.map(lambda x: x[None], row)
        grads, _, metrics = gradient(task, variables, alone, keys.fold(key, keys.EXAMPLE, number))
        clipped, above, finite = tree.clip(tree.widen(grads), clip_norm)
        there = row["mask"]
        weight = there.astype(jnp.float32)
        counts = {
            "dp_sgd/clipped": Mean(above * weight, weight),
            "dp_sgd/nonfinite": Mean(~finite * weight, weight),
        }
        # A row that does not exist need not have a finite gradient: where, not a product.
        return jax.tree.map(lambda x: jnp.where(there, x, 0), clipped), {**metrics, **counts}

    def block(numbers, rows):
        if numbers.shape[0] == 1:
            first = jax.tree.map(lambda x: x[0], (numbers, rows))
            return one(*first)
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), jax.vmap(one)(numbers, rows))

    # Several batches of one step are one batch: their sum is all that counts.
    lead = batch["mask"].ndim
    flat = {name: x.reshape(-1, *x.shape[lead:]) for name, x in batch.items()}
    count = flat["mask"].shape[0]
    numbers = jnp.arange(count)
    if block_size is None:
        # On CPU a sum over examples strides through all their gradients, some hundred times slower (decision 21).
        block_size = 1 if jax.default_backend() == "cpu" else count
    if block_size >= count:
        return block(numbers, flat)
    blocks = -(-count // block_size)

    def cut(x):
        padded = jnp.pad(x, [(0, blocks * block_size - count)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(blocks, block_size, *x.shape[1:])

    pieces = jax.tree.map(cut, (numbers, flat))
    shapes = jax.eval_shape(block, *jax.tree.map(lambda x: x[0], pieces))

    def body(carry, piece):
        return tree.add(carry, block(*piece)), None

    return jax.lax.scan(body, tree.zeros_like(shapes), pieces)[0]


def _add_noise(total: PyTree, std, key: Key) -> PyTree:
    leaves, structure = jax.tree.flatten(total)
    own = jax.random.split(key, max(len(leaves), 1))
    std = jnp.asarray(std)
    noisy = [
        x + std.astype(x.dtype) * jax.random.normal(k, x.shape, x.dtype)
        for k, x in zip(own, leaves, strict=False)
    ]
    return jax.tree.unflatten(structure, noisy)
