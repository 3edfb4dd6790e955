"""``Simulation.tune``: the fastest layout is measured, kept by hardware and shapes, and taken by ``lanes="auto"``."""

import json

import jax
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim import _tuning
from fedjax_sim._src import machine
from fedjax_sim.engines import Layout, _auto, _costs

FEW = [Layout(1, "compact"), Layout(2, "masked")]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fedjax-sim" / "layouts.json"


def simulation(engine=None, batch_size=5, clients=6, products=None):
    rng = np.random.default_rng(0)
    columns = {"x": rng.standard_normal((60, 3), np.float32), "y": rng.integers(0, 2, 60, dtype=np.int32)}
    data = fs.data.ClientData.from_arrays(columns, np.arange(60) % clients)
    task = fs.tasks.with_precision(fs.tasks.classification(fs.models.linear(classes=2)), products=products)
    algorithm = fs.algorithms.fedavg(task, optax.sgd(0.1))
    return fs.Simulation(
        algorithm,
        data,
        cohort=fs.cohorts.uniform(4),
        local=fs.LocalWork(batch_size=batch_size),
        engine=engine,
        rounds_per_chunk=2,
    )


@pytest.fixture
def clock(monkeypatch):
    """Seconds of a round by layout, instead of a clock; what was compiled, in order."""
    seconds, compiled = {}, []

    def fake(engine, problem, state, columns, plan):
        layout = engine.compile(problem).layout
        compiled.append(layout)
        return (lambda: seconds.get(layout, 1.0)), 0.5

    monkeypatch.setattr(_tuning, "_compiled", fake)
    return seconds, compiled


def test_the_fastest_is_taken_and_kept(cache, clock):
    clock[0].update(dict.fromkeys(FEW, 2.0) | {FEW[1]: 1.0})
    sim = simulation()
    tuning = sim.tune(sim.init(0), layouts=FEW)
    assert tuning.best == FEW[1] and tuning.file == cache
    assert [timing.layout for timing in tuning.timings] == [FEW[1], FEW[0]]
    assert len(tuning.timings[0].seconds) == 5 and len(tuning.timings[1].seconds) == 1
    assert "2 lanes, masked" in str(tuning).splitlines()[0]
    (entry,) = json.loads(cache.read_text()).values()
    assert (entry["lanes"], entry["finish"]) == (2, "masked") and entry["milliseconds_per_round"] == 1000
    assert sim.run(sim.init(0), 2)[1].costs.lanes == 2


def test_what_was_fast_once_is_measured_again_when_the_fastest_was_not(clock, monkeypatch):
    """The fastest at first sight takes 2 s from then on; the other, 1.5 s at first sight, is the fastest in the end."""
    later = iter([1.0, 2.0, 2.0, 2.0, 2.0])
    monkeypatch.setattr(_tuning, "_compiled", lambda engine, problem, *_: (
        (lambda: next(later)) if engine.compile(problem).layout == FEW[0] else (lambda: 1.5), 0.5
    ))  # fmt: skip
    sim = simulation()
    tuning = sim.tune(sim.init(0), layouts=FEW)
    assert [(timing.layout, timing.median) for timing in tuning.timings] == [(FEW[1], 1.5), (FEW[0], 2.0)]
    assert [len(timing.seconds) for timing in tuning.timings] == [5, 5]


def test_auto_takes_what_was_measured_for_these_shapes_and_no_others(clock):
    sim = simulation()
    sim.tune(sim.init(0), layouts=[Layout(3, "masked")])
    lanes = lambda sim: sim.run(sim.init(0), 1)[1].costs.lanes  # noqa: E731
    assert lanes(simulation()) == 3
    assert lanes(simulation(batch_size=4)) != 3
    assert lanes(simulation(products="highest")) != 3
    assert lanes(simulation(fs.engines.lanes(2))) == 2, "a count that is given stands"
    rounds = simulation(fs.engines.lanes(finish="compact"))
    assert lanes(rounds) == 3 and rounds._rounds.layout == Layout(3, "compact")


def test_auto_takes_nothing_that_was_measured_on_another_processor_of_the_same_name(
    clock, monkeypatch, tmp_path
):
    """Virtual machines on Zen 3 and on Zen 4 both call theirs AMD EPYC."""
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    zen = "cpu family : 25\nmodel : {}\nmodel name : AMD EPYC\n"
    machine._CPUINFO.write_text(zen.format(1))
    sim = simulation()
    sim.tune(sim.init(0), layouts=[Layout(3, "masked")])
    lanes = lambda: simulation().run(sim.init(0), 1)[1].costs.lanes  # noqa: E731
    assert lanes() == 3
    machine._CPUINFO.write_text(zen.format(17))
    assert lanes() != 3


