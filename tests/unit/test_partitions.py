import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given

from fedjax_sim.data import dirichlet, iid, shards
from fedjax_sim.data.partitions import _proportions, _systematic_counts


@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 3))
def test_iid_is_even(num_examples, clients, seed):
    partition = iid(num_examples, clients, seed)
    sizes = np.bincount(partition.owner, minlength=clients)
    assert partition.owner.shape == (num_examples,) and sizes.shape == (clients,)
    assert sizes.max() - sizes.min() <= 1
    assert not partition.repaired.any()


@given(
    labels=st.lists(st.integers(-2, 4), min_size=1, max_size=200),
    share=st.floats(0, 1),
    min_examples=st.integers(0, 5),
    log_alpha=st.floats(-308, 300),
    seed=st.integers(0, 3),
)
@example([0] * 100, 1.0, 1, -3.0, 0)
@example([0, 1] * 50, 1.0, 5, 6.0, 0)
@example([0, 1] * 50, 1.0, 5, -320.0, 0)
def test_dirichlet_ends_and_gives_every_client_enough(labels, share, min_examples, log_alpha, seed):
    clients = max(1, int(share * len(labels) / max(min_examples, 1)))
    min_examples = min(min_examples, len(labels) // clients)
    partition = dirichlet(np.array(labels), clients, 10.0**log_alpha, seed, min_examples)
    assert partition.owner.shape == (len(labels),)
    assert partition.owner.min() >= 0
    sizes = np.bincount(partition.owner, minlength=clients)
    assert sizes.shape == (clients,)
    assert sizes.min() >= min_examples
    # Who was given something ends with exactly the minimum: nobody gets more than was missing.
    assert (sizes[partition.repaired > 0] == min_examples).all()


@pytest.mark.parametrize("alpha", [1e-300, 1e-3, 0.1, 1.0, 100.0, 1e6, 1e300])
def test_proportions_sum_to_one(alpha):
    for seed in range(20):
        proportions = _proportions(np.random.default_rng(seed), 30, alpha)
        assert np.isfinite(proportions).all() and (proportions >= 0).all()
        assert proportions.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("alpha", [0.05, 0.5, 3.0])
def test_proportions_have_the_moments_of_the_law(alpha):
    clients, rng = 4, np.random.default_rng(0)
    draws = np.stack([_proportions(rng, clients, alpha) for _ in range(20_000)])
    variance = (clients - 1) / (
        clients**2 * (clients * alpha + 1)
    )  # of one coordinate of Dir(alpha, ..., alpha)
    np.testing.assert_allclose(draws.mean(0), 1 / clients, atol=5 * np.sqrt(variance / len(draws)))
    np.testing.assert_allclose(draws.var(0), variance, rtol=0.05)


def test_counts_are_right_on_average():
    rng = np.random.default_rng(0)
    proportions = np.array([0.03, 0.5, 0.0, 0.07, 0.4])
    counts = np.stack([_systematic_counts(proportions, 10, rng) for _ in range(20_000)])
    assert (counts.sum(1) == 10).all() and (counts >= 0).all()
    assert (np.abs(counts - 10 * proportions) < 1).all()
    np.testing.assert_allclose(counts.mean(0), 10 * proportions, atol=0.02)


def test_alpha_decides_how_alike_clients_are():
    labels = np.repeat(np.arange(10), 500)

    def share_of_the_commonest_label(alpha):
        owner = dirichlet(labels, 20, alpha, seed=0, min_examples=10).owner
        counts = np.stack([np.bincount(labels[owner == client], minlength=10) for client in range(20)])
        return (counts.max(1) / counts.sum(1)).mean()

    assert share_of_the_commonest_label(1e6) == pytest.approx(0.1, abs=0.01)
    assert share_of_the_commonest_label(0.05) > 0.6


def test_few_examples_of_a_label_do_not_favour_clients():
    # 2 examples of each of 400 labels over 8 clients, proportions all but equal: 100 each, give or take chance.
    sizes = np.bincount(
        dirichlet(np.repeat(np.arange(400), 2), 8, 1e6, seed=0, min_examples=0).owner, minlength=8
    )
    assert sizes.min() > 60


def test_repairs_are_reported():
    labels = np.zeros(100, int)
    before = np.bincount(dirichlet(labels, 10, 1e-3, seed=0, min_examples=0).owner, minlength=10)
    partition = dirichlet(labels, 10, 1e-3, seed=0, min_examples=3)
    after = np.bincount(partition.owner, minlength=10)
    assert before.max() == 100
    assert partition.repaired.tolist() == np.maximum(3 - before, 0).tolist()
    assert sorted(after) == [3] * 9 + [73]
    assert not dirichlet(labels, 10, 1e6, seed=0).repaired.any()


def test_partitions_follow_the_seed():
    labels = np.repeat([0, 1], 100)
    for make in (lambda seed: dirichlet(labels, 5, 0.5, seed), lambda seed: iid(200, 5, seed)):
        assert make(0).owner.tolist() == make(0).owner.tolist() != make(1).owner.tolist()


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        (
            {"clients": 11},
            ValueError,
            r"clients \* min_examples is 11 \* 1 = 11, but there are 10 .*fewer clients",
        ),
        ({"min_examples": 4}, ValueError, r"3 \* 4 = 12, but there are 10"),
        ({"min_examples": -1}, ValueError, "min_examples is -1"),
        ({"min_examples": 1.5}, ValueError, "min_examples is 1.5"),
        ({"clients": 0}, ValueError, "clients is 0, expected an integer of at least 1"),
        ({"alpha": 0.0}, ValueError, "alpha is 0.0, expected a finite number above 0"),
        ({"alpha": float("nan")}, ValueError, "alpha is nan"),
        ({"labels": np.zeros(10)}, TypeError, r"labels is float64\[10\], expected integers"),
        ({"labels": np.zeros((10, 2), int)}, TypeError, r"labels is int64\[10, 2\]"),
    ],
)
def test_dirichlet_refuses(changes, error, match):
    with pytest.raises(error, match=match):
        dirichlet(**{"labels": np.arange(10), "clients": 3, "alpha": 1.0, "seed": 0} | changes)


