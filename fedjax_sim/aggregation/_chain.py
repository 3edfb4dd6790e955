"""Composition of transforms, and the refusal of compositions that would be wrong."""

from __future__ import annotations

import functools
from typing import Literal, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp

from fedjax_sim._src import checks, keys, tree
from fedjax_sim._src.types import Facts, Message, MessageSpec, Transform
from fedjax_sim.aggregation._reduce import example_client_context

_IDENTITY = Transform(
    init=lambda spec: ((), ()),
    bound=lambda server, incoming: incoming,
    encode=lambda message, client, server, ctx: (message, client, {}),
    decode=lambda message, server, ctx: (message, server, {}),
    facts=(Facts("identity"),),
)


def identity() -> Transform:
    """The transform that changes nothing: the plain sum of the clients' updates. ``chain`` drops it.

    Guarantees:
      ``chain(identity(), t)`` and ``chain(t, identity())`` are ``chain(t)``, keys included.
    """
    return _IDENTITY


def chain(*transforms: Transform) -> Transform:
    """Composes transforms into an onion around the sum over clients.

    ``encode`` runs first to last on the client, ``decode`` last to first on the server. Nested chains flatten and
    identities drop out, so keys do not depend on nesting.

    Guarantees:
      Associative, with ``identity()`` as its identity, wherever the inner chains can be built: noise needs its clip
      and its divisor in the chain that holds it.
      The bound that a layer sees is the fold of the bounds of the layers before it.
      What a rule sends beside its update is summed as it is; ``init`` refuses it with a gather, which sums nothing,
      and with noise, which would not cover it.

    Args:
      *transforms: layers, the client's first step first.

    Raises:
      TypeError: something that is no transform, such as a factory that was not called.
      ValueError: the order is wrong or the composition not private although it holds noise; the message names the
        layers and the order that would be right.

    Example:
      >>> from fedjax_sim import aggregation as agg
      >>> private = agg.chain(
      ...     agg.clip_by_global_norm(1.0), agg.mean(over="expected_cohort"), agg.gaussian_noise(0.8))
      >>> [fact.name for fact in private.facts]
      ['clip_by_global_norm', 'mean', 'gaussian_noise']
    """
    for transform in transforms:
        _check_transform(transform)
    layers = tuple(layer for transform in transforms for layer in layers_of(transform))
    facts = tuple(layer.facts[0] for layer in layers)
    _check_order(facts)
    gathers = bool(facts) and facts[0].reduction == "gather"
    names = _unique_names(facts)

    def init(spec: MessageSpec):
        _check_aux(facts, spec)
        parts = []
        for layer in layers:
            name = layer.facts[0].name
            server, client = checks.returned(f"{name}: init", layer.init(spec), "server part", "client part")
            if gathers and layer is not layers[0] and jax.tree.leaves(server):
                raise ValueError(
                    f"{name} keeps state on the server, but {facts[0].name} gathers messages, so that "
                    "every client's row is decoded on its own. Use a layer without server state inside it."
                )
            parts.append((server, client))
            spec = _encoded_spec(layer, spec, client, server)
        return tuple(server for server, _ in parts), tuple(client for _, client in parts)

    def bounds(server, incoming):
        result = [jnp.asarray(incoming, jnp.float32)]
        for layer, part in zip(layers, server, strict=True):
            result.append(jnp.asarray(layer.bound(part, result[-1]), jnp.float32))
        return result

    def encode(message, client, server, ctx):
        limits, parts, metrics = bounds(server, ctx.bound), [], {}
        for index, layer in enumerate(layers):
            here = ctx._replace(key=keys.fold(ctx.key, index), bound=limits[index])
            encoded = layer.encode(message, client[index], server[index], here)
            message, part, measured = checks.returned(
                f"{names[index]}: encode", encoded, "message", "client part", "metrics"
            )
            parts.append(part)
            metrics |= {f"{names[index]}/{name}": value for name, value in measured.items()}
        return message, tuple(parts), metrics

    def decode(message, server, ctx):
        limits, parts, metrics = bounds(server, ctx.bound), list(server), {}
        for index in reversed(range(len(layers))):
            here = ctx._replace(key=keys.fold(ctx.key, index), bound=limits[index])
            if gathers and index > 0:
                message = _decode_rows(layers[index], message, server[index], here)
                continue
            message, parts[index], measured = checks.returned(
                f"{names[index]}: decode", layers[index].decode(message, server[index], here),
                "message", "server part", "metrics",
            )  # fmt: skip
            metrics |= {f"{names[index]}/{name}": value for name, value in measured.items()}
        return message, tuple(parts), metrics

    return Transform(
        init, lambda server, incoming: bounds(server, incoming)[-1], encode, decode, facts, layers
    )


