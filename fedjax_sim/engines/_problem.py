"""What an engine compiles: an algorithm and the static facts around it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim._src import checks, keys, tree
from fedjax_sim._src.types import (
    Algorithm,
    ClientRule,
    Mean,
    Message,
    RoundContext,
    Stage,
    StepContext,
    Transform,
    Variables,
)
from fedjax_sim.aggregation import chain
from fedjax_sim.aggregation._reduce import accumulator, as_message, example_client_context, gathers
from fedjax_sim.data.local_work import LocalWork
from fedjax_sim.engines._compiler import once_options
from fedjax_sim.engines._state import ClientTable, SimState


@dataclasses.dataclass(frozen=True)
class Problem:
    """An algorithm with everything static that a compiled round depends on.

    Attributes:
      build: hyper-parameters (a pytree, possibly traced) to the algorithm; a constant function for most runs.
      local: the simulation's local work.
      columns: specs of the data's columns, ``{name: ShapeDtypeStruct[N, ...]}``.
      population: number of clients.
      expected_clients: the sampler's expected cohort.
      most_clients: the most clients that the sampler draws for a round.
      empty_clients: whether some clients have no examples.
      example_hyper: hyper-parameters of one run, for the facts that do not depend on them.
      replicas: runs in one program; ``None`` for a single run whose state has no replica axis.
      public: public data for the server.
      known: what was found out about this problem at some expense.
    """

    build: Callable[[Any], Algorithm]
    local: LocalWork
    columns: Mapping[str, jax.ShapeDtypeStruct]
    population: int
    expected_clients: float
    most_clients: int
    empty_clients: bool
    example_hyper: Any = ()
    replicas: int | None = None
    public: Any = None
    known: dict[Any, Any] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def algorithm(self) -> Algorithm:
        return self.build(self.example_hyper)

    def works(self, algorithm: Algorithm) -> tuple[LocalWork, ...]:
        """Local work of each stage."""
        return tuple(self.local if s.local is None else s.local(self.local) for s in algorithm.stages)

    def round_context(self, key, round_, clients, mask) -> RoundContext:
        return RoundContext(
            key,
            round_,
            clients,
            self.expected_clients,
            self.population,
            mask,
            jnp.float32(jnp.inf),
            self.public,
        )


def groups(stage: Stage) -> tuple[ClientRule, ...]:
    """The stage's rules in the order of their groups; one for most."""
    return (stage.client,) if isinstance(stage.client, ClientRule) else tuple(stage.client.values())


def group_names(algorithm: Algorithm) -> tuple:
    """Names of the groups of clients; ``(None,)`` when all clients are alike.

    Raises:
      ValueError: stages that disagree on their groups.
    """
    named = [tuple(s.client) if not isinstance(s.client, ClientRule) else (None,) for s in algorithm.stages]
    if len(set(named)) != 1:
        raise ValueError(
            f"the stages of {algorithm.name} have groups {named}, expected the same in every stage."
        )
    return named[0]


def aggregate(stage: Stage) -> Transform:
    """The stage's transforms as a chain, so that keys do not depend on whether one was written."""
    return chain(stage.aggregate)


