"""One call of ``run`` or ``sweep``: chunks are planned, dispatched and collected, metrics and costs added up."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_sim._books import MetricRows, examples, round_metrics
from fedjax_sim._client_state import ClientStates
from fedjax_sim._ends import Ends
from fedjax_sim._feed import Chunks, Feed
from fedjax_sim.checkpoint import CheckpointError, Store
from fedjax_sim.data.plans import Plan, Planner
from fedjax_sim.engines import RoundFn, RoundReport, SimState
from fedjax_sim.engines._costs import TurnCosts
from fedjax_sim.evaluation import Evaluation
from fedjax_sim.history import Costs, History, Stopped


class NonFiniteModelError(FloatingPointError):
    """The global model became NaN or infinite.

    Attributes:
      round: index of the round that did it.
      clients: ids of the clients whose update was not finite in that round; empty when the server's own step did it.
      replica: which one of a sweep.
      histories: the rounds before it, one history per replica.
    """

    def __init__(self, message: str, round_: int, clients: tuple, replica: int, histories: list[History]):
        super().__init__(message)
        self.round, self.clients, self.replica, self.histories = round_, clients, replica, histories

    @property
    def history(self) -> History:
        """Of the replica whose model it was."""
        return self.histories[self.replica]


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a callback sees after every chunk of rounds.

    Attributes:
      done: rounds of this run that are done.
      rounds: rounds that were asked for.
      chunks: one history per replica, of the rounds since the last call; its costs are those of the run so far.
      snapshot: makes a copy of the state, which stays valid.
      histories: makes the histories of all rounds so far, which takes the longer the longer the run is.
    """

    done: int
    rounds: int
    chunks: tuple[History, ...]
    snapshot: Callable[[], SimState]
    histories: Callable[[], list[History]]

    @property
    def chunk(self) -> History:
        """The first replica's."""
        return self.chunks[0]

    def history(self) -> History:
        """The first replica's, of all rounds so far."""
        return self.histories()[0]


Callback = Callable[[Progress], Any]
"""Called after every chunk; a return value of True ends the run."""


_Evaluations = Mapping[str, Callable[[], Evaluation]]
"""By set: what waits for an evaluation that was begun."""


class _Sent(NamedTuple):
    """A chunk that the devices were given.

    Attributes:
      plan: of its rounds.
      report: what comes back of them.
      done: rounds of this run before it.
      after: likewise, with it.
      evaluations: of the models after it, by replica.
    """

    plan: Plan
    report: RoundReport
    done: int
    after: int
    evaluations: dict[int, _Evaluations]


