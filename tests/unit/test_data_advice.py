"""What errors and notes about data advise, and that the advice works."""

import json
import lzma
import re
from pathlib import Path

import numpy as np
import optax
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fedjax_sim as fs
from fedjax_sim import experiment
from fedjax_sim.data._remarks import remarks

LINEAR = fs.algorithms.fedavg(fs.tasks.classification(fs.models.linear(classes=10)), optax.sgd(0.1))


def simulation(train) -> fs.Simulation:
    return fs.Simulation(LINEAR, train, cohort=fs.cohorts.uniform(3))


# --- names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnist_by_writter:folder", "parket:x.parquet", "leef:x"])
def test_a_mistyped_source_with_a_path_names_the_nearest(name):
    near = {"mnist": "mnist_by_writer", "parke": "parquet", "leef:": "leaf"}[name[:5]]
    for load in (fs.data.load, lambda name: experiment.load(changes=[f'data.name="{name}"']).federated):
        with pytest.raises(ValueError, match=f"Did you mean '{near}'"):
            load(name)


def test_a_sentence_in_brackets_has_no_stop():
    with pytest.raises(experiment.ConfigError, match=r"algorithm.client is missing.*in every round\)\.$"):
        experiment.load(changes=["algorithm={name='fedprox'}"]).federated  # noqa: B018


# --- clients of train and test -------------------------------------------------------------------------------


def apart() -> fs.data.Federated:
    """A set whose test part has one client."""
    x, y = np.zeros((200, 2), np.float32), np.arange(200) % 10
    return fs.data.arrays({"x": x, "y": y}, test_fraction=0.1)


def test_holding_out_clients_of_a_central_test_set_says_what_works():
    dealt = fs.data.repartition(apart(), fs.partitions.dirichlet(20, alpha=0.1))
    with pytest.raises(
        ValueError, match=r"fs\.data\.repartition\(\.\.\., test_fraction=0\.2\).*fs\.data\.split\(data\.train"
    ):
        fs.data.holdout_clients(dealt, 0.2, seed=0)
    both = fs.data.repartition(apart(), fs.partitions.dirichlet(20, alpha=0.1), test_fraction=0.2)
    seen, unseen = fs.data.holdout_clients(both, 0.2, seed=0)
    assert (seen.train.num_clients, unseen.test.num_clients) == (16, 4)
    train, test = fs.data.split(dealt.train, test_fraction=0.2, seed=0)
    assert (
        fs.data.holdout_clients(fs.data.Federated(train, test, "own"), 0.2, seed=0)[1].test.num_clients == 4
    )


def test_unseen_clients_are_personalised_by_a_simulation_of_their_own():
    seen, unseen = fs.data.holdout_clients(fs.data.digits(clients=10), 0.3, seed=0)
    sim = simulation(seen.train)
    state, _ = sim.run(sim.init(seed=0), rounds=2)
    with pytest.raises(ValueError, match=r"fs\.Simulation\(algorithm, unseen\.train, \.\.\.\)\.personalised"):
        sim.personalised(state, unseen.test)
    result = simulation(unseen.train).personalised(state, unseen.test)
    assert result.clients.tolist() == [0, 1, 2]


# --- notes ---------------------------------------------------------------------------------------------------


def test_dealing_out_takes_back_that_one_client_holds_all():
    before = apart()
    assert "one client holds all" in before.notes[0]
    assert not any("one client" in note for note in fs.data.repartition(before, fs.partitions.iid(4)).notes)


@pytest.mark.parametrize(
    ("examples", "sentence"),
    [(1, "1 example was moved to 1 client below"), (2, "2 examples were moved to 2 clients below")],
)
def test_one_example_is_not_many(examples, sentence):
    partition = fs.partitions.dirichlet(2, 1.0)({"y": np.zeros(8, np.int32)}, 0)
    repaired = np.array([1] * examples + [0] * (2 - examples))
    assert partition._replace(repaired=repaired).remarks()[0].startswith(sentence)


def labelled(y, x=None, classes=None) -> fs.data.Federated:
    x = np.zeros((len(y), 3), np.float32) if x is None else x
    train = fs.data.ClientData({"x": x, "y": np.asarray(y)}, [0, len(y), len(y)], ["ann", "bo"])
    return fs.data.Federated(train, train, "toy", classes=classes)


