"""What a data set is at a glance: labels by client, divergences, and a sample of clients that are made when they are wanted."""

import json

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedjax_sim import experiment
from fedjax_sim.data import ClientData, ClientSource, Federated
from fedjax_sim.data._label_counts import divergences, label_counts, mean_divergence


class Labelled(ClientSource):
    """Client ``i`` has ``i % 4`` examples, all of class ``i % 3``."""

    def __init__(self, clients: int, shape=()):
        spec = {"y": jax.ShapeDtypeStruct(shape, np.int32)}
        super().__init__(np.arange(clients) % 4, spec, ids=[f"c{i}" for i in range(clients)])
        self.made = 0

    def make(self, client):
        self.made += 1
        shape = (self.sizes[client], *self.columns["y"].shape[1:])
        return {"y": np.full(shape, int(self.ids[client][1:]) % 3, np.int32)}


def federated(train) -> Federated:
    return Federated(train, train.select([0, 1]), "toy", classes=3, notes=("made up",))


@given(arrays(np.int64, st.tuples(st.integers(1, 5), st.integers(1, 4)), elements=st.integers(0, 6)))
def test_counts_and_divergences_are_those_of_a_loop(table):
    labels = np.concatenate([np.repeat(np.arange(table.shape[1]), row) for row in table]).astype(np.int32)
    owner = np.repeat(np.arange(len(table)), table.sum(axis=1))
    data = ClientData.from_arrays({"y": labels}, owner, ids=range(len(table)))
    np.testing.assert_array_equal(label_counts(data, table.shape[1]), table)
    found, whole = divergences(table), table.sum(axis=0) / max(1, table.sum())
    for row, value in zip(table, found, strict=True):
        expected = (
            sum(abs(a / row.sum() - b) for a, b in zip(row, whole, strict=True)) / 2 if row.any() else 0
        )
        assert value == pytest.approx(expected) and 0 <= value < 1
    if table.any():
        assert mean_divergence(table) == pytest.approx((found * table.sum(axis=1)).sum() / table.sum())


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_outside_the_classes_are_named(label):
    data = ClientData({"y": np.array([0, label, 2])}, [0, 1, 3], ids=[0, 1])
    with pytest.raises(ValueError, match=f"column 'y' holds label {label}, expected 0 to 2"):
        experiment.describe_data(federated(data))


def test_a_sample_says_that_it_is_one():
    whole = federated(Labelled(1000))
    sample = experiment.sampled_clients(whole, 50)
    assert isinstance(sample.train, ClientData) and sample.train.num_clients == 50
    assert whole.train.made == 50
    positions = np.array([int(name[1:]) for name in sample.train.ids])
    assert (np.diff(positions) > 0).all()
    np.testing.assert_array_equal(sample.train.sizes, positions % 4)

    about = experiment.describe_data(whole, sample)
    labels = experiment.about_clients(sample)["labels"]
    assert about["clients"] == 1000 and about["training examples"] == 1500
    assert about["sample"] == 50 and about["per client"] == {"smallest": 0, "median": 1.5, "largest": 3}
    assert about["columns"] == {"y": {"dtype": "int32", "shape": []}}
    assert about["examples of each class in the sample"] == labels.sum(axis=0).tolist()
    assert about["divergence in the sample"] == round(mean_divergence(labels), 4)
    assert not {"divergence", "examples of each class", "classes per client"} & set(about)
    assert about["notes"] == ["made up", "250 of 1,000 clients have no training examples"]
    assert json.loads(json.dumps(about)) == about


def test_the_sample_follows_the_seed_alone():
    ids = [
        experiment.sampled_clients(federated(Labelled(300)), 9, seed).train.ids.tolist() for seed in (0, 0, 1)
    ]
    assert ids[0] == ids[1] != ids[2]


def test_few_clients_are_all_looked_at():
    whole = federated(Labelled(20))
    sample = experiment.sampled_clients(whole)
    in_memory = federated(whole.train.in_memory)
    assert experiment.describe_data(whole, sample) == experiment.describe_data(in_memory)
    assert experiment.sampled_clients(in_memory) is in_memory


def test_without_labels_nothing_is_made():
    whole = federated(Labelled(1000, shape=(2,)))
    assert experiment.sampled_clients(whole) is whole and whole.train.made == 0
    assert "sample" not in experiment.describe_data(whole, whole)
    with pytest.raises(ValueError, match="clients is 0"):
        experiment.sampled_clients(whole, 0)
