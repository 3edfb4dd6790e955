"""Checks of the arguments of a simulation: their kinds, and whether they make sense together."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim._feed import device_bytes
from fedjax_sim._src import checks, tree
from fedjax_sim._src.types import Algorithm, Stage, Variables
from fedjax_sim.checkpoint import Checkpoints
from fedjax_sim.data import ClientData, ClientSource
from fedjax_sim.data.cohorts import Cohort
from fedjax_sim.data.local_work import LocalWork
from fedjax_sim.engines import Engine, SimState
from fedjax_sim.engines._problem import Problem, aggregate, group_names, groups, keeps_client_state
from fedjax_sim.tasks.lora import Adapters


def check_rounds(rounds: int | None, checkpoints: Checkpoints | None) -> None:
    """Without a number of rounds there must be something to read."""
    if rounds is not None:
        checks.positive_int("rounds", rounds)
    elif checkpoints is None:
        raise ValueError("rounds is None without checkpoints: say how many rounds, or where they were saved.")


def check_steps(problem: Problem, sizes: np.ndarray) -> None:
    """A rule whose working state has room for so many steps is refused clients that take more."""
    algorithm = problem.algorithm()
    for stage, work in zip(algorithm.stages, problem.works(algorithm), strict=True):
        most = int(work.steps(sizes).max(initial=0))
        for rule in groups(stage):
            if rule.most_steps is not None and most > rule.most_steps:
                raise ValueError(
                    f"{algorithm.name}: a client takes {most} local steps, but {rule!r} was made for at most "
                    f"{rule.most_steps}: give it steps={most}, or the local work max_steps={rule.most_steps}."
                )


def check_memory(problem: Problem, state: SimState) -> None:
    """A model that cannot fit is refused: where an allocation fails, JAX may wait for its result for ever.

    ``state``: its specs.

    Raises:
      ValueError: the server's state alone is larger than the memory of a device.
    """
    room, replicas = device_bytes(), problem.replicas or 1
    held = replicas * tree.num_bytes(state.server)
    if room is not None and held > room:
        of = f" of {replicas} replicas" if replicas > 1 else ""
        raise ValueError(
            f"the server's state{of} takes {tree.readable_bytes(held)}, more than a device's memory of "
            f"{tree.readable_bytes(room)}: use a smaller model."
        )


def check_sampling(algorithm: Algorithm, cohort: Cohort, state: SimState, population: int) -> None:
    """Who is drawn twice breaks two things: noise is scaled to the bound of one message, and a state has one successor.

    ``state``: its specs.
    """
    for stage in algorithm.stages:
        for fact in aggregate(stage).facts:
            if fact.client_norms is not None and len(fact.client_norms) != population:
                raise ValueError(
                    f"{fact.name} has {len(fact.client_norms)} norms, but the population has {population} clients: give one for "
                    "each."
                )
    if cohort.sampling != "with_replacement":
        return
    if keeps_client_state(state):
        raise ValueError(
            f"{algorithm.name} keeps state per client, and the cohort is drawn with replacement: a client that stands in a "
            "cohort twice would start both turns from the same state and one result would be lost. Draw without "
            "replacement."
        )
    for stage in algorithm.stages:
        for fact in aggregate(stage).facts:
            if fact.noise is not None:
                raise ValueError(
                    f"{algorithm.name} has {fact.name} in its chain, and the cohort is drawn with replacement: a client "
                    "that is drawn k times adds k messages to the sum, which the noise is not scaled to. Draw without "
                    "replacement: fs.cohorts.poisson(rate) or fs.cohorts.uniform(size)."
                )


def check_schedules(algorithms: Iterable[Algorithm], first: int, rounds: int | None) -> None:
    """Noise that follows a schedule is looked at round by round before the first one: in the program nobody could say no.

    Raises:
      ValueError: a noise multiplier that is not a finite number above 0; names the round.
    """
    for stage in (stage for algorithm in algorithms for stage in algorithm.stages):
        for fact in aggregate(stage).facts:
            schedule = None if fact.noise is None else fact.noise.multiplier
            if not callable(schedule) or rounds is None:
                continue
            of = jax.vmap(lambda r, schedule=schedule: jnp.asarray(schedule(r), jnp.float32))
            values = np.asarray(of(jnp.arange(first, first + rounds, dtype=jnp.int32)))
            wrong = np.flatnonzero(~((values > 0) & np.isfinite(values)))
            if wrong.size:
                raise ValueError(
                    f"{fact.name}: the schedule's noise multiplier of round {first + wrong[0]} is {values[wrong[0]]:g}, expected a "
                    "finite number above 0 in every round of the run."
                )


def replica_hyperparameters(
    replicas: int,
    factory: Callable[..., Algorithm] | None,
    values: Mapping[str, Sequence[Any]] | None,
    algorithm: Algorithm,
) -> tuple[Any, Callable[[Any], Algorithm]]:
    """A sweep's hyper-parameters, one row per replica, and what makes an algorithm of a row."""
    if replicas == 0:
        raise ValueError("seeds is empty, expected at least one.")
    if (factory is None) != (values is None):
        raise ValueError("algorithm and hyperparameters go together: give both or neither.")
    if factory is None or values is None:
        return (), lambda hyper: algorithm
    try:
        inspect.signature(factory).bind(**values)
    except TypeError as error:
        raise TypeError(
            f"hyperparameters has the names {', '.join(map(repr, values))}, but algorithm is called as "
            f"algorithm{inspect.signature(factory)}: {error}. Give one column for each of its parameters."
        ) from None
    for name, column in values.items():
        if len(column) != replicas:
            raise ValueError(
                f"hyperparameters[{name!r}] has {len(column)} values, expected one per seed, {replicas}."
            )
    return {name: _column(column) for name, column in values.items()}, lambda hyper: factory(**hyper)