@dataclasses.dataclass
class Runner:
    """Runs rounds and keeps the books.

    Attributes:
      rounds_fn: the compiled round function.
      planner: makes its plans.
      feed: makes plans, and brings their examples to the engine's devices.
      clients: brings the state that clients keep to the engine's devices.
      ids: names of the clients.
      rounds_per_chunk: room of a plan.
      turn_costs: costs of a client's turn, one for each group.
      hyper: hyper-parameters, ``[replicas]`` each, or ``()``.
      single: the state has no replica axis.
      evaluate: begins to evaluate a state without replica axis, given the number of its replica, on every named set;
        ``None`` when there is nothing to evaluate on.
      every: rounds between evaluations; ``None`` for one at the end.
      evaluation_waits: whether to begin an evaluation waits for the devices.
      callbacks: called after every chunk.
      store: checkpoints, ``None`` for none.
      precision: what the model computes with, for the books.

    Where the planner has ``ends``, a replica stops there for good: nobody comes any more, and its model stays what it is.
    """

    rounds_fn: RoundFn
    planner: Planner
    feed: Feed
    clients: ClientStates
    ids: np.ndarray
    rounds_per_chunk: int
    turn_costs: tuple[TurnCosts, ...]
    hyper: Any = ()
    single: bool = True
    evaluate: Callable[[SimState, int], _Evaluations] | None = None
    every: int | None = None
    callbacks: Sequence[Callback] = ()
    evaluation_waits: bool = False
    store: Store | None = None
    precision: str = ""

    def __post_init__(self):
        replicas = self.planner.replicas
        self._metrics = MetricRows()
        self._evaluations: list[dict[int, Mapping[str, Evaluation]]] = [{} for _ in range(replicas)]
        self._costs = Costs(rows_per_step=self.planner.works[-1].rows_per_step, precision=self.precision)
        self._first, self._started, self._spent = 0, 0.0, self._costs
        # The state of a single run has no axis to hold one of several back, and need not: it ends with its only replica.
        self._ends, self._asked, self._halted = Ends(self.planner.ends), 0, False
        self._saved: tuple[Stopped | None, ...] = ()

    def run(self, state: SimState, rounds: int | None) -> tuple[SimState, list[History]]:
        """Runs ``rounds`` rounds, or up to the last end, from the newest checkpoint on if there is one; ``state`` stays valid.

        Without a number of rounds the newest checkpoint is all there is to it.

        Returns the new state and one history per replica.
        """
        self._first = int(np.ravel(jax.device_get(state.round))[0])
        roots = root_words(state)
        if rounds is not None:
            self._asked = self._first + rounds
            if self._ends.last is not None:
                rounds = min(rounds, self._ends.last - self._first)
        state, done = self._restore(state, rounds)
        rounds = done if rounds is None else rounds
        state = self._held(self.clients.start(self.rounds_fn, state), done)
        self._started = time.perf_counter()
        place, room = self.rounds_fn.place_columns, self.rounds_per_chunk
        with self.feed.chunks(self.planner, place, roots, room) as chunks:
            state = self._rounds(chunks, state, done, rounds)
        self._clock()
        self._spend(lanes=self.rounds_fn.layout.lanes if self.rounds_fn.layout else 1)
        return self._dated(state), self._histories()

    def _rounds(self, chunks: Chunks, state: SimState, done: int, rounds: int) -> SimState:
        """The rounds from the ``done``-th to the one before the ``rounds``-th, or to where a callback stops.

        Where nobody looks at a state between two chunks, the devices have the next one before the results of this one are
        looked at, and do not wait for the host.
        """
        waiting: _Sent | None = None
        stop = done >= rounds
        if not stop:
            chunks.ask(self._first + done, self._length(done, rounds))
        while not stop:
            plan, columns = chunks.take()
            state, plan, lent = self.clients.lend(self.rounds_fn, state, plan)
            compiled, clock = self.rounds_fn.compilations(), time.perf_counter()
            state, report = self.rounds_fn(state, columns, plan, self.hyper)
            if self.rounds_fn.compilations() > compiled:
                self._spend(compile_seconds=self._costs.compile_seconds + time.perf_counter() - clock)
            # The next chunk is planned, and its examples gathered, while the device works on this one.
            after = done + int(plan.rounds)
            if after < rounds:
                chunks.ask(self._first + after, self._length(after, rounds))
            if not self._ahead:
                # All of the chunk, and not only its report: from here on its columns may be written over.
                jax.block_until_ready(state)
            state = self._held(self.clients.back(state, lent), after)
            sent = _Sent(plan, report, done, after, self._begin_evaluations(state, after, rounds))
            if waiting is not None:
                self._settle(waiting)
            waiting = sent if self._ahead and after < rounds else None
            if waiting is None:
                self._settle(sent)
                self._halted = self._call(state, done, after, rounds)
            stop = self._halted or after == rounds
            self._save(state, after, stop)
            done = after
        return state

    @property
    def _ahead(self) -> bool:
        """Whether a state may be written over before the results of its rounds have been looked at."""
        looked_at = bool(self.callbacks) or self.store is not None
        return self.feed.stays and not (looked_at or self.clients.waits or self.evaluation_waits)

    def _settle(self, sent: _Sent) -> None:
        """Books the results of a chunk."""
        self._collect(jax.device_get(sent.report), sent.plan, sent.done)
        self._clock()
        self._end_evaluations(sent)

    def _length(self, done: int, rounds: int) -> int:
        """Rounds of the next chunk: up to the next evaluation, checkpoint or end of a replica."""
        length = min(self.rounds_per_chunk, rounds - done)
        end = self._ends.next(self._first + done)
        if end is not None:
            length = min(length, end - self._first - done)
        for every in (self.every, None if self.store is None else self.store.every):
            if every is not None:
                length = min(length, every - done % every)
        return length

    def _held(self, state: SimState, done: int) -> SimState:
        return state if self.single else self._ends.hold(state, self._first + done)

    def _dated(self, state: SimState) -> SimState:
        return state if self.single else self._ends.dated(state)

    # --- what a chunk brought ---

    def _collect(self, report: RoundReport, plan: Plan, done: int) -> None:
        rounds = int(plan.rounds)
        replicas = self.planner.replicas
        metrics = round_metrics(report, plan, self.turn_costs, replicas)
        ended = [self._ends.over(replica, self._first + done) for replica in range(replicas)]
        finite = np.asarray(report.model_finite)[:rounds].reshape(rounds, replicas) | ended
        if not finite.all():
            index, replica = (int(place) for place in np.argwhere(~finite)[0])
            self._metrics.add({name: values[:index] for name, values in metrics.items()})
            self._refuse(report, plan, index, replica, self._first + done + index)
        self._metrics.add(metrics)
        steps = [queue.entries.steps[:rounds].sum(axis=(0, 1, 2), dtype=np.int64) for queue in plan.queues]
        flops = sum(float(np.dot(s, c.step_flops)) for s, c in zip(steps, self.turn_costs, strict=True))
        costs = self._costs
        self._spend(
            steps=costs.steps + int(np.sum(steps)),
            examples=costs.examples + sum(examples(self.planner, queue, rounds) for queue in plan.queues),
            lane_steps=costs.lane_steps + int(np.sum(report.lane_steps[:rounds])),
            flops=costs.flops + flops,
            bytes_up=costs.bytes_up + int(metrics["bytes_up"].sum()),
            bytes_down=costs.bytes_down + int(metrics["bytes_down"].sum()),
        )

    def _refuse(self, report: RoundReport, plan: Plan, index: int, replica: int, round_: int) -> None:
        """Raises for a model that is not finite, and names the clients whose updates were not."""
        names = []
        for stage in report.turns_finite:
            for queue, finite in zip(plan.queues, stage, strict=True):
                here = np.arange(finite.shape[-1]) < queue.count[index][:, None]
                wrong = here & ~finite[index] & (queue.entries.replica[index] == replica)
                names += [
                    np.asarray(self.ids[client]).item() for client in queue.entries.client[index][wrong]
                ]
        clients = tuple(dict.fromkeys(names))
        who = "every client's update was finite: the server's own step overflowed"
        if clients:
            more = f" and {len(clients) - 10} more" if len(clients) > 10 else ""
            who = f"updates that were not finite came from {', '.join(map(str, clients[:10]))}{more}"
        which = "" if self.single else f" of replica {replica}"
        raise NonFiniteModelError(
            f"the model{which} is not finite after round {round_}; {who}. Look for NaN in the data, lower the "
            "learning rate, or clip (a clip turns a client that is not finite into zero and counts it).",
            round_,
            clients,
            replica,
            self._histories(stop=round_ - self._first),
        )

    def _begin_evaluations(self, state: SimState, done: int, rounds: int) -> dict[int, _Evaluations]:
        """Those that are due after so many rounds, by replica; the devices may still be at work on them."""
        if self.evaluate is None:
            return {}
        clock, begun = time.perf_counter(), {}
        for replica in range(self.planner.replicas):
            if self._is_due(replica, done, rounds):
                own = state if self.single else jax.tree.map(lambda x, r=replica: x[r], state)
                begun[replica] = self.evaluate(own, replica)
        self._spend(evaluation_seconds=self._costs.evaluation_seconds + time.perf_counter() - clock)
        return begun

    def _end_evaluations(self, sent: _Sent) -> None:
        clock = time.perf_counter()
        for replica, begun in sent.evaluations.items():
            self._evaluations[replica][self._first + sent.after] = {
                name: end() for name, end in begun.items()
            }
        self._spend(evaluation_seconds=self._costs.evaluation_seconds + time.perf_counter() - clock)

    def _is_due(self, replica: int, done: int, rounds: int) -> bool:
        """Whether a replica is to be evaluated: at its end, and every so many rounds before."""
        end = self._ends.before(replica, self._first + rounds) - self._first
        return done == end or (done < end and self.every is not None and done % self.every == 0)

    def _call(self, state: SimState, before: int, done: int, rounds: int) -> bool:
        """Whether a callback asked to stop. Every callback is called."""

        if not self.callbacks:
            return False
        snapshot, chunks = lambda: self._dated(self.clients.snapshot(state)), tuple(self._histories(before))
        progress = Progress(done, rounds, chunks, snapshot, self._histories)
        answers = [callback(progress) for callback in self.callbacks]
        # A comparison of numpy values is an np.bool_, never the object True; other truthy values mean nothing.
        return any(isinstance(answer, (bool, np.bool_)) and bool(answer) for answer in answers)

    # --- checkpoints ---

    def _restore(self, state: SimState, rounds: int | None) -> tuple[SimState, int]:
        """The state to go on from and the rounds that are done already."""
        at_most = None if rounds is None else self._first + rounds
        saved = None if self.store is None else self.store.newest(at_most)
        if saved is None and rounds is None:
            raise CheckpointError("no checkpoint of the folder can be read: run the rounds again.")
        if saved is None or saved.rounds < self._first:
            return state, 0
        skip = self._first - saved.histories[0].first_round
        for replica, history in enumerate(saved.histories):
            if history.first_round > self._first:
                raise CheckpointError(
                    f"the checkpoint after {saved.rounds} rounds belongs to a run that began at round "
                    f"{history.first_round}, this one begins at round {self._first}: start from the same state, or use "
                    "another folder."
                )
            self._evaluations[replica] = {
                after: value for after, value in history.evaluations.items() if after > self._first
            }
            self._check_end(replica, saved.rounds, history, rounds is None)
        self._saved = tuple(history.stopped for history in saved.histories)
        if rounds is None:
            self._ends = Ends(tuple(history.first_round + history.rounds for history in saved.histories))
        if skip == 0:
            self._costs = self._spent = saved.histories[0].costs
        longest = max(saved.histories, key=lambda history: history.rounds)
        metrics = {name: np.full((longest.rounds, len(saved.histories)), np.nan) for name in longest.metrics}
        for replica, history in enumerate(saved.histories):
            for name, values in history.metrics.items():
                metrics[name][: len(values), replica] = values
        self._metrics.add({name: values[skip:] for name, values in metrics.items()})
        return saved.state, saved.rounds - self._first

    def _check_end(self, replica: int, saved: int, history: History, reads: bool) -> None:
        """Refuses a replica whose rounds end elsewhere than the budget says: those in between are not to be had."""
        got = history.first_round + history.rounds
        expected = self._ends.before(replica, saved)
        if got != expected and not reads:
            raise CheckpointError(
                f"the checkpoint after {saved} rounds has {got} of replica {replica}, whose budget ended it then; now it "
                f"would have {expected}. Go on with the budget of before, or start anew in another folder."
            )

    def _save(self, state: SimState, done: int, stop: bool) -> None:
        if self.store is None or not (stop or done % self.store.every == 0):
            return
        clock = time.perf_counter()
        self.store.save(state, self._histories())
        self._spend(checkpoint_seconds=self._costs.checkpoint_seconds + time.perf_counter() - clock)

    # --- the books ---

    def _spend(self, **changes) -> None:
        self._costs = dataclasses.replace(self._costs, **changes)

    def _clock(self) -> None:
        """Time of this process that went into nothing else, on top of what earlier ones ran."""
        elsewhere = ("compile_seconds", "evaluation_seconds", "checkpoint_seconds")
        spent = sum(getattr(self._costs, name) - getattr(self._spent, name) for name in elsewhere)
        self._spend(run_seconds=self._spent.run_seconds + time.perf_counter() - self._started - spent)

    def _histories(self, start: int = 0, stop: int | None = None) -> list[History]:
        """Of the rounds from the ``start``-th of this run to the one before the ``stop``-th, per replica."""
        return [self._history(replica, start, stop) for replica in range(self.planner.replicas)]

    def _history(self, replica: int, start: int, stop: int | None) -> History:
        first = self._first + start
        stop = self._metrics.rounds if stop is None else stop
        stop = max(start, self._ends.before(replica, self._first + stop) - self._first)
        stacked = self._metrics.of(replica, start, stop)
        evaluations = self._evaluations[replica]
        if start:
            evaluations = {done: value for done, value in evaluations.items() if done > first}
        return History(first, stacked, dict(evaluations), self._costs, self._stopped(replica, stop))

    def _stopped(self, replica: int, done: int) -> Stopped | None:
        """Why a replica ended before the rounds that were asked for."""
        if not self._asked:  # nothing was: what the checkpoint says
            return self._saved[replica] if self._saved else None
        if self._first + done >= self._asked:
            return None
        if self._ends.over(replica, self._first + done):
            return "budget"
        return "callback" if self._halted else None


def root_words(state: SimState) -> list[tuple[int, ...]]:
    """The words of each replica's root key, which host-side decisions are keyed by."""
    words = np.asarray(jax.random.key_data(state.key))
    return [tuple(int(word) for word in row) for row in words.reshape(-1, words.shape[-1])]
