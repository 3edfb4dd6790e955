"""Clients that are made when they are wanted: which of them are, selected, divided and held out."""

import tracemalloc

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_sim.data import ClientData, ClientSource, glyphs, holdout_clients, split

SIZES = (3, 0, 1, 7, 2, 12)
IDS = ["ann", "bo", "cy", "di", "ed", "flo"]


class Rows(ClientSource):
    """Client ``i`` has rows that no other has; ``asked`` are the clients that were made."""

    def __init__(self, sizes=SIZES, ids=None):
        super().__init__(np.array(sizes), {"row": jax.ShapeDtypeStruct((2,), np.int32)}, ids)
        self.asked = []

    def make(self, client):
        self.asked.append(client)
        rows = self.offsets[client] + np.arange(self.sizes[client])
        return {"row": np.stack([rows, rows], axis=1).astype(np.int32)}


def assert_same(source: ClientSource, data: ClientData):
    np.testing.assert_array_equal(source.ids, data.ids)
    np.testing.assert_array_equal(source.sizes, data.sizes)
    np.testing.assert_array_equal(source.in_memory.columns["row"], data.columns["row"])
    assert source.columns["row"].shape == data.columns["row"].shape and source.nbytes == data.nbytes
    for position in range(data.num_clients):
        np.testing.assert_array_equal(source.client(position)["row"], data.client(position)["row"])


@pytest.mark.parametrize("clients", [[4, 0], ["flo", "ann"], np.array(SIZES) > 1, range(6), np.array([5])])
def test_a_selection_is_that_of_the_same_clients_in_memory(clients):
    source = Rows(ids=IDS)
    chosen = source.select(clients)
    assert isinstance(chosen, ClientSource) and source.asked == []
    assert_same(chosen, source.in_memory.select(clients))


def test_a_selection_of_a_selection():
    source = Rows(ids=IDS)
    chosen = source.select([5, 3, 1, 0]).select(["ann", "di", "flo"])
    assert_same(chosen, source.in_memory.select([0, 3, 5]))
    assert chosen.index("di") == 1 and repr(chosen) == "Selection(3 clients with 22 examples)"
    source.asked.clear()
    chosen.client("flo")
    assert source.asked == [5]


@pytest.mark.parametrize(
    ("clients", "error", "match"),
    [
        ([6], IndexError, "client 6 is out of range"),
        ([], ValueError, "names no client"),
        ([1, 1], ValueError, "'bo' more than once"),
        (["gus"], ValueError, "no client has the id 'gus'"),
        ([True], ValueError, r"clients is bool\[1\]"),
    ],
)
def test_clients_that_cannot_be_selected(clients, error, match):
    for data in (Rows(ids=IDS), Rows(ids=IDS).select(range(6)), Rows(ids=IDS).in_memory):
        with pytest.raises(error, match=match):
            data.select(clients)


def test_ids_fit_the_sizes():
    with pytest.raises(ValueError, match="ids has 2 entries for 6 sizes"):
        Rows(ids=["a", "b"])
    with pytest.raises(ValueError, match="'a' more than once"):
        Rows((1, 1), ids=["a", "a"])


def test_what_was_not_announced_is_named():
    class Short(Rows):
        def make(self, client):
            made = super().make(client)["row"]
            return {"row": made[1:]} if client < 4 else {"other": made}

    for source in (Short(ids=IDS), Short(ids=IDS).select(range(6))):
        for look in (lambda source: source.in_memory, lambda source: source.client("ann")):
            with pytest.raises(
                ValueError, match=r"'ann' has int32\[2, 2\] in column 'row', expected .*\[3, 2\]"
            ):
                look(source)
        with pytest.raises(ValueError, match="'ed' has the columns other, expected 'row' as well"):
            source.select([4]).client(0)


# --- divided -------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.floats(0.01, 0.99), st.integers(0, 5))
def test_a_divided_client_keeps_every_example_once(sizes, fraction, seed):
    source = Rows(sizes)
    parts = split(source, fraction, seed)
    in_memory = split(source.in_memory, fraction, seed)
    for part, expected in zip(parts, in_memory, strict=True):
        np.testing.assert_array_equal(part.sizes, expected.sizes)  # the sizes, not who goes where
    for client in range(len(sizes)):
        rows = [part.client(client)["row"] for part in parts]
        assert all((np.diff(part[:, 0]) > 0).all() for part in rows)
        both = np.concatenate(rows)
        np.testing.assert_array_equal(both[np.argsort(both[:, 0])], source.client(client)["row"])


def test_a_division_follows_the_seed_and_the_client():
    train = [split(Rows((40,) * 3), 0.5, seed)[0] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(*(part.in_memory.columns["row"] for part in train[:2]))
    assert not np.array_equal(train[0].client(0)["row"], train[2].client(0)["row"])
    assert not np.array_equal(train[0].client(0)["row"] + 40, train[0].client(1)["row"])


def test_a_million_writers_are_held_out_without_being_written():
    data = glyphs(clients=1_000_000, test_fraction=0.2)
    tracemalloc.start()
    seen, unseen = holdout_clients(data, 0.1, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6  # some numbers for each client and part; the images would be 155 GB
    assert (seen.train.num_clients, unseen.test.num_clients) == (900_000, 100_000)
    assert not np.isin(unseen.train.ids[::1000], seen.train.ids).any()
    writer = int(unseen.test.ids[7])
    held_out = [part.client(7)["y"] for part in (unseen.train, unseen.test)]
    np.testing.assert_array_equal(
        np.sort(np.concatenate(held_out)), np.sort(data.train.client(writer)["y"].tolist() + data.test.client(writer)["y"].tolist())
    )  # fmt: skip
