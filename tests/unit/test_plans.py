"""Plans: every member of a cohort gets exactly one turn, the longest first, on the right device."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim._src import keys
from fedjax_sim.data._turns import Past, levelled, occurrences, room_for
from fedjax_sim.data.cohorts import Cohort
from fedjax_sim.data.plans import Planner

ROOTS = [(0, 1), (0, 2), (0, 3)]
ROUNDS = 2


WORKS = (fs.LocalWork(batch_size=3),)


def make_planner(sizes, cohort, *, works=WORKS, group=None, **changes) -> Planner:
    sizes = np.asarray(sizes, np.int64)
    starts = np.cumsum(sizes) - sizes
    group = np.zeros(len(sizes), np.int64) if group is None else np.asarray(group)
    return Planner(sizes, starts, cohort, works, group, int(group.max()) + 1, **changes)


def plan_of(planner: Planner, first_round=0, rounds=ROUNDS, room=ROUNDS):
    return planner.plan(ROOTS[: planner.replicas], first_round, rounds, room)


def turns(queue, round_, device):
    """The entries of a queue that are turns, as a dictionary of arrays."""
    count = queue.count[round_, device]
    return {name: value[round_, device, :count] for name, value in queue.entries._asdict().items()}


def cohort_of(planner: Planner, replica: int, round_: int) -> list[int]:
    generator = keys.host_generator(ROOTS[replica], keys.COHORT, round_)
    return list(planner.cohort.sample(generator, round_, planner.population))


@st.composite
def planners(draw) -> Planner:
    sizes = draw(st.lists(st.integers(0, 12), min_size=1, max_size=12))
    population = len(sizes)
    homes = draw(st.booleans())
    choices: list[Cohort] = [
        fs.cohorts.all_clients(),
        fs.cohorts.poisson(draw(st.floats(0.1, 1.0)), cap=draw(st.none() | st.integers(1, 5))),
        fs.cohorts.uniform(draw(st.integers(1, population))),
        fs.cohorts.fixed([population - 1]),
    ]
    if not homes:
        choices.append(fs.cohorts.uniform(draw(st.integers(1, 20)), replace=True))
    groups = draw(st.integers(1, 3))
    group = draw(st.lists(st.integers(0, groups - 1), min_size=population, max_size=population))
    works = tuple(
        fs.LocalWork(epochs=draw(st.integers(1, 2)), batch_size=draw(st.integers(1, 4)))
        for _ in range(draw(st.integers(1, 2)))
    )
    return make_planner(
        sizes,
        draw(st.sampled_from(choices)),
        works=works,
        group=group,
        replicas=draw(st.integers(1, 3)),
        devices=draw(st.integers(1, 4)),
        homes=homes,
    )


@settings(max_examples=150, deadline=None)
@given(planners())
def test_every_member_has_exactly_one_turn(planner):
    """Over all devices and groups; queues never overflow their cap, and beyond a queue's count all is zero."""
    plan = plan_of(planner)
    for round_ in range(ROUNDS):
        got = collections.Counter()
        for index, queue in enumerate(plan.queues):
            cap = planner.queue_cap(index)
            for device in range(planner.devices):
                assert queue.count[round_, device] <= cap
                mine = turns(queue, round_, device)
                got.update(
                    zip(mine["replica"].tolist(), mine["client"].tolist(), mine["draw"].tolist(), strict=True)
                )
                assert np.all(planner.group[mine["client"]] == index)
                for value in queue.entries:
                    assert not value[round_, device, queue.count[round_, device] :].any()
        expected = collections.Counter()
        for replica in range(planner.replicas):
            members = cohort_of(planner, replica, round_)
            expected.update((replica, client, members[:i].count(client)) for i, client in enumerate(members))
            came = sum(planner.sizes[client] > 0 for client in members)
            assert plan.clients[round_, replica] == came
        assert got == expected


@settings(max_examples=100, deadline=None)
@given(planners())
def test_entries_say_what_the_client_is(planner):
    """Start, size, steps of each stage and slot; longest first in every queue."""
    plan = plan_of(planner)
    for queue in plan.queues:
        for round_ in range(ROUNDS):
            for device in range(planner.devices):
                mine = turns(queue, round_, device)
                client = mine["client"]
                np.testing.assert_array_equal(mine["start"], planner.starts[client])
                np.testing.assert_array_equal(mine["examples"], planner.sizes[client])
                for stage, work in enumerate(planner.works):
                    np.testing.assert_array_equal(mine["steps"][:, stage], work.steps(planner.sizes[client]))
                assert np.all(np.diff(mine["steps"].sum(axis=-1)) <= 0)
                assert not mine["version"].any()


