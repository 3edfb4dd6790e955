"""What every benchmark here needs: the machine, its floor, interleaved timing, a table and a JSON file."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fedjax_sim._src import machine


def use_cores(count: int | None) -> int:
    """Pins this process to its first ``count`` cores (``None``: all); to be called before JAX is imported."""
    available = sorted(os.sched_getaffinity(0))
    chosen = available if count is None else available[:count]
    os.sched_setaffinity(0, chosen)
    return len(chosen)


def hardware(cores: int) -> dict[str, Any]:
    """Processor, accelerator and versions; the UTC day, the revision of this library, and the flags of XLA."""
    import flax
    import jax
    import jaxlib
    import numpy
    import optax

    return {
        "processor": machine.processor(),
        "cores": cores,
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.version.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "numpy": numpy.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "revision": _revision(Path(__file__).resolve().parents[1]),
        "xla_flags": os.environ.get("XLA_FLAGS") or None,
    }


def _revision(package: Path, seconds: float = 0.9) -> str | None:
    """Commit of the checkout that a package lies in, with ``+`` when tracked files differ from it.

    ``None`` without git, outside of a checkout, in one that does not track the package, and when git takes longer.
    """
    deadline = time.monotonic() + seconds

    def ask(*arguments: str) -> list[str]:
        # Without optional locks: killed at the deadline, git leaves none behind.
        command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(package), *arguments]
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=max(0.0, deadline - time.monotonic()),
            check=True,
            encoding="utf-8",
            errors="replace",
        )
        return done.stdout.splitlines()

    try:
        # An environment inside another project's checkout is not that project's revision.
        ask("ls-files", "--error-unmatch", "--", "__init__.py")
        lines = ask("status", "--porcelain=v2", "--branch", "--no-ahead-behind", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), "(initial)")
    if commit == "(initial)":  # git's word for a branch without commits
        return None
    return commit[:10] + "+" * any(not line.startswith("#") for line in lines)


def headline(hardware: Mapping[str, Any]) -> str:
    """What stands above a table: where it was measured."""
    where = f"{hardware['processor']}, {hardware['cores']} core(s), jax {hardware['jax']} on {hardware['backend']}"
    if hardware["backend"] == "cpu":
        return f"\n{where}"
    return f"\n{where}: {', '.join(dict.fromkeys(map(str, hardware['devices'])))}"


Precision = Literal["default", "high", "highest", "bfloat16"]
"""Of a product: what JAX calls the precision of float32 operands, or operands of bfloat16."""


def matmul_flops_per_second(
    precision: Precision = "default", size: int | None = None, repeats: int = 5
) -> float:
    """Best rate of large matrix products, one on every device at a time: the floor that shares are stated against.

    Args:
      precision: of the product.
      size: rows and columns; by default 2048 on CPU, and 8192 on accelerators, which a smaller product does not fill.
      repeats: products, after a first one.
    """
    import jax
    import jax.numpy as jnp

    size = (2048 if jax.default_backend() == "cpu" else 8192) if size is None else size
    narrow = precision == "bfloat16"
    product = jax.jit(lambda x: jnp.matmul(x, x, precision=None if narrow else precision))
    operand = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16 if narrow else jnp.float32)
    operands = [jax.device_put(operand, device) for device in jax.devices()]
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready([product(x) for x in operands])
        times.append(time.perf_counter() - start)
    return 2 * size**3 * len(operands) / min(times[1:])


def bytes_per_second(megabytes: int | None = None) -> float:
    """Best rate of all devices at a time at reading a large array, or at reading and writing one.

    The array has 256 MB on CPU and 1 GB on accelerators, which get ten at a time: to begin with one takes as long as to read
    some hundred MB.
    """
    import jax
    import jax.numpy as jnp

    on_cpu = jax.default_backend() == "cpu"
    megabytes, times = megabytes or (256 if on_cpu else 1024), 1 if on_cpu else 10
    arrays = [
        jax.device_put(jnp.zeros((megabytes * 2**18,), jnp.float32), device) for device in jax.devices()
    ]
    rates = []
    for function, moved in ((lambda x: -x, 2 * arrays[0].nbytes), (jnp.max, arrays[0].nbytes)):
        compiled = jax.jit(function)
        jax.block_until_ready([compiled(x) for x in arrays])
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(times):
                found = [compiled(x) for x in arrays]
            jax.block_until_ready(found)
            rates.append(times * moved * len(arrays) / (time.perf_counter() - start))
    return max(rates)


def interleaved(calls: Mapping[Any, Callable[[], float]], repeats: int) -> dict[Any, list[float]]:
    """Calls each in turn, ``repeats`` times over, so that a drift of the machine's speed meets all of them alike."""
    times: dict[Any, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(call())
    return times


def spread(values: Sequence[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Aligned text; the first column to the left, all others to the right."""
    cells = [list(columns), *[[_show(value) for value in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for index, row in enumerate(cells):
        print(
            "  ".join(
                x.ljust(w) if i == 0 else x.rjust(w) for i, (x, w) in enumerate(zip(row, widths, strict=True))
            )
        )
        if index == 0:
            print("  ".join("-" * width for width in widths))


def _show(value: Any) -> str:
    if isinstance(value, float):
        return (
            f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
        )
    return str(value)


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
