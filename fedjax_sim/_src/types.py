"""The contracts: what a task, a client rule, a transform and an algorithm are.

Behaviour is a ``NamedTuple`` of pure functions. State is data: pytrees that those functions take and
return. Nothing here computes anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import jax

Array = jax.Array
Key = jax.Array
"""A typed threefry key, shape ``[]``."""
PyTree = Any
Batch = Mapping[str, Array]
"""Columns ``[batch, ...]`` plus ``"mask"``: ``bool[batch]``, False on rows that are padding (and zero)."""
Outputs = Any


class Mean(NamedTuple):
    """A summable metric: add two of them and the quotient is the mean over both.

    Attributes:
      total: ``f32[...]``, weighted sum of the values.
      weight: ``f32[...]``, sum of the weights.
    """

    total: Any
    weight: Any


Metrics = Mapping[str, Mean]


class Variables(NamedTuple):
    """Everything that a model computes with.

    Attributes:
      params: what clients train, send and the server updates.
      frozen: broadcast once, never batched over clients, never sent.
      stats: BatchNorm running statistics and their like; see ``Task.stats_policy``.
    """

    params: PyTree
    frozen: PyTree = ()
    stats: PyTree = ()


class Delta(NamedTuple):
    """A client update: end point minus start point.

    Attributes:
      params: change of ``Variables.params``, in its dtypes.
      stats: change of ``Variables.stats``; ``()`` when statistics are not sent.
    """

    params: PyTree
    stats: PyTree = ()


# --- tasks -------------------------------------------------------------------------------------------------


class Metric(Protocol):
    """Per-example values and weights of one metric, ``(f32[batch], f32[batch])``; the mask is applied by the caller."""

    def __call__(self, outputs: Outputs, batch: Batch, /) -> tuple[Array, Array]: ...


class InitVariables(Protocol):
    """The first model. Weights depend on the key and on the shapes and dtypes of ``sample`` alone.

    ``sample`` is one row of zeros of every column of the data, with a mask that is True; a simulation makes it.
    A task that was told its input's shape ignores it, one that was not raises without it.
    """

    def __call__(self, key: Key, sample: Batch | None = None, /) -> Variables: ...


class Apply(Protocol):
    """Runs the model; returns outputs and the new statistics (the old ones where nothing changes)."""

    def __call__(
        self, variables: Variables, batch: Batch, key: Key | None, /, *, train: bool
    ) -> tuple[Outputs, PyTree]: ...


class Loss(Protocol):
    """Per-example loss ``f32[batch]``. The batch carries its mask, for losses that couple rows."""

    def __call__(self, outputs: Outputs, batch: Batch, /) -> Array: ...


StatsPolicy = Literal["none", "averaged", "local"]


class Task(NamedTuple):
    """A model's ``init`` and ``apply``, its per-example ``loss``, its ``metrics``.

    Attributes:
      init: key, and one row of zeros of the data, to ``Variables``.
      apply: ``(variables, batch, key, train=...)`` to ``(outputs, stats)``.
      loss: ``(outputs, batch)`` to ``f32[batch]``.
      metrics: named metrics, each summable over examples.
      stats_policy: what becomes of batch statistics: ``"none"`` (the model has none), ``"averaged"`` (their
        change travels with the update), ``"local"`` (each client keeps its own).
      check: called on the host with ``ClientData.columns`` before a simulation starts; raises on data that the
        task cannot train on.
      products: the precision of matrix products under which the model is differentiated, by JAX's names; ``None`` for
        JAX's own setting. ``apply`` sees to it for itself: see ``tasks.with_precision``.
    """

    init: InitVariables
    apply: Apply
    loss: Loss
    metrics: Mapping[str, Metric] = {}
    stats_policy: StatsPolicy = "none"
    check: Callable[[Mapping[str, Any]], None] | None = None
    products: Literal["default", "high", "highest"] | None = None

    def __repr__(self) -> str:
        measured = ", ".join(["loss", *self.metrics])
        stats = "" if self.stats_policy == "none" else f", {self.stats_policy} statistics"
        return f"Task({measured}{stats})"


# --- contexts ----------------------------------------------------------------------------------------------


class ClientContext(NamedTuple):
    """What a client's functions may know besides their own state.

    Attributes:
      key: for this client in this round and stage; independent of lanes and devices.
      round: ``int32[]``, index of the round.
      client: ``int32[]``, index of the client in the population.
      draw: ``int32[]``, how-manieth time the client stands in this cohort (0 without replacement).
      num_examples: ``int32[]``, examples the client holds.
      num_steps: ``int32[]``, local steps it takes in this stage; may be 0.
      group: ``int32[]``, index of its group (0 when there is one).
      staleness: ``int32[]``, rounds between its broadcast and its arrival (0 when synchronous).
      bound: ``f32[]``, L2 bound of the incoming message (infinite when there is none).
    """

    key: Key
    round: Any
    client: Any
    draw: Any
    num_examples: Any
    num_steps: Any
    group: Any
    staleness: Any
    bound: Any


class StepContext(NamedTuple):
    """What one local step may know: ``key`` (unique to client, round and step), ``step``, ``epoch``, ``phase``.

    ``phase`` is ``f32[]`` in [0, 1): the share of the client's steps that are done.
    """

    key: Key
    step: Any
    epoch: Any
    phase: Any


class RoundContext(NamedTuple):
    """What the server's functions may know.

    Attributes:
      key: for this round and stage.
      round: ``int32[]``.
      clients: ``int32[]``, clients that came: cohort members with at least one example.
      expected_clients: Python float, a public constant of the cohort sampler.
      population: Python int.
      mask: ``bool[rows]`` of valid rows under a gather reduction, else ``None``.
      bound: ``f32[]``, as in ``ClientContext``.
      public: public data for the server, or ``None``.
      aux: in a server update, the sums of what the clients' rule sent beside its update (``Message.aux``); else empty.
      noise_scale: factor of central noise; 1 but in a run that stands for a larger deployment (``agg.simulated``).
    """

    key: Key
    round: Any
    clients: Any
    expected_clients: float
    population: int
    mask: Any
    bound: Any
    public: Any = None
    aux: Mapping[str, Any] = {}
    noise_scale: Any = 1.0


# --- client rules ------------------------------------------------------------------------------------------

Broadcast = Any
ClientState = Any
Work = Any
Update = Any
"""A pytree; as a client sends it, it may be a ``Message``, where counts travel beside the update."""


class RuleInit(Protocol):
    """State of a client that takes part for the first time; persists between rounds. ``()`` for most rules."""

    def __call__(self, broadcast: Broadcast, /) -> ClientState: ...


class RuleBegin(Protocol):
    def __call__(self, broadcast: Broadcast, state: ClientState, ctx: ClientContext, /) -> Work: ...


class RuleStep(Protocol):
    def __call__(
        self, broadcast: Broadcast, work: Work, batch: Batch, ctx: StepContext, /
    ) -> tuple[Work, Metrics]: ...


class RuleFinish(Protocol):
    """What is sent (the update, or a ``Message`` where counts travel beside it), the state that is kept, metrics."""

    def __call__(
        self, broadcast: Broadcast, work: Work, state: ClientState, ctx: ClientContext, /
    ) -> tuple[Update, ClientState, Metrics]: ...


class RuleModel(Protocol):
    """The client's own model as its work stands: what it would predict with after the steps so far."""

    def __call__(self, broadcast: Broadcast, work: Work, /) -> Variables: ...


