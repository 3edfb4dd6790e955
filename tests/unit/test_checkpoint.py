"""Checkpoints: going on equals never having stopped, and nothing that is not this run's is taken for it."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import optax
import pytest
from unit.small import make_data, simulation

import fedjax_sim as fs
from fedjax_sim import aggregation as agg
from fedjax_sim.checkpoint import Store

SIZES = (3, 1, 5, 9, 4, 2)
TASK = fs.tasks.classification(fs.models.linear(classes=2))
KINDS = {
    "fedadam": lambda: fs.algorithms.fedadam(TASK, optax.sgd(0.1)),
    "scaffold": lambda: fs.algorithms.scaffold(TASK, 0.1),
    "error feedback": lambda: fs.algorithms.fedavg(
        TASK, optax.sgd(0.1), aggregate=agg.chain(agg.top_k(0.5), agg.mean(over="clients"))
    ),
    "adaptive clip": lambda: fs.algorithms.fedavg(
        TASK,
        optax.sgd(0.1),
        aggregate=agg.chain(
            agg.adaptive_clip(count_noise_std=0.15), agg.mean(over="expected_cohort"), agg.gaussian_noise(0.5)
        ),
    ),
}


def small(kind="fedadam", **options) -> fs.Simulation:
    options = {"cohort": fs.cohorts.uniform(3), "rounds_per_chunk": 3} | options
    return simulation(KINDS[kind](), make_data(SIZES), **options)


def assert_same_state(a: fs.SimState, b: fs.SimState):
    def plain(state):
        return jax.tree.map(
            lambda x: (
                np.asarray(jax.random.key_data(x))
                if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
                else np.asarray(x)
            ),
            state,
        )

    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, plain(a), plain(b))


def assert_same_history(a: fs.History, b: fs.History):
    assert (a.first_round, a.rounds, set(a.metrics)) == (b.first_round, b.rounds, set(b.metrics))
    for name in a.metrics:
        np.testing.assert_array_equal(a[name], b[name])
    assert list(a.evaluations) == list(b.evaluations)
    for done, sets in a.evaluations.items():
        for name, evaluation in sets.items():
            assert evaluation.examples == b.evaluations[done][name].examples
            assert evaluation.clients == b.evaluations[done][name].clients
    assert (a.costs.examples, a.costs.steps, a.costs.bytes_up) == (
        b.costs.examples,
        b.costs.steps,
        b.costs.bytes_up,
    )


def stop_after(rounds):
    return lambda progress: progress.done >= rounds


@pytest.mark.parametrize("kind", KINDS)
def test_going_on_equals_never_having_stopped(tmp_path, kind):
    sim = small(kind)
    data = make_data(SIZES)
    whole, history = sim.run(sim.init(seed=1), rounds=8, evaluate_on=data, every=4)

    checkpoints = fs.Checkpoints(tmp_path / "a", every=2)
    first = small(kind)
    first.run(
        first.init(seed=1), 8, evaluate_on=data, every=4, callbacks=[stop_after(5)], checkpoints=checkpoints
    )
    assert checkpoints.rounds() == [4, 6]
    second = small(kind)
    state, resumed = second.run(second.init(seed=1), 8, evaluate_on=data, every=4, checkpoints=checkpoints)
    assert_same_state(state, whole)
    assert_same_history(resumed, history)
    assert checkpoints.rounds() == [6, 8]


def test_a_finished_run_is_not_run_again_and_goes_on_when_rounds_are_raised(tmp_path):
    sim, checkpoints = small(), fs.Checkpoints(tmp_path / "a", every=4)
    whole, history = sim.run(sim.init(seed=0), rounds=7)
    sim.run(sim.init(seed=0), rounds=5, checkpoints=checkpoints)
    seen = []
    again, _ = sim.run(sim.init(seed=0), rounds=5, checkpoints=checkpoints, callbacks=[seen.append])
    assert int(again.round) == 5 and seen == []
    state, resumed = sim.run(sim.init(seed=0), rounds=7, checkpoints=checkpoints)
    assert_same_state(state, whole)
    assert_same_history(resumed, history)


def test_a_run_in_two_calls_shares_a_folder(tmp_path):
    sim, checkpoints = small(), fs.Checkpoints(tmp_path / "a", every=2)
    whole, history = sim.run(sim.init(seed=0), rounds=6)
    half, _ = sim.run(sim.init(seed=0), rounds=3, checkpoints=checkpoints)
    state, rest = sim.run(half, rounds=3, checkpoints=checkpoints)
    assert_same_state(state, whole)
    assert (rest.first_round, rest.rounds) == (3, 3)
    np.testing.assert_array_equal(rest["loss"], history["loss"][3:])


def test_a_sweep_goes_on(tmp_path):
    def sweep(sim, rounds, **options):
        return sim.sweep(
            seeds=[0, 1, 2], rounds=rounds,
            algorithm=lambda rate: fs.algorithms.scaffold(TASK, rate), hyperparameters={"rate": [0.1, 0.2, 0.3]},
            **options,
        )  # fmt: skip

    sim, checkpoints = small("scaffold"), fs.Checkpoints(tmp_path / "a", every=3)
    whole = sweep(sim, 5)
    sweep(small("scaffold"), 3, checkpoints=checkpoints)
    resumed = sweep(small("scaffold"), 5, checkpoints=checkpoints)
    for replica in range(3):
        assert_same_history(resumed[replica], whole[replica])
        assert_same_state(resumed.states[replica], whole.states[replica])


def test_old_checkpoints_go(tmp_path):
    sim = small()
    checkpoints = fs.Checkpoints(tmp_path / "a", every=1, keep=2, keep_every=4)
    sim.run(sim.init(seed=0), rounds=7, checkpoints=checkpoints)
    assert checkpoints.rounds() == [4, 6, 7]


def test_what_is_written_is_arrays_and_json(tmp_path):
    sim = small()
    sim.run(sim.init(seed=0), rounds=2, checkpoints=fs.Checkpoints(tmp_path / "a", settings={"rate": 0.1}))
    about = json.loads((tmp_path / "a" / "2" / "about" / "metadata").read_text())
    assert about["description"]["settings"] == {"rate": 0.1}
    assert about["description"]["algorithm"] == "fedadam"
    assert about["specs"]["server/variables/params/Dense_0/kernel"] == ["float32", [3, 2]]


# --- what is refused -----------------------------------------------------------------------------------------

OTHER = {
    "seed": (lambda: small(), 2, r"seed: \[\[0, 1\]\] in the checkpoint, \[\[0, 2\]\] now"),
    "algorithm": (lambda: small("scaffold"), 1, r'algorithm: "fedadam" in the checkpoint, "scaffold" now'),
    "cohort": (
        lambda: small(cohort=fs.cohorts.uniform(2)),
        1,
        "cohort.expected: 3.0 in the checkpoint, 2.0 now",
    ),
    "local work": (
        lambda: small(local=fs.LocalWork(batch_size=5, shuffle=False)),
        1,
        "local.batch_size: 4 in the checkpoint, 5 now",
    ),
    "data": (
        lambda: simulation(KINDS["fedadam"](), make_data((3, 1, 5, 9, 4, 3)), cohort=fs.cohorts.uniform(3)),
        1,
        "data.examples: 24 in the checkpoint, 25 now",
    ),
    "model": (
        lambda: simulation(
            fs.algorithms.fedadam(fs.tasks.classification(fs.models.mlp(2, hidden=[4])), optax.sgd(0.1)),
            make_data(SIZES),
            cohort=fs.cohorts.uniform(3),
        ),
        1,
        r"state/server/variables/params/Dense_0/kernel: float32\[3, 2\] in the checkpoint, float32\[3, 4\] now",
    ),
}


@pytest.mark.parametrize("name", OTHER)
def test_the_checkpoint_of_another_run_is_refused_with_the_difference(tmp_path, name):
    sim, checkpoints = small(), fs.Checkpoints(tmp_path / "a")
    sim.run(sim.init(seed=1), rounds=2, checkpoints=checkpoints)
    make, seed, message = OTHER[name]
    other = make()
    with pytest.raises(fs.CheckpointError, match=message):
        other.run(other.init(seed=seed), rounds=4, checkpoints=checkpoints)
    assert checkpoints.rounds() == [2], "what was saved is left alone"


def test_settings_of_ones_own_are_compared(tmp_path):
    sim = small()
    run = lambda settings, rounds: sim.run(  # noqa: E731
        sim.init(seed=1), rounds, checkpoints=fs.Checkpoints(tmp_path / "a", settings=settings)
    )
    run({"client": {"rate": 0.1, "momentum": 0.9}}, 1)
    with pytest.raises(fs.CheckpointError, match=r"settings.client.rate: 0.1 in the checkpoint, 0.2 now"):
        run({"client": {"rate": 0.2, "momentum": 0.9}}, 2)


def test_fewer_rounds_than_there_are_is_refused(tmp_path):
    sim, checkpoints = small(), fs.Checkpoints(tmp_path / "a")
    sim.run(sim.init(seed=1), rounds=4, checkpoints=checkpoints)
    with pytest.raises(
        fs.CheckpointError, match="has a checkpoint after 4 rounds, and 3 rounds were asked for"
    ):
        sim.run(sim.init(seed=1), rounds=3, checkpoints=checkpoints)


def test_a_run_that_begins_before_the_saved_one_is_refused(tmp_path):
    sim, checkpoints = small(), fs.Checkpoints(tmp_path / "a")
    later, _ = sim.run(sim.init(seed=1), rounds=2)
    sim.run(later, rounds=2, checkpoints=checkpoints)
    with pytest.raises(
        fs.CheckpointError, match="belongs to a run that began at round 2, this one begins at round 0"
    ):
        sim.run(sim.init(seed=1), rounds=5, checkpoints=checkpoints)


def truncate(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_arrays(folder):
    shutil.rmtree(folder / "arrays")


@pytest.mark.parametrize("damage", [truncate, without_arrays])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_taken(tmp_path, damage):
    sim, checkpoints = small(), fs.Checkpoints(tmp_path / "a", every=2)
    whole, _ = sim.run(sim.init(seed=0), rounds=6)
    sim.run(sim.init(seed=0), rounds=4, checkpoints=checkpoints)
    damage(tmp_path / "a" / "4")
    with pytest.warns(
        RuntimeWarning, match="cannot be read and is now 4.damaged; going on from the one before"
    ):
        state, _ = sim.run(sim.init(seed=0), rounds=6, checkpoints=checkpoints)
    assert_same_state(state, whole)
    assert (tmp_path / "a" / "4.damaged").is_dir()


def test_a_write_that_was_killed_is_no_checkpoint(tmp_path):
    """orbax writes into a temporary folder and renames it."""
    sim, checkpoints = small(), fs.Checkpoints(tmp_path / "a", every=2)
    sim.run(sim.init(seed=0), rounds=2, checkpoints=checkpoints)
    shutil.copytree(tmp_path / "a" / "2", tmp_path / "a" / "4.orbax-checkpoint-tmp")
    assert checkpoints.rounds() == [2]
    state, _ = sim.run(sim.init(seed=0), rounds=4, checkpoints=checkpoints)
    assert int(state.round) == 4


def test_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "a" / "3").mkdir(parents=True)
    sim = small()
    with pytest.raises(
        fs.CheckpointError, match="3 is not a checkpoint of fedjax_sim: it has no part 'about'"
    ):
        sim.run(sim.init(seed=0), rounds=4, checkpoints=fs.Checkpoints(tmp_path / "a"))


def test_another_format_is_refused(tmp_path):
    sim, checkpoints = small(), fs.Checkpoints(tmp_path / "a")
    sim.run(sim.init(seed=0), rounds=1, checkpoints=checkpoints)
    path = tmp_path / "a" / "1" / "about" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(fs.CheckpointError, match="has format 99, this version of fedjax_sim reads 1"):
        sim.run(sim.init(seed=0), rounds=2, checkpoints=checkpoints)


def test_a_disk_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
    sim, checkpoints = small(), fs.Checkpoints(tmp_path / "a", every=1)

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    sim.run(sim.init(seed=0), rounds=1, checkpoints=checkpoints)
    with monkeypatch.context() as patch:
        patch.setattr("orbax.checkpoint.CheckpointManager.save", full)
        with pytest.raises(OSError, match="No space left"):
            sim.run(sim.init(seed=0), rounds=2, checkpoints=checkpoints)
    assert checkpoints.rounds() == [1]
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        sim.run(sim.init(seed=0), rounds=1, checkpoints=fs.Checkpoints(tmp_path / "file" / "b"))


@pytest.mark.parametrize("name", ["every", "keep", "keep_every"])
def test_counts_are_above_zero(name):
    with pytest.raises(ValueError, match=f"Checkpoints.{name} is 0, expected an integer of at least 1"):
        fs.Checkpoints("a", **{name: 0})


def test_a_write_that_fails_at_the_end_is_an_error_but_never_hides_one(tmp_path, monkeypatch):
    def full(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.close", full)
    state = small().init(0)
    with pytest.raises(OSError, match="No space left"), Store(fs.Checkpoints(tmp_path / "a"), {}, state):
        pass
    with pytest.raises(KeyError), Store(fs.Checkpoints(tmp_path / "a"), {}, state):
        raise KeyError("run")


# --- reading without running ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_number_of_rounds_the_newest_checkpoint_is_read(tmp_path, kind):
    keep = fs.Checkpoints(tmp_path, every=2)
    state, history = small(kind).run(small(kind).init(0), 5, checkpoints=keep)
    sim = small(kind)
    again, read = sim.run(sim.init(0), None, checkpoints=keep)
    assert_same_state(state, again)
    assert_same_history(history, read)
    assert sim.compilations == 0


def test_without_a_number_of_rounds_there_must_be_something_to_read(tmp_path):
    sim = small()
    with pytest.raises(ValueError, match="rounds is None without checkpoints"):
        sim.run(sim.init(0), None)
    with pytest.raises(fs.CheckpointError, match="no checkpoint of the folder can be read"):
        sim.run(sim.init(0), None, checkpoints=fs.Checkpoints(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
