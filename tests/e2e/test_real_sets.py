"""The real sets beside the checkout train from settings alone."""

from __future__ import annotations

import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim import experiment

COMMON = [
    "rounds=2",
    "evaluation.every=1",
    "model=linear",
    "plots=false",
    "cohort.size=3",
    "local.max_steps=5",
]
SETS = {
    "femnist_leaf": ["data={name='npz',path='{}/femnist_leaf/femnist_leaf_sf05.npz'}"],
    "mnist_by_writer": ["data={name='mnist_by_writer',folder='{}/mnist_by_writer'}"],
    "fashion_mnist": [
        "data={name='images',folder='{}/fashion_mnist'}", "partition={name='dirichlet',clients=100,alpha=0.1}",
    ],
    "cifar10_subset": [
        "data={name='images',folder='{}/cifar10_subset'}", "partition={name='shards',clients=50,shards_per_client=2}",
    ],
    "fedprox_synthetic": [
        "data={name='leaf',path='{}/fedprox_synthetic/synthetic_1_1_mytest.json.gz',test_fraction=0.2}",
    ],
    "leaf_synthetic": ["data={name='npz',path='{}/leaf_synthetic/leaf_synthetic_100clients.npz'}"],
    "shakespeare": [
        "data={name='shakespeare',path='{}/shakespeare/roles.jsonl.gz'}", "model={name='char_lstm',hidden=16,layers=1}",
    ],
    "flamby_heart_disease": [
        "data={name='npz',path='{}/flamby_heart_disease/fed_heart_flamby_split.npz',client='center',"
        "columns={x='x_center_normalised',y='y'}}",
    ],
    "heart_disease": ["data={name='heart_disease',folder='{}/flamby_heart_disease'}"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_a_real_set_trains_from_settings(tmp_path, shared, name):
    # Braces are TOML's, too.
    changes = [change.replace("{}", str(shared / "data")) for change in SETS[name]]
    made = experiment.load(changes=[*COMMON, *changes])
    outcome = experiment.run(made, tmp_path / "run")
    history = outcome.histories[0]
    assert history.rounds == 2 and np.isfinite(history["loss"]).all()
    assert 0 <= history.last("accuracy").value <= 1


# What the folder's README states: clients with training and with test examples, examples of both parts, classes.
STATED = {
    "femnist_leaf": ("npz:{}/femnist_leaf/femnist_leaf_sf05.npz", {}, (105, 184), (14_708, 1_685 + 2_403), 62),
    "mnist_by_writer": ("mnist_by_writer:{}/mnist_by_writer", {}, (539, 297), (60_000, 10_000), 10),
    "fashion_mnist": ("images:{}/fashion_mnist", {}, None, (60_000, 10_000), 10),
    "cifar10_subset": ("images:{}/cifar10_subset", {}, None, (10_000, 1_000), 10),
    "heart_disease": ("heart_disease:{}/flamby_heart_disease", {}, (4, 4), (486, 254), 2),
    "tcga_brca": ("tcga_brca:{}/flamby_tcga_brca", {}, (6, 6), (866, 222), None),
    "school": ("school:{}/school/school.mat", {"test_fraction": 0.25}, (139, 139), 15_362, None),
    "vehicle": ("npz:{}/vehicle/vehicle_23clients_train.npz", {}, (23, 0), (1_860, 0), None),
    "leaf_synthetic": ("npz:{}/leaf_synthetic/leaf_synthetic_100clients.npz", {}, (100, 100), (6_187, 4_189), 10),
    "fedprox_1_1": ("leaf:{}/fedprox_synthetic/synthetic_1_1_mytest.json.gz", {}, (30, 0), (1_084, 0), 10),
    "fedprox_0_0": ("leaf:{}/fedprox_synthetic/synthetic_0_0_mytest.json.gz", {}, (30, 0), (897, 0), 10),
    "fedprox_iid": ("leaf:{}/fedprox_synthetic/synthetic_iid_mytest.json.gz", {}, (30, 0), (805, 0), 10),
    "shakespeare": ("shakespeare:{}/shakespeare/roles.jsonl.gz", {}, (1_230, 1_230), None, 90),
    "tinyshakespeare": ("shakespeare:{}/shakespeare/tinyshakespeare_input.txt", {}, None, None, 90),
}  # fmt: skip


@pytest.mark.parametrize("name", STATED)
def test_a_real_set_has_the_numbers_that_are_stated(shared, name):
    source, options, clients, examples, classes = STATED[name]
    data = fs.data.load(source.format(shared / "data"), **options)
    parts = data.train, data.test
    if clients is not None:
        assert tuple(int((part.sizes > 0).sum()) for part in parts) == clients
    found = tuple(part.num_examples for part in parts)
    if isinstance(examples, int):
        assert sum(found) == examples
    elif examples is not None:
        assert found == examples
    assert min(found[:1]) > 0 and data.classes == classes


def test_no_real_set_is_forgotten(shared):
    read = {source.split("{}/")[1].split("/")[0] for source, *_ in STATED.values()}
    assert {path.name for path in (shared / "data").iterdir() if path.is_dir()} == read
