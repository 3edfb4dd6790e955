"""What a chain does to a client's message, layer by layer, as a table to read."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from fedjax_sim._src import checks, tree
from fedjax_sim._src.types import Facts, Message, PyTree, Transform
from fedjax_sim.aggregation._chain import chain, layers_of, specs_of

_LAWS = {
    "gaussian": "Gaussian noise on the sum; Renyi DP of alpha / (2 z^2) a release, or its privacy loss distribution",
    "tree_gaussian": "Gaussian noise on the nodes of a tree of sums; one Gaussian release for each tree that a client is in, of the "
    "sensitivity of its levels (Kairouz et al. 2021)",
    "banded_gaussian": "Gaussian noise correlated over rounds; one Gaussian release for each time that a client takes part, at least "
    "the bands apart (Choquette-Choo et al. 2023)",
    "filtered_gaussian": "Gaussian noise on the sum; no client pays more than its budget, in however many rounds (Feldman and Zrnic 2021)",
    "laplace": "Laplace noise on the sum; 1 / z a release without amplification, or less by its privacy loss distribution",
    "discrete_gaussian": "discrete Gaussian noise of every client, seen as a sum; Renyi DP (Kairouz et al. 2021, proposition 14)",
    "skellam": "Skellam noise of every client, seen as a sum; Renyi DP (Agarwal et al. 2021, theorem 3.5)",
    "local_gaussian": "Gaussian noise on each message; paid once for each participation, without amplification",
    "local_laplace": "Laplace noise on each message; paid once for each participation, without amplification",
}


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """One layer of a chain, and the message as it leaves the layer on the client's side.

    Attributes:
      layer: its name.
      bound: on the message's norm after the layer, with the state before the first round; infinite where there is none.
      norm: of the bound, ``"l2"`` or ``"l1"``.
      dtypes: of what is sent.
      bits: of one client's message, extras of the layers included.
      reduction: how the clients' messages are combined.
      noise: what the layer adds; empty without noise.
    """

    layer: str
    bound: float
    norm: str
    dtypes: tuple[str, ...]
    bits: int
    reduction: str
    noise: str


@dataclasses.dataclass(frozen=True)
class Description:
    """A chain as a table; ``str`` of it is for reading.

    Attributes:
      rows: one per layer, in the order in which clients run them.
      coordinates: numbers in the message before any layer.
      bits: of that message.
      reduction: of the whole chain.
      price: what the price of its noise follows from; empty without noise.
    """

    rows: tuple[LayerRow, ...]
    coordinates: int
    bits: int
    reduction: str
    price: str

    def __str__(self) -> str:
        head = ("layer", "bound", "sent as", "bits/client", "reduction", "noise")
        first = ("(update)", "-", "", f"{self.bits:,}", "", "")
        table = [head, first] + [
            (
                row.layer,
                "none" if math.isinf(row.bound) else f"{row.bound:.4g} ({row.norm})",
                " ".join(row.dtypes),
                f"{row.bits:,}",
                row.reduction,
                row.noise,
            )
            for row in self.rows
        ]
        widths = [max(len(line[column]) for line in table) for column in range(len(head))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in table
        ]
        lines.append(f"{self.coordinates:,} coordinates, reduced by {self.reduction.replace('_', ' ')}")
        lines.append(f"price: {self.price or 'no noise, so there is none'}")
        return "\n".join(lines)


def describe(transform: Transform, message: PyTree) -> Description:
    """Says what each layer of a chain does to a client's message.

    Args:
      transform: a layer or a chain.
      message: one client's update, or its ``ShapeDtypeStruct``; a ``Message`` of such, where counts travel beside it.

    Raises:
      ValueError: the refusals of ``chain`` and of the layers for this message.

    Example:
      >>> import jax.numpy as jnp
      >>> from fedjax_sim import aggregation as agg
      >>> private = agg.chain(
      ...     agg.clip_by_global_norm(0.5), agg.mean(over="expected_cohort"),
      ...     agg.hadamard_rotation(), agg.discrete_gaussian_noise(0.8, min_clients=100, bits=16))
      >>> table = agg.describe(private, {"w": jnp.zeros((20, 5)), "b": jnp.zeros(20)})
      >>> [row.bits for row in table.rows], table.reduction
      ([3840, 3840, 4096, 2080], 'modular_sum')
      >>> print(str(table).splitlines()[0])
      layer                    bound     sent as  bits/client  reduction    noise
    """
    layers = chain(transform)
    spec = message if isinstance(message, Message) else Message(message)
    specs = specs_of(layers, tree.spec(spec))
    server, _ = layers.init(specs[0])
    rows, bound, norm = [], jnp.float32(jnp.inf), "l2"
    for layer, part, after in zip(layers_of(layers), server, specs[1:], strict=True):
        fact = layer.facts[0]
        bound = layer.bound(part, bound)
        norm = fact.norm if fact.limits_norm else norm
        rows.append(
            LayerRow(
                layer=fact.name,
                bound=float(bound),
                norm=norm,
                dtypes=tuple(dict.fromkeys(str(x.dtype) for x in jax.tree.leaves(after.value))),
                bits=message_bits(after, fact),
                reduction=fact.reduction,
                noise=_noise_text(fact),
            )
        )
    facts = layers.facts
    special = [fact.reduction for fact in facts if fact.reduction != "sum"]
    return Description(
        rows=tuple(rows),
        coordinates=tree.size(specs[0].value),
        bits=message_bits(specs[0], None),
        reduction=special[0] if special else "sum",
        price=_price_text(facts),
    )


def message_bits(message: Message, fact: Facts | None) -> int:
    """Of an encoded message and its last layer; numbers modulo ``2^bits`` need so many each, in whatever type the program holds them."""
    own = fact.noise.details.get("bits") if fact is not None and fact.noise is not None else None
    beside = 8 * tree.num_bytes((message.aux, message.stack))
    return beside + (8 * tree.num_bytes(message.value) if own is None else own * tree.size(message.value))


def _price_text(facts: tuple[Facts, ...]) -> str:
    """Of every law once; what is simulated says so."""
    laws = dict.fromkeys(fact.noise.law for fact in facts if fact.noise is not None)
    if not laws:
        return ""
    found = [_LAWS.get(law, f"noise of the law {law}") for law in laws]
    if any(_counts(fact) for fact in facts):
        found.append("and the noise on the count, which is released with the sum")
    if any(fact.deployment is not None for fact in facts):
        found.append("all of it that of a simulated deployment, not of the run")
    return "; ".join(found)


def _counts(fact: Facts) -> bool:
    std = fact.count_noise_std
    return std is not None and (checks.is_traced(std) or float(std) > 0)


def _noise_text(fact: Facts) -> str:
    noise = fact.noise
    if noise is not None:
        least = noise.details.get("min_clients")
        where = "on each message" if noise.trust == "local" else "on the sum"
        text = f"{noise.law} {_scale(noise.multiplier)} x bound {where}" + (
            f" of {least} clients" if least else ""
        )
    elif _counts(fact):
        text = f"gaussian {_scale(fact.count_noise_std)} on the count"
    else:
        return ""
    return text if fact.deployment is None else f"{text}, simulated: less in the run"


def _scale(z) -> str:
    return "a schedule" if callable(z) else "traced" if checks.is_traced(z) else f"{float(z):g}"
