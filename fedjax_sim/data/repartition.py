"""Dealing the examples of a data set to new clients."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np

from fedjax_sim._src import checks
from fedjax_sim.data.client_data import ClientData
from fedjax_sim.data.federated import Federated, split
from fedjax_sim.data.partitions import Partition, dirichlet, iid, shards

_DEFAULTS: dict[str, dict[str, Any]] = {
    "iid": {},
    "dirichlet": {"alpha": 0.3, "min_examples": 1},
    "shards": {"shards_per_client": 2},
}


def repartition(
    data: Federated,
    partition: Literal["iid", "dirichlet", "shards"] = "iid",
    *,
    clients: int = 50,
    seed: int = 0,
    alpha: float | None = None,
    min_examples: int | None = None,
    shards_per_client: int | None = None,
    test_fraction: float | None = None,
    label: str = "y",
) -> Federated:
    """The same examples with other clients, whoever held them before.

    By default the training examples alone are dealt out, and the test part stays as it is, with its own clients: the
    central test set of a set whose training and test examples were published apart. With ``test_fraction`` the test
    examples are dealt out, too, and then each client's examples are divided, so both parts have the same clients.

    Args:
      data: what to deal out.
      partition: ``"iid"``, ``"dirichlet"`` or ``"shards"``; see the functions of these names.
      clients: number of new clients; their ids are 0 to ``clients - 1``.
      seed: of the partition, and of the division into training and test.
      alpha: for ``"dirichlet"`` alone; ``None`` is 0.3.
      min_examples: for ``"dirichlet"`` alone; ``None`` is 1, or 2 with ``test_fraction``, so that no part is empty.
      shards_per_client: for ``"shards"`` alone; ``None`` is 2.
      test_fraction: in (0, 1); see above and ``split``.
      label: the column that "dirichlet" and "shards" read, integers ``[examples]``.

    Raises:
      TypeError: the label column does not hold one integer per example.
      ValueError: an unknown partition, a parameter that it does not take, a missing label column; as the
        partition itself.

    Example:
      >>> import fedjax_sim as fs
      >>> digits = fs.data.digits(clients=1, min_examples=0)
      >>> data = fs.data.repartition(digits, "shards", clients=100, shards_per_client=2)
      >>> data.train.num_clients, data.train.num_examples, data.test.num_clients
      (100, 1438, 1)
    """
    given = {"alpha": alpha, "min_examples": min_examples, "shards_per_client": shards_per_client}
    parameters = _parameters(partition, {name: value for name, value in given.items() if value is not None})
    columns = {name: np.asarray(column) for name, column in data.train.columns.items()}
    if test_fraction is not None:
        tested = data.test.columns
        columns = {
            name: np.concatenate([column, np.asarray(tested[name])]) for name, column in columns.items()
        }
        if partition == "dirichlet" and min_examples is None:
            parameters["min_examples"] = 2
    owner, repaired = _dealt(partition, data.name, columns, label, clients, seed, parameters)
    train, test = ClientData.from_arrays(columns, owner, ids=range(clients)), data.test
    if test_fraction is not None:
        train, test = split(train, test_fraction, seed)

    settings = ", ".join(f"{name} {value}" for name, value in {**parameters, "seed": seed}.items())
    part = "training examples" if test_fraction is None else "training and test examples"
    note = f"The {part} were dealt anew to {clients} clients: {partition}, {settings}."
    if repaired.any():
        note += f" {repaired.sum()} examples were moved to {np.count_nonzero(repaired)} clients below the minimum."
    return dataclasses.replace(data, train=train, test=test, notes=(*data.notes, note))


def _parameters(partition: str, given: dict[str, Any]) -> dict[str, Any]:
    """What a partition takes: its defaults, and what was given instead."""
    checks.one_of("partition", partition, tuple(_DEFAULTS))
    for name, value in given.items():
        if name not in _DEFAULTS[partition]:
            takes = ", ".join(_DEFAULTS[partition]) or "neither alpha, min_examples nor shards_per_client"
            raise ValueError(f"partition {partition!r} takes no {name}, got {value!r}; it takes {takes}.")
    return _DEFAULTS[partition] | given


def _dealt(
    partition: str,
    name: str,
    columns: dict[str, np.ndarray],
    label: str,
    clients: int,
    seed: int,
    parameters: dict[str, Any],
) -> Partition:
    if partition == "iid":
        return iid(len(next(iter(columns.values()))), clients, seed)
    if label not in columns:
        raise ValueError(
            f"label is {label!r}, but {name} has no such column, expected one of {', '.join(columns)}."
        )
    function = {"dirichlet": dirichlet, "shards": shards}[partition]
    return function(columns[label], clients, seed=seed, **parameters)