def column_specs(columns: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Columns as the device will hold them: without 64-bit mode, JAX keeps int64 and float64 in 32 bits."""
    on_device = jax.dtypes.canonicalize_dtype
    return {name: jax.ShapeDtypeStruct(c.shape, on_device(c.dtype)) for name, c in columns.items()}


def example_batch(
    columns: Mapping[str, jax.ShapeDtypeStruct], local: LocalWork
) -> dict[str, jax.ShapeDtypeStruct]:
    """Spec of the batch that a step receives."""
    many = (local.batches_per_step,) if local.batches_per_step > 1 else ()
    shape = (*many, local.batch_size)
    batch = {
        name: jax.ShapeDtypeStruct((*shape, *spec.shape[1:]), spec.dtype) for name, spec in columns.items()
    }
    return batch | {"mask": jax.ShapeDtypeStruct(shape, jnp.bool_)}


def example_row(problem: Problem) -> dict[str, jax.Array]:
    """One row of zeros, for models that learn their input's shape at initialisation."""
    rows = {name: jnp.zeros((1, *spec.shape[1:]), spec.dtype) for name, spec in problem.columns.items()}
    return rows | {"mask": jnp.ones(1, bool)}


class TracedRule(NamedTuple):
    """A rule's functions, of the hyper-parameters and then of what they are of otherwise.

    Each is traced once for the first state, whose shapes depend on what a client sends, and for the rounds.
    """

    begin: Callable[..., Any]
    step: Callable[..., Any]
    finish: Callable[..., Any]


def traced_rule(problem: Problem, stage: int, group: int) -> TracedRule:
    """The rule of a group in a stage."""

    def traced(name: str) -> Callable[..., Any]:
        def part(hyper, *arguments):
            return getattr(groups(problem.build(hyper).stages[stage])[group], name)(*arguments)

        return jax.jit(part, inline=True)

    if ("rule", stage, group) not in problem.known:
        problem.known["rule", stage, group] = TracedRule(*map(traced, TracedRule._fields))
    return problem.known["rule", stage, group]


def turn_specs(problem: Problem, algorithm: Algorithm, stage: int, group: int, broadcast, state):
    """Specs of what one client's turn makes: its message before any layer, the state it keeps, its metrics.

    Raises:
      TypeError: the rule's work or state changes its structure or dtypes, or a function returns something else than
        it should; names the stage.
      ValueError: two functions measure a metric of one name.
    """
    make = functools.partial(_turn_specs, problem, algorithm, stage, group)
    return _remembered(problem, ("turn", stage, group), make, broadcast, state)


def _turn_specs(problem: Problem, algorithm: Algorithm, stage: int, group: int, broadcast, state):
    rule, hyper = traced_rule(problem, stage, group), problem.example_hyper
    local, where = problem.works(algorithm)[stage], f"{algorithm.name}, stage {stage}"
    ctx = example_client_context()
    zero = jnp.zeros((), jnp.int32)
    step_ctx = StepContext(keys.root_key(0), zero, zero, jnp.zeros(()))
    work = jax.eval_shape(lambda *given: tree.strong(rule.begin(*given)), hyper, broadcast, state, ctx)
    made = jax.eval_shape(rule.step, hyper, broadcast, work, example_batch(problem.columns, local), step_ctx)
    stepped, metrics = checks.returned(f"{where}: the rule's step", made, "work", "metrics")
    _check_same(f"{where}: a client's work before and after step", work, stepped)
    made = jax.eval_shape(rule.finish, hyper, broadcast, work, state, ctx)
    sent, kept, finishing = checks.returned(f"{where}: the rule's finish", made, "update", "state", "metrics")
    _check_same(f"{where}: a client's state before and after finish", state, kept)
    return (
        as_message(sent),
        kept,
        _merged(where, {"the rule's step": metrics, "the rule's finish": finishing}),
    )


MEASURED = dict.fromkeys(
    ("update_norm", "clients", "slowest_steps", "bytes_up", "bytes_down"), Mean(0.0, 0.0)
)
"""What the engine measures of every round, whatever the algorithm."""


def _merged(where: str, measured: Mapping[str, Any]) -> dict[str, Mean]:
    """The metrics of several functions, by the names of these: each metric is a ``Mean``, and measured by one of them."""
    by: dict[str, str] = {}
    for who, metrics in measured.items():
        _check_metrics(f"{where}: {who}", metrics)
        for name in metrics:
            if name in by:
                raise ValueError(
                    f"{where}: the metric {name!r} is measured by {by[name]} and by {who}: give one of them another name."
                )
            by[name] = who
    return {name: value for metrics in measured.values() for name, value in metrics.items()}


def _check_metrics(who: str, metrics: Any) -> None:
    if not isinstance(metrics, Mapping):
        raise TypeError(
            f"{who} returned {type(metrics).__name__} as its metrics, expected a dict of Mean; {{}} for none."
        )
    for name, value in metrics.items():
        if not isinstance(value, Mean):
            raise TypeError(
                f"{who} measures {name!r} as {type(value).__name__}, expected a Mean(total, weight), which adds up: "
                "Mean(value, jnp.ones(())) for a plain number."
            )


def _remembered(problem: Problem, what: tuple, make: Callable, *arguments):
    """What is found out from the types of arguments, for which a model is traced: once for a problem."""
    leaves, structure = jax.tree.flatten(arguments)
    key = (*what, structure, *((x.shape, x.dtype, getattr(x, "weak_type", False)) for x in leaves))
    if key not in problem.known:
        problem.known[key] = make(*arguments)
    return problem.known[key]


def _check_same(what: str, before, after) -> None:
    b, a = tree.spec(before), tree.spec(after)
    if jax.tree.structure(b) != jax.tree.structure(a):
        raise TypeError(
            f"{what} have different structures: {jax.tree.structure(b)} and {jax.tree.structure(a)}."
        )
    for (path, x), y in zip(jax.tree.leaves_with_path(b), jax.tree.leaves(a), strict=True):
        if x.shape != y.shape or x.dtype != y.dtype:
            raise TypeError(
                f"{what} differ at {jax.tree_util.keystr(path) or 'the root'}: {x.dtype}{list(x.shape)} became "
                f"{y.dtype}{list(y.shape)}. Keep shapes and dtypes (a Python float or a float64 leaf often does this)."
            )


def initial_state(
    problem: Problem, algorithm: Algorithm, variables: Variables, key: jax.Array, slots: int
) -> SimState:
    """State before the first round; ``slots`` is the number of rows of the client table. Pure."""
    server = algorithm.init(variables)
    states: tuple = ()
    parts, server_parts = [], []
    for index, stage in enumerate(algorithm.stages):
        broadcast = jax.eval_shape(stage.broadcast, server)
        rules = groups(stage)
        if index == 0:
            # Stages share one state per client: the first stage's rules make it.
            states = tuple(tree.spec(jax.eval_shape(rule.init, broadcast)) for rule in rules)
        specs = [turn_specs(problem, algorithm, index, g, broadcast, states[g])[0] for g in range(len(rules))]
        for spec in specs[1:]:
            _check_same(f"{algorithm.name}, stage {index}: the updates of two groups", specs[0], spec)
        server_part, client_part = aggregate(stage).init(tree.spec(specs[0]))
        server_parts.append(server_part)
        parts.append(jax.tree.map(lambda x: jnp.broadcast_to(x, (slots, *jnp.shape(x))), client_part))
    table = ClientTable(
        jax.tree.map(lambda x: jnp.zeros((slots, *x.shape), x.dtype), states),
        tuple(parts),
        jnp.zeros(slots, bool) if jax.tree.leaves(states) else (),
    )
    state = SimState(server, table, tuple(server_parts), jnp.zeros((), jnp.int32), key)
    for index in range(len(algorithm.stages)):
        jax.eval_shape(lambda s, index=index: _try_server_step(problem, algorithm, index, s), state)
    return state


def update_spec(problem: Problem, stage: int) -> Message:
    """Spec of what a client sends in a stage before any layer; every group's is the same."""
    algorithm = problem.algorithm()
    variables = jax.eval_shape(lambda: algorithm.task.init(keys.root_key(0), example_row(problem)))
    server = jax.eval_shape(algorithm.init, variables)
    rule = groups(algorithm.stages[0])[0]
    state = jax.eval_shape(rule.init, jax.eval_shape(algorithm.stages[0].broadcast, server))
    broadcast = jax.eval_shape(algorithm.stages[stage].broadcast, server)
    return tree.spec(turn_specs(problem, algorithm, stage, 0, broadcast, state)[0])


def initialiser(problem: Problem, slots: int) -> Callable[..., SimState]:
    """Compiled ``(hyper, root, variables or None)`` to the state before the first round, as ``initial_state`` makes it."""

    def initialise(hyper, root, variables) -> SimState:
        algorithm = problem.build(hyper)
        if variables is None:
            variables = algorithm.task.init(keys.fold(root, keys.INIT), example_row(problem))
        return initial_state(problem, algorithm, variables, root, slots)

    return jax.jit(initialise, compiler_options=once_options(jax.default_backend()))


def _try_server_step(problem: Problem, algorithm: Algorithm, stage: int, state: SimState):
    """The server's step on a sum of zeros: traced when a state is made, so that what does not fit is found then."""
    declared = algorithm.stages[stage]
    broadcast = jax.eval_shape(declared.broadcast, state.server)
    sent = sent_spec(problem, algorithm, stage, broadcast, state)
    rows = (problem.most_clients,) if gathers(aggregate(declared)) else ()
    ctx = problem.round_context(state.key, state.round, jnp.int32(1), jnp.ones(rows, bool) if rows else None)
    message, part = accumulator(sent.message, rows), state.aggregate[stage]
    stepped = server_step(problem, algorithm, stage, state.server, message, part, sent, ctx)
    own = state.clients.states[0] if state.clients.states else ()
    clients = turn_specs(problem, algorithm, stage, 0, broadcast, jax.tree.map(lambda x: x[0], own))[2]
    where = f"{algorithm.name}, stage {stage}"
    _merged(where, {"the clients": clients, "the server": stepped[2], "the engine": MEASURED})
    return stepped


class SentSpec(NamedTuple):
    """Specs of what a client sends in a stage: the rule's update, and the message that the chain makes of it."""

    update: Any
    message: Message


def sent_spec(
    problem: Problem, algorithm: Algorithm, stage: int, broadcast, state: SimState, group: int = 0
) -> SentSpec:
    """What a client of a group sends in a stage; ``broadcast`` and ``state`` are those of one run."""
    kept = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (state.clients.states, state.clients.parts)
    )
    own, part = kept[0][group] if kept[0] else (), kept[1][stage]
    message = tree.spec(turn_specs(problem, algorithm, stage, group, broadcast, own)[0])
    encode = aggregate(algorithm.stages[stage]).encode
    ctx = example_client_context()

    def make(message, part, server_part) -> SentSpec:
        return SentSpec(message.value, jax.eval_shape(encode, message, part, server_part, ctx)[0])

    return _remembered(problem, ("sent", stage), make, message, part, state.aggregate[stage])