@pytest.mark.parametrize(
    ("y", "match"),
    [
        ([-1, 1] * 10, r"labels y are int64: -1, 1\..*labels=\[-1, 1\]"),
        ([0.0, 1.0] * 10, r"labels y are float64: 0, 1\..*labels=\[0, 1\]"),
        ([0.0, 1.0, np.nan] * 10, r"labels=\[0, 1\]"),
        (np.linspace(3, 70, 40), "float64 from 3 to 70, no classes: they suit the task regression"),
    ],
)
def test_labels_that_are_no_classes_are_described(y, match):
    (_, said, *_) = remarks(labelled(y))
    assert re.search(match, said), said


def test_classes_and_clean_numbers_need_no_remark():
    (only,) = remarks(labelled([0, 1, 1], classes=2))
    assert only == "1 of 2 clients has no training examples"


def test_numbers_that_are_none_are_counted():
    x = np.ones((200_000, 2), np.float32)
    x[[3, 150_000], 1] = np.nan, np.inf
    said = remarks(labelled(np.arange(200_000) % 2, x, classes=2))
    assert said[1] == "column 'x' holds NaN or infinity in 2 of 200,000 training examples"
    assert any("'y' holds NaN or infinity in 1 of 2" in note for note in remarks(labelled([np.nan, 1.0])))


# --- labels by their values ----------------------------------------------------------------------------------


def test_labels_get_numbers_from_every_source(tmp_path):
    y = np.array([1, -1, -1, 1])
    columns = {"x": np.zeros((4, 2), np.float32), "y": y, "client": np.array([0, 0, 1, 1])}
    np.savez(tmp_path / "a.npz", **columns)
    np.savez(tmp_path / "names.npz", **{**columns, "y": np.array(["dog", "cat", "cat", "dog"])})
    table = {name: column.tolist() for name, column in columns.items()}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    users = {"users": ["a"], "num_samples": [4], "user_data": {"a": {"x": table["x"], "y": table["y"]}}}
    (tmp_path / "a.json").write_text(json.dumps(users))
    sets = [
        fs.data.npz(tmp_path / "a.npz", labels=[-1, 1]),
        fs.data.npz(tmp_path / "names.npz", labels=["cat", "dog"]),
        fs.data.leaf(tmp_path / "a.json", labels=[-1, 1]),
        fs.data.arrays({"x": columns["x"], "y": y}, columns["client"], labels=[-1, 1]),
        fs.data.arrays({"x": columns["x"], "y": ["dog", "cat", "cat", "dog"]}, labels=["cat", "dog"]),
        fs.data.arrays({"x": columns["x"], "y": y.astype(np.float32)}, labels=[-1, 1]),
        fs.data.parquet(tmp_path / "a.parquet", decode={"y": fs.data.decoders.labels([-1, 1])}),
        experiment.load(
            changes=["data.name=npz", f'data.path="{tmp_path / "a.npz"}"', "data.labels=[-1, 1]"]
        ).federated,
    ]
    for data in sets:
        assert data.train.columns["y"].tolist() == [1, 0, 0, 1] and data.classes == 2
        assert data.train.columns["y"].dtype == np.int32


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        ([-1, 2], "holds 1, expected one of"),
        ([1], "at least two"),
        ([1, 1], "each once"),
        (["a", "b"], "of the kind of"),
        ("ab", "expected a list"),
    ],
)
def test_labels_that_do_not_fit_are_named(labels, match):
    columns = {"x": np.zeros(2), "y": np.array([1, -1])}
    with pytest.raises((TypeError, ValueError), match=match):
        fs.data.arrays(columns, labels=labels)


def test_training_says_how_labels_become_classes(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((40, 2)), y=np.tile([-1, 1], 20), client=np.arange(40) % 4)
    changes = ["data.name=npz", f'data.path="{tmp_path / "a.npz"}"', "model.name=linear"]
    with pytest.raises(ValueError, match=r"model.classes is missing.*labels=\[-1, 1\]"):
        experiment.load(changes=changes).task()
    with pytest.raises(ValueError, match=r"holds label -1 at row 0.*labels="):
        simulation(fs.data.npz(tmp_path / "a.npz").train)


# --- owners --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", [False, True], ids=["in memory", "stored"])
@pytest.mark.parametrize("writer", [["a", "b", "a", "b"], [7, 8, 7, 8]], ids=["text", "integers"])
def test_a_parquet_file_without_client_names_the_likely_column(tmp_path, writer, store):
    table = {"row": [1, 2, 3, 4], "writer": writer, "x": [[0.0, 1.0]] * 4, "y": [0, 1, 1, 0]}
    pq.write_table(pa.table(table), file := tmp_path / "a.parquet")
    options = {"store": tmp_path / "set"} if store else {}
    try:
        said = fs.data.parquet(file, **options).notes[0]
    except ValueError as error:
        said = str(error)
    assert "give client='writer'" in said
    assert fs.data.parquet(file, client="writer").train.sizes.tolist() == [2, 2]
    chosen = {"columns": ["x", "y"]} | ({"store": tmp_path / "other"} if store else {})
    assert "give client='writer'" in fs.data.parquet(file, **chosen).notes[0]


