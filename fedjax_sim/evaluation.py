"""Evaluation of a model on federated data: over all examples, and over clients."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim._src import checks
from fedjax_sim._src.types import Task, Variables
from fedjax_sim.data import ClientData
from fedjax_sim.metrics import example_values


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Metrics of one model on one data set. They are computed on the data as it is: no epsilon covers them.

    Attributes:
      examples: ``{metric: mean over all examples}``.
      clients: ``{metric: {"mean": ..., "weighted": ..., "worst_decile": ...}}`` over clients with examples: the plain
        mean, the mean weighted by examples, and the mean over the worst tenth of the clients (at least one). Metrics
        named ``loss`` or ``...error`` are worse when high, all others when low.
      per_client: ``{metric: f64[clients]}``; NaN for a client without examples.
      num_examples: how many examples were evaluated.
    """

    examples: Mapping[str, float]
    clients: Mapping[str, Mapping[str, float]]
    per_client: Mapping[str, np.ndarray]
    num_examples: int

    def __str__(self) -> str:
        columns = ("all examples", "client mean", "weighted", "worst decile")
        lines = [f"{'':<12}" + "".join(f"{name:>14}" for name in columns)]
        for name, value in self.examples.items():
            over = self.clients[name]
            row = (value, over["mean"], over["weighted"], over["worst_decile"])
            lines.append(f"{name:<12}" + "".join(f"{x:>14.4f}" for x in row))
        return "\n".join([*lines, f"{self.num_examples} examples"])


def evaluate(task: Task, variables: Variables, data: ClientData, *, batch_size: int = 512) -> Evaluation:
    """Evaluates a model, without dropout and with the statistics it has.

    Args:
      task: whose loss and metrics are computed.
      variables: the model.
      data: clients' examples.
      batch_size: rows of one compiled call; the last one is padded.

    Raises:
      ValueError: data without a single example, or that the task's check refuses.

    Example:
      >>> import jax, jax.numpy as jnp, fedjax_sim as fs
      >>> data = fs.data.load("digits", clients=5, alpha=1.0, seed=0)
      >>> task = fs.tasks.classification(fs.models.linear(classes=10), sample_input=jnp.zeros((1, 8, 8, 1)))
      >>> result = fs.evaluate(task, task.init(jax.random.key(0)), data.test)
      >>> sorted(result.examples)
      ['accuracy', 'loss']
    """
    checks.positive_int("batch_size", batch_size)
    if data.num_examples == 0:
        raise ValueError(
            f"the data has {data.num_clients} clients and no example: there is nothing to evaluate on."
        )
    if task.check is not None:
        task.check(data.columns)
    owner = np.repeat(np.arange(data.num_clients, dtype=np.int32), data.sizes)
    run = _evaluator(task, data.num_clients)
    totals: dict = {}
    for start in range(0, data.num_examples, batch_size):
        rows = min(batch_size, data.num_examples - start)
        batch = {
            name: _padded(column[start : start + rows], batch_size) for name, column in data.columns.items()
        }
        batch["mask"] = np.arange(batch_size) < rows
        sums = run(variables, batch, _padded(owner[start : start + rows], batch_size))
        totals = sums if not totals else jax.tree.map(jnp.add, totals, sums)
    return _summarise({name: (np.asarray(m.total), np.asarray(m.weight)) for name, m in totals.items()}, data)


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    return (
        rows
        if len(rows) == size
        else np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)])
    )


@functools.lru_cache(maxsize=32)
def _compiled(apply, loss, metrics: tuple, clients: int):
    task = Task(init=lambda key, sample=None: Variables(()), apply=apply, loss=loss, metrics=dict(metrics))

    def sums(variables, batch, owner):
        outputs, _ = task.apply(variables, batch, None, train=False)
        values = example_values(task, outputs, batch)
        return jax.tree.map(lambda x: jax.ops.segment_sum(x, owner, clients), values)

    return jax.jit(sums)


def _evaluator(task: Task, clients: int):
    return _compiled(task.apply, task.loss, tuple(sorted(task.metrics.items())), clients)


def _summarise(sums: Mapping[str, tuple[np.ndarray, np.ndarray]], data: ClientData) -> Evaluation:
    examples, clients, per_client = {}, {}, {}
    for name, (total, weight) in sums.items():
        total, weight = total.astype(np.float64), weight.astype(np.float64)
        values = np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)
        there = values[weight > 0]
        worst_is_high = name == "loss" or name.endswith("error")
        ordered = np.sort(there)[::-1] if worst_is_high else np.sort(there)
        tenth = max(1, -(-len(there) // 10))
        examples[name] = float(total.sum() / weight.sum()) if weight.sum() > 0 else float("nan")
        clients[name] = {
            "mean": float(np.mean(there)) if len(there) else float("nan"),
            "weighted": float(np.average(there, weights=data.sizes[weight > 0]))
            if len(there)
            else float("nan"),
            "worst_decile": float(np.mean(ordered[:tenth])) if len(there) else float("nan"),
        }
        per_client[name] = values
    return Evaluation(examples, clients, per_client, data.num_examples)
