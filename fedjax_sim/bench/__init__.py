"""Benchmarks: speed as interleaved medians, compilation apart, beside a floor.

``BENCHMARKS`` maps a name to a function that takes command-line arguments; the command ``fedjax-sim bench`` and the
scripts under ``benchmarks/`` call the same.
"""

from fedjax_sim.bench import _compare, _host, _kernels, _peers, _privacy, _rounds, _scaling, _streaming

BENCHMARKS = {
    "rounds": _rounds.main,
    "kernels": _kernels.main,
    "scaling": _scaling.main,
    "streaming": _streaming.main,
    "privacy": _privacy.main,
    "host": _host.main,
    "peers": _peers.main,
    "compare": _compare.main,
}
"""Name to a function that takes a list of command-line arguments."""

__all__ = ["BENCHMARKS"]