def _check_transform(transform) -> None:
    if isinstance(transform, Transform):
        if transform.parts is None:
            _check_facts(transform.facts)
        return
    what, fix = type(transform).__name__, "use the factories of fedjax_sim.aggregation, such as mean()"
    if callable(transform):
        name = getattr(transform, "__name__", what)
        what, fix = f"the function {name}", f"call it: {name}(...)"
    elif isinstance(transform, (list, tuple)):
        fix = "give the layers one by one: chain(*layers)"
    raise TypeError(f"chain was given {what}, expected a Transform: {fix}.")


_ACCEPTED = {
    name: get_args(hint) for name, hint in get_type_hints(Facts).items() if get_origin(hint) is Literal
}


def _check_facts(facts) -> None:
    """A single layer says who it is, in words that mean something."""
    if not isinstance(facts, tuple) or len(facts) != 1 or not isinstance(facts[0], Facts):
        raise TypeError(
            f"a transform has facts={facts!r}, expected a tuple of one Facts, which names the layer: "
            "facts=(Facts('my_layer'),)."
        )
    for name, accepted in _ACCEPTED.items():
        checks.one_of(f"{facts[0].name}: the fact {name}", getattr(facts[0], name), accepted)


def _unique_names(facts: tuple[Facts, ...]) -> list[str]:
    names = [fact.name for fact in facts]
    return [f"{name}_{index}" if names.count(name) > 1 else name for index, name in enumerate(names)]


def _encoded_spec(layer: Transform, spec: MessageSpec, client, server) -> MessageSpec:
    encoded, _, _ = jax.eval_shape(layer.encode, spec, client, server, example_client_context())
    return tree.spec(encoded)


def layers_of(transform: Transform) -> tuple[Transform, ...]:
    """The layers of a chain, or the one that a transform is; none of an identity."""
    if transform.parts is not None:
        return transform.parts
    return () if transform == _IDENTITY else (transform,)


def specs_of(transform: Transform, spec: MessageSpec) -> list[MessageSpec]:
    """The message before each layer, and after the last one."""
    specs = [spec]
    for layer in layers_of(transform):
        server, client = jax.eval_shape(functools.partial(layer.init, specs[-1]))
        specs.append(_encoded_spec(layer, specs[-1], client, server))
    return specs


def _decode_rows(layer: Transform, message: Message, server, ctx) -> Message:
    decode = lambda row: layer.decode(row, server, ctx)[0]  # noqa: E731
    return jax.vmap(decode)(message)


_PRIVATE_ORDER = "chain(clip_by_global_norm(C), mean(over='expected_cohort'), gaussian_noise(z))"


def _check_aux(facts: tuple[Facts, ...], spec: MessageSpec) -> None:
    """Refuses layers that cannot do right by what the clients send beside their updates."""
    if not jax.tree.leaves(spec.aux):
        return
    names = ", ".join(map(repr, sorted(spec.aux)))
    for fact in facts:
        if fact.reduction == "gather":
            raise ValueError(
                f"{fact.name} gathers the clients' messages, but the clients send {names} beside their updates, to be "
                f"summed: a coordinate or model that a client lacks would count as an update of zero. Aggregate with "
                "the algorithm's own mean (coverage_mean() for HeteroFL, mean_by_model() for IFCA), or let a rule of your "
                "own send everything inside its update."
            )
        if fact.noise is not None:
            raise ValueError(
                f"{fact.name} covers the clients' updates, but the clients send {names} beside them, which is neither "
                f"clipped nor noised: their exact sum would be released. Leave {fact.name} out, or use a rule that "
                "sends everything inside its update."
            )


