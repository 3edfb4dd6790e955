"""Tasks from flax modules, linen and nnx."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fedjax_sim import metrics as metrics_
from fedjax_sim._src import checks, keys
from fedjax_sim._src.types import Batch, Key, Loss, Metric, Outputs, PyTree, StatsPolicy, Task, Variables
from fedjax_sim.data.augmentations import Augmentation, Mixing, Mixture
from fedjax_sim.data.preprocessing import Preprocessing
from fedjax_sim.tasks import losses
from fedjax_sim.tasks._columns import LabelKind, check_columns
from fedjax_sim.tasks._mixing import Mixed, mixing_loss, mixing_metric
from fedjax_sim.tasks._modules import pure_module

__all__ = ["from_flax"]

LossName = Literal["softmax_cross_entropy", "sigmoid_binary_cross_entropy", "squared_error"]
BatchStats = Literal["refuse", "averaged", "local"]

_BATCH_STATS = (
    "the model keeps batch statistics (BatchNorm), and clients' batches are not from one distribution. "
    "Choose batch_stats='averaged' (their change travels with the update), batch_stats='local' (each client keeps "
    "its own, as in FedBN), or a model with GroupNorm or LayerNorm. BatchNorm counts the zero rows that fill up "
    "a short batch unless the model passes a mask on to it; see row_mask."
)


def from_flax(
    module: Any,
    *,
    loss: LossName | Loss,
    sample_input: Any = None,
    input: str = "x",
    label: str = "y",
    metrics: Mapping[str, Metric] | None = None,
    classes: int | None = None,
    scale: float | Literal["auto"] = "auto",
    batch_stats: BatchStats = "refuse",
    row_mask: str | None = None,
    augment: Augmentation | None = None,
    preprocess: Preprocessing | None = None,
) -> Task:
    """A task from any flax module that is called with one array.

    The module is told whether it trains through ``train``, ``training`` or ``deterministic``, whichever its
    ``__call__`` takes; nnx modules are also switched by their ``train()`` and ``eval()``. Dropout draws from the key
    of the call alone. An nnx module's random streams start anew at every call.

    ``Variables.params`` is a nested dict of arrays: the collection ``params``, or every ``nnx.Param``. Statistics
    are ``batch_stats`` and ``nnx.BatchStat``. All other variables are constants: they are in ``frozen``, and
    what the module writes into them is dropped.

    Args:
      module: a linen module; an nnx module, whose own weights are where training starts, whatever the seed; or a
        function from ``nnx.Rngs`` to an nnx module, such as its class, which gives every seed its own weights.
      loss: ``"softmax_cross_entropy"``, ``"sigmoid_binary_cross_entropy"`` or ``"squared_error"`` (see
        ``tasks.losses``), or a function ``(outputs, batch) -> f32[batch]``.
      sample_input: what linen modules infer their shapes from: an array or ``ShapeDtypeStruct`` ``[batch, ...]``, or
        such a shape for float32. Without it, ``init`` needs the sample row that simulations pass.
      input: name of the column that the module is called with.
      label: name of the column that a named loss reads.
      metrics: named metrics; ``None`` takes the usual one for a named loss (accuracy, squared error).
      classes: number of classes, to check labels; ``None`` takes ``module.classes`` if there is one.
      scale: factor that makes inputs of the column, in the parameters' dtype; ``"auto"`` is 1/255 for uint8 images, and
        leaves every other dtype as it is.
      batch_stats: what becomes of batch statistics: ``"refuse"`` is an error if the model has any, ``"averaged"``
        sends their change with the update, ``"local"`` keeps each client's own.
      row_mask: name of an argument of the module that takes the mask of valid rows, ``bool[batch]``, for its
        BatchNorm; ``None`` passes nothing.
      augment: ``(key, inputs) -> inputs``, applied to the scaled inputs in training, with a key of its own; never in
        evaluation. See ``data.augmentations``. With ``mixup`` among them, the training loss and metrics of a row are
        means over two examples.
      preprocess: ``inputs -> inputs``, applied to the scaled inputs in training (after ``augment``) and in
        evaluation. See ``data.preprocessing``.

    Raises:
      TypeError: the module, the loss, the sample, ``augment`` or ``preprocess`` is of another kind.
      ValueError: an unknown name; batch statistics without a policy (for linen modules without ``sample_input``
        at ``init``); ``classes`` differs from the module's; in training, when the model would get inputs of another
        shape or dtype with ``augment`` than without.

    >>> import jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> import fedjax_sim.tasks as tasks
    >>> task = tasks.from_flax(lambda rngs: nnx.Linear(4, 3, rngs=rngs), loss="softmax_cross_entropy")
    >>> variables = task.init(jax.random.key(0))
    >>> batch = {"x": jnp.ones((2, 4)), "y": jnp.array([0, 2]), "mask": jnp.ones(2, bool)}
    >>> outputs, _ = task.apply(variables, batch, None, train=False)
    >>> task.loss(outputs, batch).shape
    (2,)
    """
    if augment is not None and not callable(augment):
        raise TypeError(
            f"augment is {type(augment).__name__}, expected a function (key, inputs) -> inputs, such as "
            "data.augmentations.shift(2)."
        )
    if preprocess is not None and not callable(preprocess):
        raise TypeError(
            f"preprocess is {type(preprocess).__name__}, expected a function inputs -> inputs, such as "
            "data.preprocessing.normalise(0.5, 0.5)."
        )
    checks.one_of("batch_stats", batch_stats, ("refuse", "averaged", "local"))
    if scale != "auto":
        checks.positive("scale", scale)
    model = pure_module(module)
    loss_fn, default_metrics, labels = _resolve_loss(loss, label)
    classes = resolve_classes(module, classes)
    fixed_sample = None if sample_input is None else _zeros(sample_input)
    prepare: Preprocessing = (lambda x: x) if preprocess is None else preprocess

    def init(key: Key, sample: Batch | None = None) -> Variables:
        x = fixed_sample if fixed_sample is not None or sample is None else sample[input]
        if x is None and model.needs_sample:
            raise ValueError(
                "the shapes of the model's parameters depend on its input, and none is known: build the task with "
                "sample_input=jnp.zeros((1, ...)), or pass a sample batch, task.init(key, {'x': ...})."
            )
        variables = model.init(key, None if x is None else prepare(_scaled(x, scale, ())))
        if batch_stats == "refuse" and jax.tree.leaves(variables.stats):
            raise ValueError(_BATCH_STATS)
        return variables

    def apply(variables: Variables, batch: Batch, key: Key | None, *, train: bool) -> tuple[Outputs, PyTree]:
        extra = {} if row_mask is None else {row_mask: batch["mask"]}
        x = _scaled(batch[input], scale, variables.params)
        if augment is None or not train or key is None:
            return model.call(variables, prepare(x), key, train=train, **extra)
        x, mixture = _augmented(augment, prepare, x, key, batch)
        outputs, stats = model.call(variables, x, key, train=train, **extra)
        return (outputs if mixture is None else Mixed(outputs, mixture.partner, mixture.share)), stats

    policy: StatsPolicy = "none" if batch_stats == "refuse" else batch_stats
    if fixed_sample is not None or not model.needs_sample:
        # The model is known already: a mistake shows now, not at the first round.
        variables = jax.eval_shape(init, jax.random.key(0))
        policy = policy if jax.tree.leaves(variables.stats) else "none"
    check = functools.partial(
        check_columns,
        input=input,
        label=label,
        labels=labels,
        classes=classes,
        vocabulary=_attribute(module, "vocabulary"),
    )
    measured = dict(default_metrics if metrics is None else metrics)
    if isinstance(augment, Mixing):
        loss_fn = mixing_loss(loss_fn)
        measured = {name: mixing_metric(metric) for name, metric in measured.items()}
    return Task(init, apply, loss_fn, measured, policy, check)


def _augmented(
    augment: Augmentation, prepare: Preprocessing, x: jax.Array, key: Key, batch: Batch
) -> tuple[jax.Array, Mixture | None]:
    """The inputs augmented and preprocessed, and who was mixed with whom."""
    key = keys.fold(key, keys.AUGMENT)  # dropout draws from the key itself
    mixture = augment.mix(key, x, batch["mask"]) if isinstance(augment, Mixing) else None
    changed = prepare(augment(key, x) if mixture is None else mixture.images)
    plain = jax.eval_shape(prepare, x)
    if changed.shape != plain.shape or changed.dtype != plain.dtype:
        raise ValueError(
            f"augment made {changed.dtype}{list(changed.shape)} of inputs {plain.dtype}{list(plain.shape)}, expected the "
            "same shape and dtype. Where it crops, give preprocess=data.preprocessing.centre_crop(size) the same size."
        )
    return changed, mixture


def _resolve_loss(loss: LossName | Loss, label: str) -> tuple[Loss, Mapping[str, Metric], LabelKind]:
    if callable(loss):
        return loss, {}, "any"
    checks.one_of("loss", loss, ("softmax_cross_entropy", "sigmoid_binary_cross_entropy", "squared_error"))
    if loss == "softmax_cross_entropy":
        return losses.softmax_cross_entropy(label), {"accuracy": metrics_.accuracy(label)}, "class"
    named = {
        "sigmoid_binary_cross_entropy": (
            losses.sigmoid_binary_cross_entropy,
            "accuracy",
            metrics_.binary_accuracy,
        ),
        "squared_error": (losses.squared_error, "squared_error", metrics_.squared_error),
    }
    make_loss, name, make_metric = named[str(loss)]
    return make_loss(label), {name: make_metric(label)}, "number"


def resolve_classes(module: Any, classes: int | None) -> int | None:
    """The number of classes that is given, or else the module's; raises ValueError where they differ."""
    own = _attribute(module, "classes")
    if classes is None:
        return own
    checks.positive_int("classes", classes)
    if own is not None and own != classes:
        raise ValueError(f"classes is {classes}, but the module has classes={own}.")
    return classes


def _attribute(module: Any, name: str) -> int | None:
    value = getattr(module, name, None)
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _zeros(sample: Any) -> jax.Array:
    """One row of zeros of the sample's shape and dtype; a bare shape is float32."""
    is_shape = isinstance(sample, (tuple, list)) and all(isinstance(size, int) for size in sample)
    spec: Any = jax.ShapeDtypeStruct(tuple(sample), jnp.float32) if is_shape else sample
    if not hasattr(spec, "shape") or not hasattr(spec, "dtype") or not spec.shape:
        raise TypeError(
            f"sample_input is {sample!r}, expected an array or ShapeDtypeStruct [batch, ...], or such a shape."
        )
    return jnp.zeros((1, *spec.shape[1:]), spec.dtype)


def _scaled(x: jax.Array, scale: float | Literal["auto"], params: PyTree) -> jax.Array:
    """Scaled inputs in the parameters' dtype, which flax would widen to theirs; float32 where there are several."""
    if scale == "auto":
        if x.dtype != jnp.uint8:
            return x
        scale = 1 / 255
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(params)}
    dtype = dtypes.pop() if len(dtypes) == 1 else jnp.float32
    return (x.astype(jnp.float32) * jnp.float32(scale)).astype(dtype)
