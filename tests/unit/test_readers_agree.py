"""One set, written in every format: all readers give the same data, which are those that were written."""

from __future__ import annotations

import tempfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from unit.tff_files import example, write_hdf5, write_sqlite

from fedjax_sim.data import Federated, arrays, huggingface, npz, parquet, tff

datasets.disable_progress_bars()

# Names as people write them; numpy's text cannot end with a zero byte.
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/."), min_size=1, max_size=6)


@st.composite
def tables(draw) -> dict[str, np.ndarray]:
    rows = draw(st.integers(1, 12))
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    shape = draw(st.sampled_from([(), (1,), (3,), (2, 3)]))
    number = st.floats(width=32, allow_nan=False)
    return {
        "x": draw(hnp.arrays(np.float32, (rows, *shape), elements=number)),
        "y": draw(hnp.arrays(np.int32, rows, elements=st.integers(-5, 5))),
        "client": np.array([names[draw(st.integers(0, len(names) - 1))] for _ in range(rows)]),
        "split": np.array([0, *(draw(st.integers(0, 1)) for _ in range(rows - 1))]),
    }


def arrow(table: dict[str, np.ndarray]) -> pa.Table:
    x = pa.array(table["x"].ravel())
    for size in table["x"].shape[:0:-1]:
        x = pa.FixedSizeListArray.from_arrays(x, size)
    return pa.table({**{name: pa.array(column) for name, column in table.items() if name != "x"}, "x": x})


def by_client(table: dict[str, np.ndarray], split: int) -> dict[str, dict[str, np.ndarray]]:
    chosen = table["split"] == split
    return {
        str(client): {"x": table["x"][rows], "label": table["y"][rows]}
        for client in np.unique(table["client"])
        for rows in [chosen & (table["client"] == client)]
    }


def read_all(folder: Path, table: dict[str, np.ndarray]) -> dict[str, Federated]:
    np.savez(folder / "a.npz", **table)
    pq.write_table(arrow(table), folder / "a.parquet", row_group_size=5)
    with pa.ipc.new_file(folder / "a.arrow", arrow(table).schema) as writer:
        writer.write_table(arrow(table), max_chunksize=2)
    datasets.Dataset(arrow(table)).save_to_disk(folder / "saved", num_shards=min(2, len(table["y"])))
    parts = {"train": by_client(table, 0), "test": by_client(table, 1)}
    for part, clients in parts.items():
        write_hdf5(folder / "hdf5" / f"{part}.h5", clients)
    examples = {
        part: {
            client: [
                example(x=np.asarray(x), label=int(y)) for x, y in zip(own["x"], own["label"], strict=True)
            ]
            for client, own in clients.items()
        }
        for part, clients in parts.items()
    }
    write_sqlite(folder / "a.sqlite", examples)
    shapes = {"x": table["x"].shape[1:]}
    columns = {"x": "x", "y": "label"}
    return {
        "arrays": arrays({"x": table["x"], "y": table["y"]}, table["client"], split=table["split"]),
        "npz": npz(folder / "a.npz"),
        "parquet": parquet(folder / "a.parquet"),
        "arrow": parquet(folder / "a.arrow"),
        "saved": huggingface(folder / "saved"),
        "object": huggingface(datasets.Dataset(arrow(table))),
        "hdf5": tff(folder / "hdf5", shapes=shapes, columns=columns),
        "sqlite": tff(folder / "a.sqlite", shapes=shapes, columns=columns),
        "lazy": tff(folder / "a.sqlite", shapes=shapes, columns=columns, lazy=True),
    }


@settings(max_examples=25, deadline=None)
@given(table=tables())
def test_all_readers_give_what_was_written(table):
    with tempfile.TemporaryDirectory() as folder:
        for name, data in read_all(Path(folder), table).items():
            for split, part in enumerate((data.train, data.test)):
                clients = by_client(table, split)
                assert part.ids.tolist() == sorted(clients), name
                for client, own in clients.items():
                    found = part.client(client)
                    assert found["x"].dtype == np.float32 and found["y"].dtype == np.int32
                    np.testing.assert_array_equal(found["x"], own["x"], err_msg=name)
                    np.testing.assert_array_equal(found["y"], own["label"], err_msg=name)
            if name != "lazy":
                assert data.classes == (None if table["y"].min() < 0 else table["y"].max() + 1), name


def test_a_real_set_in_every_format(shared, tmp_path):
    path = shared / "data/flamby_heart_disease/fed_heart_flamby_split.npz"
    if not path.exists():
        pytest.skip("the real data set is not here")
    with np.load(path) as file:
        table = {
            "x": file["x_center_normalised"],
            "y": file["y"].astype(np.int32),
            "client": file["center_name"][file["center"]],
            "split": file["split"].astype(np.int64),
        }
    expected = npz(path, client="center", columns={"x": "x_center_normalised", "y": "y"})
    for name, data in read_all(tmp_path, table).items():
        for part, other in ((data.train, expected.train), (data.test, expected.test)):
            assert part.ids.tolist() == other.ids.tolist() and part.sizes.tolist() == other.sizes.tolist()
            for column in ("x", "y"):
                np.testing.assert_array_equal(
                    part.in_memory.columns[column], other.columns[column], err_msg=name
                )