@settings(max_examples=100, deadline=None)
@given(planners())
def test_clients_with_state_live_at_home(planner):
    """Client ``c`` on device ``c // slots`` in row ``c % slots``; without homes the row is the client itself."""
    plan = plan_of(planner)
    for queue in plan.queues:
        for round_ in range(ROUNDS):
            for device in range(planner.devices):
                mine = turns(queue, round_, device)
                if planner.homes:
                    assert np.all(mine["client"] // planner.slots == device)
                    np.testing.assert_array_equal(mine["slot"], mine["client"] % planner.slots)
                else:
                    np.testing.assert_array_equal(mine["slot"], mine["client"])


def test_devices_share_the_long_turns():
    """Dealt forth and back: with turns of 8, 7, ... 1 steps both devices get half of them, and no pile is longer."""
    planner = make_planner(
        np.arange(1, 9), fs.cohorts.all_clients(), works=(fs.LocalWork(batch_size=1),), devices=2
    )
    (queue,) = plan_of(planner).queues
    steps = [turns(queue, 0, device)["steps"][:, 0].tolist() for device in range(2)]
    assert steps == [[8, 5, 4, 1], [7, 6, 3, 2]]


def test_draws_with_replacement_are_counted_per_replica():
    planner = make_planner([3, 3], fs.cohorts.uniform(6, replace=True), replicas=2)
    (queue,) = plan_of(planner).queues
    mine = turns(queue, 0, 0)
    for replica in range(2):
        for client in range(2):
            drawn = mine["draw"][(mine["replica"] == replica) & (mine["client"] == client)]
            assert sorted(drawn) == list(range(len(drawn)))


@given(st.lists(st.integers(0, 4), max_size=12))
def test_draws_count_earlier_occurrences(clients):
    expected = [clients[:i].count(client) for i, client in enumerate(clients)]
    assert occurrences(np.asarray(clients, np.int64)).tolist() == expected


def test_the_longest_turns_go_where_least_is_to_do():
    assert levelled([9, 5, 4, 3, 2, 1], 2) == [0, 1, 1, 0, 1, 1]
    assert levelled([20, 5, 5, 5, 5], 2) == [0, 1, 1, 1, 1]
    assert levelled([20, 1, 1, 1, 1, 1, 1, 1], 2) == [0, 1, 1, 1, 1, 1, 0, 0]  # room for five each


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 5))
def test_no_device_has_more_turns_than_room_and_each_turn_goes_to_the_least_loaded(steps, devices):
    steps = sorted(steps, reverse=True)
    dealt = levelled(steps, devices)
    room = room_for(len(steps), devices)
    assert room * devices >= len(steps)
    assert len(dealt) == len(steps) and all(dealt.count(d) <= room for d in range(devices))
    load, left = [0] * devices, [room] * devices
    for one, device in zip(steps, dealt, strict=True):
        assert load[device] == min(load[d] for d in range(devices) if left[d])
        load[device] += one
        left[device] -= 1


def test_a_plan_is_a_function_of_root_and_round():
    """Chunks do not matter: round 3 is the same planned alone, from the start, or with room to spare."""
    planner = make_planner([4, 0, 7, 2, 9, 1], fs.cohorts.uniform(3))
    whole = plan_of(planner, 0, 5, 5)
    alone = plan_of(planner, 3, 1, 4)
    for a, b in zip(whole.queues[0].entries, alone.queues[0].entries, strict=True):
        np.testing.assert_array_equal(a[3], b[0])
    assert whole.queues[0].count[3] == alone.queues[0].count[0]
    assert (int(whole.rounds), int(alone.rounds)) == (5, 1)
    assert not alone.queues[0].count[1:].any()


def test_replicas_draw_the_cohorts_of_their_own_seeds():
    cohort = fs.cohorts.uniform(3)
    together = plan_of(make_planner([4, 0, 7, 2, 9, 1], cohort, replicas=3), 0, 1, 1)
    mine = turns(together.queues[0], 0, 0)
    for replica, root in enumerate(ROOTS):
        alone = make_planner([4, 0, 7, 2, 9, 1], cohort).plan([root], 0, 1, 1)
        np.testing.assert_array_equal(
            mine["client"][mine["replica"] == replica], turns(alone.queues[0], 0, 0)["client"]
        )


