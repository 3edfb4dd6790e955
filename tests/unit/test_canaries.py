"""Canaries in every family of algorithms, and in every kind of population."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import optax
import pytest
from laws.members import ALGORITHMS, POPULATION, Script, make_data, mlp, named

import fedjax_sim as fs
from fedjax_sim.privacy import Guarantee, audits

REFUSED = {"ifca", "ifca_clipped"}
"""Which model a client chose is sent as it is: no bound about the update covers it."""
ALIKE = {
    "fedavg_shuffled", "fedavg_continued", "fedavg_explicit_rows", "fedavg_client_adam", "fedavgm", "fedyogi", "fedadagrad",
    "heterofl", "batch_norm_local", "dropout", "fedavg_dp_sgd",
}  # fmt: skip
"""Beside another member with the same rule, or the same chain, as far as canaries go; left out for their time."""
NAMES = [member.name for member in ALGORITHMS if member.name not in REFUSED | ALIKE]


def population() -> tuple[fs.ClientData, audits.Canaries]:
    """Canaries whose examples differ, which they are not to use."""
    data, first = audits.add_canaries(make_data(), 8)
    x = np.array(data.columns["x"])
    x[-8:] = np.random.default_rng(5).normal(size=x[-8:].shape)
    columns = {"x": x, "y": np.concatenate([data.columns["y"][:-8], np.arange(8, dtype=np.int32) % 4])}
    return fs.ClientData(columns, data.offsets, data.ids), audits.Canaries(first, 8, norm=0.4, seed=2)


def groups_of(member) -> tuple | None:
    return None if member.groups is None else (*member.groups, *("wide", "narrow") * 4)


def joined(name: str):
    member, (data, canaries), script = named(name), population(), Script()
    sim = fs.Simulation(
        canaries.join(member.build()), data, cohort=script.cohort, local=member.local, groups=groups_of(member),
        engine=fs.engines.sequential(),
    )  # fmt: skip

    def after(client: int):
        script.cohorts = [[client]]
        state, _ = sim.run(sim.init(seed=4), rounds=1)
        return jax.tree.leaves(jax.tree.map(np.asarray, (state.server, state.aggregate)))

    return canaries, after


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_a_canary_but_its_coin_is_released(name):
    """Two that send zeros leave the same behind, whatever their data are; one that sends its direction does not."""
    canaries, after = joined(name)
    ins, outs = np.flatnonzero(canaries.included), np.flatnonzero(~canaries.included)
    left = [after(POPULATION + int(number)) for number in (*outs[:2], ins[0])]
    same = [np.array_equal(a, b) for a, b in zip(left[0], left[1], strict=True)]
    # Noise that each client draws for itself is another one for each.
    assert all(same) or name == "local_noise"
    assert not all(np.array_equal(a, b) for a, b in zip(left[0], left[2], strict=True))


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_sends_more_than_an_update_is_refused(name):
    with pytest.raises(TypeError, match=r"has 0 parts of type Delta.*audit_mechanism instead"):
        joined(name)


def test_a_narrow_canary_sends_the_corner_of_its_direction():
    """HeteroFL: a wide one moves the model by its direction, a narrow one by what of it lies in its corner."""
    data, first = audits.add_canaries(make_data(), 8)
    canaries, script = audits.Canaries(first, 8, norm=3.0, seed=2, share=1), Script()
    algorithm = fs.algorithms.heterofl({"wide": mlp(6), "narrow": mlp(3)}, optax.sgd(0.1))
    member = named("heterofl")
    sim = fs.Simulation(
        canaries.join(algorithm), data, cohort=script.cohort, local=member.local, groups=groups_of(member),
        engine=fs.engines.sequential(),
    )  # fmt: skip
    start = sim.init(seed=0)
    before = algorithm.params(start.server).params
    shapes = jax.tree.map(np.shape, jax.eval_shape(lambda: mlp(3).init(jax.random.key(0))).params)
    for number, narrow in ((0, False), (1, True)):
        script.cohorts = [[first + number]]
        end, _ = sim.run(start, rounds=1)
        moved = jax.tree.map(lambda a, b: np.asarray(b - a), before, algorithm.params(end.server).params)
        expected = jax.tree.map(lambda d: 3.0 * np.array(d), canaries.direction(number, before))
        if narrow:
            for place, own in zip(jax.tree.leaves(expected), jax.tree.leaves(shapes, is_leaf=lambda s: isinstance(s, tuple)), strict=True):  # fmt: skip
                outside = np.ones(place.shape, bool)
                outside[tuple(slice(n) for n in own)] = False
                place[outside] = 0
        jax.tree.map(lambda m, e: np.testing.assert_allclose(m, e, atol=1e-5), moved, expected)


# --- populations ---


class Counting(fs.data.ClientSource):
    def __init__(self, sizes=(0, 2, 3), ids=("ann", "bo", "cy")):
        super().__init__(np.array(sizes), {"x": jax.ShapeDtypeStruct((2,), np.float32)}, ids)

    def make(self, client):
        return {"x": np.full((self.sizes[client], 2), client, np.float32)}


def test_a_source_stays_one():
    larger, first = audits.add_canaries(Counting(), 2)
    assert isinstance(larger, fs.data.ClientSource)
    assert (first, larger.sizes.tolist()) == (3, [0, 2, 3, 1, 1])
    assert larger.ids.tolist() == ["ann", "bo", "cy", "canary-0", "canary-1"]
    expected, _ = audits.add_canaries(Counting().in_memory, 2)
    np.testing.assert_array_equal(larger.in_memory.columns["x"], expected.columns["x"])
    assert larger.select([4, 2]).in_memory.columns["x"][:, 0].tolist() == [1, 2, 2, 2]


def test_what_lies_in_files_is_not_read(tmp_path):
    parts = [
        (name, {"x": np.full((2, 3), n, np.float32), "y": np.arange(2) % 2}) for n, name in enumerate("abc")
    ]
    fs.data.write(tmp_path / "set", train=parts, test=parts, classes=2)
    data = fs.data.stored(tmp_path / "set").train
    larger, _ = audits.add_canaries(data, 2)
    assert isinstance(larger, fs.data.ClientSource)
    expected, _ = audits.add_canaries(
        fs.ClientData({k: np.array(v) for k, v in data.columns.items()}, data.offsets, data.ids), 2
    )
    for name, column in expected.columns.items():
        np.testing.assert_array_equal(larger.in_memory.columns[name], column)


def test_an_audit_of_a_source_is_that_of_the_same_data_in_memory():
    task = fs.tasks.classification(fs.models.linear(classes=62))
    source = fs.data.glyphs(clients=4, seed=1).train
    states = []
    for data in (source, source.in_memory):
        population, first = audits.add_canaries(data, 6)
        canaries = audits.Canaries(first, 6, norm=1.0)
        sim = fs.Simulation(
            canaries.join(fs.algorithms.fedavg(task, optax.sgd(0.1))), population, cohort=fs.cohorts.all_clients(),
            local=fs.LocalWork(max_steps=1), engine=fs.engines.lanes(2),
        )  # fmt: skip
        state, _ = sim.run(sim.init(0), rounds=2)
        states.append(sim.algorithm.params(state.server))
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_other_data_say_what_to_pass():
    data = fs.data.load("digits", clients=4, alpha=1.0, seed=0)
    with pytest.raises(TypeError, match=r"data is Federated.*pass its part that trains, data\.train"):
        audits.add_canaries(data, 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no example that a canary could hold"):
        audits.add_canaries(Counting(sizes=(0, 0, 0)), 2)


def test_a_claim_about_examples_is_not_a_canarys():
    """A whole client tells far more than one of its examples may."""
    audit = audits.CanaryAudit(9.0, 9.0, None, 1e-5, 0.95, np.ones(2), np.zeros(2), np.zeros(2), 0.1)
    claim = Guarantee(1.0, 1e-5, "add_or_remove_one", "pld", 1, (), True)
    assert audit.contradicts(claim)
    with pytest.raises(ValueError, match="about one example, a canary is a whole client"):
        audit.contradicts(dataclasses.replace(claim, unit="example"))
