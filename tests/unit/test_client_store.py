"""Leaves of a client table in a store: they are indexed and computed with as arrays, and hold its rows."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from unit.test_client_rows import stored, table_of

from fedjax_sim._client_layout import RowLayout
from fedjax_sim._client_rows import moved
from fedjax_sim._client_store import ScratchError, StoredLeaf
from fedjax_sim.engines._state import ClientTable

INDICES = [
    3,
    -1,
    np.int64(0),
    slice(2, 7),
    slice(None, None, -3),
    np.array([5, 0, 5]),
    np.array([[1, -2], [3, 3]]),
    np.arange(9) % 2 == 0,
    ...,
    None,
    (4, 1),
    (slice(1, 3), slice(None), 0),
    (np.array([0, 8]), slice(0, 1)),
    (np.array([0, 8]), np.array([1, 0])),
    (),
    np.arange(18).reshape(9, 2) % 3 == 0,
    [2, 0],
    np.array([], np.int64),
]


@pytest.mark.parametrize("index", INDICES, ids=lambda index: " ".join(repr(index).split()))
def test_a_leaf_in_a_store_is_indexed_as_an_array(tmp_path, index):
    """Of one run, and of a sweep, also through one of its replicas."""
    generator = np.random.default_rng(0)
    for lead in ((9,), (2, 9)):
        values = generator.normal(size=(*lead, 2, 3)).astype(np.float32)
        table = ClientTable((), (), values)
        layout = RowLayout(table, len(lead) - 1)
        leaf = moved(table, layout, 9, stored(tmp_path)).seen
        if len(lead) == 1:
            assert np.array_equal(np.asarray(leaf[index]), values[index])
            assert np.array_equal(np.asarray(leaf[index]).dtype, values.dtype)
            continue
        assert isinstance(leaf[1], StoredLeaf) and leaf[1].shape == (9, 2, 3)
        assert np.array_equal(np.asarray(leaf[-1][index]), values[-1][index])
        assert np.array_equal(leaf[1, 2], values[1, 2]) and np.array_equal(leaf[:, 2], values[:, 2])


def leaf_of(values, folder: Path) -> StoredLeaf:
    table = ClientTable((), (), values)
    return moved(table, RowLayout(table, 0), len(values), stored(folder)).seen


def test_a_leaf_in_a_store_is_computed_with_as_an_array(tmp_path):
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    leaf = leaf_of(values, tmp_path)
    for got in (leaf.copy(), np.asarray(leaf), +leaf, jnp.asarray(leaf), leaf[:], copy.deepcopy(leaf)):
        assert got.dtype == values.dtype and np.array_equal(got, values)
    assert ((leaf == values).all(), leaf.size, leaf.nbytes, leaf.ndim, len(leaf)) == (True, 12, 48, 2, 4)
    assert float(np.sum(leaf)) == leaf.sum() == values.sum() and np.array_equal(2 * leaf + leaf, 3 * values)
    assert np.asarray(leaf, np.int32).dtype == np.int32
    assert repr(leaf).startswith(f"StoredLeaf(float32[4, 3] in {tmp_path}")
    assert not hasattr(leaf, "sharding") and isinstance(pickle.loads(pickle.dumps(leaf)), np.ndarray)
    for wrong in (4, -5, np.array([0, 4])):
        with pytest.raises(IndexError):
            leaf[wrong]
    with pytest.raises(ValueError, match="cannot be had without a copy"):
        np.asarray(leaf, copy=False)
    with pytest.raises(ValueError, match="client state outside of memory is read-only"):
        leaf += 1


def test_a_row_that_a_store_has_lost_is_an_error(tmp_path):
    """And not a client that has no state yet."""
    leaf = leaf_of(np.arange(12, dtype=np.float32).reshape(4, 3), tmp_path)
    (folder,) = tmp_path.iterdir()
    (folder / "0" / "2").unlink()
    assert leaf[[0, 1, 3]].sum() == 45
    with pytest.raises(
        ScratchError, match=f"client state cannot be kept in {tmp_path}: .*{folder.name}/0/2.* is missing"
    ):
        leaf[:]


def test_a_store_goes_with_its_last_leaf(tmp_path):
    table = stored(tmp_path)(RowLayout(table_of((8,)), 0))
    table.put(np.arange(8), np.ones((8, table.layout.row_bytes), np.uint8))
    leaf = jax.tree.leaves(table.table())[0]
    del table
    assert leaf[2].view(np.uint8).tolist() == [1] * leaf[2].nbytes
    assert [path for path in tmp_path.rglob("*") if path.is_file()]
    del leaf
    assert not list(tmp_path.iterdir())