def _check_order(facts: tuple[Facts, ...]) -> None:
    """Refuses what is wrong whatever the data; walks the layers in the order in which clients run them."""
    bounded, mean, gather, noise, central = False, None, None, None, None
    l1, l2_clip = False, None
    for index, fact in enumerate(facts):
        last = facts[index - 1] if index else None
        if last is not None and last.reduction == "modular_sum":
            raise ValueError(
                f"{fact.name} stands after {last.name}, which sends integers modulo a power of two: put {last.name} last, "
                f"chain(..., {fact.name}(...), {last.name}(...))."
            )
        if fact.reduction == "gather":
            if index > 0:
                raise ValueError(
                    f"{fact.name} gathers the messages of all clients and must stand first, so that it sees decoded "
                    f"rows: chain({fact.name}(...), {', '.join(f.name + '(...)' for f in facts[:index])}, ...)."
                )
            gather = fact
        if gather is not None and (fact.divisor != "none" or fact.noise is not None):
            raise ValueError(
                f"{fact.name} acts on a sum over clients, but {gather.name} gathers the messages instead of summing "
                f"them. Leave {fact.name} out, or aggregate with mean(...) instead of {gather.name}."
            )
        if fact.divisor != "none":
            if mean is not None:
                raise ValueError("chain has two means: the sum would be divided twice. Leave one out.")
            if noise is not None:
                raise ValueError(
                    f"{noise.name} stands before {fact.name}: decoding runs last to first, so the noise would be added "
                    f"to the mean instead of the sum, many times too strong. The right order: {_PRIVATE_ORDER}."
                )
            mean = fact
        if fact.limits_norm:
            if mean is not None and mean.divisor == "data":
                raise ValueError(
                    f"{fact.name} stands after a mean that weights by data: it would clip weighted updates. Clip "
                    f"precedes weighting: chain({fact.name}(...), {mean.name}(...))."
                )
            if noise is not None:
                raise ValueError(
                    f"{fact.name} stands after {noise.name}, whose noise is scaled to the bound before it. "
                    f"The right order: {_PRIVATE_ORDER}."
                )
            bounded = True
            l2_clip = fact if fact.norm == "l2" else l2_clip
        # The bound that a layer sees is the smallest of all clips': with an L2 clip among them it need not hold in L1.
        limits_l1 = fact.limits_norm and fact.norm == "l1"
        l1 = l2_clip is None and (limits_l1 or (l1 and (fact.keeps_l1 or fact.noise is not None)))
        if fact.noise is not None:
            noise = fact
            central = fact if fact.noise.trust == "central" else central
            for counting in facts[:index]:
                std = counting.count_noise_std
                if std is not None and fact.one_bound:
                    raise ValueError(
                        f"{fact.name} correlates the noise of rounds, whose scale must be that of one bound, but "
                        f"{counting.name} moves the bound from round to round. Use clip_by_global_norm(C), or gaussian_noise "
                        f"behind {counting.name}."
                    )
                if std is not None and fact.noise.trust != "central":
                    raise ValueError(
                        f"{fact.name} protects from a server that {counting.name} trusts: the clients send it a bit without "
                        f"noise of their own. Clip with clip_by_global_norm, or add gaussian_noise on the server."
                    )
                if std is not None and not checks.is_traced(std) and float(std) == 0:
                    raise ValueError(
                        f"{fact.name} stands behind {counting.name} with count_noise_std=0: the exact number of "
                        "unclipped clients would decide the next round's bound, and with it the model, so the release "
                        f"is not private. Set {counting.name}(count_noise_std=...); the paper uses 0.05 times the cohort."
                    )
            if not bounded:
                raise ValueError(
                    f"{fact.name} needs a bound on each client's message, and none holds where it stands: clip first, "
                    f"and after any layer that can raise the norm (error feedback). The right order: {_PRIVATE_ORDER}."
                )
            if fact.norm == "l1" and not l1:
                why = f"{l2_clip.name} bounds L2" if l2_clip else "no L1 bound holds where it stands"
                raise ValueError(
                    f"{fact.name} needs a bound on the L1 norm, but {why}. Clip with clip_by_l1_norm alone, and mix no "
                    f"coordinates after it: chain(clip_by_l1_norm(C), mean(over='expected_cohort'), {fact.name}(...))."
                )
            if mean is None or mean.divisor == "data":
                what = "no mean" if mean is None else "a mean whose divisor depends on the data"
                raise ValueError(
                    f"{fact.name} stands behind {what}. With noise the weights are uniform and the divisor is a "
                    "public constant: example-weighted averaging, or division by the clients that happened to come, "
                    f"with noise z*C/n is not private. Use {_PRIVATE_ORDER}."
                )
        if fact.breaks_bound:
            # Decoded last to first: noise on the server acts on the sum of what these layers made of the messages.
            # What a client noised itself is private already, whatever is done with it.
            if fact.noise is None and central is not None:
                raise ValueError(
                    f"{fact.name} stands after {central.name} and can raise the norm of what a client sends above the bound "
                    f"that the noise is scaled to. Put it in front of the clip: chain({fact.name}(...), "
                    f"clip_by_global_norm(C), mean(over='expected_cohort'), {central.name}(...))."
                )
            bounded = False
