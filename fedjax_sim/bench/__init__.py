"""Benchmarks: speed as interleaved medians, compilation apart, beside a floor.

``BENCHMARKS`` maps a name to a function that takes command-line arguments; the command ``fedjax-sim bench`` and the
scripts under ``benchmarks/`` call the same. Each is imported when it is called: on an accelerator's image, which may have
jax, flax, optax and numpy alone, all run that need no more than these.
"""

import importlib
from collections.abc import Callable, Sequence

Main = Callable[..., None]


def _main(name: str) -> Main:
    def main(arguments: Sequence[str] | None = None) -> None:
        importlib.import_module(f"fedjax_sim.bench._{name}").main(arguments)

    return main


_NAMES = (
    "rounds",
    "published",
    "kernels",
    "scaling",
    "streaming",
    "privacy",
    "host",
    "accuracy",
    "peers",
    "compare",
)

BENCHMARKS: dict[str, Main] = {name: _main(name) for name in _NAMES}
"""Name to a function that takes a list of command-line arguments."""

__all__ = ["BENCHMARKS"]
