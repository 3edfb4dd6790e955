import numpy as np
import pytest

from fedjax_sim import partitions as p
from fedjax_sim.data import ClientData, Federated, holdout_clients, repartition

X = np.arange(60, dtype=np.uint8)
Y = np.repeat(np.arange(6), 10).astype(np.int32)


def federated() -> Federated:
    """40 training examples of two people, 20 test examples of a third."""
    rows = np.random.default_rng(0).permutation(60)
    train, test = rows[:40], rows[40:]
    return Federated(
        ClientData({"x": X[train], "y": Y[train]}, [0, 25, 40], ["ann", "bo"]),
        ClientData({"x": X[test], "y": Y[test]}, [0, 20], ["cy"]),
        name="toy",
        classes=6,
        notes=("made up",),
    )


PARTITIONS = [p.iid(5), p.dirichlet(5, 0.5, min_examples=2), p.shards(5, 3)]


@pytest.mark.parametrize("partition", PARTITIONS, ids=lambda partition: partition.says)
def test_training_examples_are_dealt_and_the_test_part_stays(partition):
    before = federated()
    data = repartition(before, partition, seed=1)
    assert data.train.ids.tolist() == list(range(5)) and data.train.sizes.min() >= 1
    assert data.test is before.test
    assert (data.name, data.classes) == ("toy", 6)
    assert sorted(data.train.columns["x"]) == sorted(before.train.columns["x"])
    np.testing.assert_array_equal(data.train.columns["y"], Y[data.train.columns["x"]])  # rows stay together
    assert data.train.columns["x"].dtype == np.uint8
    again, other = (repartition(before, partition, seed=seed) for seed in (1, 2))
    np.testing.assert_array_equal(again.train.columns["x"], data.train.columns["x"])
    assert not np.array_equal(again.train.columns["x"], other.train.columns["x"])


@pytest.mark.parametrize("partition", PARTITIONS, ids=lambda partition: partition.says)
def test_with_a_test_fraction_all_examples_are_dealt(partition):
    data = repartition(federated(), partition, test_fraction=0.25)
    assert data.train.ids.tolist() == data.test.ids.tolist() == list(range(5))
    both = np.concatenate([data.train.columns["x"], data.test.columns["x"]])
    assert sorted(both) == list(range(60))
    assert data.train.sizes.min() >= 1 and data.test.sizes.min() >= 1


def test_notes_say_what_was_done():
    (old, note) = repartition(federated(), p.shards(4)).notes
    assert old == "made up"
    assert note == (
        "The training examples were dealt anew to 4 clients: shards, clients 4, shards_per_client 2, seed 0."
    )
    (_, note, moved) = repartition(federated(), p.dirichlet(20, 0.01), test_fraction=0.5).notes
    assert note.startswith("The training and test examples were dealt anew to 20 clients: dirichlet, ")
    assert moved.endswith("clients below the minimum.")


def test_edges_go_along():
    data = repartition(federated(), p.hierarchical(p.iid(3), p.iid(4)))
    assert data.edges is not None and data.edges.tolist() == np.repeat(np.arange(3), 4).tolist()
    both = repartition(federated(), p.hierarchical(p.iid(3), p.iid(4)), test_fraction=0.5)
    seen, unseen = holdout_clients(both, 0.25, seed=0)
    assert seen.edges is not None and unseen.edges is not None
    for part in (seen, unseen):
        assert part.edges.tolist() == [client // 4 for client in part.train.ids]
    assert repartition(data, p.iid(4)).edges is None


@pytest.mark.parametrize(
    ("partition", "options", "match"),
    [
        (p.shards(21), {}, r"21 \* 2 = 42, but there are 40 examples"),
        (p.iid(5), {"test_fraction": 1.5}, "test_fraction is 1.5"),
        (p.shards(5, label="z"), {}, "label is 'z', but there is no such column, expected one of x, y"),
    ],
)
def test_repartition_refuses(partition, options, match):
    with pytest.raises(ValueError, match=match):
        repartition(federated(), partition, **options)


def test_iid_needs_no_labels():
    data = federated()
    unlabelled = Federated(
        *(ClientData({"x": part.columns["x"]}, part.offsets, part.ids) for part in (data.train, data.test)),
        name="bare",
    )
    assert repartition(unlabelled, p.iid(4)).train.sizes.tolist() == [10] * 4
