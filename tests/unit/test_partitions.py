"""Partitions: one battery over all of them, then what is true of each."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given, settings

import fedjax_sim as fs
from fedjax_sim import partitions as p
from fedjax_sim.data.partitions._laws import counts_within, dirichlet_proportions, systematic_counts


def columns_of(labels) -> dict[str, np.ndarray]:
    """Examples that know their row, and a writer for each."""
    labels = np.asarray(labels)
    return {"row": np.arange(len(labels)), "y": labels, "writer": np.arange(len(labels)) // 3}


# --- all of them ---------------------------------------------------------------------------------------------

FAMILY = {
    "iid": lambda clients, alpha, k: p.iid(clients),
    "dirichlet": lambda clients, alpha, k: p.dirichlet(clients, alpha, min_examples=0),
    "dirichlet, minimum": lambda clients, alpha, k: p.dirichlet(clients, alpha, min_examples=1),
    "dirichlet, equal": lambda clients, alpha, k: p.dirichlet(clients, alpha, "equal"),
    "dirichlet, given": lambda clients, alpha, k: p.dirichlet(clients, alpha, [1] * clients),
    "client_dirichlet": lambda clients, alpha, k: p.client_dirichlet(clients, alpha),
    "client_dirichlet, given": lambda clients, alpha, k: p.client_dirichlet(clients, alpha, [1] * clients),
    "shards": lambda clients, alpha, k: p.shards(clients, 1),
    "labels_per_client": lambda clients, alpha, k: p.labels_per_client(clients, k, min_examples=0),
    "power law": lambda clients, alpha, k: p.quantity(clients, "power_law", alpha),
    "log-normal": lambda clients, alpha, k: p.quantity(clients, "log_normal", alpha),
    "quantity dirichlet": lambda clients, alpha, k: p.quantity(clients, "dirichlet", alpha),
    "mixture": lambda clients, alpha, k: p.mixture(p.dirichlet(clients, alpha, min_examples=0), 0.3),
    "natural": lambda clients, alpha, k: p.natural("writer"),
    "grouped": lambda clients, alpha, k: p.grouped("writer", max(1, clients // 3)),
    "hierarchical": lambda clients, alpha, k: p.hierarchical(p.natural("writer"), p.dirichlet(2, alpha, min_examples=0)),
}  # fmt: skip
DROPS = {"dirichlet, given", "client_dirichlet, given", "labels_per_client"}


def check(name: str, labels, clients: int, alpha: float, k: int, seed: int) -> fs.partitions.Partition:
    """What is true of every partition; it also must end."""
    columns, make = columns_of(labels), FAMILY[name](clients, alpha, k)
    partition = make(columns, seed)
    examples = len(columns["row"])
    assert partition.owner.shape == (examples,) and partition.owner.dtype == np.int64
    assert partition.owner.min() >= -1 and partition.owner.max() < partition.num_clients
    assert partition.repaired.shape == partition.sizes.shape == (partition.num_clients,)
    assert partition.sizes.sum() + len(partition.dropped) == examples
    if name not in DROPS:
        assert not len(partition.dropped)
    assert (len(partition.dropped) > 0) == any("belong to nobody" in said for said in partition.remarks())
    # Dealt out, every example is at one client at most, whole, and a client's keep their order.
    data = partition.deal(columns)
    assert data.num_clients == partition.num_clients
    np.testing.assert_array_equal(data.sizes, partition.sizes)
    rows = data.columns["row"]
    assert sorted(rows) == sorted(np.setdiff1d(np.arange(examples), partition.dropped))
    np.testing.assert_array_equal(data.columns["y"], columns["y"][rows])
    assert all(
        (np.diff(rows[a:b]) > 0).all() for a, b in zip(data.offsets[:-1], data.offsets[1:], strict=True)
    )
    np.testing.assert_array_equal(make(columns, seed).owner, partition.owner)
    return partition


@settings(max_examples=40)
@given(
    labels=st.lists(st.integers(-2, 4), min_size=1, max_size=120),
    share=st.floats(0, 1),
    log_alpha=st.floats(-308, 308.2),
    k=st.integers(1, 7),
    seed=st.integers(0, 3),
)
@example([0] * 100, 1.0, -300.0, 1, 0)
@example([0, 1] * 50, 1.0, 308.2, 2, 0)
@pytest.mark.parametrize("name", FAMILY)
def test_every_partition_keeps_every_example_once(name, labels, share, log_alpha, k, seed):
    clients = max(1, int(share * len(labels)))
    k = min(k, len(set(labels)))
    check(name, labels, clients, 10.0**log_alpha, k, seed)


@pytest.mark.parametrize("name", FAMILY)
def test_extreme_settings_end(name):
    """500 clients, alpha 0.01, 10 labels."""
    labels = np.random.default_rng(0).integers(0, 10, 3000)
    partition = check(name, labels, 500, 0.01, 10, 0)
    other = FAMILY[name](500, 0.01, 10)(columns_of(labels), 1)
    assert name == "natural" or partition.owner.tolist() != other.owner.tolist()


@pytest.mark.parametrize("name", FAMILY)
def test_no_examples_are_refused(name):
    with pytest.raises(ValueError, match="there are no examples"):
        FAMILY[name](3, 0.3, 1)(columns_of(np.zeros(0, int)), 0)


LABELLED = {
    "dirichlet": p.dirichlet(3),
    "client_dirichlet": p.client_dirichlet(3),
    "shards": p.shards(3),
    "labels_per_client": p.labels_per_client(3),
}


@pytest.mark.parametrize("name", LABELLED)
def test_labels_are_one_integer_for_each_example(name):
    with pytest.raises(ValueError, match="label is 'y', but there is no such column, expected one of x"):
        LABELLED[name]({"x": np.zeros(10)}, 0)
    with pytest.raises(TypeError, match=r"column 'y' is float64\[10\], expected one integer label per"):
        LABELLED[name]({"y": np.zeros(10)}, 0)
    with pytest.raises(TypeError, match=r"column 'y' is int64\[10, 2\]"):
        LABELLED[name]({"y": np.zeros((10, 2), int)}, 0)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: p.iid(0), "clients is 0, expected an integer of at least 1"),
        (lambda: p.quantity(5, "gauss"), "law is 'gauss', expected one of 'power_law'"),
        (lambda: p.quantity(5, shape=0.0), "shape is 0.0, expected a finite number above 0"),
        (lambda: p.quantity(5, min_examples=-1), "min_examples is -1, expected an integer, 0 or above"),
        (lambda: p.dirichlet(5, 0.0), "alpha is 0.0, expected a finite number above 0"),
        (lambda: p.dirichlet(5, float("nan")), "alpha is nan"),
        (lambda: p.dirichlet(5, min_examples=1.5), "min_examples is 1.5"),
        (lambda: p.dirichlet(5, sizes="even"), "sizes is 'even', expected one of 'free', 'equal'"),
        (lambda: p.client_dirichlet(5, sizes="free"), "sizes is 'free', expected one of 'equal'"),
        (lambda: p.shards(3, 1.5), "shards_per_client is 1.5"),
        (lambda: p.labels_per_client(3, 0), "labels_per_client is 0"),
        (lambda: p.mixture(p.iid(3), 1.0), r"iid_fraction is 1.0, expected a number in \(0, 1\)"),
        (lambda: p.grouped("writer", 0), "clients is 0"),
    ],
)
def test_settings_are_checked_when_they_are_given(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (p.dirichlet(11), r"clients \* min_examples is 11 \* 1 = 11, but there are 10 .*fewer clients"),
        (p.quantity(3, min_examples=4), r"3 \* 4 = 12, but there are 10"),
        (p.dirichlet(2, sizes=[9, 2]), "sizes sum to 11, but there are 10 examples"),
        (p.dirichlet(4, sizes=[2**62] * 4), f"sizes sum to {2**64}, but there are 10 examples"),
        (p.client_dirichlet(4, sizes=[2**62] * 4), f"sizes sum to {2**64}, but there are 10 examples"),
        (p.dirichlet(2, sizes=[9]), r"sizes is int64\[1\], expected 'equal' or 2 integers"),
        (p.client_dirichlet(2, sizes=[9, -1]), "none below 0"),
        (p.shards(6, 2), r"clients \* shards_per_client is 6 \* 2 = 12, but there are 10"),
        (p.labels_per_client(3, 11), "labels_per_client is 11, but column 'y' has 10 labels"),
        (p.natural("z"), "by is 'z', but there is no such column"),
        (p.grouped("writer", 5), "clients is 5, but column 'writer' has 4 different values"),
        (p.hierarchical(p.iid(5), p.dirichlet(3)), "5 edges .*at least 3 examples .* 15, but there are 10"),
        (p.mixture(p.dirichlet(4, min_examples=3), 0.5), r"4 \* 3 = 12, but there are 10"),
    ],
)
def test_sets_that_do_not_suffice_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make(columns_of(np.arange(10)), 0)


# --- each of them --------------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 3))
def test_iid_is_even(examples, clients, seed):
    sizes = p.iid(clients)({"x": np.zeros(examples)}, seed).sizes
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("alpha", [1e-300, 1e-3, 0.1, 1.0, 100.0, 1e6, 1e300])
def test_proportions_sum_to_one(alpha):
    for seed in range(20):
        proportions = dirichlet_proportions(np.random.default_rng(seed), np.full(30, alpha))
        assert np.isfinite(proportions).all() and (proportions >= 0).all()
        assert proportions.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("alpha", [(0.05,) * 4, (0.5,) * 4, (3.0,) * 4, (0.2, 1.0, 2.0, 0.05)])
def test_proportions_have_the_moments_of_the_law(alpha):
    generator, total = np.random.default_rng(0), sum(alpha)
    draws = np.stack([dirichlet_proportions(generator, np.array(alpha)) for _ in range(20_000)])
    mean = np.array(alpha) / total
    variance = mean * (1 - mean) / (total + 1)
    np.testing.assert_allclose(draws.mean(0), mean, atol=5 * np.sqrt(variance.max() / len(draws)))
    np.testing.assert_allclose(draws.var(0), variance, rtol=0.06)


def test_counts_are_right_on_average():
    generator = np.random.default_rng(0)
    proportions = np.array([0.03, 0.5, 0.0, 0.07, 0.4])
    counts = np.stack([systematic_counts(proportions, 10, generator) for _ in range(20_000)])
    assert (counts.sum(1) == 10).all() and (counts >= 0).all()
    assert (np.abs(counts - 10 * proportions) < 1).all()
    np.testing.assert_allclose(counts.mean(0), 10 * proportions, atol=0.02)


def test_counts_stay_within_their_room():
    room = np.array([0, 3, 50, 4, 0])
    counts = counts_within(np.array([0.5, 0.4, 0.0, 0.1, 0.0]), 20, room, np.random.default_rng(0))
    assert counts.tolist() == [
        0,
        3,
        13,
        4,
        0,
    ]  # the third has no share of the draw, but room for what is left


def test_alpha_decides_how_alike_clients_are():
    columns = columns_of(np.repeat(np.arange(10), 500))

    def share_of_the_commonest_label(make):
        owner = make(columns, 0).owner
        counts = np.stack([np.bincount(columns["y"][owner == client], minlength=10) for client in range(20)])
        return (counts.max(1) / counts.sum(1)).mean()

    # Where each client draws its examples, chance alone makes one of ten labels the commonest of 250.
    assert share_of_the_commonest_label(p.client_dirichlet(20, 1e6)) == pytest.approx(0.13, abs=0.02)
    assert share_of_the_commonest_label(p.dirichlet(20, 1e6)) == pytest.approx(0.1, abs=0.01)
    for make in (p.dirichlet(20, 0.05), p.dirichlet(20, 0.05, "equal"), p.client_dirichlet(20, 0.05)):
        assert share_of_the_commonest_label(make) > 0.6


def test_few_examples_of_a_label_do_not_favour_clients():
    # 2 examples of each of 400 labels over 8 clients, proportions all but equal: 100 each, give or take chance.
    sizes = p.dirichlet(8, 1e6, min_examples=0)(columns_of(np.repeat(np.arange(400), 2)), 0).sizes
    assert sizes.min() > 60


def test_repairs_are_reported():
    columns = columns_of(np.zeros(100, int))
    before = p.dirichlet(10, 1e-3, min_examples=0)(columns, 0)
    partition = p.dirichlet(10, 1e-3, min_examples=3)(columns, 0)
    assert before.sizes.max() == 100 and before.remarks() == ()
    assert partition.repaired.tolist() == np.maximum(3 - before.sizes, 0).tolist()
    assert sorted(partition.sizes) == [3] * 9 + [73]
    assert partition.remarks() == ("27 examples were moved to 9 clients below the minimum.",)
    assert not p.dirichlet(10, 1e6)(columns, 0).repaired.any()


INNER = {
    "dirichlet": p.dirichlet(4, 0.1, min_examples=3),
    "quantity": p.quantity(4, min_examples=3),
    "labels_per_client": p.labels_per_client(4, 1, min_examples=3),
    "shards": p.shards(4, 3),
    "sizes": p.dirichlet(4, 0.1, sizes=[3] * 4),
    "client_dirichlet": p.client_dirichlet(4, 0.1, sizes=[3] * 4),
    "mixture": p.mixture(p.dirichlet(4, 0.1, min_examples=3), 0.9),
    "mixture of shards": p.mixture(p.shards(4, 1), 0.6),
    "iid": p.iid(12),
}


@pytest.mark.parametrize("name", INNER)
def test_edges_with_too_few_examples_for_their_clients_are_repaired(name):
    columns = columns_of(np.zeros(100, int))
    edges = p.dirichlet(5, 1e-3, min_examples=0)
    before = edges(columns, 0).sizes
    tree = p.hierarchical(edges, INNER[name])(columns, 0)
    assert before.min() == 0 and len(set(tree.edges[tree.owner[tree.owner >= 0]])) == 5
    if name not in ("iid", "mixture of shards"):
        assert tree.repaired_edges.tolist() == np.maximum(12 - before, 0).tolist()
        assert tree.sizes.min() == 3
    assert "were moved to" in tree.remarks()[0] and "edges below" in tree.remarks()[0]


def test_the_minimum_of_a_mixture_is_one_of_both_shares_together():
    columns = columns_of(np.zeros(200, int))
    skewed = p.dirichlet(10, 1e-3, min_examples=12)
    partition = p.mixture(skewed, 0.5)(columns, 0)  # the hundred of the rest would not do
    assert sorted(partition.sizes) == [12] * 8 + [20, 84]
    assert sorted(partition.repaired) == [0] * 2 + [2] * 8
    assert partition.remarks() == ("16 examples were moved to 8 clients below the minimum.",)
    assert p.mixture(p.dirichlet(200, min_examples=1), 0.99)(columns, 0).sizes.tolist() == [1] * 200
    twice = p.mixture(p.mixture(skewed, 0.5), 0.5)(columns, 0)
    assert twice.sizes.min() >= 12


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("seed", range(5))
def test_a_mixture_loses_no_client_that_a_column_names(fraction, seed):
    writers = np.array([7, *np.repeat([1, 2, 3], 40), 9, 8])
    columns = {"writer": writers, "domain": writers // 4, "y": np.zeros(len(writers), int)}
    partition = p.mixture(p.natural("writer"), fraction)(columns, seed)
    assert partition.ids.tolist() == [1, 2, 3, 7, 8, 9]
    for client, name in enumerate(partition.ids):
        assert name in writers[partition.owner == client]
    tree = p.hierarchical(p.natural("domain"), p.natural("writer"))
    mixed = p.mixture(tree, fraction)(columns, seed)
    assert mixed.edges.tolist() == tree(columns, seed).edges.tolist()
    mixed.deal(columns)


def test_repairs_of_edges_are_reported():
    columns = columns_of(np.zeros(100, int))
    edges = p.dirichlet(10, 1e-3, min_examples=3)
    tree = p.hierarchical(edges, p.dirichlet(2, 1e-3))(columns, 0)
    assert (
        tree.repaired_edges is not None
        and tree.repaired_edges.tolist() == edges(columns, 0).repaired.tolist()
    )
    said = "27 examples were moved to 9 edges below the minimum."
    assert tree.repaired.any() and tree.remarks()[0] == said and "clients below" in tree.remarks()[1]
    assert p.hierarchical(edges, p.iid(2))(columns, 0).remarks() == (said,)


@given(
    labels=st.lists(st.integers(-2, 4), min_size=1, max_size=200),
    share=st.floats(0, 1),
    min_examples=st.integers(0, 5),
    log_alpha=st.floats(-308, 300),
    seed=st.integers(0, 3),
)
@example([0, 1] * 50, 1.0, 5, -320.0, 0)
def test_nobody_is_given_more_than_was_missing(labels, share, min_examples, log_alpha, seed):
    clients = max(1, int(share * len(labels) / max(min_examples, 1)))
    min_examples = min(min_examples, len(labels) // clients)
    partition = p.dirichlet(clients, 10.0**log_alpha, min_examples=min_examples)(columns_of(labels), seed)
    assert partition.sizes.min() >= min_examples
    assert (partition.sizes[partition.repaired > 0] == min_examples).all()


@pytest.mark.parametrize("law", [p.dirichlet, p.client_dirichlet])
def test_sizes_are_those_that_were_asked_for(law):
    columns = columns_of(np.random.default_rng(0).integers(0, 10, 1000))
    equal = law(7, 0.1, "equal")(columns, 0).sizes
    assert equal.sum() == 1000 and equal.max() - equal.min() == 1
    wanted = [500, 0, 100, 7]
    partition = law(4, 0.1, wanted)(columns, 0)
    assert partition.sizes.tolist() == wanted
    assert partition.remarks() == ("393 of 1,000 examples belong to nobody and are left out.",)


def test_what_is_left_out_is_drawn_at_random():
    """The labels of those who stay are those of all, whatever the order in which labels are dealt."""
    columns = columns_of(np.repeat(np.arange(4), 1000))
    kept = p.dirichlet(4, 0.1, [250] * 4)(columns, 0).deal(columns)
    assert np.bincount(kept.columns["y"]).min() > 200


def test_shards_of_the_paper():
    columns = columns_of(np.repeat(np.arange(10), 6_000))
    owner = p.shards(100, 2)(columns, 1).owner
    assert (np.bincount(owner) == 600).all()
    assert {len(np.unique(columns["y"][owner == client])) for client in range(100)} == {1, 2}
    # Within a label the examples are shuffled: a client's are no stretch of the file.
    assert (np.diff(np.flatnonzero(owner == 0)) > 1).mean() > 0.5


@given(
    labels=st.lists(st.integers(-2, 4), min_size=1, max_size=200),
    share=st.floats(0, 1),
    shards_per_client=st.integers(1, 5),
    seed=st.integers(0, 3),
)
@example([0] * 7, 1.0, 2, 0)
def test_shards_are_runs_of_the_sorted_labels(labels, share, shards_per_client, seed):
    shards_per_client = min(shards_per_client, len(labels))
    clients = max(1, int(share * (len(labels) // shards_per_client)))
    labels = np.array(labels)
    partition = p.shards(clients, shards_per_client)(columns_of(labels), seed)
    assert partition.sizes.max() - partition.sizes.min() <= shards_per_client
    shard_size = len(labels) // (clients * shards_per_client)
    smallest = np.bincount(labels - labels.min())
    if shard_size and smallest[smallest > 0].min() >= shard_size + 1:  # no shard then holds three labels
        for client in range(clients):
            assert len(np.unique(labels[partition.owner == client])) <= 2 * shards_per_client


@given(st.integers(1, 40), st.integers(1, 10), st.integers(0, 3))
def test_every_label_has_as_many_clients(clients, k, seed):
    columns = columns_of(np.repeat(np.arange(10), 50))
    partition = p.labels_per_client(clients, k)(columns, seed)
    data = partition.deal(columns)
    sets = [set(data.client(client)["y"].tolist()) for client in range(clients)]
    assert {len(mine) for mine in sets} == {k}
    holders = [sum(label in mine for mine in sets) for label in range(10)]
    assert max(holders) - min(holders) <= 1
    assert len(partition.dropped) == 50 * sum(count == 0 for count in holders)


def test_sizes_follow_their_law():
    """The logarithms of the relative sizes: exponential over the exponent, or normal with the given deviation."""
    columns = {"x": np.zeros(10_000_000, np.uint8)}
    logs = np.log(p.quantity(2000, "power_law", 2.0, min_examples=0)(columns, 0).sizes)
    assert (logs - logs.min()).mean() == pytest.approx(1 / 2, rel=0.1)
    logs = np.log(p.quantity(2000, "log_normal", 0.7, min_examples=0)(columns, 0).sizes)
    assert logs.std() == pytest.approx(0.7, rel=0.05)
    sizes = p.quantity(2000, "dirichlet", 1.0, min_examples=0)(columns, 0).sizes  # exponential
    assert sizes.std() / sizes.mean() == pytest.approx(1.0, rel=0.1)


def test_a_mixture_has_both_parts():
    columns = columns_of(np.repeat(np.arange(10), 100))
    data = p.mixture(p.shards(10, 1), 0.5)(columns, 0).deal(columns)
    for client in range(10):
        counts = np.bincount(data.client(client)["y"], minlength=10)
        assert counts.sum() == 100
        assert counts.max() > 40  # half of the examples are of one label, or of two neighbours
        assert np.count_nonzero(counts) >= 9


def test_natural_clients_have_their_names():
    columns = {"x": np.arange(4), "writer": np.array(["bo", "ann", "bo", "cy"])}
    data = p.natural("writer")(columns, 0).deal({"x": columns["x"]})  # no device holds text
    assert data.ids.tolist() == ["ann", "bo", "cy"] and data.client("bo")["x"].tolist() == [0, 2]


def test_writers_stay_together_in_groups():
    columns = columns_of(np.zeros(90, int))
    owner = p.grouped("writer", 7)(columns, 0).owner
    assert all(len(set(owner[columns["writer"] == writer])) == 1 for writer in range(30))
    writers = [len(set(columns["writer"][owner == client])) for client in range(7)]
    assert max(writers) - min(writers) == 1


def test_clients_inside_edges_hold_what_their_edge_holds():
    columns = columns_of(np.repeat(np.arange(6), 40))
    outer, seed = p.shards(3, 2), 4
    tree = p.hierarchical(outer, p.iid(5))(columns, seed)
    assert tree.edges.tolist() == np.repeat(np.arange(3), 5).tolist()
    np.testing.assert_array_equal(tree.edges[tree.owner], outer(columns, seed).owner)
    assert tree.sizes.tolist() == [16] * 15
