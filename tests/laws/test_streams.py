"""Examples that come along with their chunks: the same run, bit for bit, as with all of them on the device."""

import jax
import numpy as np
import optax
import pytest
from laws.members import LANES, NAMES, SIZES, bits_equal, make_data, named, new_trial

import fedjax_sim as fs
from fedjax_sim import _feed, engines
from fedjax_sim._feed import Resident, Streamed, capacity
from fedjax_sim.data import ClientSource

COHORTS = [(8, 1, 5, 0, 4), (5,), (), tuple(range(len(SIZES))), (2, 3), (0,), (9, 8, 7)]


class Source(ClientSource):
    """The laws' clients, made one at a time."""

    def __init__(self):
        self.data, self.asked = make_data(), []
        columns = {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in self.data.columns.items()}
        super().__init__(self.data.sizes, columns, self.data.ids)

    def make(self, client):
        self.asked.append(client)
        return self.data.client(client)


def run(name: str, data, stream: bool | None, engine: str = LANES):
    trial = new_trial(
        named(name), engines.lanes(3) if engine == LANES else engines.sequential(), data, stream=stream
    )
    trial.script.cohorts = COHORTS
    state, history = trial.sim.run(trial.sim.init(seed=3), rounds=len(COHORTS))
    return trial.sim, state, history


@pytest.mark.parametrize("name", NAMES)
def test_streaming_changes_nothing(name):
    _, expected, resident = run(name, make_data(), False)
    sim, state, history = run(name, make_data(), True)
    assert isinstance(sim._feed, Streamed)
    assert bits_equal(state, expected)
    assert all(
        np.array_equal(history.metrics[key], resident.metrics[key], equal_nan=True)
        for key in resident.metrics
    )
    assert sim.compilations == 1


@pytest.mark.parametrize(
    ("memory", "feed"), [(lambda bytes_: 2 * bytes_ - 1, Streamed), (lambda bytes_: 2 * bytes_, Resident), (lambda _: None, Resident)]
)  # fmt: skip
def test_data_that_fill_more_than_half_of_a_device_stream(monkeypatch, memory, feed):
    """By size alone, without ``stream``; where the memory is not known, data lie on the device."""
    data = make_data()
    monkeypatch.setattr(_feed, "device_bytes", lambda: memory(data.nbytes))
    sim, state, history = run("scaffold", data, None)
    assert type(sim._feed) is feed
    _, expected, resident = run("scaffold", data, False)
    assert bits_equal(state, expected)
    assert all(
        np.array_equal(history.metrics[key], resident.metrics[key], equal_nan=True)
        for key in resident.metrics
    )


@pytest.mark.parametrize(("stream", "feed"), [(False, Resident), (True, Streamed)])
def test_what_was_asked_for_outweighs_the_size(monkeypatch, stream, feed):
    monkeypatch.setattr(_feed, "device_bytes", lambda: 1 if stream is False else 10**12)
    sim = new_trial(named("fedavg"), engines.lanes(3), make_data(), stream=stream).sim
    assert type(sim._feed) is feed


def test_a_source_is_asked_for_the_cohorts_alone():
    _, expected, _ = run("scaffold", make_data(), False)
    source = Source()
    _, state, _ = run("scaffold", source, None)
    assert bits_equal(state, expected)
    # Two rounds are a chunk; within one, a client is asked for once.
    assert source.asked == [*sorted({8, 1, 5, 0, 4}), *range(len(SIZES)), 0, 2, 3, 7, 8, 9]


@pytest.mark.parametrize("engine", ["sequential", LANES])
def test_every_engine_streams(engine):
    _, expected, _ = run("fedavg", make_data(), False, engine)
    _, state, _ = run("fedavg", make_data(), True, engine)
    assert bits_equal(state, expected)


def test_chunks_are_cut_where_their_examples_do_not_fit():
    """Ten rounds expect far fewer examples than the large clients bring: there is room for any one round, not for all."""
    data = make_data([50] * 3 + [1] * 300)
    turns = fs.cohorts.uniform(3)._replace(
        sample=lambda generator, round_, population: np.array([round_ % 3, 10 + 2 * round_, 11 + 2 * round_])
    )
    states, lengths = [], {False: [], True: []}
    for stream, done in lengths.items():
        sim = fs.Simulation(
            named("fedavg").build(), data, cohort=turns, local=named("fedavg").local, engine=engines.lanes(2),
            rounds_per_chunk=10, stream=stream,
        )  # fmt: skip
        state, _ = sim.run(
            sim.init(seed=1), 20, callbacks=[lambda progress, done=done: done.append(progress.done)]
        )
        states.append(state)
    assert bits_equal(*states)
    assert capacity(sim.planner(), 10) == 150
    assert lengths == {False: [10, 20], True: list(range(2, 21, 2))}
    assert sim.compilations == 1


def test_personalised_models_of_a_source():
    results = []
    for data in (make_data(), Source()):
        sim, state, _ = run("fedavg", data, None)
        results.append(sim.personalised(state, make_data(seed=1), clients=[5, 1, 8]))
    assert results[0].after.clients == results[1].after.clients


def test_what_cannot_be_streamed_is_said():
    with pytest.raises(ValueError, match=r"stream is False, but Source.* holds no examples"):
        run("fedavg", Source(), False)

    class Short(Source):
        def make(self, client):
            return {name: x[:-1] for name, x in self.data.client(client).items()}

    with pytest.raises(
        ValueError, match=r"client 101 has float32\[0, 8\] in column 'x', expected float32\[1, 8\]"
    ):
        run("fedavg", Short(), None)


def test_labels_are_checked_as_they_come():
    data = make_data()
    data.columns["y"][-1] = 17
    with pytest.raises(ValueError, match="column 'y' holds label 17"):
        run("fedavg_shuffled", data, True)


def test_more_examples_than_places_of_32_bits():
    """Of a population, not of a chunk: 6,000 clients of 400,000 alike examples train as 6,000 of eight do."""

    class Alike(ClientSource):
        def make(self, client):
            size = self.sizes[client]
            return {"x": np.full((size, 2), client % 7, np.uint8), "y": np.full(size, client % 3, np.uint8)}

    def trained(size):
        columns = {"x": jax.ShapeDtypeStruct((2,), np.uint8), "y": jax.ShapeDtypeStruct((), np.uint8)}
        task = fs.tasks.classification(fs.models.linear(3), sample_input=np.zeros((1, 2), np.float32))
        sim = fs.Simulation(
            fs.algorithms.fedavg(task, client=optax.sgd(0.1), server=optax.sgd(1.0)),
            Alike(np.full(6000, size), columns), cohort=fs.cohorts.uniform(3),
            local=fs.LocalWork(batch_size=4, max_steps=2),
        )  # fmt: skip
        return sim.run(sim.init(0), rounds=3)[0].server

    vast, small = trained(400_000), trained(8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), vast, small)