def member_algorithms(
    replicas: int,
    factory: Callable[..., Algorithm] | None,
    values: Mapping[str, Sequence[Any]] | None,
) -> list[tuple[str, Algorithm | None]]:
    """Each replica's name and its algorithm with numbers as they were given, as a run by itself would have it.

    Replicas with the same numbers share an algorithm; it is ``None`` where no hyper-parameters are given.
    """
    if factory is None or values is None:
        return [(f"replica {index}", None) for index in range(replicas)]
    made: dict[str, Algorithm] = {}
    found: list[tuple[str, Algorithm | None]] = []
    for index in range(replicas):
        own = {name: np.asarray(column[index]).tolist() for name, column in values.items()}
        if repr(own) not in made:
            made[repr(own)] = factory(**own)
        said = ", ".join(f"{name} = {value}" for name, value in own.items())
        found.append((f"replica {index} ({said})", made[repr(own)]))
    return found


def _column(values: Sequence[Any]) -> jax.Array:
    """Values of a hyper-parameter, which compute as Python numbers do: they do not widen a bfloat16 model."""
    array = np.asarray(values)
    return (
        jnp.stack([jnp.asarray(value) for value in array.tolist()]) if array.ndim == 1 else jnp.asarray(array)
    )


def check_types(algorithm: Any, data: Any, cohort: Any, local: Any, engine: Any) -> None:
    """Each argument is of its kind, or the error says what to use instead."""
    wanted = [
        ("algorithm", algorithm, Algorithm, "use one of fs.algorithms"),
        ("data", data, (ClientData, ClientSource), "pass the clients' data, for example data.train"),
        ("cohort", cohort, Cohort, "use one of fs.cohorts, for example fs.cohorts.uniform(10)"),
    ]
    if local is not None:
        wanted.append(("local", local, LocalWork, "use fs.LocalWork(epochs=1, batch_size=20)"))
    if engine is not None:
        wanted.append(("engine", engine, Engine, "use one of fs.engines, called: fs.engines.lanes()"))
    for name, value, kind, fix in wanted:
        if not isinstance(value, kind):
            kinds = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
            raise TypeError(f"{name} is {type(value).__name__}, expected {kinds}: {fix}.")
    stages = algorithm.stages
    if isinstance(stages, Stage) or not stages or not all(isinstance(stage, Stage) for stage in stages):
        raise TypeError(
            f"{algorithm.name} has stages={type(stages).__name__}, expected a tuple of at least one Stage: stages=(stage,)."
        )


def group_indices(algorithm: Algorithm, groups: Any, population: int) -> np.ndarray:
    """Each client's group as its place among the algorithm's, ``int64[population]``."""
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
        raise ValueError(
            f"groups has {len(groups)} names, expected one for each of the {population} clients."
        )
    place = {name: index for index, name in enumerate(names)}
    for client, name in enumerate(groups):
        if name not in place:
            raise ValueError(f"groups[{client}] is {name!r}, expected one of {', '.join(map(repr, names))}.")
    return np.array([place[name] for name in groups], np.int64)


def check_variables(given: Any, expected: Variables) -> None:
    """A model to start from has the structure, shapes and dtypes of the task's own."""
    if not isinstance(given, Variables):
        raise TypeError(f"variables is {type(given).__name__}, expected Variables(params, frozen, stats).")
    if jax.tree.structure(given) != jax.tree.structure(expected):
        raise ValueError(_other_structure(given, expected))
    for (path, x), y in zip(
        jax.tree.leaves_with_path(tree.spec(given)), jax.tree.leaves(expected), strict=True
    ):
        if x.shape != y.shape or x.dtype != y.dtype:
            raise ValueError(
                f"variables{jax.tree_util.keystr(path)} is {x.dtype}{list(x.shape)}, the task's is "
                f"{y.dtype}{list(y.shape)}."
            )


def _other_structure(given: Variables, expected: Variables) -> str:
    """Says which arrays there are too many or too few, and what to do with the weights of a base model."""
    base = jax.tree.leaves(expected.frozen) and not jax.tree.leaves(given.frozen)
    if base and isinstance(expected.params, Adapters):
        return (
            "variables are the weights of a whole model, but the task trains adapters beside frozen weights: put the "
            "weights into the task, fs.tasks.lora(fs.tasks.pretrained(task, variables), ...), and call init without variables."
        )
    if base:
        return (
            "variables are the weights of a whole model, but the task trains a part of it: put the weights into the task, "
            "fs.tasks.trainable(fs.tasks.pretrained(task, variables), ...), and call init without variables."
        )
    have, want = (
        [f"variables{jax.tree_util.keystr(path)}" for path, _ in jax.tree.leaves_with_path(x)]
        for x in (given, expected)
    )
    missing = [name for name in want if name not in have]
    more = [name for name in have if name not in want]
    parts = [
        f"{what} {', '.join(found[:3])}{f' and {len(found) - 3} more' if len(found) > 3 else ''}"
        for what, found in (("lack", missing), ("have, beside the task's own,", more))
        if found
    ]
    return f"variables {' and '.join(parts) or 'are nested otherwise than the task says'}; they are of another model than the task's."