class RuleTraffic(Protocol):
    """Of a broadcast or of an encoded ``Message``, the arrays that really cross the network."""

    def __call__(self, whole: Any, /) -> PyTree: ...


class ClientRule(NamedTuple):
    """What a client does, cut so that an engine can interleave clients.

    Attributes:
      init: a client's first state.
      begin: broadcast and state to the working state.
      step: one local step.
      finish: the working state to the update that is sent and the state that is kept.
      model: reads the model out of the working state, to evaluate it. ``None`` where that is not known; for a rule
        that sends a ``Delta`` of the global model it then follows from the update.
      receives: what of the broadcast is counted as bytes down; ``None`` counts all of it.
      sends: what of the encoded message is counted as bytes up; ``None`` counts all of it. Neither changes a result:
        a program holds the messages of all groups in one shape, a network need not carry the padding.
      noise: what every step adds to the sum over its batch of what it learns from each example, for a claim about
        single examples; the multiplier is relative to the L2 bound on one example's share.
      most_steps: local steps that the working state has room for; ``None`` for any number.
    """

    init: RuleInit
    begin: RuleBegin
    step: RuleStep
    finish: RuleFinish
    model: RuleModel | None = None
    receives: RuleTraffic | None = None
    sends: RuleTraffic | None = None
    noise: Noise | None = None
    most_steps: int | None = None

    def __repr__(self) -> str:
        return f"ClientRule({_maker(self.step)})"


