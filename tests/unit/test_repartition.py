import numpy as np
import pytest

from fedjax_sim.data import ClientData, Federated, repartition

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


PARTITIONS = {
    "iid": {},
    "dirichlet": {"alpha": 0.5},
    "shards": {"shards_per_client": 3},
}


@pytest.mark.parametrize("partition", PARTITIONS)
def test_training_examples_are_dealt_and_the_test_part_stays(partition):
    before = federated()
    data = repartition(before, partition, clients=5, seed=1, **PARTITIONS[partition])
    assert data.train.ids.tolist() == list(range(5)) and data.train.sizes.min() >= 1
    assert data.test is before.test
    assert (data.name, data.classes) == ("toy", 6)
    assert sorted(data.train.columns["x"]) == sorted(before.train.columns["x"])
    np.testing.assert_array_equal(data.train.columns["y"], Y[data.train.columns["x"]])  # rows stay together
    assert data.train.columns["x"].dtype == np.uint8
    again, other = (
        repartition(before, partition, clients=5, seed=seed, **PARTITIONS[partition]) for seed in (1, 2)
    )
    np.testing.assert_array_equal(again.train.columns["x"], data.train.columns["x"])
    assert not np.array_equal(again.train.columns["x"], other.train.columns["x"])


@pytest.mark.parametrize("partition", PARTITIONS)
def test_with_a_test_fraction_all_examples_are_dealt(partition):
    data = repartition(federated(), partition, clients=5, test_fraction=0.25, **PARTITIONS[partition])
    assert data.train.ids.tolist() == data.test.ids.tolist() == list(range(5))
    both = np.concatenate([data.train.columns["x"], data.test.columns["x"]])
    assert sorted(both) == list(range(60))
    assert data.train.sizes.min() >= 1 and data.test.sizes.min() >= 1


def test_notes_say_what_was_done():
    (old, note) = repartition(federated(), "shards", clients=4).notes
    assert old == "made up"
    assert note == (
        "The training examples were dealt anew to 4 clients: shards, shards_per_client 2, seed 0."
    )
    (*_, note) = repartition(federated(), "dirichlet", clients=20, alpha=0.01, test_fraction=0.5).notes
    assert "dirichlet, alpha 0.01, min_examples 2, seed 0. " in note and "clients below the minimum" in note
    (*_, note) = repartition(federated(), clients=3).notes
    assert note.endswith("3 clients: iid, seed 0.")


def test_min_examples_may_be_zero():
    data = repartition(federated(), "dirichlet", clients=100, alpha=0.1, min_examples=0, test_fraction=0.5)
    assert data.train.sizes.min() == 0


@pytest.mark.parametrize(
    ("partition", "options", "match"),
    [
        ("random", {}, "partition is 'random', expected one of 'iid', 'dirichlet', 'shards'"),
        ("iid", {"alpha": 0.3}, "partition 'iid' takes no alpha, got 0.3; it takes neither"),
        (
            "shards",
            {"min_examples": 0},
            "partition 'shards' takes no min_examples, got 0; it takes shards_per",
        ),
        ("dirichlet", {"shards_per_client": 2}, "takes no shards_per_client, got 2; it takes alpha, min_ex"),
        ("dirichlet", {"alpha": -1.0}, "alpha is -1.0"),
        ("shards", {"clients": 21}, r"21 \* 2 = 42, but there are 40 examples"),
        ("iid", {"clients": 0}, "clients is 0"),
        ("iid", {"test_fraction": 1.5}, "test_fraction is 1.5"),
        ("shards", {"label": "z"}, "label is 'z', but toy has no such column, expected one of x, y"),
    ],
)
def test_repartition_refuses(partition, options, match):
    with pytest.raises(ValueError, match=match):
        repartition(federated(), partition, **{"clients": 5} | options)


def test_iid_needs_no_labels():
    data = federated()
    unlabelled = Federated(
        *(ClientData({"x": part.columns["x"]}, part.offsets, part.ids) for part in (data.train, data.test)),
        name="bare",
    )
    assert repartition(unlabelled, clients=4).train.sizes.tolist() == [10] * 4