# --- stragglers, and passes that go on ------------------------------------------------------------------------

SLOW = fs.LocalWork(epochs=20, batch_size=2, stragglers=0.5)


def by_client(queue, round_) -> dict[int, int]:
    mine = turns(queue, round_, 0)
    return dict(zip(mine["client"].tolist(), mine["steps"][:, 0].tolist(), strict=True))


def test_half_of_a_cohort_has_less_time():
    sizes = np.arange(1, 31)
    planner = make_planner(sizes, fs.cohorts.uniform(10), works=(SLOW,))
    (queue,) = plan_of(planner, rounds=60, room=60).queues
    (whole,) = plan_of(make_planner(sizes, fs.cohorts.uniform(10)), rounds=60, room=60).queues
    epochs, late = [], collections.Counter()
    for round_ in range(60):
        assert set(by_client(queue, round_)) == set(by_client(whole, round_))
        done = {client: steps / -(-sizes[client] // 2) for client, steps in by_client(queue, round_).items()}
        slow = [client for client, count in done.items() if count < 20]
        assert len(slow) <= 5
        late.update(slow)
        epochs += [done[client] for client in slow]
    assert set(epochs) <= set(range(1, 20)) and len(set(epochs)) > 15
    assert 230 < len(epochs) < 300  # a straggler may have time for all 20
    assert len(late) == 30


def test_stragglers_that_are_dropped_are_the_ones_that_would_be_late():
    sizes = np.arange(1, 31)
    kept, dropped = (
        plan_of(make_planner(sizes, fs.cohorts.uniform(10), works=(work,)), rounds=20, room=20)
        for work in (SLOW, dataclasses.replace(SLOW, drop_stragglers=True))
    )
    for round_ in range(20):
        there, late = by_client(dropped.queues[0], round_), by_client(kept.queues[0], round_)
        assert len(there) == 5 == dropped.clients[round_, 0]
        assert kept.clients[round_, 0] == 10
        # All that is left has time for everything, and is in the other plan with as many steps.
        assert there == {client: late[client] for client in there}
        assert all(steps == 20 * -(-sizes[client] // 2) for client, steps in there.items())


def test_a_round_may_lose_all_of_its_clients():
    work = fs.LocalWork(stragglers=1.0, drop_stragglers=True)
    plan = plan_of(make_planner([3, 4], fs.cohorts.all_clients(), works=(work,)))
    assert not plan.clients.any() and not plan.queues[0].count.any()


def test_stragglers_have_time_for_their_first_explicit_rows():
    work = dataclasses.replace(EXPLICIT, stragglers=1.0)
    (whole,) = plan_of(make_planner([9] * 8, fs.cohorts.all_clients(), works=(EXPLICIT,))).queues
    (late,) = plan_of(make_planner([9] * 8, fs.cohorts.all_clients(), works=(work,))).queues
    for mine, rows in zip(late.entries.client[0, 0], late.rows[0][0, 0], strict=True):
        place = whole.entries.client[0, 0].tolist().index(mine)
        steps = (rows >= 0).any(axis=-1).sum()
        assert steps >= 1
        np.testing.assert_array_equal(rows[:steps], whole.rows[0][0, 0, place][:steps])
    assert late.entries.steps.sum() < whole.entries.steps.sum()


GOES_ON = fs.LocalWork(epochs=None, max_steps=3, batch_size=2, continue_epochs=True, stragglers=0.3)


@settings(max_examples=40, deadline=None)
@given(first=st.integers(0, 12), replace=st.booleans(), later=st.integers(0, 5))
def test_what_a_client_has_behind_it_is_what_it_did(first, replace, later):
    """Counted by hand over all rounds before, and whatever was planned earlier by the same planner."""
    planner = make_planner(
        [4, 0, 7, 2, 9, 1], fs.cohorts.uniform(4, replace=replace), works=(GOES_ON,), replicas=2
    )
    whole = plan_of(planner, 0, 20, 20).queues[0]
    done = collections.Counter()
    expected = {}
    for round_ in range(20):
        mine = turns(whole, round_, 0)
        order = np.lexsort((mine["draw"],))
        for turn in order:
            who = mine["replica"][turn].item(), mine["client"][turn].item()
            expected[(round_, *who, mine["draw"][turn].item())] = done[who]
            done[who] += mine["steps"][turn, 0].item()
    fresh = dataclasses.replace(planner, past=Past())
    for chosen in (fresh, planner):
        for start in (first, first + later, first):
            queue = plan_of(chosen, start, 2, 3).queues[0]
            for index in range(2):
                mine = turns(queue, index, 0)
                for turn in range(len(mine["client"])):
                    who = tuple(mine[name][turn].item() for name in ("replica", "client", "draw"))
                    assert mine["before"][turn, 0] == expected[(start + index, *who)]


def test_what_a_client_has_behind_it_is_of_its_own_seed():
    planner = make_planner([4, 0, 7, 2, 9, 1], fs.cohorts.uniform(3), works=(GOES_ON,))
    planner.plan([ROOTS[0]], 0, 5, 5)
    other = dataclasses.replace(planner, past=Past()).plan([ROOTS[1]], 5, 1, 1)
    np.testing.assert_array_equal(
        planner.plan([ROOTS[1]], 5, 1, 1).queues[0].entries.before, other.queues[0].entries.before
    )


def rows_of_half(generator, size):
    """Half of a client's rows, drawn; padded with -1 to batches of two."""
    chosen = generator.permutation(size)[: size // 2]
    return np.append(chosen, [-1] * (len(chosen) % 2)).reshape(-1, 2).astype(np.int64)


EXPLICIT = fs.LocalWork(batch_size=2, max_steps=4, rows=rows_of_half)


def test_explicit_rows_are_the_users_and_set_the_steps():
    """Rows of a client's own data, in the order of the queue, -1 where there is nothing; steps follow the rows."""
    planner = make_planner([4, 0, 7, 2, 1], fs.cohorts.all_clients(), works=(EXPLICIT,))
    (queue,) = plan_of(planner).queues
    mine = turns(queue, 0, 0)
    for place, client in enumerate(mine["client"]):
        generator = keys.host_generator(ROOTS[0], keys.CLIENT, 0, 0, int(client), 0)
        expected = rows_of_half(generator, int(planner.sizes[client]))
        rows = queue.rows[0][0, 0, place]
        np.testing.assert_array_equal(rows[: len(expected)], expected)
        assert np.all(rows[len(expected) :] == -1)
        assert mine["steps"][place, 0] == len(expected)
    assert np.all(np.diff(mine["steps"][:, 0]) <= 0)


def test_explicit_rows_differ_between_rounds_and_draws():
    planner = make_planner(
        [40],
        fs.cohorts.uniform(2, replace=True),
        works=(
            fs.LocalWork(
                batch_size=20,
                max_steps=1,
                rows=lambda generator, size: generator.permutation(size)[None, :20],
            ),
        ),
    )
    (queue,) = plan_of(planner).queues
    rows = queue.rows[0][:, 0].reshape(4, -1)
    assert len({tuple(row) for row in rows}) == 4


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([0, 1], r"int64\[2\] for client 0, expected integers \[steps, 2\]"),
        ([[0.0, 1.0]], r"float64\[1, 2\] for client 0"),
        ([[0, 5]], "row 5 for client 0, which has rows 0 to 4"),
        ([[0, -2]], "row -2 for client 0"),
        ([[0, 1]] * 3, "3 steps for client 0, max_steps is 2"),
    ],
)
def test_wrong_explicit_rows_are_refused(rows, message):
    work = fs.LocalWork(batch_size=2, max_steps=2, rows=lambda generator, size: np.asarray(rows))
    with pytest.raises(ValueError, match=message):
        plan_of(make_planner([5], fs.cohorts.all_clients(), works=(work,)))


def test_a_group_without_members_has_room_for_one_and_none_in_it():
    planner = make_planner([3, 3], fs.cohorts.all_clients(), group=[0, 2])
    assert [int(queue.count[0, 0]) for queue in plan_of(planner).queues] == [1, 0, 1]
    assert planner.queue_cap(1) == 1


def test_groups_are_counted_once():
    planner = make_planner([3] * 6, fs.cohorts.all_clients(), group=[0, 2, 2, 0, 2, 0])
    caps = [planner.queue_cap(group) for group in range(3)]
    planner.group[:] = 0  # nobody looks again
    assert [planner.queue_cap(group) for group in range(3)] == caps == [3, 1, 3]
    assert dataclasses.replace(planner).queue_cap(0) == 6
