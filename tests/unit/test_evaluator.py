"""Evaluating on one set again and again: its examples stay on the device, and nothing else differs from a plain loop."""

from __future__ import annotations

import gc

import jax
import numpy as np
import optax
import pytest
from laws.test_compiled_once import backend_compilations

import fedjax_sim as fs
from fedjax_sim import _runner, evaluation
from fedjax_sim.data import ClientSource, _blocks
from fedjax_sim.evaluation import Evaluator

FEATURES, CLASSES = 3, 2
TASK = fs.tasks.classification(fs.models.linear(CLASSES), sample_input=(1, FEATURES))
MODELS = [TASK.init(jax.random.key(seed)) for seed in range(2)]
SETS = {
    "whole batches": [4, 4, 8],
    "a partial last batch": [5, 1, 3],
    "one example": [0, 1, 0],
    "fewer than a batch": [1, 2],
    "clients without examples": [0, 5, 0, 0, 4, 0],
}


def columns_of(client: int, size: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(client)
    x = generator.normal(size=(size, FEATURES)).astype(np.float32)
    return {"x": x, "y": generator.integers(CLASSES, size=size, dtype=np.int32)}


class OnDemand(ClientSource):
    def __init__(self, sizes):
        columns = {
            "x": jax.ShapeDtypeStruct((FEATURES,), np.float32),
            "y": jax.ShapeDtypeStruct((), np.int32),
        }
        super().__init__(np.asarray(sizes), columns)

    def make(self, client):
        return columns_of(client, self.sizes[client])


def client_data(sizes) -> fs.ClientData:
    return fs.ClientData.from_clients({client: columns_of(client, size) for client, size in enumerate(sizes)})


def plain(variables: fs.Variables, sizes) -> dict[str, np.ndarray]:
    """Each client's mean loss and accuracy, one example after the other; NaN without examples."""
    layer = jax.tree.map(np.asarray, variables.params["Dense_0"])
    found = {"loss": np.full(len(sizes), np.nan), "accuracy": np.full(len(sizes), np.nan)}
    for client, size in enumerate(sizes):
        losses, hits = [], []
        for x, y in zip(*columns_of(client, size).values(), strict=True):
            logits = (x @ layer["kernel"] + layer["bias"]).astype(np.float64)
            losses.append(np.log(np.exp(logits).sum()) - logits[y])
            hits.append(np.argmax(logits) == y)
        if size:
            found["loss"][client], found["accuracy"][client] = np.mean(losses), np.mean(hits)
    return found


@pytest.fixture(params=["kept", "too large to be kept", "made in blocks"])
def make(request, monkeypatch):
    """Sizes to data, by each of the ways in which examples come to the device."""
    if request.param == "kept":
        return client_data
    monkeypatch.setattr(evaluation, "KEPT_BYTES", 0)
    if request.param == "too large to be kept":
        return client_data
    monkeypatch.setattr(_blocks, "HELD_BYTES", 0)
    monkeypatch.setattr(_blocks, "BLOCK_BYTES", 6 * (4 * FEATURES + 4))
    return OnDemand


@pytest.mark.parametrize("sizes", SETS.values(), ids=SETS)
def test_every_evaluation_is_the_plain_loop(make, sizes):
    evaluator = Evaluator(make(sizes), batch_size=4, keep=evaluation.KEPT_BYTES > 0)
    for variables in (*MODELS, MODELS[0]):
        found, expected = evaluator(TASK, variables), plain(variables, sizes)
        assert found.num_examples == sum(sizes)
        for name, values in expected.items():
            np.testing.assert_allclose(found.per_client[name], values, rtol=1e-5)
            weights = np.asarray(sizes)[np.asarray(sizes) > 0]
            assert found.examples[name] == pytest.approx(
                np.average(values[~np.isnan(values)], weights=weights)
            )


def test_a_second_evaluation_brings_nothing_to_the_device():
    """Not even explicitly; the guard does see what the first one brings."""
    evaluator = Evaluator(client_data([5, 0, 6]), batch_size=4, keep=True)
    guarded = lambda: jax.transfer_guard_host_to_device("disallow_explicit")  # noqa: E731
    with guarded(), pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        evaluator(TASK, MODELS[0])
    first = evaluator(TASK, MODELS[0])
    with guarded():
        again = evaluator(TASK, MODELS[0])
    assert first.examples == again.examples


def test_one_program_serves_sets_of_any_length_wherever_the_model_lies():
    """A model that was put on a device by name is no other program for the batches after the first."""
    apply = lambda *arguments, **options: TASK.apply(*arguments, **options)  # noqa: E731
    task = TASK._replace(apply=apply)
    for variables in (MODELS[0], jax.device_put(MODELS[0], jax.devices()[0])):
        with backend_compilations() as events:
            Evaluator(client_data([9, 8]), batch_size=4)(task, variables)
        assert len(events) == 2  # the totals to begin with are one, too
        with backend_compilations() as events:
            Evaluator(client_data([3, 2]), batch_size=4)(task, variables)
        assert not events


def test_another_task_is_checked_on_what_is_kept():
    evaluator = Evaluator(client_data([2, 2]), keep=True)
    evaluator(TASK, MODELS[0])

    def refuse(columns):
        raise ValueError(f"refused {sorted(columns)}")

    with pytest.raises(ValueError, match=r"refused \['x', 'y'\]"):
        evaluator(TASK._replace(check=refuse), MODELS[0])


def test_sets_share_the_room_on_the_device(monkeypatch):
    small, large = client_data([2]), client_data([3])
    monkeypatch.setattr(evaluation, "KEPT_BYTES", small.nbytes + large.nbytes - 1)
    kept = lambda *sets: [one.stays for one in evaluation.evaluators(dict(enumerate(sets))).values()]  # noqa: E731
    assert kept(small, large) == [True, False] and kept(large, small) == [True, False]
    assert kept(small, large, small)[:2] == [True, False]


def test_a_run_books_alike_whether_or_not_somebody_looks_between_its_chunks(monkeypatch):
    """Without callbacks the device has the next chunk before this one's results are looked at."""
    data, waits = client_data([4, 3, 5]), []
    algorithm = fs.algorithms.fedavg(fs.tasks.classification(fs.models.linear(CLASSES)), optax.sgd(0.1))
    sim = fs.Simulation(algorithm, data, cohort=fs.cohorts.uniform(2), rounds_per_chunk=2)
    settle, begin = _runner.Runner._settle, _runner.Runner._begin_evaluations
    settled = lambda self, sent: waits.append(sent.after) or settle(self, sent)  # noqa: E731
    begun = lambda self, state, done, rounds: waits.append(-done) or begin(self, state, done, rounds)  # noqa: E731
    monkeypatch.setattr(_runner.Runner, "_settle", settled)
    monkeypatch.setattr(_runner.Runner, "_begin_evaluations", begun)
    ahead, history = sim.run(sim.init(seed=0), 6, evaluate_on=data, every=2)
    order, waits[:] = list(waits), []
    behind, watched = sim.run(
        sim.init(seed=0), 6, evaluate_on=data, every=2, callbacks=[lambda progress: None]
    )
    assert order == [-2, -4, 2, -6, 4, 6] and waits == [-2, 2, -4, 4, -6, 6]
    for one, other in zip(*map(jax.tree.leaves, (ahead.server, behind.server)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert history.metrics.keys() == watched.metrics.keys()
    for name, values in history.metrics.items():
        np.testing.assert_array_equal(values, watched.metrics[name])
    assert {k: v["eval"].examples for k, v in history.evaluations.items()} == {
        k: v["eval"].examples for k, v in watched.evaluations.items()
    }
    monkeypatch.setattr(evaluation, "KEPT_BYTES", 0)
    waits.clear()
    sim.run(sim.init(seed=0), 4, evaluate_on=data, every=2)
    assert waits == [-2, 2, -4, 4]  # such an evaluation waits for the device: its time would be the rounds'


def test_a_run_brings_its_sets_once_and_lets_go_of_them(monkeypatch):
    """Also where the replicas of a sweep have tasks of their own."""
    brought, placed = [], Evaluator._placed
    monkeypatch.setattr(
        Evaluator, "_placed", lambda self, *arguments: brought.append(self._data) or placed(self, *arguments)
    )
    train, unseen = client_data([4, 3, 5]), client_data([6, 2, 1])
    new = lambda: fs.tasks.classification(fs.models.linear(CLASSES))  # noqa: E731
    algorithm = lambda rate: fs.algorithms.fedavg(new(), optax.sgd(rate))  # noqa: E731
    sim = fs.Simulation(algorithm(0.1), train, cohort=fs.cohorts.uniform(2))
    sets = {"train": train, "unseen": unseen}
    on_device = lambda: sum(x.shape == (512, FEATURES) for x in jax.live_arrays())  # noqa: E731
    seen, before = [], on_device()

    def look(progress):
        seen.append(on_device() - before)

    _, history = sim.run(sim.init(seed=0), 4, evaluate_on=sets, every=2, callbacks=[look])
    assert len(history.evaluations) == 2 and brought == [train, unseen] and seen == [2, 2]
    histories = sim.sweep(
        [0, 1], 2, evaluate_on=sets, every=1, algorithm=algorithm, hyperparameters={"rate": [0.1, 0.2]}
    )
    assert all(len(history.evaluations) == 2 for history in histories)
    assert brought == [train, unseen] * 2
    gc.collect()
    assert on_device() == before