# --- transforms --------------------------------------------------------------------------------------------


class Message(NamedTuple):
    """What travels from a client to the sum.

    Attributes:
      value: pytree, what clipping, quantisers and noise act on.
      aux: counts that the client's rule sends beside its update, by name; summed and never clipped, quantised or
        noised. A layer may read and weight them; the server's update finds the sums in ``RoundContext.aux``.
      stack: small extras of the layers (weights, unclipped bits), treated likewise. ``encode`` pushes at most one
        entry, the same layer's ``decode`` pops it.
    """

    value: PyTree
    aux: Mapping[str, PyTree] = {}
    stack: tuple = ()


MessageSpec = Message
"""A ``Message`` whose leaves are ``jax.ShapeDtypeStruct``."""
ServerPart = Any
ClientPart = Any


Trust = Literal["central", "distributed", "local"]
"""What a server may see without harm: the clients' messages before the noise, the noisy sum alone, noisy messages."""


class Noise(NamedTuple):
    """What an accountant has to know of the noise that a layer adds.

    Attributes:
      law: by which an accountant knows its price, such as ``"gaussian"``.
      multiplier: scale of the noise on the SUM over the bound on one client's message: standard deviation over L2
        bound, for ``"laplace"`` scale over L1 bound. A number, traced or not, or a function of the round to one. Of local
        noise: scale of the noise on one client's message over the bound on it.
      details: what else the price depends on, by name, in JSON's types. ``"dimension": None`` asks the ledger to put in the
        number of coordinates of the message that the layer gets.
      trust: what a server may see without harm: ``"central"`` the clients' messages, as the noise comes after their sum;
        ``"distributed"`` that sum alone, ``"local"`` every message.
    """

    law: str
    multiplier: Any
    details: Mapping[str, Any] = {}
    trust: Trust = "central"


class Facts(NamedTuple):
    """What is true of a transform whatever its input; ``chain`` reads it to refuse wrong compositions.

    Attributes:
      name: how messages call the layer.
      reduction: how encoded messages are combined.
      limits_norm: the encoded value's L2 norm has a bound that does not depend on the data.
      breaks_bound: the encoded value may exceed a bound that held before it.
      divisor: what ``decode`` divides the sum by: nothing, a public constant, or something the data decides.
      noise: what the layer adds to the sum; ``None`` without noise.
      count_noise_std: standard deviation of the noise on the number of clients that the layer's next state depends
        on; ``None`` for layers that count nobody.
      deployment: the cohort sampler and the population that the layer's noise is scaled for, where they are not the run's.
      client_norms: ``f32[population]``, the bound on each client's own message; ``None`` where it is one for all.
      one_bound: the layer relates rounds to each other, and its noise is right only under one bound in all of them.
      norm: in which a clip limits the message, and of which a noise needs the bound. An L1 bound is an L2 bound as well.
      keeps_l1: the encoded value's L1 norm is at most that of the incoming one.
    """

    name: str
    reduction: Literal["sum", "modular_sum", "gather"] = "sum"
    limits_norm: bool = False
    breaks_bound: bool = False
    divisor: Literal["none", "public", "data"] = "none"
    noise: Noise | None = None
    count_noise_std: Any = None
    one_bound: bool = False
    norm: Literal["l2", "l1"] = "l2"
    keeps_l1: bool = False
    client_norms: Any = None
    deployment: tuple[Any, int] | None = None


