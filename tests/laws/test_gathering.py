"""Examples that a thread gathers while the devices train: nothing is written over too early, and no thread outlives its run."""

import contextlib
import os
import signal
import threading
import time
import traceback

import jax
import numpy as np
import pytest
from laws.members import LANES, SGD, SIZES, bits_equal, linear, make_data, named, new_trial, written_over
from laws.test_streams import COHORTS, Source, run

import fedjax_sim as fs
from fedjax_sim import _feed, engines
from fedjax_sim._src.host_memory import PINNED
from fedjax_sim.cli._signals import StopOnSignal
from fedjax_sim.data import ClientSource


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    for _ in range(100):  # that of StopOnSignal is told to end, and not waited for
        if set(threading.enumerate()) <= before:
            return
        time.sleep(0.01)
    assert set(threading.enumerate()) <= before


@pytest.fixture(name="written_over")
def _written_over():
    with written_over():
        yield


class Slow(Source):
    def make(self, client):
        time.sleep(0.002 * (client % 3))
        return super().make(client)


@pytest.mark.parametrize(
    ("name", "engine"),
    [("mime", LANES), ("scaffold", LANES), ("heterofl", LANES), ("fedavg_shuffled", "sequential")],
)
def test_arrays_are_written_again_when_nothing_reads_them(written_over, name, engine):
    """Also rows behind a chunk's examples may hold anything."""
    _, expected, _ = run(name, make_data(), False, engine)
    for data in (make_data(), Slow()):
        _, state, _ = run(name, data, None if isinstance(data, Slow) else True, engine)
        assert bits_equal(state, expected)


def test_two_sets_of_arrays_serve_a_run(monkeypatch):
    made = []
    host_array = _feed.host_array
    monkeypatch.setattr(_feed, "host_array", lambda *spec: made.append(spec) or host_array(*spec))
    run("fedavg", Source(), None)  # seven rounds, two a chunk
    assert len(made) == 2 * len(Source().columns)


def test_page_locked_arrays_change_nothing(monkeypatch, written_over):
    if PINNED not in {memory.kind for memory in jax.devices()[0].addressable_memories()}:
        pytest.skip("this backend has no such memory")
    _, expected, _ = run("scaffold", make_data(), False)
    monkeypatch.setattr(_feed, "copies_from_pinned", lambda: True)
    _, state, _ = run("scaffold", Slow(), None)
    assert bits_equal(state, expected)


def test_examples_are_made_beside_the_training_and_not_in_it():
    class Watched(Source):
        def make(self, client):
            threads.add(threading.current_thread())
            return super().make(client)

    threads = set()
    data = Watched()
    run("fedavg", data, None)
    in_training = {thread for thread in threads if thread is not threading.main_thread()}
    ours = [thread for thread in threading.enumerate() if thread.name.startswith("fedjax_sim")]
    assert in_training and not ours, "all have ended; libraries of other tests may keep threads"


class Breaking(Source):
    """Fails at the ``last``-th client that it is asked for in a run, and not before it is told which."""

    last = None

    def make(self, client):
        if self.last is not None and threading.current_thread() is not threading.main_thread():
            self.last -= 1
            if self.last < 0:
                raise OSError("page 7 of clients.bin cannot be read")
        return super().make(client)


def trial_of(name, source):
    trial = new_trial(named(name), engines.lanes(3), source)
    trial.script.cohorts = COHORTS
    return trial.sim


@pytest.fixture(scope="module")
def breaking():
    """One compiled program for all that may happen to its examples."""
    return trial_of("scaffold", Breaking())


def sweep_of(data, stream=None):
    trial = new_trial(named("scaffold"), engines.lanes(3), data, stream=stream)
    trial.script.cohorts = COHORTS
    return trial.sim.sweep([3, 4], len(COHORTS))


def test_sweeps_of_slow_sources(written_over):
    expected, found = sweep_of(make_data(), False), sweep_of(Slow())
    assert all(bits_equal(a, b) for a, b in zip(found.states, expected.states, strict=True))


