"""Evaluation of a model on federated data: over all examples, over clients, and how evenly it serves them."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim._src import checks
from fedjax_sim._src.types import Mean, Task, Variables
from fedjax_sim.data import Federated
from fedjax_sim.data._blocks import Check, batch_blocks, held
from fedjax_sim.data.client_source import Clients
from fedjax_sim.metrics import example_values

UNNAMED = "eval"
"""Name of the set that a run evaluates on when it is given one without a name."""

KEPT_BYTES = 10**9
"""Sets of no more bytes together stay on the device between a run's evaluations."""

_Batch = tuple[dict[str, jax.Array], jax.Array]
"""Columns with their mask, and the position of each row's client, ``int32[batch]``."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Metrics of one model on one data set. They are computed on the data as it is: no epsilon covers them.

    Attributes:
      examples: ``{metric: mean over all examples}``.
      clients: ``{metric: {name: value}}`` over clients with examples; see below for the names.
      per_client: ``{metric: f64[clients]}``; NaN for a client without examples.
      num_examples: how many examples were evaluated.

    Over clients there are:

    - ``"mean"`` and ``"weighted"``: the plain mean, and the mean weighted by examples;
    - ``"worst_decile"`` and ``"best_decile"``: the mean over the worst and over the best tenth of the clients, at least
      one; ``higher_is_better`` says which those are;
    - ``"std"`` and ``"variance"``: the spread around the plain mean, in the metric's unit and its square; by the
      variance Li et al. 2020 ("Fair Resource Allocation in Federated Learning", section 4) report how fair a model is;
    - ``"jain"``: Jain's index ``(sum x)^2 / (n sum x^2)`` (Jain, Chiu, Hawe 1984), 1 when all clients have the same
      and ``1 / n`` when one has everything. It is meant for metrics that are not negative.
    """

    examples: Mapping[str, float]
    clients: Mapping[str, Mapping[str, float]]
    per_client: Mapping[str, np.ndarray]
    num_examples: int

    def __repr__(self) -> str:
        values = ", ".join(f"{name} {value:.4f}" for name, value in self.examples.items())
        clients = len(next(iter(self.per_client.values()), ()))
        return f"Evaluation({values}; {self.num_examples} examples of {clients} clients)"

    def __str__(self) -> str:
        columns = ("all examples", "client mean", "std", "worst decile", "best decile", "Jain's index")
        lines = [f"{'':<12}" + "".join(f"{name:>14}" for name in columns)]
        for name, value in self.examples.items():
            over = self.clients[name]
            row = (value, *(over[key] for key in ("mean", "std", "worst_decile", "best_decile", "jain")))
            lines.append(f"{name:<12}" + "".join(f"{x:>14.4f}" for x in row))
        return "\n".join([*lines, f"{self.num_examples} examples"])


def higher_is_better(metric: str, over: str = "examples") -> bool:
    """Whether a larger value is the better one.

    Metrics named ``...loss`` or ``...error`` are better when low, all others when high. Of the values over clients
    (``over``), the spreads ``"std"`` and ``"variance"`` are better when low and ``"jain"`` when high, whatever the metric.

    Example:
      >>> from fedjax_sim.evaluation import higher_is_better
      >>> higher_is_better("accuracy"), higher_is_better("squared_error"), higher_is_better("accuracy", "std")
      (True, False, False)
    """
    if over in ("std", "variance", "jain"):
        return over == "jain"
    return not metric.endswith(("loss", "error"))


def evaluate(task: Task, variables: Variables, data: Clients, *, batch_size: int = 512) -> Evaluation:
    """Evaluates a model, without dropout and with the statistics it has.

    Args:
      task: whose loss and metrics are computed.
      variables: the model.
      data: clients' examples.
      batch_size: rows of one compiled call; the last one is padded.

    Raises:
      TypeError: something else than ``ClientData``, such as a ``Federated`` as a whole.
      ValueError: data without a single example, or that the task's check refuses.

    Example:
      >>> import jax, jax.numpy as jnp, fedjax_sim as fs
      >>> data = fs.data.load("digits", clients=5, alpha=1.0, seed=0)
      >>> task = fs.tasks.classification(fs.models.linear(classes=10), sample_input=jnp.zeros((1, 8, 8, 1)))
      >>> result = fs.evaluate(task, task.init(jax.random.key(0)), data.test)
      >>> sorted(result.examples)
      ['accuracy', 'loss']
    """
    return Evaluator(data, batch_size)(task, variables)


