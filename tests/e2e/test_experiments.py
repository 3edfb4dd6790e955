"""Experiments in run folders: what a run leaves, how it goes on, and what is refused."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest

from fedjax_sim import experiment, tracking
from fedjax_sim.checkpoint import CheckpointError
from fedjax_sim.experiment import ConfigError, RunFolder

SMALL = [
    "data.clients=8",
    "cohort.size=3",
    "model=linear",
    "rounds=6",
    "evaluation.every=2",
    "checkpoints.every=2",
]


def load(*changes: str) -> experiment.Experiment:
    return experiment.load(changes=[*SMALL, "plots=false", *changes])


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def params(state):
    return jax.tree.map(np.asarray, state.server.variables.params)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def stop_after(rounds: int):
    return lambda progress: progress.done >= rounds


def test_what_a_run_leaves(tmp_path):
    made = load("seeds=[3,4]", "evaluation.personalised=true", "unseen={fraction=0.25,seed=0}", "plots=true")
    outcome = experiment.run(made, tmp_path / "a")
    folder = outcome.folder
    names = {path.name for path in folder.iterdir()} - {".lock"}
    assert names == {
        "config.toml", "environment.json", "metrics.jsonl", "clients.npz", "summary.json", "checkpoints", "plots",
    }  # fmt: skip
    assert tomllib.loads((folder / "config.toml").read_text()) == made.settings
    assert experiment.load(folder).settings == made.settings, "a run folder is a configuration"

    about = json.loads((folder / "environment.json").read_text())
    assert about["versions"]["jax"] == jax.__version__ and about["hardware"]["backend"] == "cpu"
    assert set(about["git"] or {"commit": 0, "changed": 0}) == {"commit", "changed"}

    written = rows(folder)
    assert [(row["round"], row["seed"]) for row in written] == [(r, s) for r in range(6) for s in (3, 4)]
    assert {row["round"] for row in written if "eval/accuracy" in row and "unseen/accuracy" in row} == {
        1,
        3,
        5,
    }
    assert all(
        row["bytes_up"] > 0 and row["simulated_seconds"] > 0 and row["clients"] == 3 for row in written
    )

    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["rounds"], summary["parameters"]) == ("completed", 6, 650)
    for replica, seed in zip(summary["replicas"], (3, 4), strict=True):
        assert replica["seed"] == seed
        evaluated = [
            row["eval/accuracy"] for row in written if row["seed"] == seed and "eval/accuracy" in row
        ]
        assert replica["last"]["eval/accuracy"] == evaluated[-1]
        assert replica["best"]["eval/accuracy"]["value"] == max(evaluated)
        assert {"before", "after"} == set(replica["personalised"]["accuracy"])
    for cost in (
        "compile_seconds",
        "run_seconds",
        "step_occupancy",
        "bytes_up",
        "peak_memory_bytes",
        "examples_per_second",
    ):
        assert summary["costs"][cost] > 0
    assert summary["costs"]["precision"] == "float32 parameters, float32 products at default precision"

    with np.load(folder / "clients.npz", allow_pickle=False) as clients:
        assert clients["participation"].shape == (2, 6) and (clients["participation"].sum(axis=1) == 18).all()
        assert len(clients["cohort_clients"]) == 18 and clients["labels"].shape == (6, 10)
        np.testing.assert_array_equal(clients["labels"].sum(axis=1), clients["train_examples"])
        assert clients["eval/accuracy"].shape == clients["after/accuracy"].shape == (2, 6)
        assert clients["unseen/accuracy"].shape == (2, 2)
    assert (folder / "plots" / "learning_curves.png").stat().st_size > 1000


def test_replicas_are_runs_with_their_seeds(tmp_path):
    together = experiment.run(load("seeds=[0,1]"), tmp_path / "both")
    alone = experiment.run(load("seeds=[1]"), tmp_path / "one")
    np.testing.assert_allclose(together.histories[1]["loss"], alone.histories[0]["loss"], rtol=1e-5)
    with np.load(tmp_path / "both" / "clients.npz") as both, np.load(tmp_path / "one" / "clients.npz") as one:
        np.testing.assert_array_equal(both["participation"][1], one["participation"][0])


def test_clients_npz_says_who_really_took_part(tmp_path):
    made = load()
    experiment.run(made, tmp_path / "a")
    sim = made.simulation()
    state = sim.init(0)
    plan = sim.plan(state, 6)
    with np.load(tmp_path / "a" / "clients.npz") as clients:
        for round_ in range(6):
            drawn = clients["cohort_clients"][clients["cohort_rounds"] == round_]
            planned = plan.queues[0].entries.client[round_, 0, : plan.queues[0].count[round_, 0]]
            assert sorted(drawn) == sorted(planned.tolist())


@pytest.mark.parametrize("extra", [[], ["seeds=[0,1]", "algorithm={name='scaffold',learning_rate=0.1}"]])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(tmp_path, extra):
    whole = experiment.run(load(*extra, "trackers=['csv']"), tmp_path / "whole")
    stopped = experiment.run(load(*extra, "trackers=['csv']"), tmp_path / "b", callbacks=[stop_after(3)])
    assert (
        stopped.status == "interrupted"
        and json.loads((tmp_path / "b" / "summary.json").read_text())["rounds"] == 4
    )
    (resumed,) = experiment.resume(tmp_path / "b")
    for a, b in zip(whole.states, resumed.states, strict=True):
        assert_equal(params(a), params(b))
    for name in ("metrics.jsonl", "metrics.csv"):
        assert (tmp_path / "b" / name).read_text() == (tmp_path / "whole" / name).read_text()
    with np.load(tmp_path / "whole" / "clients.npz") as a, np.load(tmp_path / "b" / "clients.npz") as b:
        assert set(a) == set(b)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_more_rounds_than_before(tmp_path):
    whole = experiment.run(load("rounds=9"), tmp_path / "whole")
    experiment.run(load(), tmp_path / "b")
    (resumed,) = experiment.resume(tmp_path / "b", ["rounds=9"])
    assert_equal(params(whole.states[0]), params(resumed.states[0]))
    assert [row["loss"] for row in rows(tmp_path / "b")] == [row["loss"] for row in rows(tmp_path / "whole")]
    assert experiment.load(tmp_path / "b").rounds == 9


def test_rows_behind_the_checkpoint_and_a_broken_line_are_written_anew(tmp_path):
    whole = experiment.run(load(), tmp_path / "whole")
    experiment.run(load(), tmp_path / "b", callbacks=[stop_after(4)])
    path = tmp_path / "b" / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"round": 4, "seed": 0, "loss": 99.0}\n{"round": 5, "se')
    experiment.resume(tmp_path / "b")
    assert path.read_text() == (whole.folder / "metrics.jsonl").read_text()


def test_rows_that_never_reached_the_disk_come_from_the_checkpoint(tmp_path):
    whole = experiment.run(load(), tmp_path / "whole")
    experiment.run(load(), tmp_path / "b", callbacks=[stop_after(4)])
    path = tmp_path / "b" / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:1]))
    experiment.resume(tmp_path / "b")
    assert path.read_text() == (whole.folder / "metrics.jsonl").read_text()


def test_a_killed_run_without_a_checkpoint_begins_again(tmp_path):
    made = load()
    RunFolder(tmp_path / "b").create(made.settings)
    (tmp_path / "b" / "metrics.jsonl").write_text('{"round": 0, "seed": 0, "loss": 1.0}\n')
    (resumed,) = experiment.resume(tmp_path / "b")
    assert resumed.status == "completed" and [row["round"] for row in rows(tmp_path / "b")] == list(range(6))


# --- sweeps --------------------------------------------------------------------------------------------------


def test_a_sweep_of_numbers_is_one_folder_whose_rows_say_which(tmp_path):
    (outcome,) = experiment.sweep(
        load("sweep.algorithm.client.learning_rate=[0.05,0.2]", "seeds=[0,1]"), tmp_path / "s"
    )
    labels = [(label["seed"], label["sweep"]["algorithm.client.learning_rate"]) for label in outcome.labels]
    assert labels == [(0, 0.05), (1, 0.05), (0, 0.2), (1, 0.2)]
    alone = experiment.run(load("algorithm.client.learning_rate=0.2", "seeds=[1]"), tmp_path / "one")
    np.testing.assert_allclose(outcome.histories[3]["loss"], alone.histories[0]["loss"], rtol=1e-5)
    assert rows(tmp_path / "s")[3]["sweep"] == {"algorithm.client.learning_rate": 0.2}


def test_a_sweep_of_shapes_is_a_folder_of_folders_and_goes_on(tmp_path):
    made = load("sweep.local.batch_size=[5,10]", "rounds=2")
    calls = []

    def callbacks(program):
        calls.append(program.name)
        return [stop_after(1)] if len(calls) == 2 else []

    outcomes = experiment.sweep(made, tmp_path / "s", callbacks=callbacks)
    assert [o.folder.name for o in outcomes] == ["000-batch_size=5", "001-batch_size=10"] == calls
    again = experiment.resume(tmp_path / "s")
    assert [o.status for o in again] == ["completed", "completed"]
    assert {o.folder.name for o in again} == {"000-batch_size=5", "001-batch_size=10"}
    with pytest.raises(ConfigError, match="need several programs: use sweep"):
        experiment.run(made, tmp_path / "t")


# --- what is refused, and what fails -------------------------------------------------------------------------


def test_a_folder_that_exists_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(ConfigError, match=r"a exists already; name a new one, or go on .*fedjax-sim resume"):
        experiment.run(load(), tmp_path / "a")
    assert list((tmp_path / "a").iterdir()) == []


def test_settings_that_change_the_model_are_refused_with_the_difference(tmp_path):
    experiment.run(load(), tmp_path / "a", callbacks=[stop_after(2)])
    with pytest.raises(ConfigError) as error:
        experiment.resume(
            tmp_path / "a",
            [
                "algorithm.client.learning_rate=1",
                "cohort.size=2",
                "evaluation.every=3",
                "precision.compute=bfloat16",
            ],
        )
    assert "algorithm.client.learning_rate: 0.1 in the run folder, 1.0 now" in str(error.value)
    assert "cohort.size: 3 in the run folder, 2 now" in str(error.value)
    assert 'precision.compute: not set in the run folder, "bfloat16" now' in str(error.value)
    assert "evaluation" not in str(error.value)


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"is no run folder: config.toml cannot be read"):
        experiment.resume(tmp_path)
    with pytest.raises(ConfigError, match="is no run folder"):
        experiment.resume(tmp_path / "nowhere")


def test_a_configuration_changed_by_hand_is_refused_by_its_checkpoint(tmp_path):
    experiment.run(load(), tmp_path / "a", callbacks=[stop_after(2)])
    path = tmp_path / "a" / "config.toml"
    path.write_text(path.read_text().replace("learning_rate = 0.1", "learning_rate = 0.5"))
    with pytest.raises(
        CheckpointError, match=r"settings.algorithm.client.learning_rate: 0.1 in the checkpoint, 0.5 now"
    ):
        experiment.resume(tmp_path / "a")


def test_two_processes_in_one_folder(tmp_path):
    experiment.run(load(), tmp_path / "a", callbacks=[stop_after(2)])
    with RunFolder(tmp_path / "a").lock(), pytest.raises(ConfigError, match="another process runs in"):
        experiment.resume(tmp_path / "a")
    assert experiment.resume(tmp_path / "a")[0].status == "completed"


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        experiment.run(load(), tmp_path / "file" / "run")


def test_a_full_disk_ends_the_run_and_it_goes_on_later(tmp_path, monkeypatch):
    write = tracking.JsonLines.write

    def full(self, row):
        if row["round"] == 3:
            raise OSError(28, "No space left on device")
        write(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(tracking.JsonLines, "write", full)
        with pytest.raises(OSError, match="No space left"):
            experiment.run(load(), tmp_path / "a")
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["status"] == "failed" and "No space left" in summary["reason"]
    (resumed,) = experiment.resume(tmp_path / "a")
    whole = experiment.run(load(), tmp_path / "whole")
    assert_equal(params(resumed.states[0]), params(whole.states[0]))
    assert (tmp_path / "a" / "metrics.jsonl").read_text() == (whole.folder / "metrics.jsonl").read_text()


def test_a_broken_tracker_does_not_end_the_run(tmp_path, monkeypatch):
    def broken(self, row):
        raise RuntimeError("no connection")

    monkeypatch.setattr(tracking.Csv, "write", broken)
    with pytest.warns(RuntimeWarning, match="the tracker csv is off for the rest of the run.*no connection"):
        outcome = experiment.run(load("trackers=['csv']"), tmp_path / "a")
    assert outcome.status == "completed" and len(rows(tmp_path / "a")) == 6


def test_pictures_that_fail_do_not_fail_the_run(tmp_path, monkeypatch):
    def broken(folder):
        raise ValueError("no ink")

    monkeypatch.setattr("fedjax_sim.plots.save_all", broken)
    with pytest.warns(RuntimeWarning, match="could not be drawn: ValueError: no ink"):
        assert experiment.run(load("plots=true"), tmp_path / "a").status == "completed"


def test_a_model_that_is_not_finite_leaves_the_rounds_before(tmp_path):
    from fedjax_sim import NonFiniteModelError

    with pytest.raises(NonFiniteModelError):
        experiment.run(
            load("algorithm.client.learning_rate=1e38", "model=mlp", "seeds=[0,1]"), tmp_path / "a"
        )
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["status"] == "failed" and summary["reason"].startswith("error: the model")
    assert len(rows(tmp_path / "a")) == 2 * summary["rounds"]


def test_load_states_gives_the_newest_model(tmp_path):
    outcome = experiment.run(load("seeds=[0,1]"), tmp_path / "a")
    found, simulation, again = experiment.load_states(tmp_path / "a")
    for a, b in zip(outcome.states, again.states, strict=True):
        assert_equal(params(a), params(b))
    value = simulation.evaluate(again.states[1], found.federated.test).examples["accuracy"]
    assert value == outcome.histories[1].last("accuracy").value
    RunFolder(tmp_path / "b").create(found.settings)
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        experiment.load_states(tmp_path / "b")


def test_the_newest_run_has_a_name(tmp_path):
    experiment.run(load("rounds=1"), tmp_path / "runs" / "a")
    experiment.run(load("rounds=1"), tmp_path / "runs" / "b")
    assert (tmp_path / "runs" / "latest").resolve() == tmp_path / "runs" / "b"


def test_fewer_rounds_than_there_are_leave_the_folder_as_it_is(tmp_path):
    experiment.run(load(), tmp_path / "a")
    names = ("config.toml", "summary.json", "metrics.jsonl")
    before = [(tmp_path / "a" / name).read_text() for name in names]
    with pytest.raises(ConfigError, match="has 6 rounds already, and 2 were asked for"):
        experiment.resume(tmp_path / "a", ["rounds=2"])
    assert [(tmp_path / "a" / name).read_text() for name in names] == before


def test_settings_that_were_cut_off_are_no_run(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.toml").write_text("")
    with pytest.raises(ConfigError, match="is not the complete settings of a run"):
        experiment.resume(tmp_path / "a")


def test_a_sweep_whose_folder_was_killed_while_it_was_made_goes_on(tmp_path):
    made = load("sweep.local.batch_size=[5,10]", "rounds=1")
    RunFolder(tmp_path / "s").create(made.settings)
    (tmp_path / "s" / "000-batch_size=5").mkdir()
    (tmp_path / "s" / "000-batch_size=5" / "config.toml.partial").write_text("rounds")
    assert [outcome.status for outcome in experiment.resume(tmp_path / "s")] == ["completed", "completed"]


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_goes_on_can_be_looked_at_from_outside(tmp_path):
    experiment.run(load(), tmp_path / "a", callbacks=[stop_after(4)])
    before = content(tmp_path / "a")
    with RunFolder(tmp_path / "a").lock():
        _, _, outcome = experiment.load_states(tmp_path / "a")
    assert int(outcome.states[0].round) == 4 and outcome.histories[0].rounds == 4
    assert content(tmp_path / "a") == before


@pytest.mark.parametrize("seeds", ["[0]", "[0,1]"])
def test_states_come_from_the_newest_checkpoint_that_can_be_read(tmp_path, seeds):
    """Nothing is trained again, and what is damaged stays where it is."""
    experiment.run(load(f"seeds={seeds}"), tmp_path / "a")
    for path in (tmp_path / "a" / "checkpoints" / "6").rglob("*"):
        if path.is_file() and "arrays" in str(path):
            path.write_bytes(b"")
    before = content(tmp_path / "a")
    with pytest.warns(RuntimeWarning, match="cannot be read; going on from the one before it"):
        _, _, outcome = experiment.load_states(tmp_path / "a")
    assert [int(state.round) for state in outcome.states] == [4] * len(outcome.states)
    assert content(tmp_path / "a") == before


def test_a_sweep_of_several_programs_says_which_folders_to_name(tmp_path):
    RunFolder(tmp_path / "s").create(load("sweep.local.batch_size=[5,10]").settings)
    with pytest.raises(
        ConfigError, match=r"name one of its run folders, .*000-batch_size=5, .*001-batch_size=10"
    ):
        experiment.load_states(tmp_path / "s")


# --- what a failure leaves -----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError("no disk"), KeyboardInterrupt()], ids=["failed", "stopped"])
def test_a_resume_that_fails_before_its_first_round_keeps_the_summary(tmp_path, monkeypatch, error):
    experiment.run(load(), tmp_path / "a")
    before = json.loads((tmp_path / "a" / "summary.json").read_text())

    def fails(*arguments, **options):
        raise error

    monkeypatch.setattr("fedjax_sim.Simulation.run", fails)
    with pytest.raises(type(error)):
        experiment.resume(tmp_path / "a", ["rounds=9"])
    after = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert after == before and after["status"] == "completed" and after["replicas"]


def test_a_tracker_that_cannot_be_made_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    experiment.run(load("rounds=1"), tmp_path / "runs" / "a")
    with pytest.raises((ConfigError, ImportError), match="wandb"):
        experiment.run(load("trackers=['csv', {name='wandb', project='p'}]"), tmp_path / "runs" / "b")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["a", "latest"]
    assert (tmp_path / "runs" / "latest").resolve().name == "a"


def test_a_link_called_latest_elsewhere_is_somebodys(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "latest").symlink_to("thesis")
    experiment.run(load("rounds=1"), tmp_path / "a")
    assert (tmp_path / "latest").resolve() == tmp_path / "thesis"


@pytest.mark.parametrize("left", [1, 5, 11, 12])
def test_rows_of_a_finished_run_that_never_reached_the_disk_are_written(tmp_path, left):
    """Two rows a round; 5 and 11 cut a round in half."""
    outcome = experiment.run(load("seeds=[0,1]", "trackers=['csv']"), tmp_path / "a")
    path = outcome.folder / "metrics.jsonl"
    whole, table = path.read_text(), (outcome.folder / "metrics.csv").read_text()
    path.write_text("".join(whole.splitlines(keepends=True)[:left]))
    experiment.resume(outcome.folder)
    assert path.read_text() == whole and (outcome.folder / "metrics.csv").read_text() == table
