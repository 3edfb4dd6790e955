"""Presets of tables: heart disease, TCGA-BRCA and school; on files of the true format, and on the true files."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st
from real_sets import data_path

from fedjax_sim import partitions
from fedjax_sim.data import heart_disease, load, npz, repartition, school, tcga_brca
from fedjax_sim.data.presets import _matlab

HOSPITALS = {"cleveland": 303, "hungarian": 294, "switzerland": 123, "va": 200}


# --- heart disease -------------------------------------------------------------------------------------------


def patients(count: int, seed: int) -> list[list[str]]:
    """Rows as UCI writes them; every tenth lacks its blood pressure, all lack the thallium test."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        plain = [f"{value:.1f}" for value in rng.normal(50, 9, 14)]
        plain[2], plain[6] = str(rng.integers(1, 5)), str(rng.integers(3))
        plain[13], plain[12] = str(rng.integers(5)), "?"
        plain[3] = "?" if number % 10 == 9 else plain[3]
        rows.append(plain)
    return rows


@pytest.fixture
def hospitals(tmp_path):
    for seed, (name, count) in enumerate(HOSPITALS.items()):
        text = "\n".join(",".join(row) for row in patients(count, seed))
        (tmp_path / f"processed.{name}.data").write_text(text + "\n")
    return tmp_path


def test_heart_disease_of_made_up_patients(hospitals):
    data = load(f"heart_disease:{hospitals}")
    assert (data.name, data.classes) == ("heart_disease", 2)
    assert data.train.ids.tolist() == data.test.ids.tolist() == list(HOSPITALS)
    assert (data.train.sizes + data.test.sizes).tolist() == [273, 265, 111, 180]  # with blood pressure
    for client in HOSPITALS:
        x = data.train.client(client)["x"]
        np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(x.std(0, ddof=1), 1, atol=1e-5)
    raw = heart_disease(hospitals, normalise=None).train.client("va")
    first = patients(200, 3)[0]
    pain, electrocardiogram = int(first[2]), int(first[6])
    indicators = [pain == 2, pain == 3, pain == 4, electrocardiogram == 1, electrocardiogram == 2]
    rows = np.concatenate([raw["x"], heart_disease(hospitals, normalise=None).test.client("va")["x"]])
    expected = [*(float(first[field]) for field in (0, 1, 3, 4, 5, 7, 8, 9)), *indicators]
    assert (np.abs(rows - expected).max(axis=1) < 1e-4).any()
    pooled = heart_disease(hospitals, normalise="pooled").train.columns["x"]
    np.testing.assert_allclose(pooled.mean(0), 0, atol=1e-5)


def test_a_constant_feature_becomes_zero(hospitals):
    rows = patients(123, 2)
    for row in rows:
        row[4] = "0"
    path = hospitals / "processed.switzerland.data"
    path.write_text("\n".join(",".join(row) for row in rows))
    x = heart_disease(hospitals).train.client("switzerland")["x"]
    assert (x[:, 3] == 0).all() and np.isfinite(x).all()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda text: text[: text.rindex("\n", 0, -1) + 1], "there are 199 patients, expected 200, as pub"),
        (lambda text: text[:-20], "line 200 has .* fields, expected 14"),
        (lambda text: text + text[: text.index("\n")], "there are 201 patients, expected 200"),
        (lambda text: "", "there are 0 patients, expected 200"),
        (lambda text: "age,sex\n" + text, "line 1 has 2 fields, expected 14"),
        (lambda text: text.replace(text[:4], "abcd", 1), r"a field holds 'abcd', expected a finite number, or '\?'"),
        (lambda text: text.replace(text[:4], "nan", 1), "a field holds 'nan'"),
        (lambda text: text.replace(text[:4], "1e999", 1), "a field holds '1e999'"),
        (lambda text: "\n".join(row[:-1] + "7" for row in text.split()), r"field 13 \(from 0\) holds 7, expected one"),
        (lambda text: '"' + text, "the file is no comma-separated text in UTF-8, or damaged"),
        (lambda text: "\udcff" + text, "the file is no comma-separated text in UTF-8, or damaged"),
    ],
)  # fmt: skip
def test_heart_disease_refuses(hospitals, change, match):
    path = hospitals / "processed.va.data"
    path.write_bytes(change(path.read_text()).encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=rf"processed.va.data: {match}"):
        heart_disease(hospitals)


