"""Parquet sets whose folders are columns, written by pyarrow as Spark and Hive write them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedjax_sim.data import parquet
from fedjax_sim.data.formats._tables import ONE_CLIENT


def table(**changes) -> pa.Table:
    columns = {
        "client": ["bo", "ann lee", "bo", "5%"],
        "x": [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0]],
        "y": [0, 1, 2, 3],
    }
    return pa.table({name: values for name, values in (columns | changes).items() if values is not None})


@pytest.fixture(params=["memory", "store"])
def read(request, tmp_path):
    """The reader, in memory and through a folder."""
    count = iter(range(9))

    def read(path, **options):
        store = tmp_path / f"store{next(count)}" if request.param == "store" else None
        return parquet(path, store=store, **options)

    return read


def partitioned(folder: Path, *by: str, **changes) -> Path:
    pq.write_to_dataset(table(**changes), folder, partition_cols=list(by))
    return folder


@pytest.mark.parametrize("options", [{}, {"client": "client"}, {"columns": {"x": "x", "y": "y"}}])
def test_the_client_is_the_name_of_a_folder(tmp_path, read, options):
    data = read(partitioned(tmp_path / "set", "client"), **options)
    assert data.train.ids.tolist() == ["5%", "ann lee", "bo"] and data.train.sizes.tolist() == [1, 1, 2]
    assert data.train.client("ann lee")["x"].tolist() == [[2.0, 3.0]]
    assert data.train.client("5%")["y"].tolist() == [3] and data.notes == ()
    assert data.train.columns.keys() == {"x", "y"}


def test_folders_of_clients_inside_folders_of_parts(tmp_path, read):
    split = ["train", "train", "test", "train"]
    data = read(partitioned(tmp_path / "set", "split", "client", split=split))
    assert data.train.ids.tolist() == data.test.ids.tolist() == ["5%", "ann lee", "bo"]
    assert data.train.sizes.tolist() == [1, 1, 1] and data.test.sizes.tolist() == [0, 0, 1]


def test_other_folders_are_left_out_and_noted(tmp_path, read):
    folder = partitioned(tmp_path / "set", "year", "client", year=[2019, 2019, 2020, 2020])
    said = "What the names of folders say of 'year' is left out; client= takes one."
    assert read(folder).notes == (said,)
    by_year = read(folder, client="year")
    assert by_year.train.ids.tolist() == ["2019", "2020"] and by_year.train.sizes.tolist() == [2, 2]
    decoded = read(
        folder, columns=["y", "year"], decode={"year": lambda all_: np.array(list(map(int, all_)))}
    )
    assert decoded.train.client("bo")["year"].tolist() == [2019, 2020] and decoded.notes == ()
    without = read(partitioned(tmp_path / "other", "year", year=[1, 1, 2, 2], client=None))
    assert without.notes == (said, ONE_CLIENT) or without.notes == (ONE_CLIENT, said)


def test_a_column_that_the_file_has_as_well(tmp_path, read):
    for client in ("ann", "bo"):
        (tmp_path / "set" / f"client={client}").mkdir(parents=True)
        pq.write_table(table(client=[client] * 4), tmp_path / "set" / f"client={client}" / "0.parquet")
    assert read(tmp_path / "set").train.ids.tolist() == ["ann", "bo"]
    pq.write_table(table(client=["bo", "cy", "bo", "bo"]), tmp_path / "set/client=bo/0.parquet")
    with pytest.raises(
        ValueError, match=r"client=bo.0.parquet: its folder says that 'client' is 'bo', its column .*'cy'"
    ):
        read(tmp_path / "set")


@pytest.mark.parametrize(
    ("files", "match"),
    [
        (["client=a/0", "1"], r"client=a.0.parquet.*columns client.*1.parquet|1.parquet is .* columns none"),
        (["client=a/client=b/0"], "name column 'client' twice"),
        (["client=__HIVE_DEFAULT_PARTITION__/0"], "column 'client' is null in row 0"),
    ],
)
def test_folders_that_do_not_fit(tmp_path, read, files, match):
    for file in files:
        path = tmp_path / "set" / f"{file}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table(client=None), path)
    with pytest.raises(ValueError, match=match) as caught:
        read(tmp_path / "set")
    assert str(tmp_path / "set") in str(caught.value)
