"""Simulation: an algorithm, data, a cohort sampler and an engine, put together and run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim import engines
from fedjax_sim._src import checks, keys, tree
from fedjax_sim._src.types import Algorithm, Variables
from fedjax_sim.data import ClientData
from fedjax_sim.data.cohorts import Cohort
from fedjax_sim.data.local_work import LocalWork
from fedjax_sim.data.plans import Plan, Planner
from fedjax_sim.engines import Engine, SimState
from fedjax_sim.engines._costs import turn_costs
from fedjax_sim.engines._problem import Problem, group_names, initial_state, keeps_client_state
from fedjax_sim.evaluation import Evaluation, evaluate
from fedjax_sim.history import Costs, Histories, History


class NonFiniteModelError(FloatingPointError):
    """The global model became NaN or infinite.

    Attributes:
      round: index of the round that did it.
      clients: ids of the clients whose update was not finite in that round; empty when the server's own step did it.
      history: the rounds before it.
    """

    def __init__(self, message: str, round_: int, clients: tuple, history: History):
        super().__init__(message)
        self.round, self.clients, self.history = round_, clients, history


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a callback sees after every chunk of rounds.

    Attributes:
      done: rounds of this run that are done.
      rounds: rounds that were asked for.
      history: of the rounds so far.
      snapshot: makes a copy of the state, which stays valid.
    """

    done: int
    rounds: int
    history: History
    snapshot: Callable[[], SimState]


Callback = Callable[[Progress], Any]
"""Called after every chunk; a return value of True ends the run."""