class Evaluator:
    """Evaluates models on one set.

    Args:
      data: clients' examples.
      batch_size: rows of one compiled call; the last one is padded.
      keep: whether the examples stay on the device for as long as this object lives; they are brought at the first
        evaluation, cut into batches. ``begin`` then need not wait for the device.

    Raises:
      TypeError, ValueError: as ``evaluate``.
    """

    def __init__(self, data: Clients, batch_size: int = 512, keep: bool = False):
        checks.positive_int("batch_size", batch_size)
        _check_client_data("data", data)
        if data.num_examples == 0:
            raise ValueError(
                f"the data has {data.num_clients} clients and no example: there is nothing to evaluate on."
            )
        self._data, self._batch_size = data, batch_size
        self.stays = keep
        self._kept: list[_Batch] | None = None
        self._checked: set[Check] = set()

    def __call__(self, task: Task, variables: Variables) -> Evaluation:
        """One model of any task that the examples fit."""
        return self.begin(task, variables)()

    def begin(self, task: Task, variables: Variables) -> Callable[[], Evaluation]:
        """Gives the devices an evaluation to work on; what is returned waits for it and sums up.

        Nothing comes back before the totals.
        """
        start, add = _compiled(
            task.apply, task.loss, tuple(sorted(task.metrics.items())), self._data.num_clients
        )
        totals = start(variables)
        for block in self._blocks(task.check):
            before = totals
            for batch, owner in block:
                totals = add(totals, variables, batch, owner)
            if self._kept is None:
                # The next block is made while the device works on this one; those before it must be out of its hands.
                # To wait for them takes the totals they left, which therefore cannot be written over.
                jax.block_until_ready(before)
        return lambda: summarise(jax.device_get(totals), self._data.sizes)

    def _blocks(self, check: Check | None) -> Iterator[Iterable[_Batch]]:
        """Batches on the device, a block of the data at a time."""
        kept = held(self._data) if self.stays else None
        if kept is None:
            first = 0
            for columns in batch_blocks(self._data, self._batch_size, check):
                yield self._placed(columns, first)
                first += len(next(iter(columns.values())))
            return
        if check is not None and check not in self._checked:
            check(kept.columns)
            self._checked.add(check)
        if self._kept is None:
            self._kept = list(self._placed(kept.columns, 0))
        yield self._kept

    def _placed(self, columns: Mapping[str, np.ndarray], first: int) -> Iterator[_Batch]:
        """Rows from the ``first``-th of the data on, brought to the device batch by batch, with the client of each."""
        ends, size = np.asarray(self._data.offsets)[1:], self._batch_size
        length = len(next(iter(columns.values())))
        for start in range(0, length, size):
            rows = min(size, length - start)
            batch = {name: _padded(column[start : start + rows], size) for name, column in columns.items()}
            batch["mask"] = np.arange(size) < rows
            owner = np.searchsorted(ends, first + start + np.arange(rows), side="right").astype(np.int32)
            yield jax.device_put((batch, _padded(owner, size)))


def evaluators(sets: Mapping[str, Clients]) -> dict[str, Evaluator]:
    """Those of a run; of its sets the first stay on the device, as many as ``KEPT_BYTES`` lets."""
    room, found = KEPT_BYTES, {}
    for name, data in sets.items():
        found[name] = Evaluator(data, keep=data.nbytes <= room)
        room -= data.nbytes if found[name].stays else 0
    return found


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    return (
        rows
        if len(rows) == size
        else np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)])
    )


