"""Features that differ between clients, parties that share examples, and what is held out of training."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from fedjax_sim import data as d
from fedjax_sim import partitions


def images(dtype=np.uint8) -> d.ClientData:
    x = np.random.default_rng(0).integers(60, 190, (60, 4, 4, 1)).astype(dtype)
    return d.ClientData({"x": x, "y": np.arange(60)}, [0, 20, 20, 50, 60], ids=["ann", "bo", "cy", "di"])


# --- noise ---------------------------------------------------------------------------------------------------


def test_noise_grows_from_client_to_client():
    data = d.ClientData({"x": np.zeros((9000, 5), np.float32)}, [0, 3000, 6000, 9000], ids=[0, 1, 2])
    noisy = d.feature_noise(data, std=0.4, seed=1)
    stds = [noisy.client(client)["x"].std() for client in range(3)]
    assert stds[0] == 0
    np.testing.assert_allclose(stds[1:], [0.2, 0.4], rtol=0.03)
    assert noisy.columns["x"].dtype == np.float32
    np.testing.assert_array_equal(noisy.columns["x"], d.feature_noise(data, std=0.4, seed=1).columns["x"])
    assert not np.array_equal(noisy.columns["x"], d.feature_noise(data, std=0.4, seed=2).columns["x"])


def test_noisy_images_stay_images():
    before = images()
    noisy = d.feature_noise(before, std=1000.0, seed=0)
    assert noisy.columns["x"].dtype == np.uint8 and set(noisy.client("di")["x"].ravel()) > {0, 255}
    np.testing.assert_array_equal(noisy.client("ann")["x"], before.client("ann")["x"])
    assert noisy.columns["y"] is before.columns["y"] and noisy.ids.tolist() == before.ids.tolist()


# --- rotation ------------------------------------------------------------------------------------------------


def test_a_client_is_turned_as_a_whole():
    before = images()
    turned, cluster = d.rotated(before, (0, 1, 2, 3), seed=3)
    assert sorted(cluster) == [0, 1, 2, 3]
    for client, turns in enumerate(cluster):
        old, new = before.client(client)["x"], turned.client(client)["x"]
        np.testing.assert_array_equal(new, [np.rot90(image, turns) for image in old] if len(old) else old)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: d.feature_noise(images(), 0.0, 0), "std is 0.0"),
        (
            lambda: d.feature_noise(images(), 1.0, 0, "z"),
            "column is 'z', but there is no such column, expected one of x, y",
        ),
        (lambda: d.rotated(images(), column="y"), r"column 'y' has shape \[60\], expected square images"),
        (lambda: d.rotated(images(), ()), r"quarter_turns is \(\), expected integers, at least one"),
        (lambda: d.rotated(images(), (0, 1.5)), r"quarter_turns is \(0, 1.5\), expected integers"),  # pyright: ignore
    ],
)
def test_skews_refuse(call, match):
    with pytest.raises(ValueError, match=match):
        call()


# --- parties -------------------------------------------------------------------------------------------------


@given(st.integers(1, 20), st.integers(1, 20), st.one_of(st.none(), st.integers(0, 3)))
def test_every_feature_has_one_party(features, parties, seed):
    parties = min(parties, features)
    columns = {"x": np.arange(3 * features).reshape(3, features), "y": np.arange(3), "who": np.arange(3)}
    split = d.vertical(columns, parties, seed)
    assert sorted(np.concatenate([party.features for party in split])) == list(range(features))
    assert max(len(p.features) for p in split) - min(len(p.features) for p in split) <= 1
    for index, party in enumerate(split):
        np.testing.assert_array_equal(party.columns["x"], columns["x"][:, party.features])
        assert list(party.columns) == (["x", "y", "who"] if index == 0 else ["x"])


def test_shares_may_be_an_array():
    columns = {"x": np.zeros((5, 7))}
    assert [p.columns["x"].shape[1] for p in d.vertical(columns, np.array([3, 4]))] == [3, 4]


@pytest.mark.parametrize(
    ("parties", "column", "match"),
    [
        (0, "x", "parties is 0"),
        (8, "x", "parties is 8, but there are 7 features"),
        ([3, 3], "x", "parties have 6 features together, but there are 7"),
        ([7, 0], "x", "expected how many features each has"),
        (2, "z", "column is 'z', but there is no such column, expected one of x, y"),
        (2, "y", r"column 'y' has shape \[5\], expected \[examples, ..., features\]"),
    ],
)
def test_vertical_refuses(parties, column, match):
    with pytest.raises(ValueError, match=match):
        d.vertical({"x": np.zeros((5, 7)), "y": np.zeros(5)}, parties, column=column)


# --- held out ------------------------------------------------------------------------------------------------


def federated() -> d.Federated:
    place = np.random.default_rng(0).integers(0, 3, 200)
    columns = {"row": np.arange(200), "place": place}
    clients = partitions.iid(5)(columns, 0).deal(columns)
    return d.Federated(*d.split(clients, 0.3, 0), name="toy")


def test_public_examples_leave_the_clients():
    before = federated()
    private, public = d.holdout_public(before, 0.25, seed=1)
    assert len(public["row"]) == round(0.25 * before.train.num_examples)
    both = np.concatenate([private.train.columns["row"], public["row"]])
    assert sorted(both) == sorted(before.train.columns["row"])
    assert private.test is before.test and private.train.ids.tolist() == before.train.ids.tolist()
    np.testing.assert_array_equal(d.holdout_public(before, 0.25, seed=1)[1]["row"], public["row"])
    with pytest.raises(ValueError, match="fraction is 1, expected a number in"):
        d.holdout_public(before, 1, seed=1)


def test_a_domain_is_for_testing_alone():
    before = federated()
    after = d.holdout_domain(before, "place", 2)
    assert set(after.train.columns["place"]) == {0, 1} and set(after.test.columns["place"]) == {2}
    everything = np.concatenate([before.train.columns["row"], before.test.columns["row"]])
    places = np.concatenate([before.train.columns["place"], before.test.columns["place"]])
    assert sorted(after.test.columns["row"]) == sorted(everything[places == 2])
    for client in range(5):  # an example stays with its client
        old = {*before.train.client(client)["row"], *before.test.client(client)["row"]}
        assert {*after.train.client(client)["row"], *after.test.client(client)["row"]} <= old


@pytest.mark.parametrize(
    ("by", "domain", "match"),
    [
        ("city", 0, "by is 'city', but there is no such column, expected one of row, place"),
        ("place", 7, "column 'place' has 0 examples of domain 7"),
    ],
)
def test_domains_that_are_not_there(by, domain, match):
    with pytest.raises(ValueError, match=match):
        d.holdout_domain(federated(), by, domain)