class Simulation:
    """Runs an algorithm over a population of clients.

    Args:
      algorithm: from ``fs.algorithms`` or your own.
      data: the population, ``ClientData``.
      cohort: sampler from ``fs.cohorts``.
      local: local work of every client.
      engine: from ``fs.engines``; ``lanes()`` by default.
      groups: name of each client's group, ``[clients]``, for algorithms whose clients differ.
      rounds_per_chunk: rounds that run without the host; metrics come back and callbacks run between chunks.
      public: public data for server updates that use it, a pytree.

    Raises:
      TypeError, ValueError: anything that would go wrong later: a cohort larger than the population, data that the
        task cannot train on, a rule with state under sampling with replacement, unknown groups.

    Example:
      >>> import fedjax_sim as fs, optax
      >>> data = fs.data.load("digits", clients=20, alpha=0.3, seed=0)
      >>> task = fs.tasks.classification(fs.models.linear(classes=10))
      >>> sim = fs.Simulation(
      ...     fs.algorithms.fedavg(task, client=optax.sgd(0.1)), data.train,
      ...     cohort=fs.cohorts.uniform(5), local=fs.LocalWork(epochs=1, batch_size=20))
      >>> state, history = sim.run(sim.init(seed=0), rounds=3)
      >>> history.rounds, int(state.round)
      (3, 3)
    """

    def __init__(
        self,
        algorithm: Algorithm,
        data: ClientData,
        *,
        cohort: Cohort,
        local: LocalWork | None = None,
        engine: Engine | None = None,
        groups: Sequence[Any] | None = None,
        rounds_per_chunk: int = 10,
        public: Any = None,
    ):
        _check_types(algorithm, data, cohort, local, engine)
        checks.positive_int("rounds_per_chunk", rounds_per_chunk)
        self.algorithm, self.data, self.cohort = algorithm, data, cohort
        self.local = LocalWork() if local is None else local
        self.engine = engines.lanes() if engine is None else engine
        self.rounds_per_chunk = rounds_per_chunk
        if algorithm.task.check is not None:
            algorithm.task.check(data.columns)
        self._group = _group_indices(algorithm, groups, data.num_clients)
        self._public = public
        self._problem = self._make_problem(lambda hyper: algorithm)
        cohort.cap(data.num_clients)
        self._template = self._check_state(self._problem, algorithm)
        self._rounds = self.engine.compile(self._problem)
        self._columns: Any = None

    # --- state ---

    def init(self, seed: int | jax.Array = 0, variables: Variables | None = None) -> SimState:
        """State before the first round.

        Args:
          seed: an integer or a threefry key; everything random in the run follows from it.
          variables: a model to start from, for fine-tuning; drawn from the seed by default.

        Raises:
          TypeError: a key of another implementation than threefry.
          ValueError: variables of other shapes than the task's.
        """
        return self._init(self._problem, self.algorithm, seed, variables)

    def _init(self, problem: Problem, algorithm: Algorithm, seed, variables: Variables | None) -> SimState:
        root = keys.root_key(seed)
        drawn = lambda: algorithm.task.init(keys.fold(root, keys.INIT), self._sample())  # noqa: E731
        if variables is None:
            variables = drawn()
        else:
            _check_variables(variables, jax.eval_shape(drawn))
            variables = jax.tree.map(jnp.asarray, variables)
        make = jax.jit(lambda v, k: initial_state(problem, algorithm, v, k, self._slots()))
        return make(variables, root)

    def _sample(self) -> dict[str, jax.Array]:
        """One row of zeros, for models that learn their input's shape at initialisation."""
        rows = {name: jnp.zeros((1, *spec.shape[1:]), spec.dtype) for name, spec in self._column_specs().items()}
        return rows | {"mask": jnp.ones(1, bool)}

    def _column_specs(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Columns as the device will hold them: without 64-bit mode, JAX keeps int64 and float64 in 32 bits."""
        on_device = jax.dtypes.canonicalize_dtype
        return {name: jax.ShapeDtypeStruct(c.shape, on_device(c.dtype)) for name, c in self.data.columns.items()}

    def _slots(self) -> int:
        """Rows of the client table: the population, padded to equal shares for the devices."""
        return -(-self.data.num_clients // self.engine.devices) * self.engine.devices

    def _make_problem(self, build: Callable[[Any], Algorithm], hyper: Any = (), replicas: int | None = None) -> Problem:
        return Problem(
            build, self.local, self._column_specs(), self.data.num_clients, self.cohort.expected(self.data.num_clients), hyper,
            replicas, self._public,
        )

    def _check_state(self, problem: Problem, algorithm: Algorithm) -> SimState:
        """Specs of the state; tracing them finds rules and transforms that do not fit together."""
        template = jax.eval_shape(lambda: self._init(problem, algorithm, 0, None))
        if keeps_client_state(template) and self.cohort.sampling == "with_replacement":
            raise ValueError(
                f"{algorithm.name} keeps state per client, and the cohort is drawn with replacement: a client that "
                "stands in a cohort twice would start both turns from the same state and one result would be lost. "
                "Draw without replacement."
            )
        return template

    # --- running ---

    def run(
        self,
        state: SimState,
        rounds: int,
        *,
        evaluate_on: ClientData | None = None,
        every: int | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> tuple[SimState, History]:
        """Runs ``rounds`` more rounds.

        Args:
          state: from ``init`` or an earlier ``run``; it stays valid.
          rounds: how many.
          evaluate_on: data to evaluate the global model on.
          every: evaluate after every so many rounds; by default once, at the end.
          callbacks: called after every chunk.

        Returns:
          The new state and the history of these rounds.

        Raises:
          NonFiniteModelError: the model became NaN or infinite; names the round and the clients.
        """
        checks.positive_int("rounds", rounds)
        runner = _Runner(self, self._rounds, self._problem, (), evaluate_on, every, callbacks)
        state, members = runner.run(state, rounds)
        return state, members[0]

    def sweep(
        self,
        seeds: Sequence[int],
        rounds: int,
        *,
        algorithm: Callable[..., Algorithm] | None = None,
        hyperparameters: Mapping[str, Sequence[float]] | None = None,
        evaluate_on: ClientData | None = None,
        every: int | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Histories:
        """Runs one replica per seed in one program; replica ``i`` equals a run with ``seeds[i]``.

        Args:
          seeds: one per replica.
          rounds: how many.
          algorithm: ``(**hyperparameters)`` to an algorithm, when hyper-parameters differ between replicas.
          hyperparameters: ``{name: one value per replica}``; traced, so any value runs in the same program.
          evaluate_on: as for ``run``.
          every: as for ``run``.
          callbacks: as for ``run``; the history they see is the first replica's.

        Example:
          ``sim.sweep(seeds=[0, 0, 0], rounds=10, algorithm=lambda lr: fs.algorithms.fedavg(task, optax.sgd(lr)),
          hyperparameters={"lr": [0.01, 0.1, 1.0]})``
        """
        checks.positive_int("rounds", rounds)
        seeds = list(seeds)
        hyper, build = _hyperparameters(len(seeds), algorithm, hyperparameters, self.algorithm)
        one = lambda index: jax.tree.map(lambda x: x[index], hyper)  # noqa: E731
        problem = self._make_problem(build, one(0), len(seeds))
        self._check_state(problem, problem.algorithm())
        states = [self._init(problem, build(one(i)), seed, None) for i, seed in enumerate(seeds)]
        state = jax.tree.map(lambda *x: jnp.stack(x), *states)
        runner = _Runner(self, self.engine.compile(problem), problem, hyper, evaluate_on, every, callbacks)
        state, members = runner.run(state, rounds)
        finals = tuple(jax.tree.map(lambda x, i=i: x[i], state) for i in range(len(seeds)))
        return Histories(tuple(members), finals)

    def evaluate(self, state: SimState, data: ClientData, *, batch_size: int = 512) -> Evaluation:
        """Evaluates the global model: over all examples, and over clients."""
        variables = self.algorithm.params(state.server)
        return evaluate(self.algorithm.task, variables, data, batch_size=batch_size)

    # --- for a look inside ---

    def planner(self, replicas: int = 1) -> Planner:
        """The host's side of a round: who trains where, for how long."""
        works = self._problem.works(self.algorithm)
        return Planner(
            self.data.sizes, self.data.offsets[:-1], self.cohort, works, self._group,
            len(group_names(self.algorithm)), replicas, self.engine.devices,
            homes=keeps_client_state(self._template) and self.engine.devices > 1,
        )

    def plan(self, state: SimState, rounds: int | None = None) -> Plan:
        """The plan of the next rounds, at most a chunk of them."""
        rounds = self.rounds_per_chunk if rounds is None else rounds
        return self.planner().plan(_roots(state), int(state.round), rounds, self.rounds_per_chunk)

    def lower(self, state: SimState):
        """The lowered program of a chunk of rounds: its memory, cost and text can be looked at."""
        return self._rounds.lower(state, self._placed_columns(), self.plan(state))

    @property
    def compilations(self) -> int:
        """Programs compiled so far for chunks of rounds."""
        return self._rounds.compilations()

    def _placed_columns(self):
        if self._columns is None:
            self._columns = self._rounds.place_columns(self.data.columns)
        return self._columns


class _Runner:
    """One call of ``run`` or ``sweep``: plans, dispatches, collects."""

    def __init__(self, sim: Simulation, rounds_fn, problem: Problem, hyper, evaluate_on, every, callbacks):
        if every is not None:
            checks.positive_int("every", every)
            if evaluate_on is None:
                raise ValueError("every is given without evaluate_on: there is no data to evaluate on.")
        self.sim, self.rounds_fn, self.problem, self.hyper = sim, rounds_fn, problem, hyper
        self.evaluate_on, self.every, self.callbacks = evaluate_on, every, callbacks
        self.replicas = problem.replicas or 1
        self.planner = sim.planner(self.replicas)
        self.metrics: list[list[dict[str, np.ndarray]]] = [[] for _ in range(self.replicas)]
        self.evaluations: list[dict[int, Evaluation]] = [{} for _ in range(self.replicas)]
        self.costs = Costs(rows_per_step=sim.local.rows_per_step)

    def run(self, state: SimState, rounds: int) -> tuple[SimState, list[History]]:
        self.first = int(np.ravel(jax.device_get(state.round))[0])
        roots = _roots(state)
        self.per_turn = turn_costs(self.problem, state)
        columns = self.sim._placed_columns()
        state = self.rounds_fn.place_state(state)
        done, plan = 0, None
        started = time.perf_counter()
        while done < rounds:
            length = self._chunk_length(done, rounds)
            if plan is None:
                plan = self._plan(roots, done, length)
            before = self.rounds_fn.compilations()
            clock = time.perf_counter()
            state, report = self.rounds_fn(state, columns, plan, self.hyper)
            if self.rounds_fn.compilations() > before:
                self._spend(compile_seconds=time.perf_counter() - clock)
            # The next chunk is planned while the device works on this one.
            following = self._chunk_length(done + length, rounds)
            upcoming = self._plan(roots, done + length, following) if following else None
            self._collect(jax.device_get(report), plan, done)
            done, plan = done + length, upcoming
            self._clock(started)
            if self._evaluate(state, done, rounds) or self._call(state, done, rounds):
                break
            self._clock(started)
        self._clock(started)
        self._spend(lanes=self.rounds_fn.lanes or 1)
        return state, [self._history(replica) for replica in range(self.replicas)]

    def _chunk_length(self, done: int, rounds: int) -> int:
        length = min(self.sim.rounds_per_chunk, rounds - done)
        return length if self.every is None else min(length, self.every - done % self.every)

    def _plan(self, roots, done: int, length: int) -> Plan:
        return self.planner.plan(roots, self.first + done, length, self.sim.rounds_per_chunk)

    def _collect(self, report, plan: Plan, done: int) -> None:
        rounds = int(plan.rounds)
        for index in range(rounds):
            for replica in range(self.replicas):
                pick = (index,) if self.problem.replicas is None else (index, replica)
                if not report.model_finite[pick]:
                    self._raise_not_finite(report, plan, index, replica, self.first + done + index)
                row = {name: _mean(np.asarray(m.total)[pick], np.asarray(m.weight)[pick]) for name, m in report.metrics.items()}
                self.metrics[replica].append(row)
        steps = sum(int(q.entries.steps[:rounds].sum()) for q in plan.queues)
        turns = sum(int(q.count[:rounds].sum()) for q in plan.queues)
        self._spend(
            steps=self.costs.steps + steps,
            examples=self.costs.examples + self._examples(plan, rounds),
            lane_steps=self.costs.lane_steps + int(np.sum(report.lane_steps[:rounds])),
            flops=self.costs.flops + steps * self.per_turn.step_flops,
            bytes_up=self.costs.bytes_up + turns * self.per_turn.bytes_up,
            bytes_down=self.costs.bytes_down + turns * self.per_turn.bytes_down,
        )

    def _examples(self, plan: Plan, rounds: int) -> int:
        """Examples that the planned steps really look at."""
        total = 0
        for queue in plan.queues:
            for stage, work in enumerate(self.planner.works):
                if work.rows is not None:
                    total += int((queue.rows[stage][:rounds] >= 0).sum())
                    continue
                sizes = queue.entries.examples[:rounds].astype(np.int64)
                steps = queue.entries.steps[:rounds, ..., stage].astype(np.int64)
                per_epoch = np.maximum(work.steps_per_epoch(sizes), 1)
                whole = np.minimum(sizes, per_epoch * work.rows_per_step)
                rest = np.minimum(steps % per_epoch * work.rows_per_step, sizes)
                total += int(np.sum(steps // per_epoch * whole + rest))
        return total

    def _raise_not_finite(self, report, plan: Plan, index: int, replica: int, round_: int):
        names = []
        for stage in report.turns_finite:
            for queue, finite in zip(plan.queues, stage, strict=True):
                here = np.arange(finite.shape[-1]) < queue.count[index][:, None]
                wrong = here & ~finite[index] & (queue.entries.replica[index] == replica)
                names += [self.sim.data.ids[c] for c in queue.entries.client[index][wrong]]
        clients = tuple(dict.fromkeys(np.asarray(name).item() for name in names))
        if clients:
            listed = ", ".join(map(str, clients[:10])) + (f" and {len(clients) - 10} more" if len(clients) > 10 else "")
            who = f"the updates of {len(clients)} clients were not finite: {listed}"
        else:
            who = "every client's update was finite: the server's own step overflowed"
        which = f" of replica {replica}" if self.replicas > 1 else ""
        raise NonFiniteModelError(
            f"the model{which} is not finite after round {round_}; {who}. Look for NaN in their data, lower the "
            "learning rate, or clip (a clip turns a client that is not finite into zero and counts it).",
            round_, clients, self._history(replica),
        )

    def _evaluate(self, state: SimState, done: int, rounds: int) -> bool:
        due = done == rounds or (self.every is not None and done % self.every == 0)
        if self.evaluate_on is not None and due:
            clock = time.perf_counter()
            for replica in range(self.replicas):
                own = state if self.problem.replicas is None else jax.tree.map(lambda x, r=replica: x[r], state)
                self.evaluations[replica][self.first + done] = self.sim.evaluate(own, self.evaluate_on)
            self._spend(evaluation_seconds=self.costs.evaluation_seconds + time.perf_counter() - clock)
        return False

    def _call(self, state: SimState, done: int, rounds: int) -> bool:
        if not self.callbacks:
            return False
        copy = lambda: jax.tree.map(lambda x: jnp.array(x, copy=True), state)  # noqa: E731
        progress = Progress(done, rounds, self._history(0), copy)
        return any([callback(progress) is True for callback in self.callbacks])

    def _spend(self, **changes) -> None:
        self.costs = dataclasses.replace(self.costs, **changes)

    def _clock(self, started: float) -> None:
        whole = time.perf_counter() - started
        self._spend(run_seconds=whole - self.costs.compile_seconds - self.costs.evaluation_seconds)

    def _history(self, replica: int) -> History:
        rows = self.metrics[replica]
        names = dict.fromkeys(name for row in rows for name in row)
        stacked = {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}
        return History(self.first, stacked, dict(self.evaluations[replica]), self.costs)


def _mean(total, weight) -> float:
    """A round's value of a metric; NaN when nothing was measured in it."""
    return float(total) / float(weight) if weight > 0 else float("nan")


def _roots(state: SimState) -> list[tuple[int, ...]]:
    words = np.asarray(jax.random.key_data(state.key))
    return [tuple(int(w) for w in row) for row in words.reshape(-1, words.shape[-1])]


def _check_types(algorithm, data, cohort, local, engine) -> None:
    wanted = [
        ("algorithm", algorithm, Algorithm, "use one of fs.algorithms"),
        ("data", data, ClientData, "pass the clients' data, for example data.train"),
        ("cohort", cohort, Cohort, "use one of fs.cohorts, for example fs.cohorts.uniform(10)"),
    ]
    if local is not None:
        wanted.append(("local", local, LocalWork, "use fs.LocalWork(epochs=1, batch_size=20)"))
    if engine is not None:
        wanted.append(("engine", engine, Engine, "use one of fs.engines, called: fs.engines.lanes()"))
    for name, value, kind, fix in wanted:
        if not isinstance(value, kind):
            raise TypeError(f"{name} is {type(value).__name__}, expected {kind.__name__}: {fix}.")


def _group_indices(algorithm: Algorithm, groups, population: int) -> np.ndarray:
    names = group_names(algorithm)
    if names == (None,):
        if groups is not None:
            raise ValueError(f"groups is given, but all clients of {algorithm.name} are alike; leave it out.")
        return np.zeros(population, np.int64)
    if groups is None:
        raise ValueError(
            f"{algorithm.name} has groups {', '.join(map(repr, names))}: say which client belongs to which with "
            f"groups=[...], one name for each of the {population} clients."
        )
    if len(groups) != population:
        raise ValueError(f"groups has {len(groups)} names, expected one for each of the {population} clients.")
    place = {name: index for index, name in enumerate(names)}
    for client, name in enumerate(groups):
        if name not in place:
            raise ValueError(f"groups[{client}] is {name!r}, expected one of {', '.join(map(repr, names))}.")
    return np.array([place[name] for name in groups], np.int64)


def _check_variables(given: Variables, expected: Variables) -> None:
    if not isinstance(given, Variables):
        raise TypeError(f"variables is {type(given).__name__}, expected Variables(params, frozen, stats).")
    if jax.tree.structure(given) != jax.tree.structure(expected):
        raise ValueError(
            f"variables have structure {jax.tree.structure(given)}, the task's have {jax.tree.structure(expected)}."
        )
    for (path, x), y in zip(jax.tree.leaves_with_path(tree.spec(given)), jax.tree.leaves(expected), strict=True):
        if x.shape != y.shape or x.dtype != y.dtype:
            raise ValueError(
                f"variables{jax.tree_util.keystr(path)} is {x.dtype}{list(x.shape)}, the task's is "
                f"{y.dtype}{list(y.shape)}."
            )


def _hyperparameters(replicas: int, factory, values, algorithm: Algorithm):
    if replicas == 0:
        raise ValueError("seeds is empty, expected at least one.")
    if (factory is None) != (values is None):
        raise ValueError("algorithm and hyperparameters go together: give both or neither.")
    if factory is None:
        return (), lambda hyper: algorithm
    for name, column in values.items():
        if len(column) != replicas:
            raise ValueError(f"hyperparameters[{name!r}] has {len(column)} values, expected one per seed, {replicas}.")
    return {name: jnp.asarray(column) for name, column in values.items()}, lambda hyper: factory(**hyper)