# The chunks of COHORTS bring 5, 10, 3 and 3 clients; empty ones are asked for, too.
@pytest.mark.parametrize(("last", "done"), [(0, 0), (4, 0), (5, 2), (14, 2), (15, 4), (20, 6)])
def test_what_cannot_be_read_ends_the_run_behind_the_rounds_before_it(tmp_path, breaking, last, done):
    """With its own error, which names the client; what was trained until then is saved, and the run goes on from there."""
    seen = []

    def attempt(last):
        breaking.data.last = last
        return breaking.run(
            breaking.init(seed=3), len(COHORTS), callbacks=[lambda progress: seen.append(progress.done)],
            checkpoints=fs.Checkpoints(tmp_path / str(last), every=2),
        )  # fmt: skip

    with pytest.raises(OSError, match=r"page 7 of clients\.bin cannot be read") as error:
        attempt(last)
    assert error.value.__notes__[0].startswith("while the examples of client 10")
    assert "make" in [frame.name for frame in traceback.extract_tb(error.value.__traceback__)]
    assert max(seen, default=0) == done
    (tmp_path / str(last)).rename(tmp_path / "None")
    state, resumed = attempt(None)
    expected, history = breaking.run(breaking.init(seed=3), len(COHORTS))
    assert bits_equal(state, expected)
    assert np.array_equal(resumed.metrics["loss"], history.metrics["loss"], equal_nan=True)


def interrupted(progress):
    raise KeyboardInterrupt


def terminated(progress):
    os.kill(os.getpid(), signal.SIGTERM)


class Endless(Source):
    """From the second chunk on, a client takes its time."""

    def make(self, client):
        if len(self.asked) >= 5:
            time.sleep(0.1)
        return super().make(client)


@pytest.fixture(scope="module")
def endless():
    return trial_of("fedavg", Endless())


@pytest.mark.parametrize(
    ("callback", "error"),
    [
        (interrupted, KeyboardInterrupt),
        (lambda progress: 1 / 0, ZeroDivisionError),
        (lambda progress: True, None),
    ],
)
def test_however_a_run_ends_its_thread_ends(endless, callback, error):
    """The fixture sees to it that none is left. Who is being made then is the last one that is made."""
    endless.data.asked.clear()
    with pytest.raises(error) if error else contextlib.nullcontext():
        _, history = endless.run(endless.init(seed=3), 6, callbacks=[callback])
        assert history.rounds == 2
    assert len(endless.data.asked) < 5 + len(SIZES)


def test_a_request_to_terminate_ends_it_behind_the_chunk(endless):
    endless.data.asked.clear()
    with StopOnSignal("") as stop:
        _, history = endless.run(endless.init(seed=3), 6, callbacks=[terminated, stop])
    assert stop.received == signal.SIGTERM and history.rounds == 2


def test_an_evaluation_that_fails_ends_it(endless):
    endless.data.asked.clear()
    test = make_data()
    test.columns["y"][-1] = 17
    with pytest.raises(ValueError, match="column 'y' holds label 17"):
        endless.run(endless.init(seed=3), 6, evaluate_on=test, every=2)


def test_a_model_that_is_not_finite_is_told_before_what_cannot_be_read():
    """Whichever happened first by the clock: the rounds of the model lie before those of the examples."""

    class Infinite(Breaking):
        def make(self, client):
            made = super().make(client)
            return made | {"x": np.full_like(made["x"], 1e38)} if client == 5 else made

    sim = trial_of("fedavg", Infinite())
    sim.data.last = 5
    with pytest.raises(fs.NonFiniteModelError) as error:
        sim.run(sim.init(seed=3), 6)
    assert error.value.round == 0 and error.value.clients == (105,)


def test_settings_of_the_caller_go_along():
    """JAX keeps them for each thread: int64 columns stay so in the thread that places them."""
    sizes = [3, 1, 4]

    class Wide(ClientSource):
        def make(self, client):
            return {
                "x": np.full((self.sizes[client], 2), 2**40 + client),
                "y": np.zeros(self.sizes[client], np.int32),
            }

    specs = {"x": jax.ShapeDtypeStruct((2,), np.int64), "y": jax.ShapeDtypeStruct((), np.int32)}
    with jax.enable_x64(True):
        sim = fs.Simulation(
            fs.algorithms.fedavg(linear(), SGD), Wide(np.array(sizes), specs), cohort=fs.cohorts.all_clients()
        )
        _, columns = sim.chunk(sim.init(seed=0), 1)
    assert columns["x"].dtype == "int64" and np.asarray(columns["x"]).max() == 2**40 + 2
