"""FedProx's synthetic(alpha, beta): the moments of its law, and sets that were drawn from it elsewhere."""

import gzip
import json

import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.data import synthetic


def joined(data: fs.data.Federated, client: int) -> np.ndarray:
    return np.concatenate([data.train.client(client)["x"], data.test.client(client)["x"]])


def test_sizes_follow_the_log_normal():
    data = synthetic(clients=400, iid=True)
    sizes = data.train.sizes + data.test.sizes
    logs = np.log(sizes - 50 + 0.5)
    assert np.median(logs) == pytest.approx(4, abs=0.3)
    assert logs[sizes > 60].std() > 1.2 and sizes.min() == 50


@pytest.mark.parametrize(("beta", "spread"), [(0.0, 1.0), (1.0, np.sqrt(2)), (3.0, np.sqrt(10))])
def test_features_have_their_covariance_and_their_means(beta, spread):
    data = synthetic(0.0, beta, clients=150)
    means = np.stack([joined(data, client).mean(axis=0) for client in range(150)])
    assert means.std() == pytest.approx(spread, rel=0.2)
    largest = int(np.argmax(data.train.sizes))
    x = joined(data, largest)
    covariance = np.cov(x.T)
    expected = np.arange(1, 61) ** -1.2
    np.testing.assert_allclose(np.diag(covariance), expected, rtol=12 / np.sqrt(len(x)))
    correlation = covariance / np.sqrt(np.outer(expected, expected))
    assert np.abs(correlation - np.eye(60)).max() < 8 / np.sqrt(len(x))


def test_the_same_model_for_all_or_one_for_each():
    """One linear model that fits all clients exists where they are IID, and not where each has its own."""

    def agreement(data):
        """How well the labels of the second half of the clients follow from least squares on the first half."""
        parts = [(data.train.client(c)["x"], data.train.client(c)["y"]) for c in range(40)]
        x, y = (np.concatenate([part[i] for part in parts[:20]]) for i in (0, 1))
        a, b = (np.concatenate([part[i] for part in parts[20:]]) for i in (0, 1))
        one = lambda z: np.concatenate([z, np.ones((len(z), 1))], axis=1)  # noqa: E731
        weights = np.linalg.lstsq(one(x), np.eye(10)[y], rcond=None)[0]
        return np.mean(np.argmax(one(a) @ weights, axis=1) == b)

    assert agreement(synthetic(clients=40, iid=True)) > 0.7 > 0.45 > agreement(synthetic(1, 1, clients=40))


def test_the_seed_makes_the_set():
    first, again, other = synthetic(), synthetic(), synthetic(seed=1)
    np.testing.assert_array_equal(first.train.columns["x"], again.train.columns["x"])
    assert first.name == "synthetic_1_1" and synthetic(iid=True).name == "synthetic_iid"
    assert first.train.num_examples != other.train.num_examples
    assert fs.data.load("synthetic", alpha=0.0, beta=0.0).name == "synthetic_0_0"


@pytest.mark.parametrize(("name", "options"), [("1_1", (1, 1)), ("0_0", (0, 0)), ("iid", (0, 0, 30, True))])
def test_drawn_like_the_published_test_parts(shared, name, options):
    """Features of the test halves that FedProx published: the same spread of client means and of features within."""
    path = shared / "data" / "fedprox_synthetic" / f"synthetic_{name}_mytest.json.gz"
    with gzip.open(path) as stream:
        users = json.load(stream)["user_data"]
    published = [np.array(user["x"]) for user in users.values() if len(user["x"]) >= 20]
    drawn = synthetic(*options[:2], clients=60, iid=len(options) > 2)
    ours = [joined(drawn, client) for client in range(60)]
    deviation = lambda clients: np.mean([x.std(axis=0, ddof=1) for x in clients], axis=0)  # noqa: E731
    np.testing.assert_allclose(deviation(published).mean(), deviation(ours).mean(), rtol=0.06)
    middles = [np.stack([x.mean(axis=0) for x in clients]) for clients in (published, ours)]
    within = [middle.std(axis=1).mean() for middle in middles]
    np.testing.assert_allclose(*within, atol=0.25)


@pytest.mark.parametrize(
    ("options", "match"), [({"alpha": -1.0}, "alpha is -1.0"), ({"clients": 0}, "clients is 0")]
)
def test_what_cannot_be_drawn(options, match):
    with pytest.raises(ValueError, match=match):
        synthetic(**options)
