"""The real sets beside the checkout train from settings alone."""

from __future__ import annotations

import numpy as np
import pytest

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