def test_heart_disease_says_what_is_missing(hospitals):
    with pytest.raises(ValueError, match="normalise is 'all', expected one of 'client', 'pooled', None"):
        heart_disease(hospitals, normalise="all")  # type: ignore[arg-type]
    (hospitals / "processed.hungarian.data").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"processed.hungarian.data does not exist.*Get it from UCI's"
    ):
        heart_disease(hospitals)


@pytest.mark.parametrize(
    ("normalise", "column"),
    [("client", "x_center_normalised"), ("pooled", "x_pooled_normalised"), (None, "x_raw")],
)
def test_heart_disease_is_flambys(shared, normalise, column):
    folder = data_path(shared, "flamby_heart_disease")
    data = heart_disease(folder, normalise=normalise)
    columns = {"x": column, "y": "y"}
    expected = npz(folder / "fed_heart_flamby_split.npz", client="center", columns=columns)
    assert data.train.sizes.tolist() == [199, 172, 30, 85] and data.test.sizes.tolist() == [104, 89, 16, 45]
    for found, wanted in ((data.train, expected.train), (data.test, expected.test)):
        assert found.ids.tolist() == wanted.ids.tolist()
        np.testing.assert_array_equal(found.offsets, wanted.offsets)
        np.testing.assert_array_equal(found.columns["y"], wanted.columns["y"])
        atol = 0 if normalise is None else 1e-5  # those were computed in float32
        np.testing.assert_allclose(found.columns["x"], wanted.columns["x"], rtol=0, atol=atol)


# --- TCGA-BRCA -----------------------------------------------------------------------------------------------


@pytest.fixture
def cancer(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"P-{number:04}" for number in range(1090)]
    features = [f'"feature, {number}"' for number in range(38)]
    lines = [",".join(["pid", "age_at_index", *features, "E", "T"])]
    for name in names:
        row = [
            rng.integers(26, 91),
            *rng.integers(2, size=38),
            float(rng.integers(2)),
            float(rng.integers(9000)),
        ]
        lines.append(",".join([name, *map(str, row)]))
    (tmp_path / "brca.csv").write_text("\n".join(lines))
    parts = [
        f"{part},{part}_{number % 6}"
        for number in range(1088)
        for part in [("train", "test")[number % 4 == 3]]
    ]
    rows = [f"{name},{part}" for name, part in zip(names[::-1], parts, strict=False)]
    (tmp_path / "train_test_split.csv").write_text("\n".join(["pid,fold,fold2", *rows]))
    return tmp_path


def test_tcga_brca_of_made_up_patients(cancer):
    data = load(f"tcga_brca:{cancer}")
    assert data.train.ids.tolist() == ["northeast", "south", "west", "midwest", "europe", "canada"]
    assert data.train.num_examples == 816 and data.test.num_examples == 272
    columns = data.train.columns
    assert {name: column.dtype.name for name, column in columns.items()} == {
        "x": "float32", "event": "int32", "time": "float32",
    }  # fmt: skip
    assert columns["x"].shape == (816, 39)
    # The first of the division is the last of the patients.
    last = (cancer / "brca.csv").read_text().splitlines()[-1].split(",")
    first = data.train.client("northeast")
    assert first["x"][0].tolist() == [float(value) for value in last[1:40]]
    assert [first["event"][0], first["time"][0]] == [float(value) for value in last[40:]]


