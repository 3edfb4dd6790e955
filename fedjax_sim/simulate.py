"""Simulation: an algorithm, data, a cohort sampler and an engine, put together and run."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim import engines
from fedjax_sim._arguments import (
    check_memory,
    check_rounds,
    check_sampling,
    check_schedules,
    check_steps,
    check_types,
    check_variables,
    group_indices,
    member_algorithms,
    replica_hyperparameters,
)  # fmt: skip
from fedjax_sim._client_state import Where, client_states_of
from fedjax_sim._description import model_precision
from fedjax_sim._feed import Resident, feed_of
from fedjax_sim._inside import Inspected
from fedjax_sim._priced import Priced
from fedjax_sim._runner import Callback, NonFiniteModelError, Progress, Runner
from fedjax_sim._src import checks, keys
from fedjax_sim._src.types import Algorithm, Variables
from fedjax_sim._tuning import Timing, Tuning, tune
from fedjax_sim.checkpoint import Checkpoints, Store
from fedjax_sim.data._blocks import some_at_a_time
from fedjax_sim.data.client_source import Clients
from fedjax_sim.data.cohorts import Cohort
from fedjax_sim.data.local_work import LocalWork
from fedjax_sim.engines import Engine, Layout, SimState
from fedjax_sim.engines._auto import CHUNK, chunk_length
from fedjax_sim.engines._costs import turn_costs
from fedjax_sim.engines._problem import (
    Problem,
    column_specs,
    example_row,
    group_names,
    initialiser,
)  # fmt: skip
from fedjax_sim.engines._state import check_is_state, check_state
from fedjax_sim.evaluation import Evaluation, Evaluator, evaluators, named_sets
from fedjax_sim.history import Histories, History
from fedjax_sim.personalisation import Personalised, Personaliser, chosen_clients, work_alone
from fedjax_sim.privacy import Budget

__all__ = ["Callback", "NonFiniteModelError", "Progress", "Simulation", "Timing", "Tuning"]


class Simulation(Priced, Inspected):
    """Runs an algorithm over a population of clients.

    Args:
      algorithm: from ``fs.algorithms`` or your own.
      data: the population: ``ClientData``, or a ``ClientSource``, whose examples are made when they are wanted.
      cohort: sampler from ``fs.cohorts``.
      local: local work of every client.
      engine: from ``fs.engines``; ``lanes()`` by default.
      groups: name of each client's group, ``[clients]``, for algorithms whose clients differ.
      rounds_per_chunk: rounds that run without the host; metrics come back and callbacks run between chunks. By default ten, or
        up to fifty where rounds are short and all data is on the devices. Fewer, where the rows that ``client_state`` brings
        for them from elsewhere could fill more than a quarter of a device.
      public: public data for server updates that use it, a pytree.
      client_state: where the state that clients keep lies: on the ``"device"``, in the ``"host"``'s memory or on ``"disk"``, from
        where each chunk brings the rows of its cohorts; results are the same. A ``pathlib.Path`` is a folder for it on disk,
        which has to exist; else it is in ``TMPDIR`` or ``/var/tmp``. What a killed process leaves there, the next
        one on the same machine removes. The URL of a folder, such as ``"gs://bucket/folder"``, or a dict that specifies one of
        tensorstore's key-value stores, is where it lies beyond this machine. By default the first of device, host and disk of which it would fill no more than a quarter,
        on the device and in the memory that the process may use: limits of a container and of ``ulimit`` count.
      stream: whether each chunk's examples are brought to the devices while the chunk before trains, instead of all data
        at the beginning; results are the same. By default where the data would fill more than half of a device.

    Raises:
      OSError: the folder or the store for client state is missing, or cannot be written.
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
        data: Clients,
        *,
        cohort: Cohort,
        local: LocalWork | None = None,
        engine: Engine | None = None,
        groups: Sequence[Any] | None = None,
        rounds_per_chunk: int | None = None,
        public: Any = None,
        stream: bool | None = None,
        client_state: Where | None = None,
    ):
        check_types(algorithm, data, cohort, local, engine)
        if rounds_per_chunk is not None:
            checks.positive_int("rounds_per_chunk", rounds_per_chunk)
        url = isinstance(client_state, str) and "://" in client_state
        if not (
            url
            or isinstance(client_state, Path | Mapping)
            or client_state in (None, "device", "host", "disk")
        ):
            raise ValueError(
                f"client_state is {client_state!r}, expected None, 'device', 'host', 'disk', a pathlib.Path (a folder on "
                "disk), the URL of a folder or a dict (of a store)."
            )
        self.data, self.cohort = data, cohort
        self.local = LocalWork() if local is None else local
        self.engine = engines.lanes() if engine is None else engine
        self._asked = rounds_per_chunk
        if data.num_examples == 0:
            raise ValueError(
                f"the data has {data.num_clients} clients and no example: there is nothing to train on."
            )
        self._groups, self._public, self._stream = groups, public, stream
        self._where: Where | None = client_state
        self._group = group_indices(algorithm, groups, data.num_clients)
        self._prepare(self._make_problem(lambda hyper: algorithm))
        self._rounds = self.engine.compile(self._problem)
        self._personalisers: dict[tuple[LocalWork, int, int], Personaliser] = {}

    def __repr__(self) -> str:
        clients = f"{self.data.num_clients:,} clients with {self.data.num_examples:,} examples"
        return f"Simulation({self.algorithm!r}, {clients}, {self.cohort!r}, {self.engine!r})"

    def _prepare(self, problem: Problem) -> None:
        """Takes over an algorithm: everything that depends on which one it is, but the engine's program.

        Raises:
          ValueError: the data or the cohort do not fit it.
        """
        self._problem, self.algorithm = problem, problem.algorithm()
        self._feed = feed_of(self.data, self._stream, self.algorithm.task.check)
        self.cohort.cap(self.data.num_clients)
        self._initialise = initialiser(problem, self._slots())
        # Tracing its specs finds rules and transforms that do not fit together.
        self._template = jax.eval_shape(self._initialise, problem.example_hyper, keys.root_key(0), None)
        check_memory(problem, self._template)
        check_steps(problem, self.data.sizes)
        check_sampling(self.algorithm, self.cohort, self._template, self.data.num_clients)
        planner, replicated = self.planner(problem.replicas or 1), problem.replicas is not None
        self._clients = client_states_of(self._where, self._template, planner, replicated)
        self.rounds_per_chunk = self._clients.rounds(self._asked or self._chunk(problem))
        if self._clients.rows_at_first != self._slots():
            self._initialise = initialiser(problem, self._clients.rows_at_first)

    def _chunk(self, problem: Problem) -> int:
        """Rounds of a chunk when nobody gives them; few where each brings its data to the devices."""
        if not self._feed.stays:
            return CHUNK
        first = () if problem.replicas is None else (problem.replicas,)
        state = jax.tree.map(lambda x: jax.ShapeDtypeStruct((*first, *x.shape), x.dtype), self._template)
        return chunk_length(problem, state, self.data.sizes)

    def _variant(self, problem: Problem) -> Simulation:
        """This simulation with the algorithm of a sweep, which may have other stages, groups and state."""
        variant = copy.copy(self)
        groups = None if group_names(problem.algorithm()) == (None,) else self._groups
        variant._group = group_indices(problem.algorithm(), groups, self.data.num_clients)
        variant._prepare(problem)
        if isinstance(variant._feed, Resident):
            variant._feed = self._feed  # what lies on the devices already
        return variant

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
        root = keys.root_key(seed)
        if variables is not None:
            drawn = jax.eval_shape(
                lambda: self.algorithm.task.init(keys.fold(root, keys.INIT), example_row(self._problem))
            )
            check_variables(variables, drawn)
        return self._clients.initial(self._initialise((), root, variables))

    def _slots(self) -> int:
        """Rows of the client table: the population, padded to equal shares for the devices."""
        return -(-self.data.num_clients // self.engine.devices) * self.engine.devices

    def _make_problem(
        self, build: Callable[[Any], Algorithm], hyper: Any = (), replicas: int | None = None
    ) -> Problem:
        return Problem(
            build,
            self.local,
            column_specs(self.data.columns),
            self.data.num_clients,
            self.cohort.expected(self.data.num_clients),
            self.cohort.cap(self.data.num_clients),
            int(self.data.sizes.min()) == 0,
            hyper,
            replicas,
            self._public,
        )

    # --- running ---

    def run(
        self,
        state: SimState,
        rounds: int | None,
        *,
        evaluate_on: Clients | Mapping[str, Clients] | None = None,
        every: int | None = None,
        callbacks: Sequence[Callback] = (),
        checkpoints: Checkpoints | None = None,
        budget: Budget | None = None,
    ) -> tuple[SimState, History]:
        """Runs ``rounds`` more rounds.

        Args:
          state: from ``init`` or an earlier ``run``; it stays valid.
          rounds: how many; ``None`` for those that ``checkpoints`` hold: their newest state is read, nothing is trained
            and nothing written, also while another process trains.
          evaluate_on: data to evaluate the global model on; several sets by name, such as
            ``{"test": data.test, "unseen": unseen.test}``. One without a name is called ``"eval"``.
          every: evaluate after every so many rounds; by default once, at the end.
          callbacks: called after every chunk.
          checkpoints: where the run is saved. What a folder holds of these rounds already is not run again: the
            same call goes on after a kill, and after ``rounds`` was raised, with the same result to the last bit.
          budget: the run ends after the last round that it pays for, counted from round 0 of the state's life; of more
            rounds than that the history and the state have fewer, and ``history.stopped`` is ``"budget"``.

        Returns:
          The new state and the history of these rounds.

        Raises:
          NonFiniteModelError: the model became NaN or infinite; names the round and the clients.
          CheckpointError: the folder's checkpoints are of another run; says what differs.
          BudgetSpentError: the budget does not pay for one more round.
          ValueError: ``rounds`` is no positive integer, or ``None`` without ``checkpoints``; a budget for what has no price.
        """
        check_rounds(rounds, checkpoints)
        check_state(state, self._template, self.algorithm.name, self.data.num_clients)
        check_schedules((self.algorithm,), int(state.round), rounds)
        paid = self._paid(budget, int(state.round), rounds)
        runner = self._runner(
            self._rounds, turn_costs(self._problem, state), (self.algorithm,), evaluate_on, every, callbacks, single=True,
            ends=None if paid is None else (paid,),
        )  # fmt: skip
        state, histories = self._execute(runner, state, rounds, checkpoints)
        return state, histories[0]

    def _execute(
        self, runner: Runner, state: SimState, rounds: int | None, checkpoints: Checkpoints | None
    ) -> tuple[SimState, list[History]]:
        if checkpoints is None:
            return runner.run(state, rounds)
        with Store(
            checkpoints, self.describe(state), state, rounds is None, runner.clients.opener
        ) as runner.store:
            return runner.run(state, rounds)

    def sweep(
        self,
        seeds: Sequence[int],
        rounds: int | None,
        *,
        algorithm: Callable[..., Algorithm] | None = None,
        hyperparameters: Mapping[str, Sequence[float]] | None = None,
        evaluate_on: Clients | Mapping[str, Clients] | None = None,
        every: int | None = None,
        callbacks: Sequence[Callback] = (),
        checkpoints: Checkpoints | None = None,
        budget: Budget | None = None,
    ) -> Histories:
        """Runs one replica per seed in one program; replica ``i`` equals a run with ``seeds[i]``.

        Args:
          seeds: one per replica.
          rounds: as for ``run``.
          algorithm: ``(**hyperparameters)`` to an algorithm, when hyper-parameters differ between replicas. It may be
            another one than the simulation's.
          hyperparameters: ``{name: one value per replica}``; traced, so any value runs in the same program.
          evaluate_on: as for ``run``.
          every: as for ``run``.
          callbacks: as for ``run``.
          checkpoints: as for ``run``.
          budget: of each replica by itself: it ends where a run with its hyper-parameters would, and its history and state are
            those of such a run. Who publishes several replicas, or chooses among them, pays for each.

        Raises:
          NonFiniteModelError, CheckpointError, BudgetSpentError, ValueError: as for ``run``.

        Example:
          ``sim.sweep(seeds=[0, 0, 0], rounds=10, algorithm=lambda lr: fs.algorithms.fedavg(task, optax.sgd(lr)),
          hyperparameters={"lr": [0.01, 0.1, 1.0]})``
        """
        check_rounds(rounds, checkpoints)
        seeds = list(seeds)
        hyper, build = replica_hyperparameters(len(seeds), algorithm, hyperparameters, self.algorithm)
        one = lambda index: jax.tree.map(lambda x: x[index], hyper)  # noqa: E731
        variant = self._variant(self._make_problem(build, one(0), len(seeds)))
        states = [
            variant._initialise(one(index), keys.root_key(seed), None) for index, seed in enumerate(seeds)
        ]
        state = variant._clients.initial(jax.tree.map(lambda *x: jnp.stack(x), *states))
        rounds_fn, costs = self.engine.compile(variant._problem), turn_costs(variant._problem, state)
        algorithms = tuple(build(one(index)) for index in range(len(seeds)))
        check_schedules(algorithms[:1] if algorithm is None else algorithms, 0, rounds)
        ends = None
        if budget is not None and rounds is not None:
            ends = variant._ends(budget, rounds, member_algorithms(len(seeds), algorithm, hyperparameters))
        runner = variant._runner(
            rounds_fn, costs, algorithms, evaluate_on, every, callbacks, hyper=hyper, single=False, ends=ends
        )
        state, histories = variant._execute(runner, state, rounds, checkpoints)
        finals = tuple(jax.tree.map(lambda x, i=i: x[i], state) for i in range(len(seeds)))
        return Histories(tuple(histories), finals)

    def _runner(
        self,
        rounds_fn,
        costs,
        algorithms: Sequence[Algorithm],
        evaluate_on,
        every,
        callbacks,
        *,
        single: bool,
        hyper: Any = (),
        ends: tuple[int, ...] | None = None,
    ) -> Runner:
        """``algorithms`` and ``ends``, behind the last round that a budget pays for: one per replica."""
        if every is not None:
            checks.positive_int("every", every)
            if evaluate_on is None:
                raise ValueError("every is given without evaluate_on: there is no data to evaluate on.")
        # For this run alone: its examples are to leave the device when it ends.
        sets = evaluators(named_sets(evaluate_on))

        def evaluation(state: SimState, replica: int) -> dict[str, Callable[[], Evaluation]]:
            return {name: self._evaluate(algorithms[replica], state, one) for name, one in sets.items()}

        return Runner(
            rounds_fn, dataclasses.replace(self.planner(len(algorithms)), ends=ends), self._feed, self._clients, self.data.ids,
            self.rounds_per_chunk, costs, hyper, single, evaluation if sets else None, every, callbacks,
            evaluation_waits=not all(one.stays for one in sets.values()),
            precision=model_precision(self.algorithm, self._problem, self._template),
        )  # fmt: skip

    def evaluate(self, state: SimState, data: Clients, *, batch_size: int = 512) -> Evaluation:
        """Evaluates the global model: over all examples, and over clients.

        Raises:
          TypeError: something else than a state or ``ClientData``; says what to pass.
          ValueError: data without a single example, or that the task's check refuses.
        """
        check_is_state(state)
        return self._evaluate(self.algorithm, state, Evaluator(data, batch_size))()

    def _evaluate(
        self, algorithm: Algorithm, state: SimState, evaluator: Evaluator
    ) -> Callable[[], Evaluation]:
        variables = checks.variables(
            f"the model that {algorithm.name}'s params returns", algorithm.params(state.server)
        )
        if self.engine.devices > 1:
            # One copy is enough: on a mesh every device would compute the same batch.
            variables = jax.device_put(variables, jax.devices()[0])
        return evaluator.begin(algorithm.task, variables)

    def personalised(
        self,
        state: SimState,
        test: Clients,
        *,
        local: LocalWork | None = None,
        clients: Any = None,
        block_size: int = 32,
        batch_size: int = 64,
    ) -> Personalised:
        """Evaluates every client's own model on its own test examples, before and after local work.

        Each client does from this state what it does in a round, on its training examples, but sends nothing: the
        state stays as it is. This is fine-tuning as in Yu et al. 2020 ("Salvaging Federated Learning by Local
        Adaptation"), with the algorithm's own client rule; FedSGD's clients move nothing and gain nothing, and IFCA's
        start from the model that fits them. A client without training examples keeps the model that it starts from;
        one without test examples is NaN and left out of the means. The state decides the outcome.

        Args:
          state: of this simulation.
          test: test examples of the same clients as the training data, in the same order.
          local: local work; the simulation's by default.
          clients: positions, text ids or ``bool[clients]``, as for ``ClientData.select``; all by default.
          block_size: clients whose models are in memory at a time; results do not depend on it.
          batch_size: test examples of a client that are evaluated at a time.

        Raises:
          TypeError: the algorithm does not say what a client's own model is (HeteroFL: narrower models with tasks
            of their own).
          ValueError: other clients than in training, a client named twice, or nobody with test examples.

        Example:
          >>> import fedjax_sim as fs, optax
          >>> data = fs.data.load("digits", clients=10, alpha=0.3, seed=0)
          >>> algorithm = fs.algorithms.fedavg(fs.tasks.classification(fs.models.linear(classes=10)), optax.sgd(0.1))
          >>> sim = fs.Simulation(algorithm, data.train, cohort=fs.cohorts.uniform(5))
          >>> state, _ = sim.run(sim.init(seed=0), rounds=5)
          >>> result = sim.personalised(state, data.test, local=fs.LocalWork(epochs=3))
          >>> result.after.clients["accuracy"]["mean"] > result.before.clients["accuracy"]["mean"]
          True
        """
        work = work_alone(self.local if local is None else local)
        checks.positive_int("block_size", block_size)
        checks.positive_int("batch_size", batch_size)
        check_state(state, self._template, self.algorithm.name, self.data.num_clients)
        chosen = chosen_clients(self.data, test, clients)
        program = (work, block_size, batch_size)
        if program not in self._personalisers:
            problem = dataclasses.replace(self._problem, local=program[0])
            check_steps(problem, self.data.sizes[chosen])
            self._personalisers[program] = Personaliser(problem, block_size, batch_size)
        train = self._feed.examples(self._rounds.place_columns, chosen, block_size)
        tested = some_at_a_time(test, chosen, block_size, self.algorithm.task.check)
        return self._personalisers[program](state, self.planner(), train, tested, test.sizes, chosen)

    # --- speed ---

    def tune(
        self,
        state: SimState,
        *,
        layouts: Sequence[Layout] | None = None,
        rounds: int | None = None,
        repeats: int = 5,
        keep: bool = True,
    ) -> Tuning:
        """Measures which layout is the fastest on this machine, and goes on with it.

        Every layout is a program of its own and has to be compiled. What was measured is kept in the user's cache folder,
        by hardware and shapes, and ``lanes="auto"`` takes it from there in later programs. Lanes and form that the engine
        was given by name are left alone by later simulations.

        Args:
          state: from ``init`` or ``run``; it stays as it is.
          layouts: what to measure; by default lanes are doubled, in both forms, until they are a quarter slower than the
            best.
          rounds: of one repetition; a chunk by default.
          repeats: repetitions, interleaved, of those that come close to the best.
          keep: whether later programs may use it.

        Raises:
          ValueError: the engine has no lanes, or a count below 1.

        Example:
          >>> import fedjax_sim as fs, optax
          >>> data = fs.data.load("digits", clients=20, alpha=0.3, seed=0)
          >>> algorithm = fs.algorithms.fedavg(fs.tasks.classification(fs.models.linear(classes=10)), optax.sgd(0.1))
          >>> sim = fs.Simulation(algorithm, data.train, cohort=fs.cohorts.uniform(5))
          >>> few = [fs.engines.Layout(1, "compact"), fs.engines.Layout(2, "compact")]
          >>> tuning = sim.tune(sim.init(seed=0), layouts=few, repeats=2, keep=False)
          >>> sorted(timing.layout.lanes for timing in tuning.timings)
          [1, 2]
        """
        check_state(state, self._template, self.algorithm.name, self.data.num_clients)
        checks.positive_int("repeats", repeats)
        rounds = self.rounds_per_chunk if rounds is None else rounds
        checks.positive_int("rounds", rounds)
        lent, columns, plan = self._lent(state, rounds)
        tuning = tune(self.engine, self._problem, lent, columns, plan, layouts, repeats, keep)
        assert self.engine.at is not None  # tune would have raised
        self.engine = self.engine.at(tuning.best)
        self._rounds = self.engine.compile(self._problem)
        return tuning