@given(
    labels=st.lists(st.integers(-2, 4), min_size=1, max_size=200),
    share=st.floats(0, 1),
    shards_per_client=st.integers(1, 5),
    seed=st.integers(0, 3),
)
@example([0] * 7, 1.0, 2, 0)
def test_shards_give_every_example_one_owner(labels, share, shards_per_client, seed):
    shards_per_client = min(shards_per_client, len(labels))
    clients = max(1, int(share * (len(labels) // shards_per_client)))
    labels = np.array(labels)
    partition = shards(labels, clients, shards_per_client, seed)
    assert partition.owner.shape == labels.shape and partition.owner.min() >= 0
    sizes = np.bincount(partition.owner, minlength=clients)
    assert sizes.shape == (clients,) and sizes.max() - sizes.min() <= shards_per_client
    assert not partition.repaired.any()
    # In the sorted order, a client's examples are runs of whole shards: it has few labels.
    shard_size = len(labels) // (clients * shards_per_client)
    smallest = np.bincount(labels - labels.min())
    if shard_size and smallest[smallest > 0].min() >= shard_size + 1:  # no shard then holds three labels
        for client in range(clients):
            assert len(np.unique(labels[partition.owner == client])) <= 2 * shards_per_client


def test_shards_of_the_paper():
    labels = np.repeat(np.arange(10), 6_000)
    owner = shards(labels, clients=100, shards_per_client=2, seed=1).owner
    assert (np.bincount(owner) == 600).all()
    kinds = [len(np.unique(labels[owner == client])) for client in range(100)]
    assert set(kinds) == {1, 2}
    # Within a label the examples are shuffled: a client's are no stretch of the file.
    rows = np.flatnonzero(owner == 0)
    assert (np.diff(rows) > 1).mean() > 0.5
    assert owner.tolist() != shards(labels, clients=100, shards_per_client=2, seed=2).owner.tolist()
    assert owner.tolist() == shards(labels, clients=100, shards_per_client=2, seed=1).owner.tolist()


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        (
            {"clients": 6},
            ValueError,
            r"clients \* shards_per_client is 6 \* 2 = 12, but there are 10 .*fewer clients",
        ),
        ({"clients": 0}, ValueError, "clients is 0, expected an integer of at least 1"),
        ({"shards_per_client": 0}, ValueError, "shards_per_client is 0"),
        ({"shards_per_client": 1.5}, ValueError, "shards_per_client is 1.5"),
        ({"labels": np.zeros(10)}, TypeError, r"labels is float64\[10\], expected integers"),
    ],
)
def test_shards_refuse(changes, error, match):
    with pytest.raises(error, match=match):
        shards(**{"labels": np.arange(10), "clients": 3, "shards_per_client": 2, "seed": 0} | changes)


@pytest.mark.parametrize(("num_examples", "clients"), [(0, 3), (3, 0)])
def test_iid_refuses(num_examples, clients):
    with pytest.raises(ValueError, match="is 0, expected an integer of at least 1"):
        iid(num_examples, clients, seed=0)