def message_spec(
    problem: Problem, algorithm: Algorithm, stage: int, broadcast, state: SimState, group: int = 0
) -> Message:
    """Spec of the encoded message that a client of a group sends in a stage."""
    return sent_spec(problem, algorithm, stage, broadcast, state, group).message


def server_step(
    problem: Problem,
    algorithm: Algorithm,
    stage: int,
    server,
    message: Message,
    part,
    sent: SentSpec,
    ctx: RoundContext,
):
    """Decode and server update of a stage, for one run: the server's state, the chain's part, metrics.

    Sums of narrow floats are float32 (``accumulator_dtype``). What they decode to is rounded to the dtypes that the
    clients' updates have, so that a bfloat16 model keeps a bfloat16 server, its optimizer's moments included.

    Raises:
      TypeError: the server's or the chain's state changes its structure, shapes or dtypes; names the stage and the leaf.
    """
    declared = algorithm.stages[stage]
    transform = aggregate(declared)
    decoded, decoded_part, decoding = transform.decode(message, part, ctx)
    where = f"{algorithm.name}, stage {stage}"
    # A chain may decode to less than what was sent (a coverage is used up): then its own dtypes are right.
    alike = jax.tree.structure(decoded.value) == jax.tree.structure(sent.update)
    like = sent.update if alike else jax.eval_shape(transform.decode, sent.message, part, ctx)[0].value
    value = jax.tree.map(_as_sent, decoded.value, like)
    made = declared.update(server, value, ctx._replace(aux=decoded.aux))
    updated, updating = checks.returned(f"{where}: the server's update", made, "server state", "metrics")
    _check_same(f"{where}: the server's state before and after its update", server, updated)
    _check_same(f"{where}: the chain's state before and after decoding", part, decoded_part)
    return updated, decoded_part, _merged(where, {"the chain": decoding, "the server's update": updating})


def _as_sent(value, like):
    narrower = jnp.issubdtype(value.dtype, jnp.floating) and jnp.issubdtype(like.dtype, jnp.floating)
    return value.astype(like.dtype) if narrower else value


def keeps_client_state(state: SimState) -> bool:
    return bool(jax.tree.leaves((state.clients.states, state.clients.parts)))
