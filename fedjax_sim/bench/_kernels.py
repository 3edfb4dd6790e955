"""Time of each form of each kernel, against the reference on the same cores, interleaved.

A convolution or pooling is timed as clients use it: value and gradients, ``vmap`` over clients' own weights, inside a
compiled loop. The floor is arithmetic at the rate of a large float32 matrix product, or bytes read and written once at
the rate of a large array, whichever is longer. The form that is used on this backend is marked with a star. On an
accelerator the Pallas forms are timed, too, and each group is compiled ahead, side by side on the cores that are given.

    fedjax-sim bench kernels                               # one core, table
    fedjax-sim bench kernels -- --only conv --clients 4
    fedjax-sim bench kernels -- --cores all                # on an accelerator: compiles the faster
"""

from __future__ import annotations

import argparse
import functools
import importlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from fedjax_sim_kernels import (
    backends,
    clipping,
    conv,
    draws,
    lstm,
    modular,
    order,
    packing,
    pooling,
    products,
)
from fedjax_sim_kernels.clipping import reference as clipping_reference
from fedjax_sim_kernels.clipping import shapes as clipping_shapes
from fedjax_sim_kernels.clipping import streamed
from fedjax_sim_kernels.conv import dispatch as conv_dispatch
from fedjax_sim_kernels.conv import shapes as conv_shapes
from fedjax_sim_kernels.conv import winograd
from fedjax_sim_kernels.lstm import reference as lstm_reference
from fedjax_sim_kernels.lstm import shapes as lstm_shapes
from fedjax_sim_kernels.modular import reference as modular_reference
from fedjax_sim_kernels.modular import shapes as modular_shapes
from fedjax_sim_kernels.modular import subtracting
from fedjax_sim_kernels.order import network, reference
from fedjax_sim_kernels.order import shapes as order_shapes
from fedjax_sim_kernels.packing import shapes as packing_shapes
from fedjax_sim_kernels.pooling import dispatch as pooling_dispatch
from fedjax_sim_kernels.pooling import shapes as pooling_shapes
from fedjax_sim_kernels.products import shapes as products_shapes

from fedjax_sim.bench import _measure

COLUMNS = ("kernel", "shape", "form", "ms", "min", "max", "floor ms", "of floor", "x reference", "compile s")
_TARGET_SECONDS = 0.02
_MOST_REPETITIONS = 50


class Case(NamedTuple):
    """One shape of one kernel.

    Attributes:
      kernel: the package's name.
      shape: the case's name.
      forms: what is timed, by name; each takes ``arguments``.
      used: the form that the package uses on this backend.
      arguments: arrays.
      flops: of one call, for the floor.
      bytes: that one call has to move.
    """

    kernel: str
    shape: str
    forms: dict[str, Callable[..., Any]]
    used: str
    arguments: tuple
    flops: float
    bytes: float


