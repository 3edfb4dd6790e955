"""Evaluating clients that are made when they are wanted: some at a time, with the result of all of them in memory."""

import time
import weakref

import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim import evaluation
from fedjax_sim.data import ClientSource, _blocks
from fedjax_sim.data._blocks import Made, batch_blocks, held, pieces

FEATURES, CLASSES = 4, 3
TASK = fs.tasks.classification(fs.models.linear(CLASSES), classes=CLASSES)
MODEL = fs.tasks.classification(fs.models.linear(CLASSES), sample_input=(1, FEATURES)).init(jax.random.key(0))
ROW = 4 * FEATURES + 4
"""Bytes of an example."""


class Points(ClientSource):
    """Knows whom it made, and how many clients' examples were in memory together: those that it wrote somewhere.

    JAX gives arrays back when it is called after it was done with them, so where there are more than ``allowed`` it is
    called for a while.
    """

    def __init__(self, sizes, wrong=None, allowed=1000):
        columns = {
            "x": jax.ShapeDtypeStruct((FEATURES,), np.float32),
            "y": jax.ShapeDtypeStruct((), np.int32),
        }
        super().__init__(np.asarray(sizes), columns, [f"client {i}" for i in range(len(sizes))])
        self.wrong, self.asked, self.written, self.most, self.allowed = wrong, [], [], 0, allowed

    def make(self, client):
        self.asked.append(client)
        generator, size = np.random.default_rng(client), self.sizes[client]
        y = generator.integers(CLASSES, size=size, dtype=np.int32)
        x = generator.normal(size=(size, FEATURES)).astype(np.float32)
        return {"x": x, "y": y + CLASSES if client == self.wrong else y}

    def read(self, positions, out):
        super().read(positions, out)
        memory = out["x"] if out["x"].base is None else out["x"].base
        self.written.append((weakref.ref(memory), len(positions)))
        waited = 0
        while self.in_memory_now() > self.allowed and waited < 100:
            jax.device_get(jax.device_put(waited))
            time.sleep(0.01)
            waited += 1
        self.most = max(self.most, self.in_memory_now())

    def in_memory_now(self):
        return sum(clients for array, clients in self.written if array() is not None)


@pytest.fixture
def large(monkeypatch):
    """Nothing is small enough to be kept; three examples are a block."""
    monkeypatch.setattr(_blocks, "HELD_BYTES", 0)
    monkeypatch.setattr(_blocks, "BLOCK_BYTES", 3 * ROW)


def same(a: fs.Evaluation, b: fs.Evaluation) -> bool:
    numbers = lambda e: (e.examples, e.clients, e.per_client)  # noqa: E731
    equal = jax.tree.map(lambda x, y: np.array_equal(x, y, equal_nan=True), numbers(a), numbers(b))
    return jax.tree.all(equal) and a.num_examples == b.num_examples


SIZES = st.lists(st.integers(0, 9), min_size=7, max_size=7).filter(
    any
)  # of one length: a program for each number of clients


@settings(max_examples=60, deadline=None)
@given(SIZES, st.sampled_from([1, 2, 5, 16]), st.integers(1, 20))
def test_some_clients_at_a_time_are_all_of_them_bit_for_bit(sizes, batch_size, rows):
    source = Points(sizes)
    expected = fs.evaluate(TASK, MODEL, Points(sizes).in_memory, batch_size=batch_size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_blocks, "HELD_BYTES", 0)
        patch.setattr(_blocks, "BLOCK_BYTES", rows * ROW)
        found = fs.evaluate(TASK, MODEL, source, batch_size=batch_size)
    assert same(found, expected)
    assert sorted(source.asked) == list(range(len(sizes)))


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(1, 6), st.integers(1, 20))
def test_blocks_are_whole_batches_of_all_rows_in_order(sizes, batch_size, rows):
    source = Points(sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_blocks, "HELD_BYTES", 0)
        patch.setattr(_blocks, "BLOCK_BYTES", rows * ROW)
        blocks = list(batch_blocks(source, batch_size, None))
    assert all(len(block["y"]) % batch_size == 0 for block in blocks[:-1])
    # A block, the largest client, and what was left of the block before.
    assert max(len(block["y"]) for block in blocks) < max(rows, *sizes) + batch_size
    for name, column in Points(sizes).in_memory.columns.items():
        np.testing.assert_array_equal(np.concatenate([block[name] for block in blocks]), column)


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 20))
def test_pieces_cover_everybody_once(sizes, most):
    found = list(pieces(np.array(sizes, np.int64), most))
    assert [i for part in found for i in range(part.start, part.stop)] == list(range(len(sizes)))
    for part in found:
        assert sum(sizes[part]) <= most or part.stop == part.start + 1
        assert part.stop == len(sizes) or sum(sizes[part.start : part.stop + 1]) > most


def test_few_clients_are_in_memory_at_a_time(large):
    source = Points([1] * 200, allowed=2 * 3)
    fs.evaluate(TASK, MODEL, source, batch_size=2)
    assert source.most <= 2 * 3 and len(source.asked) == 200


