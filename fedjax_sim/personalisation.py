"""Personalised models: what local work makes of the global model for the clients themselves."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim import metrics
from fedjax_sim._src import checks, forward, keys, tree
from fedjax_sim._src.types import Array, Delta, Mean, Message, Variables
from fedjax_sim.data import batches, cohorts
from fedjax_sim.data._blocks import Examples, Held
from fedjax_sim.data.client_source import Clients
from fedjax_sim.data.local_work import LocalWork
from fedjax_sim.data.plans import Entry, Planner
from fedjax_sim.engines import Problem, SimState
from fedjax_sim.engines._client import Row, Turn
from fedjax_sim.engines._problem import groups
from fedjax_sim.evaluation import Evaluation, higher_is_better, summarise


@dataclasses.dataclass(frozen=True)
class Personalised:
    """Every client's model on its own test examples, before and after its own local work.

    Attributes:
      clients: ``int64[clients]``, positions in the training data; the order of ``per_client`` in both evaluations.
      before: the models that the clients start from: the global one for most algorithms.
      after: the models that they end with.
    """

    clients: np.ndarray
    before: Evaluation
    after: Evaluation

    @property
    def gain(self) -> Mapping[str, np.ndarray]:
        """``{metric: f64[clients]}``, by how much each client's model became better; NaN without test examples.

        Above 0 is better for every metric: for losses and errors it is before minus after.
        """
        return {
            name: (1 if higher_is_better(name) else -1) * (after - self.before.per_client[name])
            for name, after in self.after.per_client.items()
        }

    def __repr__(self) -> str:
        means = (
            f"{name} {self.before.clients[name]['mean']:.4f} to {over['mean']:.4f}"
            for name, over in self.after.clients.items()
        )
        return f"Personalised({', '.join(means)}; mean over {len(self.clients)} clients)"

    def __str__(self) -> str:
        columns = ("mean before", "mean after", "mean gain", "worst gain", "clients better")
        lines = [f"{'':<12}" + "".join(f"{name:>16}" for name in columns)]
        for name, gains in self.gain.items():
            gains = gains[~np.isnan(gains)]
            if not len(gains):
                gains = np.array([np.nan])
            row = (
                self.before.clients[name]["mean"],
                self.after.clients[name]["mean"],
                gains.mean(),
                gains.min(),
            )
            lines.append(f"{name:<12}" + "".join(f"{x:>16.4f}" for x in row) + f"{np.mean(gains > 0):>16.1%}")
        return "\n".join([*lines, f"{len(self.clients)} clients, {self.after.num_examples} examples"])


class Personaliser:
    """The compiled program that personalises and measures a block of clients at a time.

    Turns are those of the engines, under a purpose of their own in every key; nothing is aggregated and no state is
    changed. Stages before the last one run where they leave something in the client's state (IFCA's choice of a
    model).

    Args:
      problem: algorithm, local work and columns; of a single run.
      block_size: clients whose models are in memory together.
      batch_size: test examples of a client that are evaluated together.
    """

    def __init__(self, problem: Problem, block_size: int, batch_size: int):
        self._problem, self._block_size, self._batch_size = problem, block_size, batch_size
        self._stages = problem.algorithm().stages
        count = len(groups(self._stages[-1]))
        self._turns = [[Turn(problem, s, g) for s in range(len(self._stages))] for g in range(count)]
        self._blocks = [jax.jit(functools.partial(self._block, g)) for g in range(count)]

    def __call__(
        self,
        state: SimState,
        planner: Planner,
        train: Examples,
        test: Examples,
        sizes: np.ndarray,
        clients: np.ndarray,
    ) -> Personalised:
        """Args: ``planner`` and ``sizes``, of test examples, of the population; ``clients``: positions."""
        # On a mesh every device would compute the same: one is enough.
        state, train = _on_one_device((state, train))
        if isinstance(test, Held):
            own = {name: np.asarray(column) for name, column in test.columns.items()}
            test = test._replace(columns=jax.device_put(own))
        planner = dataclasses.replace(
            planner, cohort=cohorts.fixed(clients.tolist()), works=self._problem.works(self._problem.algorithm()),
            devices=1, homes=False,
        )  # fmt: skip
        # Explicit rows are made on the host, from the same key.
        words = np.asarray(jax.random.key_data(_root(state)))
        plan = planner.plan([tuple(int(word) for word in words)], int(state.round), 1, 1)
        place = np.zeros(planner.population, np.int64)
        place[clients] = np.arange(len(clients))
        found: list[tuple[np.ndarray, Any]] = []
        for block, queue in zip(self._blocks, plan.queues, strict=True):
            count = int(queue.count[0, 0])
            width = min(self._block_size, count)
            # Longest first, so that the clients of a block take about as many steps.
            for start in range(0, count, max(width, 1)):
                stop = min(start + width, count)
                cut = functools.partial(_padded, start=start, stop=stop, width=width)
                entries, rows = jax.tree.map(cut, (queue.entries, queue.rows))
                known, entries = _with_rows(state, entries)
                there = slice(0, stop - start)
                mine = entries.client[there]
                # Padding has no steps and no test examples.
                fill = lambda x, n=width: np.pad(x, (0, n - len(x))).astype(np.int32)  # noqa: E731
                (columns, begin), (own, first) = train(mine), test(mine)
                entries = entries._replace(start=fill(begin))
                sums = block(known, columns, own, entries, rows, fill(first), fill(sizes[mine]))
                sums = jax.device_get(sums)
                found.append((place[mine], jax.tree.map(lambda x, s=there: x[s], sums)))
        order = np.argsort(np.concatenate([places for places, _ in found]))
        before, after = jax.tree.map(lambda *x: np.concatenate(x)[order], *[sums for _, sums in found])
        return Personalised(clients, summarise(before, sizes[clients]), summarise(after, sizes[clients]))

    def _block(self, group: int, state: SimState, columns, test, entries, rows, first, size):
        """Sums ``{metric: Mean(f32[block], f32[block])}`` of the models before and after."""

        def one(entry, rows, first, size):
            models = self._models(group, state, columns, entry, rows)
            return self._measure(models, test, first, size)

        return jax.vmap(one)(entries, rows, first, size)

    def _models(self, group: int, state: SimState, columns, entry: Entry, explicit: tuple):
        """A client's model before and after its work."""
        hyper, root, turns = self._problem.example_hyper, _root(state), self._turns[group]
        algorithm, table = self._problem.build(hyper), state.clients
        row = Row(table.states[group] if table.states else (), (), table.seen)
        row = jax.tree.map(lambda x: x[entry.slot], row)
        models = ()
        for index, (stage, turn) in enumerate(zip(algorithm.stages, turns, strict=True)):
            last = index == len(turns) - 1
            if not last and not jax.tree.leaves(row.state):
                continue
            broadcast, own = stage.broadcast(state.server), turn.keys(root, state.round, entry)
            begun = turn.begin(hyper, broadcast, own, state.round, entry, row)
            order = turn.order(own, entry)

            def step(
                number, work, turn=turn, broadcast=broadcast, own=own, order=order, rows=explicit[index]
            ):
                chosen = turn.rows(order, entry, number, rows)
                return turn.step(hyper, broadcast, columns, chosen, own, entry, number, work)[0]

            # Each client's own trip count: under vmap the loop runs to the longest and the others stand still.
            work = jax.lax.fori_loop(0, entry.steps[index], step, begun)
            update, kept, _ = turn.update(hyper, broadcast, own, state.round, entry, work, row)
            if not last:
                row = row._replace(state=kept)
                continue
            rule = turn.rule(hyper)
            if rule.model is not None:
                models = rule.model(broadcast, begun), rule.model(broadcast, work)
                checks.variables(f"the model that {rule!r} reads out of its work", models[0])
            elif algorithm.personal is not None:
                had = turn.state(hyper, broadcast, row)
                models = algorithm.personal(state.server, had), algorithm.personal(state.server, kept)
            else:
                start = algorithm.params(state.server)
                models = start, _moved(algorithm.name, start, update)
        return models

    def _measure(self, models, test: Mapping[str, Array], first, size):
        """Each model's sums over the client's test examples, a batch at a time."""
        task, rows = self._problem.algorithm().task, jnp.arange(self._batch_size, dtype=jnp.int32)

        def sums(index):
            at = index * self._batch_size + rows
            batch = batches.gather(test, first, jnp.where(at < size, at, -1))
            return tuple(
                metrics.batch_means(task, forward.apply(task, model, batch, None, train=False)[0], batch)
                for model in models
            )

        def add(index, total):
            return tree.add(total, sums(index))

        zero: tuple[dict[str, Mean], ...] = tree.zeros_like(jax.eval_shape(sums, jnp.int32(0)))
        return jax.lax.fori_loop(0, -(-size // self._batch_size), add, zero)


def work_alone(local: LocalWork) -> LocalWork:
    """Local work on its own and with all the time it needs; its passes are of no round."""
    if not isinstance(local, LocalWork):
        raise TypeError(f"local is {type(local).__name__}, expected LocalWork: use fs.LocalWork(epochs=3).")
    return dataclasses.replace(local, continue_epochs=False, stragglers=0.0)


def chosen_clients(train: Clients, test: Clients, clients: Any) -> np.ndarray:
    """Positions of clients, all of them for ``None``.

    Raises:
      TypeError, ValueError: test data of other clients than the training data's, in the same order, or without examples.
    """
    if not isinstance(test, Clients):
        raise TypeError(f"test is {type(test).__name__}, expected ClientData, for example data.test.")
    fix = (
        "Every client is evaluated on its own examples: divide them with fs.data.split, or reorder with test.select. Clients "
        "that this simulation does not train, such as those of fs.data.holdout_clients, have one of their own: "
        "fs.Simulation(algorithm, unseen.train, ...).personalised(state, unseen.test)."
    )
    if test.num_clients != train.num_clients:
        raise ValueError(
            f"test has {test.num_clients} clients, the training data {train.num_clients}; expected the same ones. {fix}"
        )
    if not np.array_equal(test.ids, train.ids):
        at = int(np.argmin(np.asarray(test.ids == train.ids)))
        raise ValueError(
            f"client {at} of test is {test.ids[at].item()!r}, of the training data {train.ids[at].item()!r}; expected "
            f"the same clients in the same order. {fix}"
        )
    chosen = np.arange(train.num_clients) if clients is None else train.positions(clients)
    if not test.sizes[chosen].any():
        raise ValueError(
            f"none of the {len(chosen)} clients has a test example: there is nothing to evaluate on."
        )
    return chosen


def _on_one_device(arrays: Any) -> Any:
    """Numpy arrays stay where they are, such as a client table in the host's memory."""
    device = jax.devices()[0]
    one = lambda x: jax.device_put(x, device) if isinstance(x, jax.Array) else x  # noqa: E731
    return jax.tree.map(one, arrays)


def _root(state: SimState) -> jax.Array:
    return keys.fold(state.key, keys.PERSONAL)


def _moved(name: str, start: Variables, sent: Message) -> Variables:
    """The end point of a client that sends the change of the global model, and nothing beside it."""
    update = sent.value
    if (
        sent.aux
        or not isinstance(update, Delta)
        or jax.tree.structure(update.params) != jax.tree.structure(start.params)
    ):
        beside = f" with {', '.join(map(repr, sorted(sent.aux)))} beside it" if sent.aux else ""
        raise TypeError(
            f"{name}: its clients send {type(update).__name__}{beside}, which does not say what their own models are; expected "
            "a Delta of the global model, a client rule with `model`, or an algorithm with `personal`."
        )
    stats = tree.add(start.stats, update.stats) if jax.tree.leaves(update.stats) else start.stats
    return start._replace(params=tree.add(start.params, update.params), stats=stats)


def _with_rows(state: SimState, entries: Entry) -> tuple[SimState, Entry]:
    """Of a table that is not on a device, the rows of a block's clients alone."""
    if all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state.clients)):
        return state, entries
    rows = jax.tree.map(lambda x: x[entries.client], state.clients)
    slots = np.arange(len(entries.client), dtype=np.int32)
    return dataclasses.replace(state, clients=rows), entries._replace(slot=slots)


def _padded(array: np.ndarray, start: int, stop: int, width: int) -> np.ndarray:
    """Entries ``start`` to ``stop`` of the one round on the one device, with zeros up to ``width``."""
    part = array[0, 0, start:stop]
    return np.concatenate([part, np.zeros((width - len(part), *part.shape[1:]), part.dtype)])