def test_an_npz_file_without_client_says_what_to_do(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 2)), who=[0, 0, 1, 1])
    with pytest.raises(ValueError, match=r"by client=.*fs\.data\.arrays"):
        fs.data.npz(tmp_path / "a.npz")


# --- paths ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["heart_disease", "tcga_brca", "cifar10", "cifar100", "emnist", "mnist_by_writer", "images"]
)
def test_a_file_where_a_folder_is_expected_is_named(tmp_path, name):
    (tmp_path / "good.parquet").write_bytes(b"PAR1")
    with pytest.raises(NotADirectoryError, match=r"good.parquet is a file, expected a folder"):
        fs.data.load(f"{name}:{tmp_path / 'good.parquet'}")


@pytest.mark.parametrize(
    "name", ["heart_disease", "tcga_brca", "cifar10", "cifar100", "emnist", "mnist_by_writer", "school"]
)
def test_an_empty_folder_is_answered_with_where_to_get_the_files(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r"Nothing downloads by itself. Get it from"):
        fs.data.load(f"{name}:{tmp_path}")


def test_an_empty_folder_is_answered_with_what_images_reads(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train/cat/1\.png.*labels\.npz with train_images"):
        fs.data.images(tmp_path)


# --- images in folders by class ------------------------------------------------------------------------------


def draw(path: Path, value: int, size=(4, 3)) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)


def test_folders_of_images_are_classes(tmp_path):
    for name, value in (("dog/b.png", 3), ("dog/a.png", 2), ("cat/1.png", 1), ("empty/.hidden.png", 9)):
        draw(tmp_path / name, value)
    (tmp_path / "README.txt").write_text("no image")
    data = fs.data.images(tmp_path)
    assert data.train.columns["x"].shape == (3, 4, 3, 3) and data.test.num_examples == 0
    assert data.train.columns["x"][:, 0, 0, 0].tolist() == [1, 2, 3]
    assert data.train.columns["y"].tolist() == [0, 1, 1] and data.classes == 2
    assert data.notes == ("classes from 0 are the folders cat, dog",)
    divided = fs.data.images(tmp_path, test_fraction=0.5, size=[8, 8], colours="grey")
    assert divided.train.num_examples + divided.test.num_examples == 3
    assert divided.train.columns["x"].shape[1:] == (8, 8, 1)
    for name, value in (("p/train/dog/1.png", 5), ("p/train/cat/1.png", 6), ("p/test/dog/1.jpg", 7)):
        draw(tmp_path / name, value)
    parts = fs.data.images(tmp_path / "p")
    assert parts.train.columns["y"].tolist() == [0, 1] and parts.test.columns["y"].tolist() == [1]
    with pytest.raises(ValueError, match="it has a test part, expected no test_fraction"):
        fs.data.images(tmp_path / "p", test_fraction=0.5)
    draw(tmp_path / "p/test/bird/1.png", 0)
    with pytest.raises(ValueError, match=r"has the class 'bird', expected those of .*cat, dog"):
        fs.data.images(tmp_path / "p")


def test_images_that_differ_are_named(tmp_path):
    draw(tmp_path / "cat/1.png", 1)
    draw(tmp_path / "cat/2.png", 1, size=(5, 5))
    with pytest.raises(ValueError, match=r"cat/2.png.*cat/1.png.*one shape.*size="):
        fs.data.images(tmp_path)
    (tmp_path / "cat/2.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(ValueError, match=r"no image that can be read in cat/2\.png"):
        fs.data.images(tmp_path)


def test_arrays_take_no_settings_of_images(tmp_path):
    for part in ("train", "test"):
        with lzma.open(tmp_path / f"{part}_images.npy.xz", "wb") as stream:
            np.save(stream, np.zeros((2, 3, 3), np.uint8))
    np.savez(tmp_path / "labels.npz", train_label=[0, 1], test_label=[0, 1])
    assert fs.data.images(tmp_path).classes == 2
    with pytest.raises(ValueError, match="holds arrays, divided already"):
        fs.data.images(tmp_path, size=[8, 8])
