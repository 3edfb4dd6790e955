"""What a data set is, before anybody trains on it: who the clients are and which labels they hold."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from fedjax_sim._src import checks, keys
from fedjax_sim.data import ClientData, Federated
from fedjax_sim.data._label_counts import has_labels, label_counts, mean_divergence
from fedjax_sim.data._remarks import remarks

_SAMPLE = 160  # purpose of the generator; above those of `keys`, so that no two decisions share a stream


def about_clients(federated: Federated) -> dict[str, np.ndarray]:
    """Who the clients are and what they hold: the arrays of ``clients.npz`` that need no training.

    ``labels`` is left out where there is not one label per example, and for a ``ClientSource``, all of whose examples
    would have to be made: ``sampled_clients`` makes those of some.
    """
    train, test = federated.train, federated.test
    arrays = {"ids": train.ids, "train_examples": np.asarray(train.sizes)}
    if test.num_clients == train.num_clients and np.array_equal(test.ids, train.ids):
        arrays["test_examples"] = np.asarray(test.sizes)
    elif test.num_examples:
        arrays["eval_ids"] = test.ids
        arrays["test_examples"] = np.asarray(test.sizes)
    if federated.edges is not None:
        arrays["edges"] = np.asarray(federated.edges)
    labels = _labels(federated)
    return arrays if labels is None else arrays | {"labels": labels}


def sampled_clients(federated: Federated, clients: int = 200, seed: int = 0) -> Federated:
    """A set that one can look at: of clients that are made when they are wanted, a random sample, in memory.

    What is in memory or on disk stays as it is, and so does a set without one label per example, of which there would be
    nothing more to see.

    Args:
      federated: the set.
      clients: of the sample, of the training part; all of them where there are no more.
      seed: of the draw.

    Returns:
      The set with fewer training clients, in their order; the test part stays.

    Raises:
      ValueError: ``clients`` is below 1.

    Example:
      >>> import fedjax_sim as fs
      >>> from fedjax_sim import experiment
      >>> experiment.sampled_clients(fs.data.glyphs(clients=1_000_000), clients=3).train.ids.shape
      (3,)
    """
    checks.positive_int("clients", clients)
    train = federated.train
    if isinstance(train, ClientData) or not has_labels(train, federated.classes):
        return federated
    order = keys.host_generator((seed,), _SAMPLE).permutation(train.num_clients)
    return dataclasses.replace(federated, train=train.select(np.sort(order[:clients])).in_memory, edges=None)


def describe_data(federated: Federated, sample: Federated | None = None) -> dict[str, Any]:
    """What there is to know about a set at a glance, in JSON's types: numbers, lists and tables of them.

    ``divergence`` is the mean over clients, weighted by examples, of the total variation distance between the client's
    labels and all labels: 0 when all are alike, towards 1 when each has labels of its own.

    Args:
      federated: the set.
      sample: the clients whose labels are counted, from ``sampled_clients``; all by default. Where they are fewer than
        all, ``sample`` says how many, drawn at random, and the names of what was counted end in ``in the sample``: the divergence is then that
        of the sample's clients from the sample's labels.
    """
    train, test = federated.train, federated.test
    found: dict[str, Any] = {
        "name": federated.name,
        "clients": train.num_clients,
        "training examples": train.num_examples,
        "per client": _range(train.sizes),
        "test examples": test.num_examples,
        "test clients": test.num_clients,
        "columns": {
            name: {"dtype": str(column.dtype), "shape": list(column.shape[1:])}
            for name, column in train.columns.items()
        },
        "classes": federated.classes,
    }
    if federated.edges is not None:
        of_edges = np.unique(federated.edges, return_counts=True)[1]
        found["edges"] = len(of_edges)
        found["clients per edge"] = _range(of_edges)
    seen = federated if sample is None else sample
    labels = _labels(seen)
    if labels is not None and labels.sum():
        few = seen.train.num_clients < train.num_clients
        where = " in the sample" if few else ""
        if few:
            found["sample"] = seen.train.num_clients
        found[f"examples of each class{where}"] = labels.sum(axis=0).tolist()
        found[f"classes per client{where}"] = _range((labels > 0).sum(axis=1))
        found[f"divergence{where}"] = round(mean_divergence(labels), 4)
    return found | {"notes": [*federated.notes, *remarks(federated)]}


def _range(counts: np.ndarray) -> dict[str, float]:
    return {
        "smallest": int(np.min(counts)),
        "median": float(np.median(counts)),
        "largest": int(np.max(counts)),
    }


def _labels(federated: Federated) -> np.ndarray | None:
    """Examples of each class at each training client, where they lie ready."""
    train, classes = federated.train, federated.classes
    if classes is None or not isinstance(train, ClientData) or not has_labels(train, classes):
        return None
    return label_counts(train, classes)
