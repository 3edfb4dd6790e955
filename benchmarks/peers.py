"""Other simulators at the same work: ``fedjax-sim bench peers`` from a checkout."""

from fedjax_sim.bench import BENCHMARKS

if __name__ == "__main__":
    BENCHMARKS["peers"]()