def test_a_step_is_traced_once_for_its_costs(monkeypatch):
    """Choosing a layout and the run's own books ask for the same costs."""
    traced = []
    monkeypatch.setattr(_costs, "_step", lambda *a, step=_costs._step: traced.append(a) or step(*a))
    sim = simulation()
    state, _ = sim.run(sim.init(0), 1)
    sim.run(state, 1)
    assert len(traced) == 1
    sim.sweep([0, 1], 1)
    assert len(traced) == 2, "a problem of its own"


def test_measuring_changes_nothing_but_the_layout(cache):
    """Real rounds: the state stays, and the results are those of before to rounding."""
    sim = simulation()
    state = sim.init(0)
    before, _ = sim.run(state, 2)
    tuning = sim.tune(state, layouts=FEW, repeats=2, keep=False)
    assert tuning.file is None and not cache.exists()
    assert all(seconds > 0 for timing in tuning.timings for seconds in timing.seconds)
    after, _ = sim.run(state, 2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), before.server, after.server
    )


def test_lanes_are_doubled_until_they_are_worse(clock):
    clock[0].update({Layout(lanes, form): lanes / 4 for lanes in (1, 2, 4) for form in ("compact", "masked")})
    clock[0].update({Layout(1, "compact"): 2.0})
    sim = simulation()
    assert sim.tune(sim.init(0), keep=False).best == Layout(2, "compact")
    assert [layout.lanes for layout in clock[1]] == [1, 2, 2, 4, 4], "never more lanes than turns"


def test_what_cannot_be_measured_is_refused():
    sim = simulation(fs.engines.sequential())
    with pytest.raises(ValueError, match="sequential trains one client at a time"):
        sim.tune(sim.init(0))
    sim = simulation()
    with pytest.raises(ValueError, match="repeats is 0"):
        sim.tune(sim.init(0), repeats=0)
    with pytest.raises(ValueError, match="layouts is empty"):
        sim.tune(sim.init(0), layouts=[])
    with pytest.raises(ValueError, match="rounds is 0"):
        sim.tune(sim.init(0), rounds=0)
    with pytest.raises(TypeError, match="SimState"):
        sim.tune(None)


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "\x00"])
def test_a_damaged_file_is_told_and_not_used(cache, content):
    cache.parent.mkdir()
    cache.write_text(content)
    with pytest.warns(UserWarning, match="is no file of layouts"):
        assert _auto.recall("name") is None
    with pytest.warns(UserWarning, match="is no file of layouts"):
        _auto.remember("name", FEW[0], {})
    assert _auto.recall("name") == FEW[0]


@pytest.mark.parametrize(
    "entry", [{"lanes": 0, "finish": "masked"}, {"lanes": "2", "finish": "masked"}, {"lanes": 2}, {"lanes": 2, "finish": "x"}]
)  # fmt: skip
def test_an_entry_that_is_no_layout_is_told_and_not_used(cache, entry):
    cache.parent.mkdir()
    cache.write_text(json.dumps({"name": entry}))
    with pytest.warns(UserWarning, match="an entry that is no layout"):
        assert _auto.recall("name") is None


def test_without_a_place_to_keep_it_nothing_is_lost(cache, clock, monkeypatch):
    """No cache folder: auto goes by its rule, and tune says why it cannot keep anything."""
    cache.parent.write_text("a file where a folder should be")
    sim = simulation()
    assert sim.run(sim.init(0), 1)[1].costs.lanes == 1
    with pytest.warns(UserWarning, match="is not kept"):
        assert sim.tune(sim.init(0), layouts=FEW).file is None
    assert sim.tune(sim.init(0), layouts=FEW, keep=False).best in FEW


@pytest.mark.parametrize(
    ("turns", "lanes"), [(0, 1), (1, 1), (10, 10), (64, 64), (65, 33), (100, 50), (129, 43), (1000, 63)]
)
def test_lanes_of_an_accelerator_have_as_many_turns_each(turns, lanes):
    """The fewest rounds of turns that 64 lanes can do, in no more lanes than that takes."""
    assert _auto._accelerator_lanes(turns) == lanes
    assert -(-turns // lanes) == -(-turns // 64)