class TransformInit(Protocol):
    def __call__(self, spec: MessageSpec, /) -> tuple[ServerPart, ClientPart]: ...


class TransformBound(Protocol):
    def __call__(self, server: ServerPart, incoming: Any, /) -> Any: ...


class TransformEncode(Protocol):
    def __call__(
        self, message: Message, client: ClientPart, server: ServerPart, ctx: ClientContext, /
    ) -> tuple[Message, ClientPart, Metrics]: ...


class TransformDecode(Protocol):
    def __call__(
        self, message: Message, server: ServerPart, ctx: RoundContext, /
    ) -> tuple[Message, ServerPart, Metrics]: ...


class Transform(NamedTuple):
    """One layer of an onion around the sum over clients.

    Attributes:
      init: the incoming message's shapes to the layer's parts of server and client state.
      bound: L2 bound of the encoded value, given the bound of the incoming one.
      encode: the client's side, before the sum.
      decode: the server's side, after it.
      facts: one ``Facts`` per layer; a chain has those of its parts.
      parts: the layers of a chain; ``None`` for a single layer.
    """

    init: TransformInit
    bound: TransformBound
    encode: TransformEncode
    decode: TransformDecode
    facts: tuple[Facts, ...]
    parts: tuple[Transform, ...] | None = None

    def __repr__(self) -> str:
        """Names of the layers; ``fs.aggregation.describe`` says what each does to a message."""
        return f"Transform({', '.join(fact.name for fact in self.facts)})"


# --- algorithms --------------------------------------------------------------------------------------------

ServerState = Any


class BroadcastFn(Protocol):
    def __call__(self, server: ServerState, /) -> Broadcast: ...


class ServerUpdate(Protocol):
    def __call__(
        self, server: ServerState, update: Update, ctx: RoundContext, /
    ) -> tuple[ServerState, Metrics]: ...


class Stage(NamedTuple):
    """One pass over the cohort.

    Attributes:
      broadcast: what the clients receive.
      client: the rule, or one rule per group of clients (models of other widths).
      aggregate: transforms around the sum over clients.
      update: the server's step with the decoded sum.
      local: changes the simulation's ``LocalWork`` for this stage; ``None`` leaves it.
    """

    broadcast: BroadcastFn
    client: ClientRule | Mapping[Any, ClientRule]
    aggregate: Transform
    update: ServerUpdate
    local: Callable[[Any], Any] | None = None

    def __repr__(self) -> str:
        rules = self.client.values() if isinstance(self.client, Mapping) else [self.client]
        return f"Stage({', '.join(map(repr, rules))}, {self.aggregate!r})"


class Algorithm(NamedTuple):
    """A client rule, a chain and a server update, once per stage.

    Attributes:
      name: for messages and files.
      task: whose ``init`` makes the first model and whose metrics evaluate it.
      init: first model to server state.
      stages: passes over the cohort, in order; one for most algorithms.
      params: the global model.
      personal: a client's own model, ``None`` when the algorithm has none.
    """

    name: str
    task: Task
    init: Callable[[Variables], ServerState]
    stages: tuple[Stage, ...]
    params: Callable[[ServerState], Variables]
    personal: Callable[[ServerState, ClientState], Variables] | None = None

    def __repr__(self) -> str:
        chains = (repr(stage.aggregate) if isinstance(stage, Stage) else "..." for stage in self.stages)
        return f"Algorithm({self.name}: {'; '.join(chains)})"


def _maker(function: Any) -> str:
    """The factory that a function was made in."""
    return getattr(function, "__qualname__", type(function).__name__).partition(".")[0]
