"""Membership inference: was this example trained on? By its loss, and by LiRA's likelihood ratio with shadow models."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from fedjax_sim._src import checks, forward, keys, tree
from fedjax_sim._src.types import Algorithm, ClientRule, Stage, Task, Variables
from fedjax_sim.data import ClientData
from fedjax_sim.privacy.audits._roc import Roc, roc

EXAMPLE = "example"
"""Name of the column that numbers the examples."""
_SHADOWS = 141
"""Purpose of the generator of shadow models' members; above those of ``keys``."""
_SMALLEST = 1e-12


def example_losses(
    task: Task, variables: Variables, data: ClientData, *, batch_size: int = 512
) -> np.ndarray:
    """Loss of a model on each example, ``f64[examples]``, in the order of the data's rows.

    Args:
      task: whose loss it is.
      variables: the model.
      data: the examples.
      batch_size: of one compiled call.

    Raises:
      TypeError: data that are no ``ClientData``.

    Example:
      >>> import jax, jax.numpy as jnp, fedjax_sim as fs
      >>> from fedjax_sim.privacy import audits
      >>> data = fs.data.load("digits", clients=5, alpha=1.0, seed=0).test
      >>> task = fs.tasks.classification(fs.models.linear(classes=10), sample_input=jnp.zeros((1, 8, 8, 1)))
      >>> losses = audits.example_losses(task, task.init(jax.random.key(0)), data)
      >>> losses.shape == (data.num_examples,)
      True
    """
    checks.positive_int("batch_size", batch_size)
    if not isinstance(data, ClientData):
        raise TypeError(
            f"data is {type(data).__name__}, expected ClientData, such as data.train or source.in_memory."
        )

    @jax.jit
    def losses(variables, batch):
        outputs, _ = forward.apply(task, variables, batch, None, train=False)
        return task.loss(outputs, batch)

    found, size = [], min(batch_size, max(data.num_examples, 1))
    for start in range(0, data.num_examples, size):
        # The last batch begins earlier instead of being padded, so that there is one program.
        begin = max(0, min(start, data.num_examples - size))
        batch = {name: np.asarray(column[begin : begin + size]) for name, column in data.columns.items()}
        values = losses(variables, batch | {"mask": np.ones(size, bool)})
        found.append(np.asarray(values, np.float64)[start - begin :])
    return np.concatenate(found) if found else np.zeros(0)


def loss_threshold(members: Any, others: Any) -> Roc:
    """The attack that calls an example a member if its loss is low (Yeom et al. 2018, adversary 2).

    Args:
      members: losses of examples that were trained on, ``[members]``.
      others: losses of examples that were not, from the same distribution, ``[others]``.

    Example:
      >>> from fedjax_sim.privacy import audits
      >>> audits.loss_threshold([0.1, 0.2], [0.5, 0.9]).auc
      1.0
    """
    return roc(-np.asarray(members, np.float64), -np.asarray(others, np.float64))


def logit_confidence(losses: Any) -> np.ndarray:
    """``log(p / (1 - p))`` of a confidence ``p = exp(-loss)``, which is close to Gaussian over models (Carlini et al. 2022, section 5.1).

    Args:
      losses: cross-entropies in nats, ``[...]``.

    Example:
      >>> import numpy as np
      >>> from fedjax_sim.privacy import audits
      >>> audits.logit_confidence(np.log([2.0, 4.0 / 3.0])).round(4) + 0.0
      array([0.    , 1.0986])
    """
    losses = np.maximum(np.asarray(losses, np.float64), _SMALLEST)
    return -losses - np.log(-np.expm1(-losses))


def lira(
    target: Any,
    shadows: Any,
    members: Any,
    *,
    form: Literal["online", "offline"] = "online",
    fixed_variance: bool = False,
) -> np.ndarray:
    """LiRA's scores: how much more likely a model's confidence is if the example was trained on, ``f64[examples]``.

    For each example, Gaussians are fitted to the confidences of the shadow models that trained on it and of those that did
    not. Online, the score is the logarithm of their likelihood ratio at the target's confidence. Offline, only models without the
    example are used, and the score is minus the logarithm of the probability that such a model is as confident.

    Args:
      target: ``logit_confidence`` of the attacked model, ``[examples]``.
      shadows: that of the shadow models, ``[models, examples]``.
      members: ``bool[models, examples]``, who trained on what.
      form: ``"online"`` or ``"offline"``.
      fixed_variance: one variance over all examples for the models with, and one for those without: better with few shadow models.

    Raises:
      ValueError: shapes that do not fit; an example that fewer than two shadow models trained on (online), or left out.

    Source: Carlini et al. 2022, "Membership Inference Attacks From First Principles", algorithm 1 and section 6.

    Example:
      >>> import numpy as np
      >>> from fedjax_sim.privacy import audits
      >>> shadows = np.array([[1.0], [3.0], [-1.0], [-3.0]])
      >>> members = np.array([[True], [True], [False], [False]])
      >>> bool(audits.lira(np.array([2.5]), shadows, members)[0] > 0)
      True
    """
    checks.one_of("form", form, ("online", "offline"))
    target, shadows, members = (
        np.asarray(target, np.float64),
        np.asarray(shadows, np.float64),
        np.asarray(members),
    )
    if (
        target.ndim != 1
        or shadows.ndim != 2
        or shadows.shape[1:] != target.shape
        or members.shape != shadows.shape
    ):
        raise ValueError(
            f"target has shape {list(target.shape)}, shadows {list(shadows.shape)} and members {list(members.shape)}; expected "
            "[examples], [models, examples] and [models, examples]."
        )
    if members.dtype != bool:
        raise ValueError(f"members is of dtype {members.dtype}, expected bool.")
    mean_out, std_out = _fit(shadows, ~members, "left out", fixed_variance)
    if form == "offline":
        # Of the two tails the upper one, whose logarithm keeps its digits where an attack is sure.
        return -scipy.special.log_ndtr((mean_out - target) / std_out)
    mean_in, std_in = _fit(shadows, members, "trained on", fixed_variance)
    return _log_density(target, mean_in, std_in) - _log_density(target, mean_out, std_out)