@pytest.mark.parametrize(
    ("file", "old", "new", "match"),
    [
        ("brca.csv", "pid,age", "id,age", "brca.csv: the header is 'id, age_at_index.* expected 'pid,age"),
        ("brca.csv", "P-0001", "P-0000", "brca.csv: 1090 rows are of 1089 patients, expected each patient once"),
        ("brca.csv", "P-0500", "Q-0500", "train_test_split.csv with .*brca.csv: patient 'P-0500' is in the former"),
        ("brca.csv", "P-0003,", "P-0003,1,", "brca.csv: line 5 has 43 fields, expected 42"),
        ("brca.csv", "P-0003,", "P-0003,x", "brca.csv: a field holds 'x.*', expected a finite number"),
        ("brca.csv", ".0,", ".5,", "brca.csv: column 'E' or 'T' is out of range"),
        ("train_test_split.csv", "P-0700", "P-0701", "there are 1087 patients, expected 1088, as published"),
        ("train_test_split.csv", "train_0", "train_6", "fold2 holds 'train_6', expected train_0 to train_5"),
        ("train_test_split.csv", "train_0", "valid_0", "fold2 holds 'valid_0'"),
        ("train_test_split.csv", "P-0700,", "", "line 391 has 2 fields, expected 3"),
    ],
)  # fmt: skip
def test_tcga_brca_refuses(cancer, file, old, new, match):
    text = (cancer / file).read_text()
    assert old in text
    (cancer / file).write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=match):
        tcga_brca(cancer)


def test_tcga_brca_that_was_cut_off_or_is_missing(cancer):
    path = cancer / "train_test_split.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-5]))
    with pytest.raises(ValueError, match="there are 1083 patients, expected 1088, as published"):
        tcga_brca(cancer)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"train_test_split.csv does not.*Get it from the repository"):
        tcga_brca(cancer)


def test_tcga_brca_is_flambys(shared):
    data = tcga_brca(data_path(shared, "flamby_tcga_brca"))
    assert data.train.sizes.tolist() == [248, 156, 164, 129, 129, 40]
    assert data.test.sizes.tolist() == [63, 40, 42, 33, 33, 11]
    age = np.concatenate([part.columns["x"][:, 0] for part in (data.train, data.test)])
    assert (age.min(), age.max()) == (26, 90)
    assert np.isin(data.train.columns["x"][:, 1:], (0, 1)).all()


# --- school --------------------------------------------------------------------------------------------------


def schools(compress: bool = True, **changes) -> bytes:
    """A MATLAB file with 139 schools of 110 or 111 students, written by SciPy."""
    rng = np.random.default_rng(0)
    sizes = 110 + (np.arange(139) < 15_362 - 139 * 110)
    x, y = (np.empty((1, 139), object) for _ in range(2))
    for place, size in enumerate(sizes):
        x[0, place] = rng.integers(2, size=(size, 28)).astype(np.uint8)
        y[0, place] = rng.integers(1, 71, size=(size, 1)).astype(np.uint8)
    stream = io.BytesIO()
    scipy.io.savemat(stream, {"X": x, "Y": y, "about": "text"} | changes, do_compression=compress)
    return stream.getvalue()


@pytest.fixture(scope="module")
def school_file() -> bytes:
    return schools()


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("compress", [True, False])
def test_school_of_made_up_students(tmp_path, compress):
    path = written(tmp_path / "school.mat", schools(compress))
    data = load(f"school:{path}", normalise="pooled", seed=3)
    assert data.train.ids.tolist() == list(range(139)) and data.classes is None
    assert data.train.num_examples + data.test.num_examples == 15_362
    assert set(data.train.sizes) == {82, 83}
    np.testing.assert_allclose(data.train.columns["x"].std(0), 1, atol=1e-3)
    whole = scipy.io.loadmat(path)
    raw = school(path)
    rows = np.concatenate([part.client(7)["y"] for part in (raw.train, raw.test)])
    assert sorted(rows) == sorted(whole["Y"][0, 7][:, 0])


