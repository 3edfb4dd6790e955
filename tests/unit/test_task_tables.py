"""``[pretrained]``, ``[trainable]`` and ``[lora]``: what of a model a file has trained, and what it starts from."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim import experiment
from fedjax_sim.experiment import ConfigError

SMALL = ["data.clients=8", "cohort.size=3", "rounds=1", "plots=false", "model={name='mlp', hidden=[5]}"]


def load(*changes: str, path=None) -> experiment.Experiment:
    return experiment.load(path, [*SMALL, *changes])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file, and the model in it."""
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    state = load().simulation().init(seed=9)
    fs.tasks.save_weights(path, state.server.variables)
    return path, state.server.variables.params


def first(made: experiment.Experiment, seed=0) -> fs.Variables:
    sim = made.simulation()
    return sim.algorithm.params(sim.init(seed).server)


def test_a_model_starts_from_a_file(weights):
    path, params = weights
    found = first(load(f"pretrained.weights='{path}'", "pretrained.fresh='params/Dense_1/'")).params
    np.testing.assert_array_equal(found["Dense_0"]["kernel"], params["Dense_0"]["kernel"])
    assert not np.array_equal(found["Dense_1"]["kernel"], params["Dense_1"]["kernel"])


def test_paths_begin_at_the_file(weights, monkeypatch, tmp_path):
    path, params = weights
    file = path.with_name("tuned.toml")
    file.write_text('pretrained = { weights = "w.safetensors" }\n')
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    made = load(path=file)
    assert made.settings["pretrained"]["weights"] == str(path)
    np.testing.assert_array_equal(first(made).params["Dense_0"]["kernel"], params["Dense_0"]["kernel"])
    swept = load("sweep.pretrained.weights=['w.safetensors']", path=file).settings["sweep"][
        "pretrained.weights"
    ]
    assert swept == [str(tmp_path / "elsewhere" / "w.safetensors")]  # said on the command line


def test_a_part_is_trained(weights):
    path, params = weights
    made = load(f"pretrained.weights='{path}'", "trainable.predicate='^Dense_1/'")
    assert made.parameters() == sum(x.size for x in jax.tree.leaves(params["Dense_1"]))
    found = first(made)
    assert list(found.params) == ["Dense_1"]
    np.testing.assert_array_equal(found.frozen[0]["Dense_0"]["kernel"], params["Dense_0"]["kernel"])


def test_adapters_are_trained_in_a_run_folder(weights, tmp_path):
    """The whole way: a run, its summary, and a resume that refuses another rank."""
    path, params = weights
    made = load(
        f"pretrained.weights='{path}'", "lora={rank=2, targets='^Dense_0/', full='^Dense_1/', freeze_a=true}"
    )
    outcome = experiment.run(made, tmp_path / "a")
    assert outcome.summary["parameters"] == 2 * 5 + sum(x.size for x in jax.tree.leaves(params["Dense_1"]))
    merged = fs.tasks.merge_lora(made.simulation().algorithm.params(outcome.states[0].server)).params
    assert not np.array_equal(merged["Dense_0"]["kernel"], params["Dense_0"]["kernel"])
    np.testing.assert_array_equal(merged["Dense_0"]["bias"], params["Dense_0"]["bias"])
    with pytest.raises(ConfigError, match=r"lora.rank: 2 in the run folder, 3 now"):
        experiment.resume(tmp_path / "a", ["lora.rank=3"])


def test_precision_is_chosen_last(weights):
    made = load("trainable.predicate='^Dense_1/'", "precision.compute='bfloat16'")
    assert (
        "bfloat16 products" in made.simulation().run(made.simulation().init(0), rounds=1)[1].costs.precision
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["pretrained.weights='none.safetensors'"], r"^pretrained: .*none.safetensors is no file"),
        (["pretrained.fresh='params/Dense_1/'"], r"^pretrained.weights is missing"),
        (["pretrained.weights='{path}'", "pretrained.fresh='Dense_7'"], r"^pretrained: fresh 'Dense_7' begins no name"),
        (["pretrained.weights='{path}'", "model.hidden=[6]"], r"^pretrained: .*of shape \[(64, )?5.*\], the task's has"),
        (["pretrained.weights='{path}'", "model.hidden=[5, 5]"], r"^pretrained: .*(no array|of shape)"),
        (["trainable.predicate='Conv'"], r"^trainable: predicate 'Conv' selects no parameter to train; the paths are"),
        (["trainable.predicate='('"], r"^trainable: predicate is '\(', which is no regular expression"),
        (["lora.rank=0"], r"^lora: rank"),
        (["lora={rank=1, targets='('}"], r"^lora: targets is '\(', which is no regular expression"),
        (["lora={rank=1, full='Conv'}"], r"^lora: full 'Conv' finds no parameter"),
        (["lora.rank=1", "trainable.predicate='Dense'"], r"^trainable and lora both say what is trained"),
        (["lora.ranks=1"], r"^lora.ranks is no setting"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_a_folder_is_made(weights, tmp_path, changes, says):
    with pytest.raises(ConfigError, match=says):
        experiment.run(
            load(*(change.format(path=weights[0]) if "{path}" in change else change for change in changes)),
            tmp_path / "a",
        )
    assert not (tmp_path / "a").exists()


def test_a_truncated_file_is_refused(weights, tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(weights[0].read_bytes()[:-8])
    with pytest.raises(ConfigError, match=r"^pretrained: .*cut.safetensors is no complete safetensors file"):
        load(f"pretrained.weights='{tmp_path / 'cut.safetensors'}'").task()
