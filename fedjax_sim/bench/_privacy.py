"""What privacy costs in time: rounds of the same work with other chains around the sum, and the ledger.

All simulations live in one process and take turns; ``added`` is the median over repetitions of the time of a round over the
time with the plain mean in the same repetition, less 1. The ledger's time is that of making it, to JSON and back, once for
every chunk of ten rounds, given per round.

    fedjax-sim bench privacy
    fedjax-sim bench privacy -- --workloads emnist --repeats 9 --cores 1
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from fedjax_sim.bench import _measure

COLUMNS = ("workload", "chain", "ms a round", "min", "max", "added", "compile s")
ROUNDS_PER_CHUNK = 10


def chains(expected: float) -> dict:
    """Name to chain; the first is what the others are compared with."""
    from fedjax_sim import aggregation as agg

    mean, noise = agg.mean(over="expected_cohort"), agg.gaussian_noise(1.0)
    adaptive = agg.adaptive_clip(0.1, count_noise_std=expected / 20)
    return {
        "mean": mean,
        "clip, mean": agg.chain(agg.clip_by_global_norm(1.0), mean),
        "clip, mean, noise": agg.chain(agg.clip_by_global_norm(1.0), mean, noise),
        "adaptive clip, mean, noise": agg.chain(adaptive, mean, noise),
    }


def measure(workload: str, repeats: int, rounds: int) -> list[dict]:
    """Of each chain the seconds of a round; every repetition runs the same rounds from the same state."""
    import jax
    import optax

    from fedjax_sim import algorithms
    from fedjax_sim.bench._workloads import WORKLOADS
    from fedjax_sim.simulate import Simulation

    work = WORKLOADS[workload]
    data = work.data()
    expected = work.cohort.expected(data.num_clients)
    calls, compiled = {}, {}
    for name, chain in chains(expected).items():
        algorithm = algorithms.fedavg(work.task(), optax.sgd(work.learning_rate), optax.sgd(1.0), chain)
        sim = Simulation(algorithm, data, cohort=work.cohort, local=work.local, rounds_per_chunk=rounds)
        state = sim.init(0)
        _, history = sim.run(state, rounds)
        compiled[name] = history.costs.compile_seconds

        def call(sim=sim, state=state) -> float:
            start = time.perf_counter()
            jax.block_until_ready(sim.run(state, rounds)[0])
            return (time.perf_counter() - start) / rounds

        calls[name] = call
    times = _measure.interleaved(calls, repeats)
    plain = next(iter(times.values()))
    return [
        {
            "workload": workload, "chain": name, "seconds_per_round": _measure.spread(seconds),
            "added": statistics.median(mine / base for mine, base in zip(seconds, plain, strict=True)) - 1,
            "compile_seconds": compiled[name],
        }
        for name, seconds in times.items()
    ]  # fmt: skip


def ledger_seconds(rounds: int = 1000) -> float:
    """Per round: the ledger made anew after every chunk, to JSON and back, over a run of so many rounds."""
    from fedjax_sim import privacy
    from fedjax_sim.data import cohorts

    cohort, chain, chunks = (
        cohorts.poisson(0.01),
        chains(100.0)["adaptive clip, mean, noise"],
        rounds // ROUNDS_PER_CHUNK,
    )
    start = time.perf_counter()
    for chunk in range(1, chunks + 1):
        ledger = privacy.ledger_of(chain, cohort, 10_000, chunk * ROUNDS_PER_CHUNK)
        privacy.Ledger.from_json(json.loads(json.dumps(ledger.as_json())))
    return (time.perf_counter() - start) / rounds


def price_seconds(rounds: int = 1000) -> dict[str, float]:
    """Of one price of a run of so many rounds, for each accountant."""
    from fedjax_sim import privacy
    from fedjax_sim.data import cohorts

    ledger, found = privacy.ledger_of(1.0, cohorts.poisson(0.01), None, rounds), {}
    for accountant in ("pld", "rdp"):
        privacy.price(ledger, 1e-5, accountant=accountant)  # imports
        start = time.perf_counter()
        privacy.price(ledger, 1e-5, accountant=accountant)
        found[accountant] = time.perf_counter() - start
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the table, and writes the JSON where ``--out`` says."""
    parser = argparse.ArgumentParser(
        prog="fedjax-sim bench privacy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workloads", nargs="+", default=["logistic", "emnist"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=2, help="rounds of a repetition")
    parser.add_argument("--cores", type=int, default=None, help="of this process; all by default")
    parser.add_argument("--out", type=Path, default=None, help="where the JSON goes")
    args = parser.parse_args(arguments)
    cores = _measure.use_cores(args.cores) if hasattr(os, "sched_setaffinity") else os.cpu_count() or 1
    hardware = _measure.hardware(cores)
    rows = [row for name in args.workloads for row in measure(name, args.repeats, args.rounds)]
    _measure.print_table(COLUMNS, [
        (
            row["workload"], row["chain"], *(1e3 * row["seconds_per_round"][name] for name in ("median", "min", "max")),
            f"{row['added']:+.1%}", row["compile_seconds"],
        )
        for row in rows
    ])  # fmt: skip
    ledger, prices = ledger_seconds(), price_seconds()
    print(f"\nledger: {1e3 * ledger:.3f} ms a round in chunks of {ROUNDS_PER_CHUNK}; price of 1,000 rounds: " + ", ".join(
        f"{name.upper()} {seconds:.2f} s" for name, seconds in prices.items()
    ))  # fmt: skip
    if args.out is not None:
        content = {"hardware": hardware, "repeats": args.repeats, "rows": rows}
        _measure.write_json(args.out, content | {"ledger_seconds_per_round": ledger, "price_seconds": prices})