def cells(value) -> np.ndarray:
    found = np.empty((1, 139), object)
    found[:] = [[value] * 139]
    return found


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"X": np.zeros((3, 3))}, "no cell array is called 'X', the file has Y; expected X and Y"),
        ({"X": cells(np.zeros((2, 28)))[:, :5]}, "there are 5 cells in X, expected 139, as published"),
        (
            {"X": cells(np.zeros((2, 27)))},
            r"school 0 has X \[2, 27\] and Y \[111, 1\], expected \[students, 28\]",
        ),
        (
            {"X": cells(np.zeros((2, 28))), "Y": cells(np.zeros((2, 1)))},
            "there are 278 students, expected 15362",
        ),
        ({"Y": cells(np.zeros((2, 1)))}, r"school 0 has X \[111, 28\] and Y \[2, 1\]"),
        ({"X": cells("text")}, r"X\{1\} is an array of class 4 and shape \[1, 4\], expected a real matrix"),
        ({"X": cells(cells(1.0))}, r"X\{1\} is an array of class 1 .*cells in cells, text, functions"),
        ({"X": cells(np.zeros((2, 28), complex))}, r"X\{1\} is an array of class 6"),
        ({"X": cells({"a": 1})}, r"X\{1\} is an array of class 2"),
    ],
)
def test_school_refuses(tmp_path, changes, match):
    path = written(tmp_path / "school.mat", schools(**changes))
    with pytest.raises(ValueError, match=rf"school.mat: {match}"):
        school(path)


def test_school_refuses_other_files(tmp_path, school_file):
    for content in (b"", b"hello" * 100, school_file[:127], b"\x89HDF" + school_file[4:124] + b"\x00\x02IM"):
        with pytest.raises(ValueError, match=r"school.mat: this is no MATLAB file of version 5"):
            school(written(tmp_path / "school.mat", content))
    for content in (school_file[:-9], school_file[:130]):
        with pytest.raises(ValueError, match=r"school.mat: a data element .*cut off"):
            school(written(tmp_path / "school.mat", content))
    with pytest.raises(FileNotFoundError, match=r"absent.mat does not exist.*jiayuzhou/MALSAR"):
        school(tmp_path / "absent.mat")
    (tmp_path / "school.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"school.mat does not exist.*jiayuzhou/MALSAR"):
        school(tmp_path)


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data


def test_cells_in_cells_have_no_depth(tmp_path, school_file):
    """SciPy follows this one until Python crashes."""
    inner = b""
    head = struct.pack("<IIIIIIiiHH4s", 6, 8, 1, 0, 5, 8, 1, 1, 1, 1, b"X")
    for _ in range(1000):
        inner = element(14, head + inner)
    with pytest.raises(ValueError, match=r"X\{1\} is an array of class 1"):
        school(written(tmp_path / "school.mat", school_file[:128] + inner))


def test_compressed_data_have_a_bound(tmp_path, school_file, monkeypatch):
    monkeypatch.setattr(_matlab, "_LARGEST", 1000)
    bomb = school_file[:128] + element(15, zlib.compress(bytes(2000)))
    with pytest.raises(ValueError, match="compressed data were cut off, or are of more than 1000 bytes"):
        school(written(tmp_path / "school.mat", bomb))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_school_is_read_or_refused(tmp_path_factory, data):
    content = bytearray(FUZZED)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 600) | st.integers(0, len(content) - 1))] = data.draw(
            st.integers(0, 255)
        )
    content = content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]
    path = written(tmp_path_factory.getbasetemp() / "fuzzed.mat", bytes(content))
    try:
        found = school(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ")
    else:
        assert found.train.num_examples + found.test.num_examples == 15_362


FUZZED = schools(compress=False)


def test_school_is_the_published_set(shared):
    path = data_path(shared, "school/school.mat")
    data = school(path)
    sizes = data.train.sizes + data.test.sizes
    assert (data.train.num_clients, sizes.sum(), sizes.min(), sizes.max()) == (139, 15_362, 22, 251)
    assert (data.train.columns["x"][:, -1] == 1).all()
    y = np.concatenate([data.train.columns["y"], data.test.columns["y"]])
    assert (y.min(), y.max()) == (1, 70)
    whole = scipy.io.loadmat(path)
    for place, (x, scores) in enumerate(zip(whole["X"][0], whole["Y"][0], strict=True)):
        assert len(scores) == sizes[place]
        found = np.concatenate([part.client(place)["x"] for part in (data.train, data.test)])
        assert found.sum() == x.sum(dtype=np.float64)
    assert repartition(data, partitions.iid(5)).train.num_clients == 5
