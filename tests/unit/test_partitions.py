import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given

from fedjax_sim.data import dirichlet, iid
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


@pytest.mark.parametrize(("num_examples", "clients"), [(0, 3), (3, 0)])
def test_iid_refuses(num_examples, clients):
    with pytest.raises(ValueError, match="is 0, expected an integer of at least 1"):
        iid(num_examples, clients, seed=0)
