"""Gradient inversion: the images behind an update, read off a linear layer or searched for."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_sim._src import checks, forward, keys, tree
from fedjax_sim._src.types import Batch, PyTree, Task, Variables


def invert_linear(weight_gradient: Any, bias_gradient: Any) -> np.ndarray:
    """The input of a linear layer with a bias, from the gradient of one example, ``f64[inputs]``.

    The weights' gradient is ``x (dL/db)^T``, so that ``x`` is the quotient of any of its columns and that entry of ``dL/db``; this is the
    least-squares solution over all columns. It is exact for one example, whatever the loss and whatever follows the layer, and does not
    depend on the scale of the gradient: clipping alone changes nothing. For a batch it is a mixture of its examples.

    Args:
      weight_gradient: ``[inputs, outputs]``, of flax's ``Dense`` kernel.
      bias_gradient: ``[outputs]``.

    Raises:
      ValueError: shapes that do not fit; a bias gradient of zero, which says nothing.

    Source: Phong et al. 2018, "Privacy-Preserving Deep Learning via Additively Homomorphic Encryption", section 3; Geiping et al. 2020,
    proposition 3.1.

    Example:
      >>> import numpy as np
      >>> from fedjax_sim.privacy import audits
      >>> x, error = np.array([0.5, 0.25]), np.array([0.1, -0.3, 0.2])
      >>> audits.invert_linear(np.outer(x, error), error).round(6)
      array([0.5 , 0.25])
    """
    weight, bias = np.asarray(weight_gradient, np.float64), np.asarray(bias_gradient, np.float64)
    if weight.ndim != 2 or bias.shape != weight.shape[1:]:
        raise ValueError(
            f"weight_gradient has shape {list(weight.shape)} and bias_gradient {list(bias.shape)}, expected [inputs, outputs] and [outputs]."
        )
    square = float(bias @ bias)
    if not square > 0:
        raise ValueError(
            "bias_gradient is zero: the layer did not learn anything from the example, and nothing can be read off it."
        )
    return weight @ bias / square


def loss_gradient(task: Task, variables: Variables, batch: Batch) -> PyTree:
    """Gradient of a batch's mean loss with respect to ``variables.params``: what FedSGD's client sends, but for its sign.

    It can be differentiated once more, by the batch's columns.

    Args:
      task: model and loss.
      variables: the model.
      batch: columns ``[batch, ...]``, without a mask.

    Example:
      >>> import jax, jax.numpy as jnp, fedjax_sim as fs
      >>> from fedjax_sim.privacy import audits
      >>> task = fs.tasks.classification(fs.models.linear(classes=3), sample_input=jnp.zeros((1, 4)))
      >>> variables = task.init(jax.random.key(0))
      >>> gradient = audits.loss_gradient(task, variables, {"x": jnp.ones((1, 4)), "y": jnp.array([2])})
      >>> gradient["Dense_0"]["kernel"].shape
      (4, 3)
    """
    rows = jnp.shape(next(iter(batch.values())))[0]
    whole = {**batch, "mask": jnp.ones(rows, bool)}

    def loss(params):
        outputs, _ = forward.apply(task, variables._replace(params=params), whole, None, train=False)
        return jnp.mean(task.loss(outputs, whole))

    return jax.grad(loss)(variables.params)


@dataclasses.dataclass(frozen=True)
class Inversion:
    """What ``invert_gradients`` found.

    Attributes:
      images: ``f32[batch, ...]``, of the restart with the smallest objective.
      objective: its objective, ``1 - cosine`` plus the weighted total variation.
      objectives: of all restarts, ``f32[restarts]``.
    """

    images: np.ndarray
    objective: float
    objectives: np.ndarray


def invert_gradients(
    gradient: Callable[[jax.Array], PyTree],
    observed: PyTree,
    shape: Sequence[int],
    *,
    seed: int = 0,
    steps: int = 1000,
    learning_rate: float = 0.1,
    total_variation: float = 1e-3,
    restarts: int = 1,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Inversion:
    """Searches for images whose gradient points where an observed one does.

    Minimises ``1 - cosine(gradient(images), observed) + total_variation * TV(images)`` from noise, by Adam on the signs of the gradient, with steps
    that shrink tenfold at 3/8, 5/8 and 7/8 of the way, inside the bounds. The program is compiled once for each ``gradient``.

    Args:
      gradient: images ``f32[batch, ...]`` to a gradient; a closure over model and labels, such as ``lambda x:
        audits.loss_gradient(task, variables, {"x": x, "y": labels})``.
      observed: the gradient that was seen, the update of one local step over minus the step size; any scale will do.
      shape: of the images, ``[batch, height, width, channels]``; without height and width nothing is smoothed.
      seed: of the images to start from.
      steps: of the search.
      learning_rate: size of the first steps, in units of the images.
      total_variation: weight of the mean absolute difference of neighbouring pixels.
      restarts: searches from other noise.
      bounds: smallest and largest value of a pixel.

    Raises:
      ValueError: an observed gradient that is zero or not finite, or of another structure; an argument outside its range.

    Source: Geiping et al. 2020, "Inverting Gradients - How easy is it to break privacy in federated learning?", equation 4 and section 5.

    Example:
      >>> import jax, jax.numpy as jnp, fedjax_sim as fs
      >>> from fedjax_sim.privacy import audits
      >>> task = fs.tasks.classification(fs.models.linear(classes=3), sample_input=jnp.zeros((1, 4)))
      >>> variables, secret = task.init(jax.random.key(0)), jnp.array([[0.9, 0.1, 0.4, 0.0]])
      >>> gradient = lambda x: audits.loss_gradient(task, variables, {"x": x, "y": jnp.array([2])})
      >>> found = audits.invert_gradients(gradient, gradient(secret), (1, 4), steps=300)
      >>> audits.psnr(found.images, secret) > 20
      True
    """
    checks.positive_int("steps", steps)
    checks.positive_int("restarts", restarts)
    checks.positive("learning_rate", learning_rate)
    checks.not_negative("total_variation", total_variation)
    low, high = bounds
    if not low < high:
        raise ValueError(f"bounds are {bounds}, expected a smaller and a larger number.")
    template = jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
    expected, got = jax.eval_shape(gradient, template), tree.spec(observed)
    if jax.tree.map(lambda x: x.shape, expected) != jax.tree.map(lambda x: x.shape, got):
        raise ValueError(f"observed is {got}, expected what gradient gives: {expected}.")
    length = float(tree.global_norm(observed))
    if not (math.isfinite(length) and length > 0):
        raise ValueError(
            f"observed has the norm {length}, expected a finite one above 0: nothing can be read off it."
        )
    search = _search(gradient, template.shape, steps, learning_rate, total_variation, low, high)
    aim = tree.scale(tree.widen(observed), 1 / length)
    root = keys.root_key(seed)
    found = [search(keys.fold(root, number), aim) for number in range(restarts)]
    objectives = np.array([float(value) for _, value in found], np.float32)
    best = int(np.nanargmin(objectives)) if not np.isnan(objectives).all() else 0
    return Inversion(np.asarray(found[best][0]), float(objectives[best]), objectives)


@functools.lru_cache(maxsize=4)
def _search(
    gradient: Callable[[jax.Array], PyTree],
    shape: tuple[int, ...],
    steps: int,
    learning_rate: float,
    total_variation: float,
    low: float,
    high: float,
):
    """The compiled search ``(key, aim)`` to images and their objective: one program for all that a model is asked."""
    schedule = optax.piecewise_constant_schedule(
        learning_rate, {int(steps * share): 0.1 for share in (3 / 8, 5 / 8, 7 / 8)}
    )
    optimizer = optax.adam(schedule)

    def objective(images, aim):
        found = gradient(images)
        pairs = zip(jax.tree.leaves(found), jax.tree.leaves(aim), strict=True)
        product = sum(jnp.vdot(a.astype(jnp.float32), b.astype(jnp.float32)) for a, b in pairs)
        # The norm's derivative at zero is NaN, hence the small number.
        norm = jnp.sqrt(tree.squared_norm(found) + 1e-20)
        return 1 - product / norm + total_variation * _roughness(images)

    @jax.jit
    def search(key, aim):
        start = low + (high - low) * jax.random.uniform(key, shape)

        def step(_, carry):
            images, state = carry
            slope = jnp.sign(jax.grad(objective)(images, aim))
            change, state = optimizer.update(slope, state, images)
            return jnp.clip(images + change, low, high), state

        images, _ = jax.lax.fori_loop(0, steps, step, (start, optimizer.init(start)))
        return images, objective(images, aim)

    return search


def _roughness(images: jax.Array) -> jax.Array:
    """Mean absolute difference of pixels that lie beside and above one another; 0 for what is no image."""
    if images.ndim < 3:
        return jnp.zeros(())
    return jnp.mean(jnp.abs(jnp.diff(images, axis=1))) + jnp.mean(jnp.abs(jnp.diff(images, axis=2)))


def psnr(images: Any, reference: Any, peak: float = 1.0) -> float:
    """Peak signal-to-noise ratio in decibels, ``10 log10(peak^2 / mean squared error)``; infinite for equal images.

    Args:
      images: ``[...]``.
      reference: what they should be, of the same shape.
      peak: largest value of a pixel.

    Raises:
      ValueError: shapes differ.

    Example:
      >>> import numpy as np
      >>> from fedjax_sim.privacy import audits
      >>> round(audits.psnr(np.zeros(4), np.full(4, 0.1)), 2)
      20.0
    """
    checks.positive("peak", peak)
    images, reference = np.asarray(images, np.float64), np.asarray(reference, np.float64)
    if images.shape != reference.shape:
        raise ValueError(
            f"images have shape {list(images.shape)}, the reference {list(reference.shape)}; expected the same."
        )
    error = float(np.mean((images - reference) ** 2))
    return 10 * math.log10(peak**2 / error) if error > 0 else math.inf