def _log_density(x: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Of a Gaussian, but for a constant."""
    return -(((x - mean) / std) ** 2) / 2 - np.log(std)


def _fit(values: np.ndarray, chosen: np.ndarray, what: str, fixed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the chosen models of each example, ``f64[examples]``."""
    count = chosen.sum(axis=0)
    if count.min(initial=2) < 2:
        place = int(np.argmin(count))
        raise ValueError(
            f"example {place} was {what} by {count[place]} shadow models, expected two at least: train more of them, with "
            "members as shadow_members gives them."
        )
    kept = np.where(chosen, values, 0.0)
    mean = kept.sum(axis=0) / count
    squares = np.where(chosen, (values - mean) ** 2, 0.0)
    if fixed:
        # Pooled over examples: each has lost a degree of freedom to its mean.
        variance = np.full(mean.shape, squares.sum() / (count.sum() - len(count)))
    else:
        variance = squares.sum(axis=0) / (count - 1)
    return mean, np.sqrt(np.maximum(variance, _SMALLEST))


def shadow_members(models: int, examples: int, seed: int = 0) -> np.ndarray:
    """Which model trains on which example, ``bool[models, examples]``: every example in half of the models.

    Which half is drawn for each example by itself, so that each model trains on about half of the examples.

    Args:
      models: how many, an even number of at least 2.
      examples: how many.
      seed: of the draw.

    Raises:
      ValueError: an odd number of models.

    Example:
      >>> from fedjax_sim.privacy import audits
      >>> audits.shadow_members(4, 100).sum(axis=0).tolist() == [2] * 100
      True
    """
    checks.positive_int("models", models)
    checks.positive_int("examples", examples)
    if models % 2:
        raise ValueError(
            f"models is {models}, expected an even number, so that every example is in half of them."
        )
    generator = keys.host_generator((seed,), _SHADOWS)
    return np.argsort(generator.random((models, examples)), axis=0) < models // 2


def number_examples(data: ClientData) -> ClientData:
    """The data with a column ``"example"``, ``int32[examples]``: the number of each row, for ``train_on``.

    Example:
      >>> import numpy as np, fedjax_sim as fs
      >>> from fedjax_sim.privacy import audits
      >>> audits.number_examples(fs.ClientData({"x": np.zeros(3)}, [0, 2, 3], ["ann", "bo"])).columns["example"]
      array([0, 1, 2], dtype=int32)
    """
    rows = np.arange(data.num_examples, dtype=np.int32)
    return ClientData({**data.columns, EXAMPLE: rows}, data.offsets, data.ids)


def train_on(algorithm: Algorithm, members: Any) -> Algorithm:
    """The algorithm with clients that look at some of their examples alone; the others are as padding.

    The members may be traced, so that one sweep trains all shadow models: ``sim.sweep(seeds, rounds,
    algorithm=lambda members: audits.train_on(algorithm, members), hyperparameters={"members": shadow_members(...)})``. A client takes as many
    steps as before, and its weight in a mean counts all of its examples.

    Args:
      algorithm: any.
      members: ``bool[examples]``, rows of data that come from ``number_examples``.

    Raises:
      ValueError: while a simulation is made, on data without the column ``"example"``.

    Example:
      >>> import numpy as np, optax, fedjax_sim as fs
      >>> from fedjax_sim.privacy import audits
      >>> algorithm = fs.algorithms.fedavg(fs.tasks.classification(fs.models.linear(classes=10)), optax.sgd(0.1))
      >>> audits.train_on(algorithm, np.array([True, False])).name
      'fedavg'
    """

    def masked(rule: ClientRule) -> ClientRule:
        def step(broadcast, work, batch, ctx):
            if EXAMPLE not in batch:
                raise ValueError(
                    f"the data have the columns {', '.join(sorted(set(batch) - {'mask'}))}, expected {EXAMPLE!r} among them: "
                    "use audits.number_examples(data)."
                )
            mask = batch["mask"] & jnp.asarray(members)[batch[EXAMPLE]]
            rows = {
                name: tree.where(mask, x, jnp.zeros_like(x)) for name, x in batch.items() if name != EXAMPLE
            }
            return rule.step(broadcast, work, {**rows, EXAMPLE: batch[EXAMPLE], "mask": mask}, ctx)

        return rule._replace(step=step)

    def stage_of(stage: Stage) -> Stage:
        if isinstance(stage.client, ClientRule):
            return stage._replace(client=masked(stage.client))
        return stage._replace(client={group: masked(rule) for group, rule in stage.client.items()})

    return algorithm._replace(stages=tuple(map(stage_of, algorithm.stages)))
