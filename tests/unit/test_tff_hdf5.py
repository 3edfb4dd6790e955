"""TensorFlow Federated's HDF5 files: read, linked to others, damaged."""

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from unit.tff_files import digits, windows, write_hdf5

from fedjax_sim.data import tff


@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}, {"chunks": True, "shuffle": True}])
def test_hdf5(tmp_path, options):
    write_hdf5(tmp_path / "fed_emnist_train.h5", {"f1": digits(3, 1), "f0": digits(2)}, **options)
    write_hdf5(tmp_path / "fed_emnist_test.h5", {"f0": digits(9)}, **options)
    data = tff(tmp_path)
    assert data.train.ids.tolist() == ["f0", "f1"] and data.test.ids.tolist() == ["f0"]
    assert data.train.sizes.tolist() == [1, 2] and data.classes == 10
    assert data.train.client("f1")["x"][:, 5, 5].tolist() == [3, 1]
    assert data.train.columns["x"].shape == (3, 28, 28) and data.train.columns["y"].dtype == np.int32
    alone = tff(tmp_path / "fed_emnist_train.h5", test_fraction=0.5)
    assert alone.name == "fed_emnist_train" and alone.test.sizes.tolist() == [0, 1]


def test_one_hdf5_file_is_one_part(tmp_path):
    path = write_hdf5(tmp_path / "a_train.h5", {"f1": digits(3, 1)})
    with pytest.raises(ValueError, match=r"a_train.h5 is one part, so there is no part 'test' in it"):
        tff(path, test="test")


def test_hdf5_of_other_sets(tmp_path):
    image = np.random.default_rng(0).integers(256, size=(2, 32, 32, 3), dtype=np.uint8)
    cifar = {"0": {"image": image, "coarse_label": np.array([1, 2]), "label": np.array([5, 99])}}
    data = tff(write_hdf5(tmp_path / "cifar100_train.h5", cifar))
    np.testing.assert_array_equal(data.train.columns["x"], image)
    assert data.classes == 100 and data.train.columns["coarse_label"].dtype == np.int64
    plays = {"A": {"snippets": ["to be", "or not"]}, "B": {"snippets": ["ay"]}, "C": {"snippets": []}}
    path = write_hdf5(tmp_path / "shakespeare_train.h5", plays)
    data = tff(path, decode={"snippets": windows})
    assert data.train.sizes.tolist() == [5, 1, 0]
    with pytest.raises(ValueError, match="client 'A': field 'snippets' holds text, such as 'to be'"):
        tff(path)


def test_a_folder_of_hdf5_files(tmp_path):
    for name in ("so_train.h5", "so_held_out.h5", "so_test.h5"):
        write_hdf5(tmp_path / name, {"a": digits(0)})
    assert tff(tmp_path).notes == ("part 'so_held_out' is left out",)
    assert tff(tmp_path, test="held_out").notes == ("part 'so_test' is left out",)
    write_hdf5(tmp_path / "other_train.hdf5", {"a": digits(0)})
    with pytest.raises(
        ValueError, match=r"holds other_train.hdf5 and so_train.h5, expected one file for 'train'"
    ):
        tff(tmp_path)
    with pytest.raises(ValueError, match="no part is called 'fit', there are 'other_train', "):
        tff(tmp_path, train="fit")


def changed(path: Path, change) -> Path:
    write_hdf5(path, {"a": digits(1, 2), "b": digits(3)})
    with h5py.File(path, "r+") as file:
        change(file["examples/b"], file)
    return path


def replace(name, *arguments, **options):
    def change(group, file):
        del group[name]
        group.create_dataset(name, *arguments, **options)

    return change


def link(name, to):
    def change(group, file):
        del group[name]
        group[name] = to

    return change


def virtual(group, file):
    del group["label"]
    layout = h5py.VirtualLayout((1,), "i4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", (1,))
    group.create_virtual_dataset("label", layout)


def compound(group, file):
    del group["label"]
    group.create_dataset("label", data=np.zeros(1, [("a", "i4")]))


def reference(group, file):
    del group["label"]
    group.create_dataset("label", data=[file.ref], dtype=h5py.ref_dtype)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            link("label", h5py.ExternalLink("/etc/passwd", "/x")),
            "'label' is a link, which could lead to any",
        ),
        (link("label", h5py.SoftLink("/examples/a/label")), "'label' is a link"),
        (
            replace("label", (1,), "i4", external=[("/etc/passwd", 0, 4)]),
            "field 'label' keeps its values in other",
        ),
        (virtual, "field 'label' keeps its values in other files"),
        (compound, "field 'label' is of dtype .*, expected numbers or text"),
        (reference, "field 'label' is of dtype object, expected numbers or text"),
        (replace("label", data=3), "field 'label' is a single value"),
        (replace("label", data=[1, 2]), r"client 'b' has fields of \{'label': 2, 'pixels': 1\} rows"),
        (
            replace("label", (10**12,), "i4", chunks=(1024,)),
            r"says it has shape \[1000000000000\], more than its 0",
        ),
        (
            replace("pixels", data=np.zeros((1, 5), np.float32)),
            r"client 'b' has columns .*'x': 'float32\[5\]'",
        ),
        (
            lambda group, file: group.pop("label"),
            "client 'b': no field is called 'label', the file has pixels",
        ),
        (lambda group, file: group.create_group("more"), "'more' is a Group, expected a Dataset"),
        (
            lambda group, file: file["examples"].create_dataset("c", data=1),
            "'c' is a Dataset, expected a Group",
        ),
        (lambda group, file: file.pop("examples"), "no group is called 'examples', the file has none"),
        (lambda group, file: file["examples"].create_group("c"), "client 'c' has fields of"),
    ],
)
def test_hdf5_that_cannot_be_read_is_named(tmp_path, change, match):
    path = changed(tmp_path / "bad.h5", change)
    with pytest.raises(ValueError, match=match) as caught:
        tff(path)
    assert str(path) in str(caught.value)


def test_damaged_hdf5(tmp_path):
    path = write_hdf5(tmp_path / "bad.h5", {"a": digits(1, 2)})
    whole = path.read_bytes()
    for content in (whole[:20], whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"bad.h5: the HDF5 file is damaged, was cut off"):
            tff(path)
    with pytest.raises(ValueError, match="group 'examples' is empty"):
        tff(write_hdf5(tmp_path / "empty.h5", {}))


def test_without_h5py(tmp_path, monkeypatch):
    path = write_hdf5(tmp_path / "a.h5", {"a": digits(1)})
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"a.h5 is an HDF5 file, which needs the package h5py: .*hdf5"):
        tff(path)