def test_a_block_is_made_when_the_device_has_done_the_one_before_the_last(large, monkeypatch):
    """A device that is slower than the host would else have every block in its hands. Totals are a number of batches here."""
    waited, seen = [0], []

    class Noted(Points):
        def read(self, positions, out):
            super().read(positions, out)
            seen.append(waited[-1])

    monkeypatch.setattr(evaluation, "_compiled", lambda *_: (lambda _: 0, lambda batches, *_: batches + 1))
    monkeypatch.setattr(jax, "block_until_ready", waited.append)
    evaluation.Evaluator(Noted([3] * 8), batch_size=3).begin(TASK, MODEL)
    assert seen == [0, 0, 1, 2, 3, 4, 5, 6]


def test_one_client_larger_than_a_block(large):
    source = Points([1, 50, 1, 40])
    expected = fs.evaluate(TASK, MODEL, source.in_memory.select(range(4)), batch_size=8)
    del source.in_memory
    assert same(fs.evaluate(TASK, MODEL, source, batch_size=8), expected)


@pytest.mark.parametrize(("bytes_", "kept"), [(10 * ROW, True), (10 * ROW - 1, False)])
def test_a_set_is_kept_if_it_is_small(monkeypatch, bytes_, kept):
    """Made once for all evaluations then; a larger one is made for each."""
    monkeypatch.setattr(_blocks, "HELD_BYTES", bytes_)
    source = Points([4, 6])
    for _ in range(3):
        fs.evaluate(TASK, MODEL, source)
    assert len(source.asked) == (2 if kept else 6)


def test_what_somebody_made_already_is_used(large):
    source = Points([4, 6])
    assert held(source) is None
    made = source.in_memory
    assert held(source) is made


def test_the_tasks_check_sees_every_block(large):
    for source in (Points([2, 2, 0, 2, 2], wrong=3), Points([2, 2, 2, 2], wrong=3).select([0, 3])):
        with pytest.raises(ValueError, match="column 'y' holds label") as error:
            fs.evaluate(TASK, MODEL, source)
        assert error.value.__notes__[0].startswith("rows are counted from the first of client 'client ")


def test_a_run_evaluates_on_a_source(large):
    sizes = [3, 5, 2, 4]
    evaluations = []
    for data in (Points(sizes), Points(sizes).in_memory):
        sim = fs.Simulation(fs.algorithms.fedavg(TASK, optax.sgd(0.1)), data, cohort=fs.cohorts.uniform(2))
        _, history = sim.run(sim.init(seed=0), 4, evaluate_on=data, every=2)
        evaluations.append(history.evaluations)
    assert list(evaluations[0]) == [2, 4]
    assert all(same(evaluations[0][done]["eval"], evaluations[1][done]["eval"]) for done in (2, 4))


# --- personalised --------------------------------------------------------------------------------------------

TRAIN, TEST = (5, 1, 0, 9, 3, 12, 2), (3, 0, 4, 2, 5, 1, 3)


FEDAVG, SCAFFOLD = fs.algorithms.fedavg(TASK, optax.sgd(0.3)), fs.algorithms.scaffold(TASK, 0.1)


@pytest.mark.parametrize(
    ("algorithm", "clients", "block_size"),
    [(FEDAVG, None, 3), (FEDAVG, [5, 1, 3], 1), (SCAFFOLD, None, 3), (SCAFFOLD, None, 32)],
)
def test_personalised_some_clients_at_a_time(large, algorithm, clients, block_size):
    results, sources = [], (Points(TRAIN), Points(TEST))
    for train, test in (sources, tuple(Points(sizes).in_memory for sizes in (TRAIN, TEST))):
        sim = fs.Simulation(
            algorithm, train, cohort=fs.cohorts.uniform(3), local=fs.LocalWork(epochs=2, batch_size=4)
        )
        state, _ = sim.run(sim.init(seed=0), 2)
        for source in sources:
            source.asked.clear()
            source.written.clear()
            source.most, source.allowed = 0, 2 * block_size
        results.append(sim.personalised(state, test, clients=clients, block_size=block_size, batch_size=2))
        if train is sources[0]:
            chosen = list(range(7)) if clients is None else sorted(clients)
            assert [sorted(source.asked) for source in sources] == [chosen, chosen]
            assert max(source.most for source in sources) <= 2 * block_size
    assert same(results[0].before, results[1].before) and same(results[0].after, results[1].after)


def test_personalised_checks_what_it_makes(large):
    sim = fs.Simulation(
        fs.algorithms.fedavg(TASK, optax.sgd(0.1)), Points(TRAIN), cohort=fs.cohorts.uniform(3)
    )
    with pytest.raises(ValueError, match="column 'y' holds label"):
        sim.personalised(sim.init(seed=0), Points(TEST, wrong=4))


def test_rows_for_a_block_are_those_of_its_largest_clients():
    made = Made(Points(TRAIN), np.arange(7), 2, None)
    for clients in ([3, 5], [0, 2], [6]):
        columns, starts = made(np.array(clients))
        assert columns["x"].shape == (9 + 12, FEATURES)
        for client, start in zip(clients, starts, strict=True):
            own = Points(TRAIN).client(client)
            np.testing.assert_array_equal(columns["x"][start : start + len(own["x"])], own["x"])