@functools.lru_cache(maxsize=32)
def _compiled(apply, loss, metrics: tuple, clients: int):
    """Totals of no example, placed as the variables are, and those with one batch more."""
    task = Task(init=lambda key, sample=None: Variables(()), apply=apply, loss=loss, metrics=dict(metrics))

    def start(variables):
        del variables
        zeros = lambda: jnp.zeros(clients, jnp.float32)  # noqa: E731
        return {name: Mean(zeros(), zeros()) for name in ("loss", *task.metrics)}

    def add(totals, variables, batch, owner):
        outputs, _ = task.apply(variables, batch, None, train=False)
        values = example_values(task, outputs, batch)
        return jax.tree.map(lambda x, y: x + jax.ops.segment_sum(y, owner, clients), totals, values)

    return jax.jit(start, keep_unused=True), jax.jit(add)


def _check_client_data(name: str, data: Any) -> None:
    if not isinstance(data, Clients):
        fix = "a data set has two parts, pass data.test" if isinstance(data, Federated) else "pass data.test"
        raise TypeError(f"{name} is {type(data).__name__}, expected ClientData: {fix}.")


def named_sets(evaluate_on: Any) -> dict[str, Clients]:
    """The sets that a run evaluates on, by name: what its ``evaluate_on`` means, checked before the first round.

    Raises:
      TypeError: a set is no ``ClientData``.
      ValueError: a name that cannot be a prefix in files, or a set without an example.
    """
    if evaluate_on is None:
        return {}
    named = dict(evaluate_on) if isinstance(evaluate_on, Mapping) else {UNNAMED: evaluate_on}
    if not named:
        raise ValueError("evaluate_on names no set; leave it out, or give at least one.")
    for name, data in named.items():
        # Names become prefixes of metrics in files: "unseen/accuracy".
        if not isinstance(name, str) or not name or "/" in name or re.fullmatch(r"stage\d+", name):
            raise ValueError(
                f"evaluate_on has a set named {name!r}, expected text without '/', and not 'stage0', 'stage1', ..., "
                "which metrics of an algorithm's stages begin with."
            )
        _check_client_data("evaluate_on" if data is evaluate_on else f"evaluate_on[{name!r}]", data)
        if data.num_examples == 0:
            raise ValueError(
                f"evaluate_on: {name!r} has {data.num_clients} clients and no example: there is nothing to "
                "evaluate on."
            )
    return named


def summarise(sums: Mapping[str, Mean], sizes: np.ndarray) -> Evaluation:
    """An evaluation from each client's sums.

    Args:
      sums: ``{metric: Mean(f32[clients], f32[clients])}``.
      sizes: ``int64[clients]``, examples that were evaluated.
    """
    examples, clients, per_client = {}, {}, {}
    for name, metric in sums.items():
        total, weight = (np.asarray(x).astype(np.float64) for x in metric)
        values = np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)
        there = weight > 0
        examples[name] = float(total.sum() / weight.sum()) if there.any() else float("nan")
        clients[name] = _over_clients(values[there], sizes[there], higher_is_better(name))
        per_client[name] = values
    return Evaluation(examples, clients, per_client, int(sizes.sum()))


def _over_clients(values: np.ndarray, sizes: np.ndarray, high: bool) -> dict[str, float]:
    """What ``Evaluation.clients`` holds of one metric, from ``f64[clients]`` without NaN; ``high``: that is better."""
    names = ("mean", "weighted", "worst_decile", "best_decile", "std", "variance", "jain")
    if not len(values):
        return dict.fromkeys(names, float("nan"))
    ordered = np.sort(values)
    tenth = -(-len(values) // 10)
    low_end, high_end = np.mean(ordered[:tenth]), np.mean(ordered[-tenth:])
    worst, best = (low_end, high_end) if high else (high_end, low_end)
    variance, squares = np.var(values), np.sum(values**2)
    # Clients that all have zero are as equal as any.
    jain = np.sum(values) ** 2 / (len(values) * squares) if squares else 1.0
    mean, weighted = np.mean(values), np.average(values, weights=sizes)
    numbers = (mean, weighted, worst, best, np.sqrt(variance), variance, jain)
    return {name: float(number) for name, number in zip(names, numbers, strict=True)}