def _clients_train(function: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Value and gradients for every client, where they would stand: inside a loop."""

    def once(_, arguments):
        total = lambda *own: 1e-6 * jnp.sum(jax.nn.relu(function(*own)) ** 2)  # noqa: E731
        moved = jax.vmap(jax.grad(total, argnums=tuple(range(len(arguments)))))(*arguments)
        return jax.tree.map(lambda x, g: x - 1e-3 * g, arguments, moved)

    return lambda *arguments: jax.lax.fori_loop(0, 2, once, arguments)


def conv_cases(clients: int) -> Iterator[Case]:
    for shape in conv_shapes.MODELS:
        x, kernel = shape.arguments(0, clients)
        spec = shape.spec
        names: list[conv_dispatch.Form] = ["reference", "slices", "shifted"]
        if max(spec.lhs_dilation) > 1:
            names.append("overlap")
        if winograd.supports(x, kernel[0], spec):
            names.append("winograd")
        pallas = backends.current() == "nvidia" or jax.default_backend() == "tpu"
        if pallas and conv_dispatch.module_of("pallas").supports(x[0], kernel[0], spec):
            names.append("pallas")
        forms = {name: _clients_train(functools.partial(conv.conv, spec=spec, form=name)) for name in names}
        used = conv.choose(x[0], kernel[0], spec)[0].replace("vendor", "reference")
        out = jax.eval_shape(lambda x, k, spec=spec: conv.conv(x[0], k[0], spec, "reference"), x, kernel)
        # Forward and two gradients; between dilated elements stand zeros, which nobody need multiply with.
        useful = out.size * kernel[0].size / kernel.shape[-1] / math.prod(spec.lhs_dilation)
        moved = 4 * clients * (3 * shape_bytes(x[0], out) + 3 * kernel[0].size)
        yield Case("conv", shape.name, forms, used, (x, kernel), 2 * clients * 6 * useful, 2 * moved)


def shape_bytes(*arrays: Any) -> int:
    """Elements of arrays, or of their specs."""
    return sum(math.prod(array.shape) for array in arrays)


def product_cases(clients: int) -> Iterator[Case]:
    """Dense layers and recurrences."""
    for shape in products_shapes.MODELS:
        forms = {"reference": products.reference, "contract": products.product}
        arguments = shape.arguments(0, clients)
        x, w = (value.size for value in arguments)
        flops = 6 * x * shape.features
        moved = 4 * 3 * (x + w + clients * shape.rows * shape.features)
        trained = {name: _clients_train(form) for name, form in forms.items()}
        yield Case("products", shape.name, trained, "contract", arguments, 2 * flops, 2 * moved)
    for shape in lstm_shapes.MODELS:
        forms = {"reference": _clients_train(lstm_reference.lstm), "hoisted": _clients_train(lstm)}
        arguments = tuple(
            jnp.asarray(0.05 * draws.normal(0, 0, clients, *size)) for size in (shape.inputs, shape.recurrent)
        )
        flops = 6 * clients * shape.time * shape.batch * 4 * shape.size**2
        # The matrix is read at every time, forth and back: it is larger than a core's own cache.
        moved = 2 * shape.time * arguments[1].nbytes
        yield Case("lstm", shape.name, forms, "hoisted", arguments, 2 * flops, 2 * moved)


def pooling_cases(clients: int) -> Iterator[Case]:
    for shape in pooling_shapes.MODELS:
        x = jnp.asarray(draws.normal(0, 0, clients, *shape.x))
        for kind in shape.kinds:
            spec = shape.spec(kind)
            used = pooling.choose(x[0], spec)[0]
            names: list[pooling_dispatch.Form] = ["reference", "slices", "whole"]
            forms = {
                name: _clients_train(functools.partial(pooling.pool, spec=spec, form=name))
                for name in names
                if name in ("reference", "slices", used)
            }
            yield Case("pooling", f"{shape.name} {kind}", forms, used, (x,), 0, 2 * 4 * 3 * x.size)


def sum_cases(clients: int) -> Iterator[Case]:
    """Kernels of the server's side, whose number of clients is the shape's."""
    del clients
    for shape in clipping_shapes.MODELS:
        forms = {"reference": clipping_reference.clip_and_sum, "streamed": streamed.clip_and_sum}
        forms |= _on_accelerators("clipping", "clip_and_sum")
        arguments = shape.arguments(0)
        yield Case("clipping", shape.name, forms, clipping.choose(), arguments, 0, 2 * arguments[0].nbytes)
    for shape in packing_shapes.MODELS:
        bits = shape.bits
        forms = {"reference": lambda x, u, bits=bits: packing.quantise_and_pack(x, u, bits)}
        forms |= _on_accelerators("packing", "quantise_and_pack", bits=bits)
        arguments = shape.arguments(0)
        yield Case("packing", shape.name, forms, "reference", arguments, 0, 3 * arguments[0].nbytes)
    for shape in modular_shapes.MODELS:
        modulus = shape.modulus
        forms = {
            "reference": lambda r, v, m=modulus: modular_reference.masked_sum(r, v, m),
            "subtracting": lambda r, v, m=modulus: subtracting.masked_sum(r, v, m),
            **_on_accelerators("modular", "masked_sum", modulus=modulus),
        }
        arguments = shape.arguments(0)
        yield Case("modular", shape.name, forms, modular.choose(), arguments, 0, arguments[0].nbytes)
    for shape in order_shapes.MODELS:
        forms = {
            "reference": reference.median,
            "network": network.median,
            **_on_accelerators("order", "median"),
        }
        arguments = shape.arguments(0)
        used = order.choose(arguments[0])
        yield Case("order", f"{shape.name} median", forms, used, arguments, 0, arguments[0].nbytes)
        trim = jnp.asarray(len(arguments[0]) // 10)
        forms = {
            "reference": functools.partial(reference.trimmed_mean, trim=trim),
            "network": functools.partial(network.trimmed_mean, trim=trim),
            **_on_accelerators("order", "trimmed_mean", trim=trim),
        }
        yield Case("order", f"{shape.name} trimmed mean", forms, used, arguments, 0, arguments[0].nbytes)


def _on_accelerators(kernel: str, function: str, **settings: Any) -> dict[str, Callable[..., Any]]:
    """The Pallas form where there is a device to compile it for; Pallas is imported then, not with the command line."""
    if jax.default_backend() == "cpu":
        return {}
    name = "pallas_tpu" if jax.default_backend() == "tpu" else "pallas"
    module = importlib.import_module(f"fedjax_sim_kernels.{kernel}.{name}")
    return {"pallas": functools.partial(getattr(module, function), **settings)}


GROUPS = {"conv": conv_cases, "pooling": pooling_cases, "products": product_cases, "sums": sum_cases}


def compiled_cases(
    cases: Iterable[Case], threads: int
) -> Iterator[tuple[Case, Mapping[str, Callable[[], tuple[Callable[..., Any], float]]]]]:
    """Each case with a function per form that returns its program, or raises what compiling raised.

    On an accelerator all are compiled at once, before any is timed: 72 programs took half a minute that way on 16 cores,
    and minutes one by one. On CPU they are compiled one by one, for several would share the memory and the cores of what is timed.
    """
    if jax.default_backend() == "cpu":
        for case in cases:
            yield case, {name: functools.partial(_program, form, case) for name, form in case.forms.items()}
        return
    with ThreadPoolExecutor(threads) as pool:
        found = [
            (case, {name: pool.submit(_program, form, case).result for name, form in case.forms.items()})
            for case in cases
        ]
    yield from found


def _program(form: Callable[..., Any], case: Case) -> tuple[Callable[..., Any], float]:
    """A form compiled, and the seconds that it took; side by side with others, where they are."""
    start = time.perf_counter()
    return jax.jit(form).lower(*case.arguments).compile(), time.perf_counter() - start


def measure(
    case: Case,
    programs: Mapping[str, Callable[[], tuple[Callable[..., Any], float]]],
    repeats: int,
    rate: float,
    bandwidth: float,
) -> list[dict]:
    """One row per form, interleaved."""
    calls, compile_seconds = {}, {}
    for name, program in programs.items():
        try:
            compiled, compile_seconds[name] = program()
            jax.block_until_ready(compiled(*case.arguments))
        except Exception as error:
            print(f"{case.kernel} {case.shape}: {name} does not run here, {type(error).__name__}: {error}")
            continue
        start = time.perf_counter()
        jax.block_until_ready(compiled(*case.arguments))
        times = max(1, min(_MOST_REPETITIONS, int(_TARGET_SECONDS / (time.perf_counter() - start))))

        def call(compiled=compiled, times=times) -> float:
            start = time.perf_counter()
            for _ in range(times):
                result = compiled(*case.arguments)
            jax.block_until_ready(result)
            return (time.perf_counter() - start) / times

        calls[name] = call
    found = _measure.interleaved(calls, repeats)
    floor = max(case.flops / rate, case.bytes / bandwidth)
    return [
        {
            "kernel": case.kernel, "shape": case.shape, "form": name, "used": name == case.used,
            "seconds": _measure.spread(seconds), "floor_seconds": floor,
            "share_of_floor": floor / _measure.spread(seconds)["median"],
            "times_reference": _measure.spread([a / b for a, b in zip(found["reference"], seconds, strict=True)]),
            "compile_seconds": compile_seconds[name],
        }
        for name, seconds in found.items()
    ]  # fmt: skip


def show(rows: Sequence[dict]) -> None:
    table = [
        (
            row["kernel"], row["shape"], row["form"] + (" *" if row["used"] else ""),
            *(1e3 * row["seconds"][name] for name in ("median", "min", "max")), 1e3 * row["floor_seconds"],
            f"{row['share_of_floor']:.0%}", f"{row['times_reference']['median']:.2f}", row["compile_seconds"],
        )
        for row in rows
    ]  # fmt: skip
    _measure.print_table(COLUMNS, table)
    for key in dict.fromkeys((row["kernel"], row["shape"]) for row in rows):
        forms = [row for row in rows if (row["kernel"], row["shape"]) == key]
        best = min(forms, key=lambda row: row["seconds"]["median"])
        used = next((row for row in forms if row["used"]), None)
        if used is not None and used["seconds"]["median"] > 1.1 * best["seconds"]["median"]:
            loss = used["seconds"]["median"] / best["seconds"]["median"]
            print(f"{' '.join(key)}: {used['form']} is used, {best['form']} is {loss:.2f} times as fast here")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the table, and writes the JSON where ``--out`` says."""
    parser = argparse.ArgumentParser(
        prog="fedjax-sim bench kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--shapes", nargs="+", default=None, help="names of shapes; all by default")
    parser.add_argument("--clients", type=int, default=1, help="clients that train side by side")
    parser.add_argument("--cores", default="1", help="a number, or 'all'")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None, help="where the JSON goes")
    args = parser.parse_args(arguments)
    cores = _measure.use_cores(None if args.cores == "all" else int(args.cores))
    rate, bandwidth = _measure.matmul_flops_per_second(), _measure.bytes_per_second()
    hardware = _measure.hardware(cores)
    print(
        f"\n{hardware['processor']}, {cores} core(s), jax {hardware['jax']} on {hardware['backend']}; matrix product "
        f"{rate / 1e9:.0f} GFLOP/s, memory {bandwidth / 1e9:.0f} GB/s, {args.clients} client(s)\n"
    )
    rows = []
    for name in args.only:
        cases = GROUPS[name](args.clients)
        wanted = (case for case in cases if args.shapes is None or case.shape.split()[0] in args.shapes)
        for case, programs in compiled_cases(wanted, threads=cores):
            rows += measure(case, programs, args.repeats, rate, bandwidth)
    show(rows)
    if args.out is not None:
        _measure.write_json(args.out, {
            "hardware": hardware, "matmul_flops_per_second": rate, "bytes_per_second": bandwidth,
            "clients": args.clients, "repeats": args.repeats, "rows": rows,
        })  # fmt: skip
